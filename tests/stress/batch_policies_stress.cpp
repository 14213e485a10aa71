#include <cobatch/batch_predict.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <random>
#include <stdexcept>
#include <stop_token>
#include <utility>
#include <vector>

#include <cobatch/adaptive_limit.hpp>
#include <cobatch/error.hpp>
#include <cobatch/expected.hpp>
#include <cobatch/rate_limiter.hpp>
#include <cobatch/semaphore.hpp>
#include <cobatch/sync_wait.hpp>
#include <cobatch/task.hpp>
#include <cobatch/thread_pool.hpp>

#include "support/catch.hpp"
#include "support/effort.hpp"
#include "support/generated.hpp"
#include "support/lifetimes.hpp"
#include "support/outline.hpp"

using cobatch::async_semaphore;
using cobatch::batch_options;
using cobatch::batch_predict;
using cobatch::errc;
using cobatch::error;
using cobatch::expected;
using cobatch::rate_limiter;
using cobatch::sync_wait;
using cobatch::task;
using cobatch::thread_pool;
using namespace std::chrono_literals;

// All policies at once on real threads and real timers. A lost lane or a lost wake-up shows as a hang, which ctest's
// time limit ends.

namespace {

struct shared_things {
  thread_pool& pool;
  async_semaphore semaphore;
  rate_limiter rate;
  cobatch::adaptive_limit limit;
};

std::uint32_t mixed(std::uint32_t bits) {
  bits = (bits ^ (bits >> 16)) * 0x85ebca6bu;
  bits = (bits ^ (bits >> 13)) * 0xc2b2ae35u;
  return bits ^ (bits >> 16);
}

/// One random batch, on whichever threads; checks what may be said of it.
class trial {
 public:
  trial(std::uint32_t seed, shared_things& shared) : seed_(seed), shared_(shared) {
    std::mt19937 random(seed);
    const auto pick = [&](std::uint32_t least, std::uint32_t most) { return least + random() % (most - least + 1); };
    const auto chance = [&](std::uint32_t one_in) { return random() % one_in == 0; };
    samples_ = std::vector<sample_log>(pick(1, 100));
    for (std::size_t i = 0; i < samples_.size(); ++i) samples_[i].index = i;
    single_pass_ = chance(2);
    if (chance(2)) options_.max_concurrency = pick(1, 8);
    if (chance(3)) options_.semaphore = &shared.semaphore;
    if (chance(4)) options_.rate = &shared.rate;
    if (chance(4)) options_.limit = &shared.limit;
    if (!single_pass_ && chance(2)) options_.max_weight = pick(3, 10);
    if (chance(3)) options_.timeout = std::chrono::microseconds(pick(50, 1000));
    if (chance(6)) options_.deadline = std::chrono::microseconds(pick(100, 20'000));
    if (chance(6)) options_.max_failures = pick(1, 10);
    if (chance(4)) options_.queue_timeout = std::chrono::microseconds(pick(50, 2000));
    if (!chance(3)) {
      options_.retry = {.max_attempts = static_cast<std::uint32_t>(pick(2, 4)),
                        .initial_backoff = std::chrono::microseconds(pick(0, 300)),
                        .seed = 1 + seed};
      if (chance(4)) options_.retry.budget = 0.5;
    }
    if (!chance(3)) {
      options_.hedge = {.delay = std::chrono::microseconds(pick(0, 300)), .max_extra = 0.5};
      if (chance(2)) options_.hedge.quantile = 0.8;
    }
    if (chance(4)) {
      options_.stop = stop_;
      stopper_ = pick(0, static_cast<std::uint32_t>(samples_.size()));
    }
  }

  task<int> run() {
    if (single_pass_) {
      auto range = generated([this, i = std::size_t{0}]() mutable {
        return i < samples_.size() ? std::optional(tracked(lives_, static_cast<int>(i++))) : std::nullopt;
      });
      single_pass predict{this};
      results_ = co_await batch_predict(shared_.pool, std::move(range), predict, options_);
    } else {
      auto predict = cobatch::weighted(in_place{this}, cost{});
      results_ = co_await batch_predict(shared_.pool, samples_, predict, options_);
    }
    co_return 0;
  }

  /// On the thread of the test, for Catch's sake.
  void check() const {
    const auto& results = results_;
    if (!single_pass_) CHECK(results.size() == samples_.size());
    CHECK(flight_.inside() == 0);
    CHECK(lives_.alive == 0);
    CHECK(weight_ == 0);
    if (options_.max_concurrency != cobatch::unlimited)
      CHECK(flight_.most() <= static_cast<long>(options_.max_concurrency));
    if (options_.max_weight != cobatch::unlimited) CHECK(most_weight_ <= options_.max_weight);
    const bool halts = options_.max_failures != cobatch::unlimited || options_.deadline != cobatch::no_timeout ||
                       stopper_ < samples_.size();
    CHECK((results.size() == samples_.size() || (halts && results.size() < samples_.size())));
    for (std::size_t i = 0; i < results.size(); ++i) {
      const int calls = samples_[i].calls;
      bool right = results[i].has_value() == (samples_[i].values > 0);
      if (results[i]) {
        right = right && *results[i] == static_cast<int>(i);
      } else {
        const error& why = results[i].error();
        right = right && why.attempts == static_cast<std::uint32_t>(calls);
        if (why.code == errc::not_started) right = right && calls == 0 && halts;
        if (why.code == errc::cost_exceeds_capacity || why.code == errc::executor_stopped) right = false;
      }
      if (!right) FAIL_CHECK("sample " << i << ": " << outline(results[i]) << ", calls " << calls);
    }
    for (std::size_t i = results.size(); i < samples_.size(); ++i) CHECK(samples_[i].calls == 0);
  }

 private:
  struct sample_log {
    std::size_t index = 0;
    std::atomic<int> calls = 0, values = 0;
    sample_log() = default;
    sample_log(const sample_log&) {}
  };
  struct in_place {
    trial* self;
    task<int> operator()(const sample_log& sample, std::stop_token token) const {
      return self->predict(sample.index, nullptr, token);
    }
  };
  struct single_pass {
    trial* self;
    task<int> operator()(const tracked& sample, std::stop_token token) const {
      return self->predict(static_cast<std::size_t>(sample.number()), &sample, token);
    }
  };
  struct cost {
    std::size_t operator()(const sample_log& sample) const { return weight(sample.index); }
  };
  static std::size_t weight(std::size_t sample) { return 1 + sample % 3; }

  task<int> predict(std::size_t sample, const tracked* lazy, std::stop_token token) {
    const auto inside = flight_.enter();
    sample_log& own = samples_.at(sample);
    const int call = ++own.calls;
    const std::size_t now = weight_ += weight(sample);
    for (std::size_t seen = most_weight_; seen < now && !most_weight_.compare_exchange_weak(seen, now);) {}
    const std::uint32_t dice =
        mixed(seed_ ^ mixed(static_cast<std::uint32_t>(sample * 16) + static_cast<std::uint32_t>(call)));
    bool stopped = false;
    switch (dice % 5) {
      case 0:
        break;
      case 1:
        co_await shared_.pool.schedule();
        break;
      case 2:
        stopped = !co_await shared_.pool.schedule_after(std::chrono::microseconds(dice % 1000), token);
        break;
      default:
        stopped = !co_await shared_.pool.schedule_after(std::chrono::microseconds(dice % 100), token);
    }
    if (sample == stopper_) stop_.request_stop();
    if (lazy && lazy->number() != static_cast<int>(sample))
      throw std::logic_error("the sample did not live long enough");
    weight_ -= weight(sample);
    if (stopped) throw std::runtime_error("stopped");
    if ((dice >> 16) % 4 == 0) throw std::runtime_error("planned");
    if ((dice >> 16) % 16 == 1) throw cobatch::retry_later(std::chrono::microseconds(100));
    ++own.values;
    co_return static_cast<int>(sample);
  }

  const std::uint32_t seed_;
  shared_things& shared_;
  std::vector<sample_log> samples_;
  batch_options options_;
  bool single_pass_ = false;
  std::size_t stopper_ = cobatch::unlimited;
  std::stop_source stop_;
  gauge flight_;
  census lives_;
  std::vector<expected<int, error>> results_;
  std::atomic<std::size_t> weight_ = 0, most_weight_ = 0;
};

}  // namespace

TEST_CASE("policies stress: all of them at once, on several threads, lose no permit and no sample") {
  const std::uint32_t seed = stress_seed();
  INFO("COBATCH_TEST_SEED=" << seed);
  std::mt19937 random(seed);
  for (std::size_t threads = 2; threads <= 4; ++threads) {
    thread_pool pool(threads);
    for (int round = 0; round < effort(600); ++round) {
      shared_things shared{pool, async_semaphore(3 + random() % 6), rate_limiter(20'000, 10),
                           cobatch::adaptive_limit()};
      trial first(static_cast<std::uint32_t>(random()), shared), second(static_cast<std::uint32_t>(random()), shared),
          third(static_cast<std::uint32_t>(random()), shared);
      const std::vector<trial*> all{&first, &second, &third};
      const auto results = sync_wait(batch_predict(pool, all, [](trial* each) { return each->run(); }));
      for (const auto& each : results) {
        if (!each) FAIL_CHECK(each.error().message());
      }
      for (const trial* each : all) each->check();
      CHECK(shared.semaphore.available() == shared.semaphore.limit());
      CHECK(shared.semaphore.waiting() == 0);
      CHECK(shared.rate.waiting() == 0);
      CHECK(shared.limit.in_flight() == 0);
    }
  }
}
