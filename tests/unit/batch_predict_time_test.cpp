#include <cobatch/batch_predict.hpp>

#include <chrono>
#include <cstddef>
#include <exception>
#include <optional>
#include <ranges>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <vector>

#include <cobatch/error.hpp>
#include <cobatch/executor.hpp>
#include <cobatch/expected.hpp>
#include <cobatch/semaphore.hpp>
#include <cobatch/simulation.hpp>
#include <cobatch/task.hpp>

#include "support/catch.hpp"
#include "support/generated.hpp"
#include "support/lifetimes.hpp"
#include "support/outline.hpp"
#include "support/step_executor.hpp"

using cobatch::batch_predict;
using cobatch::errc;
using cobatch::error;
using cobatch::expected;
using cobatch::simulation;
using cobatch::task;
using cobatch::unexpected;
using namespace std::chrono_literals;

namespace {

const std::vector<int> five{0, 1, 2, 3, 4};

std::chrono::nanoseconds elapsed(const simulation& sim) {
  return sim.now().time_since_epoch();
}

/// Sleeps for sample milliseconds; throws if it is stopped before.
auto sleeper(simulation& sim) {
  return [&sim](int x, std::stop_token token) -> task<int> {
    if (!co_await sim.schedule_after(x * 1ms, token)) throw std::runtime_error("stopped");
    co_return x;
  };
}

}  // namespace

TEST_CASE("batch_predict: 20 sleepers of 0.1 s at limit 5 take 0.4 s") {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    simulation sim(seed);
    const auto results = sim.run(batch_predict(sim, std::views::iota(0, 20),
                                               [&](int x) -> task<int> {
                                                 co_await sim.schedule_after(100ms);
                                                 co_return x;
                                               },
                                               {.max_concurrency = 5}));
    CHECK(values_in(results) == 20);
    CHECK(elapsed(sim) == 400ms);
  }
}

TEST_CASE("batch_predict: the window slides, it is no barrier") {
  // One slow sample among quick ones holds up nobody else.
  simulation sim;
  const auto results = sim.run(batch_predict(sim, std::views::iota(0, 19),
                                             [&](int x) -> task<int> {
                                               co_await sim.schedule_after(x == 0 ? 900ms : 100ms);
                                               co_return x;
                                             },
                                             {.max_concurrency = 3}));
  CHECK(values_in(results) == 19);
  CHECK(elapsed(sim) == 900ms);
}

TEST_CASE(
    "batch_predict: no more samples are in flight than max_concurrency says, and no fewer while there are enough") {
  for (const std::size_t cap : {1u, 2u, 5u, 100u}) {
    for (std::uint64_t seed = 0; seed < 5; ++seed) {
      simulation sim(seed);
      gauge flight;
      const auto results = sim.run(batch_predict(sim, std::views::iota(0, 100),
                                                 [&](int x) -> task<int> {
                                                   const auto inside = flight.enter();
                                                   co_await sim.schedule_after((1 + x * 7919 % 13) * 1ms);
                                                   co_return x;
                                                 },
                                                 {.max_concurrency = cap}));
      CHECK(values_in(results) == 100);
      CHECK(flight.most() == static_cast<long>(cap));
    }
  }
}

TEST_CASE("batch_predict: an attempt that takes too long is stopped and says timed_out, the others are not touched") {
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    simulation sim(seed);
    const std::vector<int> samples{5, 50, 7, 60, 9, 8};
    const auto results = sim.run(batch_predict(sim, samples, sleeper(sim), {.max_concurrency = 2, .timeout = 10ms}));
    CHECK(outline(results) == "5 timed_out 7 timed_out 9 8");
    CHECK_THROWS_WITH(std::rethrow_exception(results[1].error().exception), "stopped");
    CHECK(elapsed(sim) == 28ms);  // one lane: 5, 7, 9; the other: 50 until 10, 60 until 20, 8 until 28
  }
}

TEST_CASE("batch_predict: a timeout runs from the call of predict, not from the start of the batch") {
  simulation sim;
  const std::vector<int> samples(10, 8);
  const auto results = sim.run(batch_predict(sim, samples, sleeper(sim), {.max_concurrency = 1, .timeout = 10ms}));
  CHECK(values_in(results) == 10);
  CHECK(elapsed(sim) == 80ms);
}

TEST_CASE("batch_predict: a value that comes after its timeout counts") {
  simulation sim;
  const auto results = sim.run(batch_predict(sim, five,
                                             [&](int x, std::stop_token token) -> task<int> {
                                               co_await sim.schedule_after(1h, token);
                                               CHECK(token.stop_requested());
                                               co_return x;
                                             },
                                             {.max_concurrency = 2, .timeout = 10ms}));
  CHECK(outline(results) == "0 1 2 3 4");
  CHECK(elapsed(sim) == 30ms);
}

TEST_CASE(
    "batch_predict: a predict that takes no token is not hurried by its timeout, and its place is held until it ends") {
  simulation sim;
  gauge flight;
  cobatch::async_semaphore semaphore(2);
  const auto results = sim.run(batch_predict(sim, five,
                                             [&](int x) -> task<int> {
                                               const auto inside = flight.enter();
                                               co_await sim.schedule_after(100ms);
                                               if (x != 2) throw x;
                                               co_return x;
                                             },
                                             {.semaphore = &semaphore, .timeout = 10ms}));
  CHECK(outline(results) == "timed_out timed_out 2 timed_out timed_out");
  CHECK(flight.most() == 2);
  CHECK(elapsed(sim) == 300ms);
  CHECK(semaphore.available() == 2);
}

TEST_CASE("batch_predict: the next sample after a timeout gets a token of its own") {
  simulation sim;
  std::vector<bool> stopped_at_start;
  const auto results = sim.run(batch_predict(sim, std::vector<int>{50, 1, 50, 1},
                                             [&](int x, std::stop_token token) -> task<int> {
                                               stopped_at_start.push_back(token.stop_requested());
                                               if (!co_await sim.schedule_after(x * 1ms, token)) throw x;
                                               co_return x;
                                             },
                                             {.max_concurrency = 1, .timeout = 10ms}));
  CHECK(outline(results) == "timed_out 1 timed_out 1");
  CHECK(stopped_at_start == std::vector<bool>(4, false));
}

TEST_CASE("batch_predict: timeouts count as failures") {
  simulation sim;
  const std::vector<int> samples{50, 60, 5, 70, 5};
  const auto results =
      sim.run(batch_predict(sim, samples, sleeper(sim), {.max_concurrency = 1, .timeout = 10ms, .max_failures = 2}));
  CHECK(outline(results) == "timed_out timed_out not_started not_started not_started");
}

TEST_CASE("batch_predict: synchronous predicts never time out") {
  simulation sim;
  CHECK(outline(sim.run(batch_predict(sim, five, [](int x) { return x; }, {.timeout = 1ns, .deadline = 1h}))) ==
        "0 1 2 3 4");
}

TEST_CASE("batch_predict: a timeout of zero or less has passed at once for whatever suspends") {
  for (const auto timeout : {std::chrono::nanoseconds(0), std::chrono::nanoseconds(-1ms)}) {
    simulation sim;
    const std::vector<int> samples{5, 6, 7};
    const auto results = sim.run(batch_predict(sim, samples, sleeper(sim), {.max_concurrency = 1, .timeout = timeout}));
    CHECK(outline(results) == "timed_out timed_out timed_out");
    CHECK(elapsed(sim) < 1us);
  }
}

TEST_CASE("batch_predict: the deadline gives a vector of full length with what is done, and does not throw") {
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    simulation sim(seed);
    const std::vector<int> samples{5, 50, 6, 60, 9, 8};
    const auto results = sim.run(batch_predict(sim, samples, sleeper(sim), {.max_concurrency = 2, .deadline = 15ms}));
    CHECK(outline(results) == "5 deadline_exceeded 6 deadline_exceeded not_started not_started");
    CHECK(elapsed(sim) == 15ms);
  }
}

TEST_CASE("batch_predict: the deadline runs from the co_await") {
  simulation sim;
  const auto run = [&]() -> task<std::string> {
    auto batch = batch_predict(sim, five, sleeper(sim), {.deadline = 10ms});
    co_await sim.schedule_after(1h);
    co_return outline(co_await std::move(batch));
  };
  CHECK(sim.run(run()) == "0 1 2 3 4");
}

TEST_CASE("batch_predict: a deadline that has passed starts nothing that waits, and hurts nothing that is done") {
  simulation sim;
  const auto results = sim.run(batch_predict(sim, five, sleeper(sim), {.max_concurrency = 1, .deadline = 0ms}));
  CHECK(values_in(results) + count_of(results, errc::not_started) + count_of(results, errc::deadline_exceeded) == 5);
  CHECK(elapsed(sim) == 0ms);
}

TEST_CASE("batch_predict: a value wins over the deadline, and the batch is joined") {
  simulation sim;
  census frames;
  const auto results = sim.run(batch_predict(sim, five,
                                             [&](int x) -> task<int> {
                                               const life frame(frames);
                                               co_await sim.schedule_after(1s);
                                               co_return x;
                                             },
                                             {.max_concurrency = 3, .deadline = 10ms}));
  CHECK(outline(results) == "0 1 2 not_started not_started");
  CHECK(elapsed(sim) == 1s);
  CHECK(frames.alive == 0);
}

TEST_CASE("batch_predict: a deadline ends an endless input") {
  simulation sim;
  const auto results = sim.run(batch_predict(sim, std::views::iota(0),
                                             [&](int x) -> task<int> {
                                               co_await sim.schedule_after(1ms);
                                               co_return x;
                                             },
                                             {.max_concurrency = 2, .deadline = 100ms}));
  CHECK(results.size() >= 200);
  CHECK(results.size() <= 204);
  CHECK(elapsed(sim) <= 101ms);
}

TEST_CASE("batch_predict: the timeout of an attempt and the deadline are told apart") {
  simulation sim;
  const std::vector<int> samples{50, 60, 70, 80};
  const auto results =
      sim.run(batch_predict(sim, samples, sleeper(sim), {.max_concurrency = 2, .timeout = 10ms, .deadline = 15ms}));
  CHECK(outline(results) == "timed_out timed_out deadline_exceeded deadline_exceeded");
  CHECK(elapsed(sim) == 15ms);
}

TEST_CASE("batch_predict: times too long for the clock never come") {
  simulation sim;
  sim.run([](simulation& s) -> task<> { co_await s.schedule_after(1h); }(sim));
  const auto longest = cobatch::no_timeout - 1ns;
  CHECK(outline(sim.run(batch_predict(sim, five, sleeper(sim), {.timeout = longest, .deadline = longest}))) ==
        "0 1 2 3 4");
}

TEST_CASE("batch_predict: a batch with times is over as soon as its last predict is") {
  simulation sim;
  CHECK(values_in(sim.run(batch_predict(sim, five, sleeper(sim), {.timeout = 1h, .deadline = 2h}))) == 5);
  CHECK(elapsed(sim) == 4ms);
}

TEST_CASE("batch_predict: a predict that never ends is reported as a deadlock, also with a timeout and a deadline") {
  struct never {
    bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<>) const noexcept {}
    int await_resume() const noexcept { return 0; }
  };
  const auto hang = [](int) { return never(); };
  {
    simulation sim;
    CHECK_THROWS_AS(sim.run(batch_predict(sim, five, hang)), cobatch::deadlock_error);
    CHECK_THROWS_AS(sim.run(batch_predict(sim, five, hang, {.deadline = 1s})), cobatch::deadlock_error);
    CHECK_THROWS_AS(sim.run(batch_predict(sim, five, hang, {.timeout = 1s})), cobatch::deadlock_error);
    CHECK_THROWS_AS(sim.run(batch_predict(sim, five, hang, {.max_concurrency = 2, .timeout = 1s, .deadline = 5s})),
                    cobatch::deadlock_error);
  }
}

TEST_CASE("batch_predict: a batch that a deadlock destroys leaks nothing, and gives its permits back") {
  struct never {
    bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<>) const noexcept {}
    void await_resume() const noexcept {}
  };
  census frames, samples;
  cobatch::async_semaphore semaphore(2);
  std::stop_source stop;
  {
    simulation sim;
    const auto predict = [&](const tracked& sample) -> task<int> {
      struct last_look {
        const tracked& sample;
        ~last_look() { CHECK(sample.number() >= 0); }  // samples outlive their predicts, also here
      } look{sample};
      const life frame(frames);
      if (sample.number() > 0) co_await never();
      co_return sample.number();
    };
    const auto lazy = std::views::iota(0, 5) | std::views::transform([&](int i) { return tracked(samples, i); });
    std::vector<tracked> owned;
    for (int i = 0; i < 5; ++i) owned.emplace_back(samples, i);
    CHECK_THROWS_AS(sim.run(batch_predict(sim, std::move(owned), predict, {.semaphore = &semaphore, .stop = stop})),
                    cobatch::deadlock_error);
    CHECK(frames.alive == 0);
    CHECK(samples.alive == 0);
    CHECK(semaphore.available() == 2);
    CHECK_THROWS_AS(sim.run(batch_predict(sim, lazy, predict,
                                          {.semaphore = &semaphore, .stop = stop, .timeout = 1s, .deadline = 1min})),
                    cobatch::deadlock_error);
    CHECK(frames.alive == 0);
    CHECK(samples.alive == 0);
    CHECK(semaphore.available() == 2);
    CHECK(semaphore.waiting() == 0);
  }
  stop.request_stop();  // finds nobody
}

TEST_CASE("batch_predict: timeouts and deadlines are refused in words where the executor has no timers") {
  step_executor executor;
  const auto same = [](int x) { return x; };
  CHECK_THROWS_WITH(batch_predict(executor, five, same, {.timeout = 1s}), Catch::Matchers::Contains("schedule_after"));
  CHECK_THROWS_AS(batch_predict(executor, five, same, {.deadline = 1s}), std::invalid_argument);
}
