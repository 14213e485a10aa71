#include <cobatch/batch_predict.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <optional>
#include <random>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include <cobatch/adaptive_limit.hpp>
#include <cobatch/error.hpp>
#include <cobatch/expected.hpp>
#include <cobatch/rate_limiter.hpp>
#include <cobatch/semaphore.hpp>
#include <cobatch/simulation.hpp>
#include <cobatch/task.hpp>

#include "support/catch.hpp"
#include "support/generated.hpp"
#include "support/lifetimes.hpp"
#include "support/outline.hpp"
#include "support/script.hpp"

// Random batches with random policies on the simulation: everything that may be said of any of them, said of thousands.

using cobatch::async_semaphore;
using cobatch::batch_options;
using cobatch::batch_predict;
using cobatch::errc;
using cobatch::error;
using cobatch::expected;
using cobatch::rate_limiter;
using cobatch::simulation;
using cobatch::task;
using cobatch::unexpected;
using namespace std::chrono_literals;

namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr std::uint64_t seeds = 2500;
#else
constexpr std::uint64_t seeds = 10'000;
#endif

/// What two batches share.
struct shared_things {
  simulation& sim;
  async_semaphore semaphore;
  rate_limiter rate;
  cobatch::adaptive_limit limit;
  std::vector<std::chrono::nanoseconds> rated_starts = {};
};

/// What is known of one sample.
struct sample_log {
  std::size_t weight = 1;
  bool too_heavy = false;
  int calls = 0;
  int ended = 0;
  int values = 0;
};

class trial;

/// The predict of a trial, for any kind of sample.
struct trial_predict {
  trial* self;
  template <class Sample>
  task<expected<int, error>> operator()(const Sample& sample, std::stop_token token) const;
};
struct trial_cost {
  trial* self;
  std::size_t operator()(int sample) const;
};

/// One random batch: its options, what it was seen to do, and what may be said of the outcome.
class trial {
 public:
  trial(std::uint64_t seed, shared_things& shared) : random_(seed), shared_(shared) {
    log_.resize(pick(0, 30));
    failing_ = static_cast<double>(pick(0, 3)) * 0.25;
    kind_ = pick(0, 2);
    if (chance(2)) options_.max_concurrency = pick(1, 6);
    if (chance(3)) options_.semaphore = &shared_.semaphore;
    if (chance(4)) options_.rate = &shared_.rate;
    if (chance(4)) options_.limit = &shared_.limit;
    if (chance(3)) options_.timeout = std::chrono::milliseconds(pick(0, 25));
    if (chance(5)) options_.deadline = std::chrono::milliseconds(pick(0, 300));
    if (chance(4)) options_.max_failures = pick(1, 4);
    if (chance(4)) options_.queue_timeout = std::chrono::milliseconds(pick(0, 30));
    if (!chance(3)) {
      options_.retry = {.max_attempts = static_cast<std::uint32_t>(pick(1, 5)),
                        .initial_backoff = std::chrono::milliseconds(pick(0, 20)),
                        .max_backoff = std::chrono::milliseconds(pick(0, 50)),
                        .jitter = chance(2),
                        .seed = pick(1, 1000)};
      if (chance(3)) options_.retry.budget = static_cast<double>(pick(0, 10)) / 10;
      if (chance(5)) options_.retry.retry_if = [](const error& why) { return why.code != errc::timed_out; };
    }
    if (!chance(3)) {
      if (!chance(3)) options_.hedge.delay = std::chrono::milliseconds(pick(0, 20));
      if (chance(2)) options_.hedge.quantile = static_cast<double>(pick(1, 99)) / 100;
      options_.hedge.max_extra = static_cast<double>(pick(0, 20)) / 10;
    }
    if (kind_ == 0) {
      if (chance(2)) options_.max_weight = pick(1, 8);
      const std::size_t heaviest = pick(1, 5);
      for (sample_log& each : log_) {
        each.weight = pick(1, heaviest);
        each.too_heavy = each.weight > options_.max_weight;
      }
      // Changing limits could make any weight too heavy for the semaphore.
      if (options_.semaphore) {
        for (sample_log& each : log_) each.weight = 1;
      }
    }
    with_stop_ = chance(4);
    if (with_stop_) options_.stop = stop_;
    stop_after_ = std::chrono::milliseconds(pick(0, 200));
  }

  task<void> run() {
    switch (kind_) {
      case 0: {
        std::vector<int> samples = samples_below(static_cast<int>(log_.size()));
        auto predict = cobatch::weighted(trial_predict{this}, trial_cost{this});
        const auto results = co_await batch_predict(shared_.sim, samples, predict, options_);
        check(results);
        break;
      }
      case 1: {
        std::list<int> samples;
        for (std::size_t i = 0; i < log_.size(); ++i) samples.push_back(static_cast<int>(i));
        trial_predict predict{this};
        const auto results = co_await batch_predict(shared_.sim, std::move(samples), predict, options_);
        check(results);
        break;
      }
      default: {
        auto samples = generated([this, i = 0]() mutable {
          return i < static_cast<int>(log_.size()) ? std::optional(tracked(samples_, i++)) : std::nullopt;
        });
        trial_predict predict{this};
        auto results = co_await batch_predict(shared_.sim, std::move(samples), predict, options_);
        while (results.size() < log_.size() && halts()) results.emplace_back(unexpect_not_started());
        check(results);
      }
    }
  }

  task<void> stop_some_time() {
    co_await shared_.sim.schedule_after(stop_after_);
    if (with_stop_) stop_.request_stop();
  }

  task<expected<int, error>> predict(int sample, const std::function<int()>& reread, std::stop_token token) {
    const life frame(frames_);
    const auto inside = flight_.enter();
    sample_log& own = log_.at(static_cast<std::size_t>(sample));
    const int call = ++own.calls;
    weight_ += own.weight;
    most_weight_ = std::max(most_weight_, weight_);
    if (options_.rate) shared_.rated_starts.push_back(elapsed(shared_.sim));

    const auto latency = std::chrono::milliseconds(chance(6) ? pick(20, 200) : pick(0, 15));
    const bool deaf = chance(5), value_if_stopped = chance(3), throws = chance(2), fails = uniform() < failing_;
    if (deaf) token = {};
    bool stopped = false;
    if (!chance(5)) stopped = !co_await shared_.sim.schedule_after(latency, token);

    if (reread() != sample) throw std::logic_error("the sample did not live as long as its predict");
    weight_ -= own.weight;
    ++own.ended;
    if (stopped ? !value_if_stopped : fails) {
      if (!throws) co_return unexpected(error(errc::queue_full));
      if (call % 2 == 0) throw cobatch::retry_later(std::chrono::milliseconds(call));
      throw std::runtime_error("planned");
    }
    ++own.values;
    co_return sample;
  }

  std::size_t cost(int sample) const { return log_.at(static_cast<std::size_t>(sample)).weight; }

 private:
  std::uint64_t pick(std::uint64_t least, std::uint64_t most) { return least + random_() % (most - least + 1); }
  bool chance(std::uint64_t one_in) { return random_() % one_in == 0; }
  double uniform() { return static_cast<double>(random_() >> 11) * 0x1.0p-53; }
  bool halts() const {
    return with_stop_ || options_.deadline != cobatch::no_timeout || options_.max_failures != cobatch::unlimited;
  }
  static expected<int, error> unexpect_not_started() { return unexpected(error(errc::not_started, {}, 0)); }

  void check(const std::vector<expected<int, error>>& results) {
    CHECK(frames_.alive == 0);
    CHECK(samples_.alive == 0);
    CHECK(samples_.copies == 0);
    CHECK(flight_.inside() == 0);
    CHECK(weight_ == 0);
    if (options_.max_concurrency != cobatch::unlimited)
      CHECK(flight_.most() <= static_cast<long>(options_.max_concurrency));
    if (kind_ == 0 && options_.max_weight != cobatch::unlimited) CHECK(most_weight_ <= options_.max_weight);
    REQUIRE(results.size() == log_.size());

    const bool hedges = options_.hedge.delay != cobatch::no_timeout || options_.hedge.quantile > 0;
    int started = 0, extra = 0;
    for (std::size_t i = 0; i < results.size(); ++i) {
      const sample_log& own = log_[i];
      const expected<int, error>& outcome = results[i];
      INFO("sample " << i << ": " << outline(outcome) << ", calls " << own.calls);
      started += own.calls > 0;
      extra += std::max(own.calls - 1, 0);
      CHECK(own.ended == own.calls);
      CHECK(own.values <= 2);
      // A value always wins.
      CHECK(outcome.has_value() == (own.values > 0));
      if (!hedges) CHECK(own.calls <= static_cast<int>(options_.retry.max_attempts));
      if (outcome) {
        CHECK(*outcome == static_cast<int>(i));
        continue;
      }
      CHECK(outcome.error().attempts == static_cast<std::uint32_t>(own.calls));
      switch (outcome.error().code) {
        case errc::not_started:
          CHECK(own.calls == 0);
          CHECK(halts());
          break;
        case errc::exception:
        case errc::queue_full:
          CHECK(own.calls > 0);
          CHECK(failing_ > 0);
          break;
        case errc::cancelled:
          CHECK(own.calls > 0);
          CHECK((with_stop_ || options_.max_failures != cobatch::unlimited));
          break;
        case errc::timed_out:
          CHECK(own.calls > 0);
          CHECK(options_.timeout != cobatch::no_timeout);
          break;
        case errc::deadline_exceeded:
          CHECK(own.calls > 0);
          CHECK(options_.deadline != cobatch::no_timeout);
          break;
        case errc::queue_timed_out:
          CHECK(options_.queue_timeout != cobatch::no_timeout);
          break;
        case errc::cost_exceeds_capacity:
          CHECK(own.too_heavy);
          CHECK(own.calls == 0);
          break;
        default:
          FAIL_CHECK("an outcome that nothing explains");
      }
    }
    double allowed = hedges ? options_.hedge.max_extra * started : 0;
    if (options_.retry.max_attempts > 1) allowed += options_.retry.budget * started;
    if (started > 0) CHECK(extra <= allowed);
  }

  std::mt19937_64 random_;
  shared_things& shared_;
  std::vector<sample_log> log_;
  batch_options options_;
  double failing_ = 0;
  std::uint64_t kind_ = 0;
  bool with_stop_ = false;
  std::chrono::nanoseconds stop_after_{};

  std::stop_source stop_;
  std::size_t weight_ = 0, most_weight_ = 0;
  gauge flight_;
  census frames_, samples_;
};

int number_of(int sample) {
  return sample;
}
int number_of(const tracked& sample) {
  return sample.number();
}

template <class Sample>
task<expected<int, error>> trial_predict::operator()(const Sample& sample, std::stop_token token) const {
  const std::function<int()> reread = [&sample] { return number_of(sample); };
  co_return co_await self->predict(number_of(sample), reread, token);
}

std::size_t trial_cost::operator()(int sample) const {
  return self->cost(sample);
}

}  // namespace

TEST_CASE("policies: two batches that share a limit and a semaphore do not lock each other out") {
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    INFO("seed " << seed);
    simulation sim(seed);
    cobatch::adaptive_limit limit({.initial = 1, .min = 1, .max = 1});
    async_semaphore semaphore(1);
    script predict(sim, [](int, int) { return value_after(1ms); });
    const auto batch = [&]() -> task<void> {
      const auto results = co_await playing(sim, predict, samples_below(10),
                                            {.max_concurrency = 1, .semaphore = &semaphore, .limit = &limit});
      CHECK(values_in(results) == 10);
    };
    run_together(sim, {batch, batch});
    CHECK(semaphore.available() == 1);
    CHECK(limit.in_flight() == 0);
  }
}

TEST_CASE("policies: whatever they are, every sample has one plausible outcome, and nothing is left behind") {
  for (std::uint64_t seed = 1; seed <= seeds; ++seed) {
    INFO("seed " << seed);
    std::mt19937_64 random(seed * 0x9e3779b97f4a7c15u);
    simulation sim(seed % 4 == 0 ? 0 : seed);
    const double burst = static_cast<double>(1 + random() % 3);
    const double per_second = static_cast<double>(100 + random() % 900);
    std::size_t last_limit = 1 + random() % 5;
    const std::size_t narrow = 1 + random() % 8;
    shared_things shared{sim, async_semaphore(last_limit), rate_limiter(per_second, burst),
                         cobatch::adaptive_limit({.initial = narrow, .max = 20})};
    trial first(random(), shared);
    trial second(random(), shared);
    const side_job change_limits = [&]() -> task<void> {
      for (auto changes = random() % 4; changes > 0; --changes) {
        co_await sim.schedule_after(std::chrono::milliseconds(random() % 60));
        shared.semaphore.set_limit(random() % 5);
      }
      co_await sim.schedule_after(std::chrono::milliseconds(random() % 60));
      last_limit = 1 + random() % 5;
      shared.semaphore.set_limit(last_limit);  // not paused for ever
    };
    run_together(sim, {[&] { return first.run(); }, [&] { return second.run(); },
                       [&] { return first.stop_some_time(); }, [&] { return second.stop_some_time(); }, change_limits});
    CHECK(shared.semaphore.available() == last_limit);
    CHECK(shared.semaphore.waiting() == 0);
    CHECK(shared.rate.waiting() == 0);
    CHECK(shared.limit.in_flight() == 0);
    const auto& starts = shared.rated_starts;
    const auto within = static_cast<std::size_t>(burst);
    for (std::size_t i = 0; i + within < starts.size(); ++i) {
      CHECK(starts[i + within] - starts[i] + 1us >= std::chrono::duration<double>(1 / per_second));
    }
  }
}
