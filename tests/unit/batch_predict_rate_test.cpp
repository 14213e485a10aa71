#include <cobatch/batch_predict.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
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
#include "support/step_executor.hpp"

using cobatch::async_semaphore;
using cobatch::batch_options;
using cobatch::batch_predict;
using cobatch::errc;
using cobatch::error;
using cobatch::expected;
using cobatch::rate_limiter;
using cobatch::simulation;
using cobatch::task;
using namespace std::chrono_literals;

using times = std::vector<std::chrono::milliseconds>;

namespace {

const std::vector<int> one{7};

auto always(act todo) {
  return [todo](int, int) { return todo; };
}

/// When each call began.
times starts(const script& predict) {
  times all;
  for (const auto& each : predict.calls())
    all.push_back(std::chrono::duration_cast<std::chrono::milliseconds>(each.began));
  return all;
}

/// `count` of them, `apart` apart.
times spaced(std::chrono::milliseconds first, std::chrono::milliseconds apart, int count) {
  times all;
  for (int i = 0; i < count; ++i) all.push_back(first + i * apart);
  return all;
}

/// Holds all of a semaphore, from one time to another.
task<void> hold(simulation& sim, async_semaphore& semaphore, std::chrono::milliseconds from,
                std::chrono::milliseconds until) {
  co_await sim.schedule_after(from);
  const auto permit = co_await semaphore.acquire(semaphore.limit());
  co_await sim.schedule_after(until - from);
}

}  // namespace

// ---- The rate ----

TEST_CASE("rate: attempts start exactly as far apart as the rate says, however long they take") {
  for (const auto takes : {0ms, 1ms, 1000ms}) {
    for (std::uint64_t seed = 0; seed < 5; ++seed) {
      simulation sim(seed);
      rate_limiter rate(100);
      script predict(sim, always(value_after(takes)));
      CHECK(values_in(play(sim, predict, samples_below(50), {.rate = &rate})) == 50);
      CHECK(starts(predict) == spaced(0ms, 10ms, 50));
      CHECK(elapsed(sim) == 490ms + takes);
    }
  }
}

TEST_CASE("rate: a burst starts at once") {
  simulation sim;
  rate_limiter rate(100, 5);
  script predict(sim, always(value_after(3ms)));
  CHECK(values_in(play(sim, predict, samples_below(8), {.rate = &rate})) == 8);
  CHECK(starts(predict) == times{0ms, 0ms, 0ms, 0ms, 0ms, 10ms, 20ms, 30ms});
}

TEST_CASE("rate: it and the cap both hold") {
  simulation sim;
  rate_limiter rate(100);
  script predict(sim, always(value_after(35ms)));
  CHECK(values_in(play(sim, predict, samples_below(6), {.max_concurrency = 2, .rate = &rate})) == 6);
  CHECK(starts(predict) == times{0ms, 10ms, 35ms, 45ms, 70ms, 80ms});
  CHECK(predict.flight().most() == 2);
}

TEST_CASE("rate: two batches share it, first come, first served") {
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    simulation sim(seed);
    rate_limiter rate(100);
    script first(sim, always(value_after(1ms)));
    script second(sim, always(value_after(1ms)));
    run_together(sim, {[&]() -> task<void> { (void)co_await playing(sim, first, samples_below(20), {.rate = &rate}); },
                       [&]() -> task<void> { (void)co_await playing(sim, second, samples_below(20), {.rate = &rate}); }});
    times all = starts(first);
    const times others = starts(second);
    all.insert(all.end(), others.begin(), others.end());
    std::sort(all.begin(), all.end());
    CHECK(all == spaced(0ms, 10ms, 40));
    CHECK(elapsed(sim) == 391ms);
    // In turn: a, a, b, a, b, ... for the first batch has its first token at once, and its next sample queues before the
    // other batch begins. So the n-th samples of the two are three starts apart, all the way.
    CHECK(std::chrono::abs(first.calls().back().began - second.calls().back().began) <= 30ms);
    CHECK(std::chrono::abs(first.calls()[10].began - second.calls()[10].began) <= 30ms);
  }
}

TEST_CASE("rate: a retry pays as well") {
  simulation sim;
  rate_limiter rate(10);
  script predict(sim, [](int, int number) { return number < 3 ? fails_after(0ms) : value_after(0ms); });
  const auto results =
      play(sim, predict, samples_below(4), {.retry = {.max_attempts = 3, .initial_backoff = 0ns}, .rate = &rate});
  CHECK(values_in(results) == 4);
  CHECK(starts(predict) == spaced(0ms, 100ms, 12));
}

TEST_CASE("rate: while a retry sleeps it holds no token") {
  simulation sim;
  rate_limiter rate(10);
  script predict(
      sim, [](int sample, int number) { return sample == 0 && number == 1 ? fails_after(0ms) : value_after(0ms); });
  const auto results = play(sim, predict, samples_below(5),
                            {.retry = {.max_attempts = 2, .initial_backoff = 250ms, .jitter = false}, .rate = &rate});
  CHECK(outline(results) == "2 101 201 301 401");
  CHECK(predict.order() == std::vector<int>{0, 1, 2, 3, 0, 4});  // which is used meanwhile
  CHECK(starts(predict) == spaced(0ms, 100ms, 6));
}

TEST_CASE("rate: a stop or the deadline while a sample waits for its token ends the batch at once") {
  for (const bool by_deadline : {false, true}) {
    for (std::uint64_t seed = 0; seed < 10; ++seed) {
      simulation sim(seed);
      rate_limiter rate(1);
      std::stop_source stop;
      script predict(sim, always(value_after(1ms)));
      const auto deadline = by_deadline ? std::chrono::nanoseconds(1500ms) : cobatch::no_timeout;
      run_together(sim, {[&]() -> task<void> {
                           const auto results = co_await playing(sim, predict, samples_below(5),
                                                                 {.stop = stop, .deadline = deadline, .rate = &rate});
                           CHECK(outline(results) == "1 101 not_started not_started not_started");
                           CHECK(elapsed(sim) == 1500ms);
                         },
                         [&]() -> task<void> {
                           co_await sim.schedule_after(1500ms);
                           if (!by_deadline) stop.request_stop();
                         }});
      CHECK(rate.waiting() == 0);
    }
  }
}

TEST_CASE("rate: max_failures while a sample waits for its token ends the batch at once") {
  simulation sim;
  rate_limiter rate(1);
  script predict(sim, always(fails_after(300ms)));
  const auto results = play(sim, predict, samples_below(5), {.max_failures = 1, .rate = &rate});
  CHECK(outline(results) == "exception not_started not_started not_started not_started");
  CHECK(elapsed(sim) == 300ms);
}

TEST_CASE("rate: who waits for a token holds its permits; a batch that needs no token goes on with what is left") {
  simulation sim;
  async_semaphore semaphore(2);
  rate_limiter rate(10);
  script limited(sim, always(value_after(1ms)));
  script free(sim, always(value_after(1ms)));
  run_together(sim, {[&]() -> task<void> {
                       (void)co_await playing(sim, limited, samples_below(5), {.semaphore = &semaphore, .rate = &rate});
                     },
                     [&]() -> task<void> {
                       (void)co_await playing(sim, free, samples_below(50), {.semaphore = &semaphore});
                       CHECK(elapsed(sim) <= 100ms);
                     }});
  CHECK(starts(limited) == spaced(0ms, 100ms, 5));
  CHECK(semaphore.available() == 2);
}

TEST_CASE("rate: an executor without timers is refused") {
  step_executor ex;
  rate_limiter rate(10);
  const std::vector<int> samples{1};
  const auto predict = [](int x) { return x; };
  CHECK_THROWS_AS(batch_predict(ex, samples, predict, {.rate = &rate}), std::invalid_argument);
  CHECK_THROWS_AS(batch_predict(ex, samples, predict, {.queue_timeout = 1s}), std::invalid_argument);
  CHECK_THROWS_AS(batch_predict(ex, samples, predict, {.retry = {.max_attempts = 2}}), std::invalid_argument);
  CHECK_THROWS_AS(batch_predict(ex, samples, predict, {.hedge = {.delay = 1s}}), std::invalid_argument);
}

// ---- The wait in the queue ----

TEST_CASE("queue_timeout: a sample that waits too long for its permit says so, and was never called") {
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    simulation sim(seed);
    async_semaphore semaphore(1);
    script predict(sim, always(value_after(5ms)));
    run_together(sim, {[&]() -> task<void> { co_await hold(sim, semaphore, 0ms, 100ms); },
                       [&]() -> task<void> {
                         co_await sim.schedule_after(1ms);
                         const auto results =
                             co_await playing(sim, predict, one, {.semaphore = &semaphore, .queue_timeout = 20ms});
                         CHECK(outline(results) == "queue_timed_out");
                         CHECK(results[0].error().attempts == 0);
                         CHECK(results[0].error().exception == nullptr);
                         CHECK(elapsed(sim) == 21ms);
                       }});
    CHECK(predict.calls().empty());
    CHECK(semaphore.available() == 1);
    CHECK(semaphore.waiting() == 0);
  }
}

TEST_CASE("queue_timeout: the others go on") {
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    simulation sim(seed);
    async_semaphore semaphore(1);
    script predict(sim, always(value_after(5ms)));
    run_together(sim, {[&]() -> task<void> { co_await hold(sim, semaphore, 0ms, 50ms); },
                       [&]() -> task<void> {
                         co_await sim.schedule_after(1ms);
                         const auto results = co_await playing(sim, predict, samples_below(6),
                                                               {.semaphore = &semaphore, .queue_timeout = 20ms});
                         // The time of each runs from its turn at the head of its batch's queue.
                         CHECK(outline(results) == "queue_timed_out queue_timed_out 201 301 401 501");
                       }});
    CHECK(predict.began(2) == times{50ms});
    CHECK(semaphore.available() == 1);
  }
}

TEST_CASE("queue_timeout: it does not count the time in flight") {
  simulation sim;
  script predict(sim, always(value_after(1h)));
  CHECK(values_in(play(sim, predict, samples_below(4), {.max_concurrency = 1, .queue_timeout = 20ms})) == 4);
}

TEST_CASE("queue_timeout: a wait for the rate counts") {
  simulation sim;
  rate_limiter rate(10);
  script predict(sim, always(value_after(1ms)));
  const auto results = play(sim, predict, samples_below(6), {.queue_timeout = 60ms, .rate = &rate});
  // 0 at 0; 1 gives up at 60, 2 gets the token of 100; 3 gives up at 160, and so on.
  CHECK(outline(results) == "1 queue_timed_out 201 queue_timed_out 401 queue_timed_out");
  CHECK(predict.began(2) == times{100ms});
  CHECK(rate.waiting() == 0);
}

TEST_CASE("queue_timeout: it is a failure for max_failures, and not tried again") {
  simulation sim;
  async_semaphore semaphore(1);
  script predict(sim, always(value_after(5ms)));
  run_together(
      sim, {[&]() -> task<void> { co_await hold(sim, semaphore, 0ms, 1000ms); },
            [&]() -> task<void> {
              co_await sim.schedule_after(1ms);
              const auto results = co_await playing(
                  sim, predict, samples_below(5),
                  {.semaphore = &semaphore, .queue_timeout = 20ms, .max_failures = 2, .retry = {.max_attempts = 3}});
              CHECK(outline(results) == "queue_timed_out queue_timed_out not_started not_started not_started");
              CHECK(elapsed(sim) == 41ms);
            }});
}

TEST_CASE(
    "queue_timeout: a permit that comes at that very moment is used or given back, and the sample has one outcome") {
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    simulation sim(seed);
    async_semaphore semaphore(1);
    script predict(sim, always(value_after(5ms)));
    run_together(sim, {[&]() -> task<void> { co_await hold(sim, semaphore, 0ms, 21ms); },
                       [&]() -> task<void> {
                         co_await sim.schedule_after(1ms);
                         const auto results = co_await playing(sim, predict, samples_below(3),
                                                               {.semaphore = &semaphore, .queue_timeout = 20ms});
                         CHECK(values_in(results) + count_of(results, errc::queue_timed_out) == 3);
                         CHECK(values_in(results) >= 2);
                         CHECK(static_cast<long>(predict.calls().size()) == values_in(results));
                       }});
    CHECK(semaphore.available() == 1);
  }
}

TEST_CASE(
    "queue_timeout: a retried sample that waits too long for its next attempt says so, with the attempts it had") {
  simulation sim;
  async_semaphore semaphore(1);
  script predict(sim, always(fails_after(10ms)));
  run_together(sim,
               {[&]() -> task<void> {
                  const auto results = co_await playing(
                      sim, predict, one,
                      {.semaphore = &semaphore, .queue_timeout = 20ms, .retry = {.max_attempts = 3, .jitter = false}});
                  CHECK(outline(results) == "queue_timed_out");
                  CHECK(results[0].error().attempts == 1);
                  CHECK(elapsed(sim) == 130ms);
                },
                [&]() -> task<void> { co_await hold(sim, semaphore, 50ms, 1000ms); }});
}

TEST_CASE("queue_timeout: a sample of a single-pass range is read for it") {
  simulation sim;
  async_semaphore semaphore(1);
  census samples;
  const auto predict = [&](const tracked& sample) -> task<int> {
    co_await sim.schedule_after(5ms);
    co_return sample.number();
  };
  run_together(sim, {[&]() -> task<void> { co_await hold(sim, semaphore, 0ms, 50ms); },
                     [&]() -> task<void> {
                       co_await sim.schedule_after(1ms);
                       auto range = generated([&, i = 0]() mutable {
                         return i < 5 ? std::optional(tracked(samples, i++)) : std::nullopt;
                       });
                       const auto results = co_await batch_predict(sim, std::move(range), predict,
                                                                   {.semaphore = &semaphore, .queue_timeout = 20ms});
                       CHECK(outline(results) == "queue_timed_out queue_timed_out 2 3 4");
                     }});
  CHECK(samples.alive == 0);
  CHECK(semaphore.available() == 1);
}
