#include <cobatch/batch_predict.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <optional>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

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

using cobatch::async_semaphore;
using cobatch::batch_predict;
using cobatch::errc;
using cobatch::error;
using cobatch::expected;
using cobatch::hedge_policy;
using cobatch::simulation;
using cobatch::task;
using namespace std::chrono_literals;

using times = std::vector<std::chrono::milliseconds>;

namespace {

const std::vector<int> one{7};

/// As many second attempts as there are samples.
hedge_policy hedged(std::chrono::nanoseconds delay) {
  return {.delay = delay, .max_extra = 1};
}

/// A plan for the first call and for the second.
auto race(act first, act second) {
  return [=](int, int number) { return number == 1 ? first : second; };
}

act deaf(std::chrono::nanoseconds takes) {
  return {.takes = takes, .listens = false};
}

int extra_calls(const script& predict) {
  return static_cast<int>(std::count_if(predict.calls().begin(), predict.calls().end(),
                                        [](const script::call& each) { return each.number > 1; }));
}

}  // namespace

// ---- The race ----

TEST_CASE("hedge: an attempt that takes longer than the delay is doubled, and the first value wins") {
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    simulation sim(seed);
    script predict(sim, race(value_after(1h), value_after(10ms)));
    CHECK(outline(play(sim, predict, one, {.hedge = hedged(50ms)})) == "702");
    CHECK(predict.began(7) == times{0ms, 50ms});
    // The loser was stopped at that moment, and waited for.
    CHECK(predict.calls()[0].stopped);
    CHECK(predict.calls()[0].ended == 60ms);
    CHECK(elapsed(sim) == 60ms);
  }
}

TEST_CASE("hedge: the first attempt may win as well") {
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    simulation sim(seed);
    script predict(sim, race(value_after(80ms), value_after(1h)));
    CHECK(outline(play(sim, predict, one, {.hedge = hedged(50ms)})) == "701");
    CHECK(predict.calls()[1].stopped);
    CHECK(elapsed(sim) == 80ms);
  }
}

TEST_CASE("hedge: an attempt that ends before the delay is not doubled") {
  simulation sim;
  script predict(sim, [](int, int) { return value_after(49ms); });
  CHECK(outline(play(sim, predict, samples_below(5), {.hedge = hedged(50ms)})) == "1 101 201 301 401");
  CHECK(predict.calls().size() == 5);
}

TEST_CASE("hedge: a predict that ends synchronously is not doubled") {
  simulation sim;
  script predict(sim, [](int sample, int) { return sample % 2 ? fails_after(0ms) : value_after(0ms); });
  const auto results = play(sim, predict, samples_below(100), {.max_concurrency = 3, .hedge = hedged(0ms)});
  CHECK(values_in(results) == 50);
  CHECK(predict.calls().size() == 100);
}

TEST_CASE("hedge: the second attempt may end synchronously, with a value or without") {
  simulation sim;
  script wins(sim, race(value_after(1h), value_after(0ms)));
  CHECK(outline(play(sim, wins, one, {.hedge = hedged(50ms)})) == "702");
  CHECK(elapsed(sim) == 50ms);

  simulation other;
  script fails(other, race(value_after(70ms), fails_after(0ms)));
  CHECK(outline(play(other, fails, one, {.hedge = hedged(50ms)})) == "701");
  CHECK(elapsed(other) == 70ms);
}

TEST_CASE("hedge: an attempt that ends at the very moment at which it is doubled costs no more time") {
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    INFO("seed " << seed);
    simulation sim(seed);
    script predict(sim, race(value_after(50ms), value_after(1h)));
    CHECK(outline(play(sim, predict, samples_below(5), {.hedge = hedged(50ms)})) == "1 101 201 301 401");
    CHECK(elapsed(sim) == 50ms);
    for (const auto& each : predict.calls()) CHECK((each.number == 1 || each.stopped));
  }
}

TEST_CASE("hedge: a loser that cannot be stopped is waited for, its value is not needed") {
  simulation sim;
  script predict(sim, race(deaf(200ms), value_after(10ms)));
  CHECK(outline(play(sim, predict, one, {.hedge = hedged(50ms)})) == "702");
  CHECK(elapsed(sim) == 200ms);

  simulation other;
  script second(other, race(value_after(60ms), deaf(200ms)));
  CHECK(outline(play(other, second, one, {.hedge = hedged(50ms)})) == "701");
  CHECK(elapsed(other) == 250ms);
}

TEST_CASE("hedge: the next sample of a lane whose attempt had lost gets a token of its own") {
  simulation sim;
  script predict(
      sim, [](int sample, int number) { return sample == 0 && number == 1 ? value_after(1h) : value_after(10ms); });
  const auto results = play(sim, predict, samples_below(12), {.max_concurrency = 2, .hedge = hedged(25ms)});
  CHECK(values_in(results) == 12);
  CHECK(predict.calls_of(0) == 2);
  for (const auto& each : predict.calls()) CHECK(each.stopped == (each.sample == 0 && each.number == 1));
}

// ---- Failures ----

TEST_CASE("hedge: while one attempt is left, the failure of the other is not the end") {
  simulation sim;
  script first(sim, race(fails_after(60ms), value_after(100ms)));
  CHECK(outline(play(sim, first, one, {.hedge = hedged(50ms)})) == "702");
  CHECK(elapsed(sim) == 150ms);

  simulation other;
  script second(other, race(value_after(100ms), fails_after(10ms)));
  CHECK(outline(play(other, second, one, {.hedge = hedged(50ms)})) == "701");
  CHECK(elapsed(other) == 100ms);
}

TEST_CASE("hedge: where both attempts fail there is one failure, and its error counts both") {
  for (const auto& [first, second, last] :
       {std::tuple(60ms, 100ms, "call 2"), std::tuple(100ms, 10ms, "call 1"), std::tuple(100ms, 50ms, "call ")}) {
    for (std::uint64_t seed = 0; seed < 5; ++seed) {
      simulation sim(seed);
      script predict(sim, race(fails_after(first), fails_after(second)));
      const auto results = play(sim, predict, one, {.max_failures = 2, .hedge = hedged(50ms)});
      REQUIRE(outline(results) == "exception");
      CHECK(results[0].error().attempts == 2);
      CHECK_THROWS_WITH(std::rethrow_exception(results[0].error().exception), Catch::Contains(last));
      CHECK(predict.calls_of(7) == 2);
    }
  }
}

TEST_CASE("hedge: a sample both of whose attempts failed counts as one failure for max_failures") {
  simulation sim;
  script predict(sim, [](int sample, int) { return sample == 0 ? fails_after(60ms) : value_after(1000ms); });
  const auto results =
      play(sim, predict, samples_below(3), {.max_failures = 2, .hedge = {.delay = 50ms, .max_extra = 0.4}});
  CHECK(outline(results) == "exception 101 201");
}

TEST_CASE("hedge: a sample both of whose attempts failed is retried, and may be doubled again") {
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    simulation sim(seed);
    script predict(sim, [](int, int number) {
      if (number <= 2) return fails_after(60ms);
      return value_after(number == 3 ? 1h : 10ms);
    });
    const auto results = play(sim, predict, one,
                              {.retry = {.max_attempts = 5, .initial_backoff = 100ms, .multiplier = 1, .jitter = false},
                               .hedge = {.delay = 50ms, .max_extra = 2}});
    CHECK(outline(results) == "704");
    CHECK(predict.began(7) == times{0ms, 50ms, 210ms, 260ms});  // the second fails at 110
    CHECK(elapsed(sim) == 270ms);
  }
}

TEST_CASE("hedge: an attempt that fails before it was doubled is retried alone") {
  simulation sim;
  script predict(sim, race(fails_after(10ms), value_after(10ms)));
  const auto results = play(sim, predict, one, {.retry = {.max_attempts = 2, .jitter = false}, .hedge = hedged(50ms)});
  CHECK(outline(results) == "702");
  CHECK(predict.began(7) == times{0ms, 110ms});
}

TEST_CASE("hedge: second attempts count for max_attempts") {
  simulation sim;
  script predict(sim, [](int, int) { return fails_after(60ms); });
  const auto results = play(sim, predict, one,
                            {.retry = {.max_attempts = 3, .jitter = false}, .hedge = {.delay = 50ms, .max_extra = 1}});
  CHECK(results[0].error().attempts == 3);
  CHECK(predict.calls_of(7) == 3);
}

// ---- How many, and when ----

TEST_CASE("hedge: no more second attempts than max_extra allows for the samples started so far") {
  for (const double share : {0.0, 0.05, 0.25, 1.0}) {
    simulation sim;
    script predict(sim, race(value_after(1s), value_after(10ms)));
    const auto results = play(sim, predict, samples_below(100), {.hedge = {.delay = 50ms, .max_extra = share}});
    CHECK(values_in(results) == 100);
    CHECK(extra_calls(predict) == static_cast<int>(100 * share));
  }
}

TEST_CASE("hedge: the quantile is the batch's own, used once 20 attempts have ended") {
  simulation sim;
  // One in five takes 40 ms, all others 10 ms; but for two that take long.
  script predict(sim, [](int sample, int number) {
    if ((sample == 3 || sample == 30) && number == 1) return value_after(1s);
    return value_after(sample % 5 == 0 ? 40ms : 10ms);
  });
  const auto results =
      play(sim, predict, samples_below(31), {.max_concurrency = 2, .hedge = {.quantile = 0.9, .max_extra = 1}});
  CHECK(values_in(results) == 31);
  CHECK(predict.calls_of(3) == 2);
  CHECK(predict.calls_of(30) == 2);
  long ended = 0;
  for (const auto& each : predict.calls()) ended += each.ended <= predict.began(3).back();
  CHECK(ended >= 20);
  CHECK(predict.began(30).back() - predict.began(30).front() == 40ms);
  CHECK(elapsed(sim) < 600ms);
}

TEST_CASE("hedge: at the median, those that take longer than the median are doubled") {
  simulation sim;
  script predict(sim, [](int sample, int number) { return value_after(number == 1 ? (10 + sample % 10) * 1ms : 1ms); });
  const auto results =
      play(sim, predict, samples_below(1000), {.max_concurrency = 10, .hedge = {.quantile = 0.9, .max_extra = 1}});
  CHECK(values_in(results) == 1000);
  // One in ten takes longer than the 0.9 quantile, which is 18 ms (to within 1 %).
  CHECK(extra_calls(predict) > 50);
  CHECK(extra_calls(predict) < 250);
}

TEST_CASE("hedge: with a delay and a quantile, the delay holds until the quantile is known") {
  simulation sim;
  script predict(sim, [](int sample, int number) { return value_after(sample % 25 == 5 && number == 1 ? 1h : 10ms); });
  const auto results = play(sim, predict, samples_below(60),
                            {.max_concurrency = 4, .hedge = {.delay = 100ms, .quantile = 0.5, .max_extra = 0.3}});
  CHECK(values_in(results) == 60);
  CHECK(predict.calls_of(5) == 2);
  CHECK(elapsed(sim) < 1s);
}

// ---- Permits ----

TEST_CASE("hedge: second attempts are part of max_concurrency") {
  for (const std::size_t cap : {1u, 2u, 3u, 5u}) {
    for (std::uint64_t seed = 0; seed < 10; ++seed) {
      simulation sim(seed);
      script predict(sim,
                     [](int sample, int number) { return value_after(sample % 4 == 0 && number == 1 ? 200ms : 20ms); });
      const auto results = play(sim, predict, samples_below(20), {.max_concurrency = cap, .hedge = hedged(50ms)});
      CHECK(values_in(results) == 20);
      CHECK(predict.flight().most() == static_cast<long>(cap));
      CHECK((cap > 1) == (extra_calls(predict) > 0));
    }
  }
}

TEST_CASE("hedge: at the cap, the next attempt that ends makes room, ahead of samples that have not started") {
  simulation sim;
  script predict(sim, [](int sample, int number) {
    if (sample == 0 && number == 1) return value_after(1h);
    return value_after(sample == 1 ? 80ms : 40ms);
  });
  const auto results =
      play(sim, predict, samples_below(4), {.max_concurrency = 2, .hedge = {.delay = 50ms, .max_extra = 0.5}});
  CHECK(outline(results) == "2 101 201 301");
  CHECK(predict.order() == std::vector<int>{0, 1, 0, 2, 3});
  CHECK(predict.began(0) == times{0ms, 80ms});
}

TEST_CASE("hedge: a second attempt needs a permit of the shared semaphore that is free at that moment") {
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    simulation sim(seed);
    async_semaphore semaphore(1);
    script predict(sim, race(value_after(200ms), value_after(1ms)));
    CHECK(outline(play(sim, predict, one, {.semaphore = &semaphore, .hedge = hedged(50ms)})) == "701");
    CHECK(predict.calls().size() == 1);
    CHECK(semaphore.available() == 1);

    simulation roomy(seed);
    async_semaphore two(2);
    script doubled(roomy, race(value_after(200ms), value_after(1ms)));
    CHECK(outline(play(roomy, doubled, one, {.semaphore = &two, .hedge = hedged(50ms)})) == "702");
    CHECK(two.available() == 2);
  }
}

TEST_CASE("hedge: a batch that hedges takes no permit for which another one waits") {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    simulation sim(seed);
    async_semaphore semaphore(2);
    script first(sim, race(value_after(200ms), value_after(1ms)));
    script second(sim, [](int, int) { return value_after(30ms); });
    run_together(sim, {[&]() -> task<void> {
                         const auto results =
                             co_await playing(sim, first, one, {.semaphore = &semaphore, .hedge = hedged(50ms)});
                         CHECK(outline(results) == "701");
                       },
                       [&]() -> task<void> {
                         const auto results =
                             co_await playing(sim, second, samples_below(10), {.semaphore = &semaphore});
                         CHECK(values_in(results) == 10);
                       }});
    CHECK(first.flight().most() == 1);
    CHECK(semaphore.available() == 2);
  }
}

TEST_CASE("hedge: the batch ends with its last sample, also where an attempt still waits to be doubled") {
  // At its cap it cannot double; when the attempt has ended there is nothing left for which to queue.
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    simulation sim(seed);
    async_semaphore semaphore(1);
    script predict(sim, [](int, int) { return value_after(100ms); });
    run_together(sim, {[&]() -> task<void> {
                         const auto results = co_await playing(
                             sim, predict, one, {.max_concurrency = 1, .semaphore = &semaphore, .hedge = hedged(50ms)});
                         CHECK(outline(results) == "701");
                         CHECK(elapsed(sim) == 100ms);
                       },
                       [&]() -> task<void> {
                         co_await sim.schedule_after(20ms);
                         const auto permit = co_await semaphore.acquire();
                         co_await sim.schedule_after(1h);
                       }});
    CHECK(semaphore.available() == 1);
  }
}

TEST_CASE("hedge: second attempts pay the rate, and are not made where there is no token") {
  simulation sim;
  cobatch::rate_limiter rate(1, 2);
  script predict(sim, race(value_after(200ms), value_after(1ms)));
  CHECK(outline(play(sim, predict, one, {.hedge = hedged(50ms), .rate = &rate})) == "702");
  CHECK_FALSE(rate.try_acquire(sim));

  simulation other;
  cobatch::rate_limiter scarce(1);
  script single(other, race(value_after(200ms), value_after(1ms)));
  CHECK(outline(play(other, single, one, {.hedge = hedged(50ms), .rate = &scarce})) == "701");
}

// ---- What ends it ----

TEST_CASE("hedge: each of two attempts has a timeout of its own") {
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    simulation sim(seed);
    script predict(sim, race(value_after(1h), value_after(1h)));
    const auto results = play(sim, predict, one, {.timeout = 100ms, .hedge = hedged(50ms)});
    CHECK(outline(results) == "timed_out");
    CHECK(results[0].error().attempts == 2);
    CHECK(predict.calls()[0].ended == 100ms);
    CHECK(predict.calls()[1].ended == 150ms);
    CHECK(elapsed(sim) == 150ms);
  }
}

TEST_CASE("hedge: a stop during a race reaches both attempts") {
  for (const bool by_deadline : {false, true}) {
    for (std::uint64_t seed = 0; seed < 10; ++seed) {
      simulation sim(seed);
      std::stop_source stop;
      script predict(sim, race(value_after(1h), value_after(1h)));
      const auto deadline = by_deadline ? std::chrono::nanoseconds(70ms) : cobatch::no_timeout;
      run_together(sim, {[&]() -> task<void> {
                           const auto results =
                               co_await playing(sim, predict, samples_below(2),
                                                {.stop = stop, .deadline = deadline, .hedge = hedged(50ms)});
                           CHECK(outline(results) ==
                                 (by_deadline ? "deadline_exceeded deadline_exceeded" : "cancelled cancelled"));
                           CHECK(elapsed(sim) == 70ms);
                         },
                         [&]() -> task<void> {
                           co_await sim.schedule_after(70ms);
                           if (!by_deadline) stop.request_stop();
                         }});
      CHECK(predict.calls().size() == 4);
      for (const auto& each : predict.calls()) CHECK(each.stopped);
    }
  }
}

TEST_CASE("hedge: a value counts in a race that was stopped, however late it comes") {
  simulation sim;
  script predict(sim, race(value_after(1h), deaf(100ms)));
  CHECK(outline(play(sim, predict, one, {.deadline = 70ms, .hedge = hedged(50ms)})) == "702");
  CHECK(elapsed(sim) == 150ms);
}

TEST_CASE("hedge: a batch that is stopped at the very moment of doubling ends then") {
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    simulation sim(seed);
    script predict(sim, race(value_after(1h), value_after(1h)));
    const auto results = play(sim, predict, samples_below(3), {.deadline = 50ms, .hedge = hedged(50ms)});
    CHECK(count_of(results, errc::deadline_exceeded) == 3);
    CHECK(elapsed(sim) == 50ms);
  }
}

// ---- Samples ----

TEST_CASE("hedge: a sample that was made for the batch lives until both its attempts have ended") {
  for (const auto& lasting : {std::pair(80ms, 200ms), std::pair(300ms, 100ms), std::pair(60ms, 10ms)}) {
    for (const bool with_retry : {false, true}) {
      for (std::uint64_t seed = 0; seed < 10; ++seed) {
        simulation sim(seed);
        census samples;
        std::vector<int> calls(6);
        const auto predict = [&](const tracked& sample) -> task<int> {
          // Deaf to its token: it uses its sample to the end.
          const int number = sample.number();
          const int call = ++calls.at(static_cast<std::size_t>(number));
          co_await sim.schedule_after(call == 1 ? lasting.first : lasting.second);
          CHECK(sample.number() == number);
          if (with_retry && call <= 2) throw std::runtime_error("again");
          co_return number;
        };
        auto range =
            generated([&, i = 0]() mutable { return i < 6 ? std::optional(tracked(samples, i++)) : std::nullopt; });
        const auto results = sim.run(batch_predict(sim, std::move(range), predict,
                                                   {.max_concurrency = 3,
                                                    .retry = {.max_attempts = with_retry ? 5u : 1u},
                                                    .hedge = {.delay = 50ms, .max_extra = 3}}));
        CHECK(outline(results) == "0 1 2 3 4 5");
        CHECK(samples.copies == 0);
        CHECK(samples.alive == 0);
      }
    }
  }
}

TEST_CASE("hedge: options that make no sense are refused") {
  simulation sim;
  script predict(sim, race(value_after(1h), value_after(1h)));
  const auto refused = [&](const hedge_policy& policy) {
    CHECK_THROWS_AS(playing(sim, predict, one, {.hedge = policy}), std::invalid_argument);
  };
  refused({.quantile = 1});
  refused({.quantile = -0.5});
  refused({.delay = 1ms, .max_extra = -1});
}
