#include <cobatch/batch_predict.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <random>
#include <ranges>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include <cobatch/error.hpp>
#include <cobatch/expected.hpp>
#include <cobatch/semaphore.hpp>
#include <cobatch/simulation.hpp>
#include <cobatch/task.hpp>

#include "support/catch.hpp"
#include "support/generated.hpp"
#include "support/lifetimes.hpp"
#include "support/outline.hpp"

// Random batches on the simulation: everything that may be said of any batch, said of thousands.

using cobatch::async_semaphore;
using cobatch::batch_options;
using cobatch::batch_predict;
using cobatch::errc;
using cobatch::error;
using cobatch::expected;
using cobatch::simulation;
using cobatch::task;
using cobatch::unexpected;
using namespace std::chrono_literals;

namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr std::uint64_t seeds = 1500;
#else
constexpr std::uint64_t seeds = 6000;
#endif

/// What one sample's predict does, and what became of it.
struct sample_plan {
  enum class ending { value, throws, fails } end = ending::value;
  std::chrono::nanoseconds latency{};
  int steps = 1;        ///< how often it suspends for its latency
  bool listens = true;  ///< to its token
  bool value_if_stopped = false;
  bool stops_batch = false;

  int calls = 0;
  bool ended = false;
  bool saw_stop = false;
};

/// One random batch: its plan, what it was seen to do, and what may be said of the outcome.
class trial {
 public:
  trial(std::uint64_t seed, simulation& sim, async_semaphore& shared, gauge& under_shared)
      : random_(seed), sim_(sim), shared_(shared), under_shared_(under_shared) {
    plans_.resize(pick(0, 24));
    for (sample_plan& each : plans_) {
      const auto kind = pick(0, 9);
      each.end = kind == 0   ? sample_plan::ending::throws
                 : kind == 1 ? sample_plan::ending::fails
                             : sample_plan::ending::value;
      each.latency = std::chrono::milliseconds(pick(0, 3) == 0 ? 0 : pick(0, 20));
      each.steps = static_cast<int>(pick(0, 3));
      each.listens = pick(0, 3) != 0;
      each.value_if_stopped = pick(0, 2) == 0;
      each.stops_batch = pick(0, 60) == 0;
    }
    if (pick(0, 1) == 0) options_.max_concurrency = pick(1, 6);
    if (pick(0, 1) == 0) options_.semaphore = &shared_;
    if (pick(0, 2) == 0) options_.timeout = std::chrono::milliseconds(pick(0, 15));
    if (pick(0, 3) == 0) options_.deadline = std::chrono::milliseconds(pick(0, 60));
    if (pick(0, 3) == 0) options_.max_failures = pick(1, 4);
    with_stop_ = pick(0, 2) == 0;
    if (with_stop_) options_.stop = stop_;
    stop_after_ = std::chrono::milliseconds(pick(0, 80));
    range_kind_ = pick(0, 5);
    if (pick(0, 19) == 0) input_fails_at_ = pick(0, 23);
  }

  task<void> stop_some_time() {
    co_await sim_.schedule_after(stop_after_);
    if (with_stop_) request_stop();
  }

  const gauge& flight() const { return flight_; }

 private:
  std::uint64_t pick(std::uint64_t least, std::uint64_t most) { return least + random_() % (most - least + 1); }

  /// The samples as temporaries, whose lives are counted, from an input that may fail.
  template <class Numbers>
  auto lazily(Numbers numbers) {
    return std::move(numbers) | std::views::transform([this](std::size_t i) {
             if (input_fails_at_ == i) {
               input_failed_ = true;
               throw std::runtime_error("unreadable");
             }
             return tracked(samples_, static_cast<int>(i));
           });
  }

  sample_plan& plan(sample_plan& each) { return each; }
  sample_plan& plan(sample_plan* each) { return *each; }
  sample_plan& plan(const tracked& each) { return plans_.at(static_cast<std::size_t>(each.number())); }
  sample_plan& plan(const std::unique_ptr<sample_plan*>& each) { return **each; }

  template <class Samples>
  auto start(Samples&& samples) {
    return batch_predict(
        sim_, std::forward<Samples>(samples),
        [this](auto&& sample, std::stop_token token) { return this->predict(sample, token); }, options_);
  }

  template <class Sample>
  task<expected<int, error>> predict(const Sample& sample, std::stop_token token) {
    return predict_plan(sample, plan(const_cast<Sample&>(sample)), std::move(token));
  }

  template <class Sample>
  task<expected<int, error>> predict_plan(const Sample& sample, sample_plan& own, std::stop_token token) {
    const life frame(frames_);
    const auto inside = flight_.enter();
    const auto gated = options_.semaphore ? under_shared_.enter() : ungated_.enter();
    ++own.calls;
    const std::stop_token listened_to = own.listens ? token : std::stop_token();
    for (int step = 0; step < own.steps; ++step) {
      if (!co_await sim_.schedule_after(own.latency, listened_to)) break;
    }
    if (&plan(const_cast<Sample&>(sample)) != &own)
      throw std::logic_error("the sample did not live as long as its predict");
    own.saw_stop = token.stop_requested();
    own.ended = true;
    if (own.stops_batch && with_stop_) request_stop();
    if (own.saw_stop && own.value_if_stopped) co_return index(own);
    if (own.saw_stop && own.listens) throw std::runtime_error("stopped");
    if (own.end == sample_plan::ending::throws) throw std::runtime_error("planned");
    if (own.end == sample_plan::ending::fails) co_return unexpected(error(errc::queue_full));
    co_return index(own);
  }

  void request_stop() {
    stop_requested_ = true;
    stop_.request_stop();
  }

  int index(const sample_plan& own) const { return static_cast<int>(&own - plans_.data()); }

  void check(const std::vector<expected<int, error>>& results, bool sized) {
    CHECK(frames_.alive == 0);
    CHECK(samples_.alive == 0);
    CHECK(samples_.copies == 0);
    CHECK(flight_.inside() == 0);
    if (options_.max_concurrency != cobatch::unlimited) {
      CHECK(flight_.most() <= static_cast<long>(options_.max_concurrency));
    }
    if (sized) CHECK(results.size() == plans_.size());
    CHECK(results.size() <= plans_.size() + (input_failed_ ? 1 : 0));

    const bool halted = stop_requested_ || options_.deadline != cobatch::no_timeout ||
                        options_.max_failures != cobatch::unlimited || input_failed_;
    long failures = 0;
    for (std::size_t i = 0; i < results.size(); ++i) {
      INFO("sample " << i << ": " << outline(results[i]));
      if (input_failed_ && i == input_fails_at_) {
        CHECK(outline(results[i]) == "input_failed");
        ++failures;
        continue;
      }
      const sample_plan& own = plans_.at(i);
      CHECK(own.calls <= 1);
      CHECK(own.ended == (own.calls == 1));
      if (results[i]) {
        CHECK(*results[i] == static_cast<int>(i));
        CHECK(own.calls == 1);
        CHECK((own.end == sample_plan::ending::value || (own.saw_stop && own.value_if_stopped)));
        continue;
      }
      switch (results[i].error().code) {
        case errc::not_started:
          CHECK(own.calls == 0);
          CHECK(halted);
          break;
        case errc::exception:
          ++failures;
          CHECK(own.calls == 1);
          CHECK(own.end == sample_plan::ending::throws);
          break;
        case errc::queue_full:
          ++failures;
          CHECK(own.calls == 1);
          CHECK(own.end == sample_plan::ending::fails);
          break;
        case errc::cancelled:
          CHECK(own.calls == 1);
          CHECK((stop_requested_ || options_.max_failures != cobatch::unlimited));
          break;
        case errc::timed_out:
          ++failures;
          CHECK(own.calls == 1);
          CHECK(options_.timeout != cobatch::no_timeout);
          CHECK(own.steps > 0);
          break;
        case errc::deadline_exceeded:
          CHECK(own.calls == 1);
          CHECK(options_.deadline != cobatch::no_timeout);
          break;
        default:
          FAIL_CHECK("an outcome that nothing explains");
      }
    }
    for (std::size_t i = results.size(); i < plans_.size(); ++i) CHECK(plans_[i].calls == 0);
    const long cap = static_cast<long>(std::min<std::size_t>(options_.max_concurrency, plans_.size()));
    if (options_.max_failures != cobatch::unlimited) {
      CHECK(failures <= static_cast<long>(options_.max_failures) + cap);
    }
    if (!halted) {
      CHECK(results.size() == plans_.size());
      for (const sample_plan& each : plans_) CHECK(each.calls == 1);
    }
  }

 public:
  /// Runs it and checks all that can be checked.
  task<void> run() {
    switch (range_kind_) {
      case 0:
        check(co_await start(plans_), true);
        break;
      case 1: {
        std::list<sample_plan*> list;
        for (sample_plan& each : plans_) list.push_back(&each);
        check(co_await start(std::move(list)), true);
        break;
      }
      case 2:
        check(co_await start(lazily(std::views::iota(std::size_t{0}, plans_.size()))), true);
        break;
      case 3:
        check(co_await start(lazily(std::views::iota(std::size_t{0}) |
                                    std::views::take_while([this](std::size_t i) { return i < plans_.size(); }))),
              false);
        break;
      case 4: {
        auto next = generated(
            [this, i = std::size_t{0}]() mutable { return i < plans_.size() ? std::optional(i++) : std::nullopt; });
        check(co_await start(lazily(std::move(next))), false);
        break;
      }
      default: {
        std::vector<std::unique_ptr<sample_plan*>> owned;
        for (sample_plan& each : plans_) owned.push_back(std::make_unique<sample_plan*>(&each));
        check(co_await start(std::move(owned)), true);
      }
    }
  }

 private:
  std::mt19937_64 random_;
  simulation& sim_;
  async_semaphore& shared_;
  gauge& under_shared_;
  std::vector<sample_plan> plans_;
  batch_options options_;
  bool with_stop_ = false;
  std::chrono::nanoseconds stop_after_{};
  std::uint64_t range_kind_ = 0;
  std::optional<std::size_t> input_fails_at_;

  std::stop_source stop_;
  bool stop_requested_ = false;
  bool input_failed_ = false;
  gauge flight_, ungated_;
  census frames_, samples_;
};

}  // namespace

TEST_CASE("batch_predict: whatever the batch, every sample has one plausible outcome, and nothing is left behind") {
  for (std::uint64_t seed = 1; seed <= seeds; ++seed) {
    INFO("seed " << seed);
    std::mt19937_64 random(seed * 0x9e3779b97f4a7c15u);
    simulation sim(seed % 4 == 0 ? 0 : seed);
    const std::size_t first_limit = 1 + random() % 5;
    async_semaphore semaphore(first_limit);
    {
      gauge under_semaphore;  // of both
      trial first(random(), sim, semaphore, under_semaphore);
      trial second(random(), sim, semaphore, under_semaphore);
      std::size_t last_limit = first_limit, highest_limit = first_limit;
      const auto change_limits = [&]() -> task<void> {
        for (auto changes = random() % 4; changes > 0; --changes) {
          co_await sim.schedule_after(std::chrono::milliseconds(random() % 30));
          const std::size_t limit = random() % 5;
          highest_limit = std::max(highest_limit, limit);
          semaphore.set_limit(limit);
        }
        co_await sim.schedule_after(std::chrono::milliseconds(random() % 30));
        last_limit = 1 + random() % 5;
        highest_limit = std::max(highest_limit, last_limit);
        semaphore.set_limit(last_limit);  // not paused for ever
      };
      const std::vector<std::function<task<void>()>> all{
          [&] { return first.run(); },
          [&] { return second.run(); },
          [&] { return first.stop_some_time(); },
          [&] { return second.stop_some_time(); },
          change_limits,
      };
      const auto results = sim.run(batch_predict(sim, all, [](const auto& each) { return each(); }));
      for (const auto& each : results) {
        if (!each) FAIL_CHECK(each.error().message());
      }
      CHECK(under_semaphore.most() <= static_cast<long>(highest_limit));
      CHECK(semaphore.available() == last_limit);
      CHECK(semaphore.waiting() == 0);
    }
  }
}
