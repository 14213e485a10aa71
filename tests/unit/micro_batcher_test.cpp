#include <cobatch/micro_batcher.hpp>

#include <algorithm>
#include <chrono>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <cobatch/simulation.hpp>
#include <cobatch/task.hpp>

#include "support/allocations.hpp"
#include "support/batch_model.hpp"
#include "support/catch.hpp"
#include "support/outline.hpp"
#include "support/started.hpp"
#include "support/step_executor.hpp"

using cobatch::errc;
using cobatch::error;
using cobatch::expected;
using cobatch::micro_batch_options;
using cobatch::micro_batcher;
using cobatch::no_timeout;
using cobatch::simulation;
using cobatch::task;
using namespace std::chrono_literals;
using std::chrono::nanoseconds;

namespace {

using outcome = expected<int, error>;
using batcher = micro_batcher<int, int>;

std::string times(const simulation& sim) {
  return std::to_string(sim.now().time_since_epoch() / 1us);
}

/// One caller: at which time, with what, and what came of it.
struct caller {
  int sample = 0;
  nanoseconds at{0};
  nanoseconds deadline = no_timeout;
  nanoseconds stops_at = no_timeout;
  std::optional<outcome> result{};
  simulation::time_point answered{};
  int outcomes = 0;
  std::stop_source stop{};
};

/// A simulation, a model, and callers.
struct scene {
  explicit scene(std::uint64_t seed = 0) : sim(seed), model(sim) {}

  started call(batcher& to, caller& who) {
    co_await sim.schedule_after(who.at);
    auto result = co_await to.predict(who.sample, who.stop.get_token(), who.deadline);
    who.result.emplace(std::move(result));
    who.answered = sim.now();
    ++who.outcomes;
  }
  started stop_later(caller& who) {
    co_await sim.schedule_after(who.stops_at);
    who.stop.request_stop();
  }
  task<> wait(nanoseconds delay) { co_await sim.schedule_after(delay); }

  /// Runs all callers to their end.
  void run(const micro_batch_options& options, std::deque<caller>& callers) {
    batcher all(sim, model.callable(), options);
    std::vector<started> running;
    for (caller& each : callers) {
      running.push_back(call(all, each));
      if (each.stops_at != no_timeout) running.push_back(stop_later(each));
    }
    sim.run(wait(1h));
    CHECK(all.waiting() == 0);
  }

  simulation sim;
  batch_model model;
};

/// "value at 1000, exception at 2000": what each caller got, and when, in microseconds.
std::string answers(const std::deque<caller>& callers) {
  std::string text;
  for (const caller& each : callers) {
    if (!text.empty()) text += ", ";
    text += each.result ? outline(*each.result) + " at " + std::to_string(each.answered.time_since_epoch() / 1us)
                        : "nothing";
  }
  return text;
}

std::deque<caller> callers_at(std::vector<nanoseconds> times) {
  std::deque<caller> all;
  for (const nanoseconds each : times) all.push_back({.sample = static_cast<int>(all.size()) + 1, .at = each});
  return all;
}

/// A sample that may break when it is moved.
struct brittle {
  explicit brittle(int n) : number(n) {}
  brittle(brittle&& other) noexcept(false) : number(other.number) {
    if (number == the_one_that_breaks) throw std::runtime_error("broken on the way");
  }
  static std::vector<int> numbers(std::span<const brittle> all) {
    std::vector<int> results;
    for (const brittle& each : all) results.push_back(each.number);
    return results;
  }

  int number;
  static inline int the_one_that_breaks = 0;
};

/// An executor that forwards to a simulation until it is told to refuse.
struct refusing_executor {
  simulation& sim;
  bool refuses = false;
  bool has_timers = true;

  bool execute(std::coroutine_handle<> handle) { return !refuses && sim.execute(handle); }
  auto schedule_after(nanoseconds delay, std::stop_token stop = {}) {
    std::stop_source stopped;
    stopped.request_stop();
    return sim.schedule_after(delay, has_timers ? stop : stopped.get_token());
  }
  auto now() const { return sim.now(); }
};

}  // namespace

// ---- When a batch starts ----

TEST_CASE("micro batcher: one caller alone waits for max_delay, exactly") {
  scene test;
  auto callers = callers_at({0ms, 10ms, 20ms});
  test.run({.max_delay = 3ms}, callers);
  CHECK(test.model.log == "3000: 1, 13000: 2, 23000: 3");
  CHECK(answers(callers) == "2 at 3000, 4 at 13000, 6 at 23000");
}

TEST_CASE("micro batcher: a full batch starts at once, and the rest waits for its own time") {
  scene test;
  auto callers = callers_at({0ms, 1ms, 2ms, 3ms, 4ms, 5ms, 6ms});
  test.run({.max_batch_size = 3, .max_delay = 10ms}, callers);
  CHECK(test.model.log == "2000: 1 2 3, 5000: 4 5 6, 16000: 7");
}

TEST_CASE("micro batcher: the delay counts from the oldest sample") {
  scene test;
  auto callers = callers_at({0ms, 1ms, 2ms, 4ms});
  test.run({.max_delay = 3ms}, callers);
  CHECK(test.model.log == "3000: 1 2 3, 7000: 4");
}

TEST_CASE("micro batcher: without a delay a batch is what came while the one before ran") {
  scene test;
  test.model.per_call = 10ms;
  auto callers = callers_at({0ms, 1ms, 2ms, 3ms, 12ms});
  test.run({.max_delay = 0ms}, callers);
  CHECK(test.model.log == "0: 1, 10000: 2 3 4, 20000: 5");
  CHECK(answers(callers) == "2 at 10000, 4 at 20000, 6 at 20000, 8 at 20000, 10 at 30000");
}

TEST_CASE("micro batcher: what gathers behind a running batch starts with its end if it is due by then") {
  scene test;
  test.model.per_call = 4ms;
  auto callers = callers_at({0ms, 3ms, 3500us});
  test.run({.max_delay = 2ms}, callers);  // the first runs from 2 to 6; the second would be due at 5
  CHECK(test.model.log == "2000: 1, 6000: 2 3");

  scene later;
  later.model.per_call = 4ms;
  callers = callers_at({0ms, 5ms});
  later.run({.max_delay = 2ms}, callers);  // not due yet when the first ends
  CHECK(later.model.log == "2000: 1, 7000: 2");
}

TEST_CASE("micro batcher: so many batches run at a time and no more") {
  scene test;
  test.model.per_call = 10ms;
  auto callers = callers_at(std::vector<nanoseconds>(10, 0ms));
  test.run({.max_batch_size = 2, .max_concurrent_batches = 3}, callers);
  CHECK(test.model.log == "0: 1 2, 0: 3 4, 0: 5 6, 10000: 7 8, 10000: 9 10");
  CHECK(test.model.running.most() == 3);
}

TEST_CASE("micro batcher: those who come while a batch is on its way join it") {
  scene test;
  step_executor elsewhere;
  batcher all(test.sim, test.model.callable(), {.max_batch_size = 4, .max_delay = 0ms});
  auto callers = callers_at({0ms, 0ms, 0ms});
  std::vector<started> running;
  const auto late = [&](caller& who) -> started {
    auto result = co_await all.predict(who.sample);
    who.result.emplace(std::move(result));
  };
  for (caller& each : callers) running.push_back(late(each));  // the first has started a batch
  test.sim.run(test.wait(1ms));
  CHECK(test.model.log == "0: 1 2 3");
}

TEST_CASE("micro batcher: predict_many is never called inside predict()") {
  scene test;
  batcher all(test.sim, test.model.callable(), {.max_batch_size = 1});
  caller who{.sample = 1};
  const auto call = [&]() -> started {
    auto result = co_await all.predict(who.sample);
    who.result.emplace(std::move(result));
  };
  const started waits = call();
  CHECK(test.model.calls == 0);
  test.sim.run(test.wait(1ms));
  CHECK(test.model.calls == 1);
  CHECK(*who.result == 2);
}

// ---- The queue ----

TEST_CASE("micro batcher: beyond max_queue a caller is refused at once") {
  scene test;
  test.model.per_call = 10ms;
  auto callers = callers_at({0ms, 0ms, 1ms, 1ms, 1ms, 1ms});
  test.run({.max_batch_size = 2, .max_queue = 3}, callers);
  CHECK(answers(callers) == "2 at 10000, 4 at 10000, 6 at 20000, 8 at 20000, 10 at 30000, queue_full at 1000");
  CHECK(callers[5].result->error().attempts == 0);
}

TEST_CASE("micro batcher: whose deadline has come does not count for max_queue, even before the clock has told it") {
  scene test;
  test.model.per_call = 10ms;
  auto callers = callers_at({0ms, 1ms, 5ms});
  callers[1].deadline = 4ms;  // the third caller comes at that moment, and is awake before the batcher's timer
  test.run({.max_batch_size = 1, .max_queue = 1}, callers);
  CHECK(answers(callers) == "2 at 10000, deadline_exceeded at 5000, 6 at 20000");
}

TEST_CASE("micro batcher: a full queue does not wait for max_delay while nothing runs") {
  scene test;
  auto callers = callers_at({0ms, 1ms, 2ms, 4ms});
  test.run({.max_batch_size = 100, .max_delay = 30min, .max_queue = 3}, callers);
  CHECK(test.model.log == "2000: 1 2 3, 1800004000: 4");
  CHECK(answers(callers) == "2 at 2000, 4 at 2000, 6 at 2000, 8 at 1800004000");
}

// ---- Stop and deadline ----

TEST_CASE("micro batcher: a stopped sample leaves the queue and is in no batch") {
  scene test;
  auto callers = callers_at({0ms, 1ms, 2ms});
  callers[0].stops_at = 2500us;
  test.run({.max_delay = 3ms}, callers);
  CHECK(answers(callers) == "cancelled at 2500, 4 at 4000, 6 at 4000");
  CHECK(callers[0].result->error().attempts == 0);
}

TEST_CASE("micro batcher: stopped before the co_await, nothing happens at all") {
  scene test;
  auto callers = callers_at({1ms});
  callers[0].stops_at = 0ms;
  test.run({}, callers);
  CHECK(answers(callers) == "cancelled at 1000");
  CHECK(test.model.calls == 0);
}

TEST_CASE("micro batcher: once the batch runs, a value counts although it was stopped, and a failure is the stop's") {
  scene test;
  test.model.per_call = 10ms;
  test.model.poison = {2};
  auto callers = callers_at({0ms, 20ms});
  callers[0].stops_at = 5ms;
  callers[1].stops_at = 25ms;
  test.run({}, callers);
  CHECK(answers(callers) == "2 at 11000, cancelled at 31000");
  CHECK(callers[1].result->error().exception);
  CHECK(callers[1].result->error().attempts == 1);
}

TEST_CASE("micro batcher: a deadline ends the wait behind running batches, to the nanosecond") {
  scene test;
  test.model.per_call = 10ms;
  auto callers = callers_at({0ms, 2ms, 2ms});
  callers[1].deadline = 5ms;
  test.run({}, callers);
  CHECK(answers(callers) == "2 at 11000, deadline_exceeded at 7000, 6 at 21000");
  CHECK(callers[1].result->error().attempts == 0);
}

TEST_CASE("micro batcher: many deadlines, set in any order, each end in time") {
  scene test;
  test.model.per_call = 100ms;
  std::deque<caller> callers{{.sample = 0}};
  const int delays[] = {50, 20, 70, 10, 90, 30, 60, 20};
  for (const int each : delays) callers.push_back({.sample = each, .at = 5ms, .deadline = each * 1ms});
  test.run({.max_delay = 2ms}, callers);
  for (std::size_t i = 1; i < callers.size(); ++i) {
    CHECK(callers[i].answered.time_since_epoch() == 5ms + delays[i - 1] * 1ms);
    CHECK(callers[i].result->error().code == errc::deadline_exceeded);
  }
}

TEST_CASE("micro batcher: a deadline that leaves no time to wait for others makes the batch due at once") {
  scene test;
  auto callers = callers_at({0ms, 3ms});
  callers[1].deadline = 5ms;
  test.run({.max_delay = 10ms}, callers);
  CHECK(test.model.log == "3000: 1 2");
}

TEST_CASE("micro batcher: after the deadline a value counts, and a failure is the deadline's") {
  scene test;
  test.model.per_call = 10ms;
  test.model.poison = {2};
  auto callers = callers_at({0ms, 20ms});
  callers[0].deadline = callers[1].deadline = 5ms;
  test.run({}, callers);
  CHECK(answers(callers) == "2 at 11000, deadline_exceeded at 31000");
}

TEST_CASE("micro batcher: after a stop or a deadline an error of the model's own is theirs, a wrong count is not") {
  for (const bool miscounts : {false, true}) {
    scene test;
    test.model.per_call = 10ms;
    test.model.refused = {1, 2, 3};
    test.model.missing = miscounts;
    auto callers = callers_at({0ms, 0ms, 0ms});
    callers[0].stops_at = 5ms;
    callers[1].deadline = 5ms;
    test.run({}, callers);
    CHECK(answers(callers) == (miscounts ? "batch_size_mismatch at 11000, batch_size_mismatch at 11000, "
                                           "batch_size_mismatch at 11000"
                                         : "cancelled at 11000, deadline_exceeded at 11000, timed_out at 11000"));
  }
}

TEST_CASE("micro batcher: a deadline of nothing is past at once") {
  scene test;
  auto callers = callers_at({0ms});
  callers[0].deadline = 0ms;
  test.run({}, callers);
  CHECK(answers(callers) == "deadline_exceeded at 0");
}

// ---- Cost and key ----

TEST_CASE("micro batcher: a batch holds no more than max_batch_cost, in the order of the callers") {
  scene test;
  batcher all(test.sim, cobatch::weighted(test.model.callable(), [](int x) { return x; }),
              {.max_delay = 10ms, .max_batch_cost = 10});
  std::deque<caller> callers;
  for (const int cost : {4, 5, 3, 10, 11, 1, 0}) callers.push_back({.sample = cost});
  std::vector<started> running;
  for (caller& each : callers) running.push_back(test.call(all, each));
  test.sim.run(test.wait(1h));
  CHECK(test.model.log == "0: 4 5, 0: 3, 0: 10, 10000: 1 0");
  CHECK(callers[4].result->error().code == errc::cost_exceeds_capacity);
}

TEST_CASE("micro batcher: with a key, a batch holds samples of one key, and each key has its own time") {
  scene test;
  batcher all(test.sim, cobatch::bucketed(test.model.callable(), [](int x) { return x / 100; }),
              {.max_batch_size = 2, .max_delay = 10ms});
  std::deque<caller> callers;
  callers.push_back({.sample = 101, .at = 0ms});
  callers.push_back({.sample = 201, .at = 1ms});
  callers.push_back({.sample = 301, .at = 2ms});
  callers.push_back({.sample = 202, .at = 3ms});
  callers.push_back({.sample = 102, .at = 11ms});
  std::vector<started> running;
  for (caller& each : callers) running.push_back(test.call(all, each));
  test.sim.run(test.wait(1h));
  CHECK(test.model.log == "3000: 201 202, 10000: 101, 12000: 301, 21000: 102");
}

TEST_CASE("micro batcher: keys and costs together; the key whose sample waits longest goes first") {
  scene test;
  test.model.per_call = 20ms;
  batcher all(test.sim,
              cobatch::bucketed(cobatch::weighted(test.model.callable(), [](int x) { return x % 100; }),
                                [](int x) { return x / 100; }),
              {.max_delay = 10ms, .max_batch_cost = 10});
  std::deque<caller> callers;
  callers.push_back({.sample = 110, .at = 0ms});
  callers.push_back({.sample = 209, .at = 2ms});
  callers.push_back({.sample = 305, .at = 1ms});
  callers.push_back({.sample = 306, .at = 3ms});
  callers.push_back({.sample = 201, .at = 4ms});
  std::vector<started> running;
  for (caller& each : callers) running.push_back(test.call(all, each));
  test.sim.run(test.wait(1h));
  CHECK(test.model.log == "0: 110, 20000: 305, 40000: 209 201, 60000: 306");
}

TEST_CASE("micro batcher: a cost or a key that throws is that sample's failure") {
  scene test;
  batcher all(
      test.sim,
      cobatch::bucketed(test.model.callable(), [](int x) { return x == 2 ? throw std::runtime_error("no key") : 0; }),
      {});
  auto callers = callers_at({0ms, 0ms, 0ms});
  std::vector<started> running;
  for (caller& each : callers) running.push_back(test.call(all, each));
  test.sim.run(test.wait(1h));
  CHECK(answers(callers) == "2 at 1000, exception at 0, 6 at 1000");
}

// ---- Failures ----

TEST_CASE("micro batcher: without isolation a failed batch fails all of its samples") {
  scene test;
  test.model.poison = {2};
  auto callers = callers_at({0ms, 0ms, 0ms, 2ms});
  test.run({}, callers);
  CHECK(answers(callers) == "exception at 1000, exception at 1000, exception at 1000, 8 at 3000");
  CHECK(callers[0].result->error().message() == "predict threw an exception: poison 2");
  CHECK(test.model.calls == 2);
}

TEST_CASE("micro batcher: a sample's own error is its own, also without isolation") {
  scene test;
  test.model.refused = {2};
  auto callers = callers_at({0ms, 0ms, 0ms});
  test.run({}, callers);
  CHECK(answers(callers) == "2 at 1000, timed_out at 1000, 6 at 1000");
}

TEST_CASE("micro batcher: isolation finds the poisonous samples, and each has its own exception") {
  for (const nanoseconds duration : {0ns, nanoseconds(5ms)}) {
    scene test;
    test.model.per_call = duration;
    test.model.poison = {3, 8};
    auto callers = callers_at(std::vector<nanoseconds>(8, 0ms));
    test.run({.max_batch_size = 8, .isolate_failures = true}, callers);
    for (const caller& each : callers) {
      if (test.model.poison.contains(each.sample)) {
        CHECK(each.result->error().message() == "predict threw an exception: poison " + std::to_string(each.sample));
      } else {
        CHECK(*each.result == 2 * each.sample);
      }
    }
    // 8: 4 (2 (.), 2 (1, 1!)), 4 (2, 2 (1, 1!))
    CHECK(test.model.calls == 11);
    // Those who are cleared do not wait for the others to be.
    CHECK(callers[0].answered.time_since_epoch() == 3 * duration);
  }
}

TEST_CASE("micro batcher: of 1,000 samples 7 are poisonous: 993 values, 7 errors, few extra calls") {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    scene test(seed);
    test.model.per_call = 2ms;
    test.model.per_sample = 20us;
    std::mt19937_64 random(seed);
    while (test.model.poison.size() < 7) test.model.poison.insert(static_cast<int>(random() % 1000) + 1);
    auto callers = callers_at(std::vector<nanoseconds>(1000, 0ms));
    test.run({.max_batch_size = 128, .isolate_failures = true}, callers);
    const std::size_t batches = (1000 + 127) / 128;
    CHECK(test.model.calls <= batches + 2 * 7 * 7);  // log2(128) = 7
    const auto values = std::count_if(callers.begin(), callers.end(), [](const caller& each) {
      return each.result && *each.result == 2 * each.sample;
    });
    CHECK(values == 993);
    for (const int each : test.model.poison) {
      CHECK(callers[static_cast<std::size_t>(each - 1)].result->error().code == errc::exception);
    }
  }
}

TEST_CASE("micro batcher: a wrong number of results fails all of the batch, and is not bisected") {
  scene test;
  test.model.missing = 1;
  auto callers = callers_at({0ms, 0ms, 0ms});
  test.run({.isolate_failures = true}, callers);
  CHECK(answers(callers) == "batch_size_mismatch at 1000, batch_size_mismatch at 1000, batch_size_mismatch at 1000");
  CHECK(test.model.calls == 1);
}

// ---- The end ----

TEST_CASE("micro batcher: close runs at once what waits, takes no more, and ends with the last batch") {
  scene test;
  test.model.per_call = 10ms;
  batcher all(test.sim, test.model.callable(), {.max_batch_size = 2, .max_delay = 1h});
  auto callers = callers_at({0ms, 0ms, 1ms, 1ms, 1ms, 3ms});
  std::vector<started> running;
  for (caller& each : callers) running.push_back(test.call(all, each));
  const auto close = [&]() -> task<> {
    co_await test.sim.schedule_after(2ms);
    co_await all.close();
    CHECK(times(test.sim) == "30000");
    co_await all.close();
  };
  test.sim.run(close());
  test.sim.run(test.wait(0ms));
  CHECK(answers(callers) == "2 at 10000, 4 at 10000, 6 at 20000, 8 at 20000, 10 at 30000, closed at 3000");
}

TEST_CASE("micro batcher: any number may close it, and what sleeps in it is woken") {
  scene test;
  batcher all(test.sim, test.model.callable(), {.max_delay = 1h});
  auto callers = callers_at({0ms, 0ms});
  callers[1].deadline = 2h;
  std::vector<started> running;
  for (caller& each : callers) running.push_back(test.call(all, each));
  int closed = 0;
  const auto close = [&]() -> started {
    co_await test.sim.schedule_after(1ms);
    co_await all.close();
    ++closed;
  };
  running.push_back(close());
  running.push_back(close());
  test.sim.run(test.wait(2ms));
  CHECK(closed == 2);
  CHECK(answers(callers) == "2 at 1000, 4 at 1000");
}

TEST_CASE("micro batcher: destroyed while its timer sleeps, it leaves nothing behind") {
  scene test;
  auto callers = callers_at({0ms});
  callers[0].stops_at = 1ms;
  {
    batcher all(test.sim, test.model.callable(), {.max_delay = 1h});
    const started running = test.call(all, callers[0]);
    const started stops = test.stop_later(callers[0]);
    test.sim.run(test.wait(2ms));
  }
  test.sim.run(test.wait(1ms));
  CHECK(answers(callers) == "cancelled at 1000");
}

TEST_CASE("micro batcher: the last caller may destroy it") {
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    scene test(seed);
    auto all = std::make_unique<batcher>(test.sim, test.model.callable(), micro_batch_options{.max_batch_size = 3});
    int left = 5;
    std::stop_source stop;
    const auto call = [&](int sample) -> started {
      co_await test.sim.schedule();
      const auto result = co_await all->predict(sample, stop.get_token());
      if (--left == 0) all.reset();
      stop.request_stop();
    };
    std::vector<started> running;
    for (int i = 0; i < 5; ++i) running.push_back(call(i));
    test.sim.run(test.wait(10ms));
    CHECK(!all);
  }
}

TEST_CASE("micro batcher: a caller may be destroyed while it waits, and while its batch runs") {
  for (const auto when : {500us, 5000us, 50'000us}) {
    scene test;
    test.model.per_call = 10ms;
    batcher all(test.sim, test.model.callable(), {});
    auto callers = callers_at({0ms, 0ms, 0ms});
    std::vector<started> running;
    for (caller& each : callers) running.push_back(test.call(all, each));
    test.sim.run(test.wait(when));
    running[1].destroy();
    test.sim.run(test.wait(1h));
    CHECK(*callers[0].result == 2);
    CHECK(callers[1].result.has_value() == (when == 50'000us));
    CHECK(*callers[2].result == 6);
  }
}

TEST_CASE("micro batcher: a model that never ends is a deadlock that the simulation reports") {
  simulation sim;
  const auto never = [](std::span<const int>) -> task<std::vector<int>> {
    co_await std::suspend_always();
    co_return std::vector<int>();
  };
  batcher all(sim, never, {});
  const auto call = [&]() -> task<int> { co_return (co_await all.predict(1)).value(); };
  CHECK_THROWS_AS(sim.run(call()), cobatch::deadlock_error);
}

TEST_CASE("micro batcher: an executor that refuses leaves nobody waiting") {
  scene test;
  refusing_executor executor{test.sim};
  batcher all(executor, test.model.callable(), {.max_batch_size = 3});
  auto callers = callers_at({0ms, 1ms, 10ms, 10ms, 10ms});
  std::vector<started> running;
  for (caller& each : callers) running.push_back(test.call(all, each));
  test.sim.run(test.wait(0ms));
  executor.refuses = true;
  test.sim.run(test.wait(20ms));
  CHECK(answers(callers) ==
        "executor_stopped at 1000, executor_stopped at 1000, executor_stopped at 10000, executor_stopped at 10000, "
        "executor_stopped at 10000");
  CHECK(test.model.calls == 0);
}

TEST_CASE("micro batcher: an executor whose timers have ended runs what waits at once") {
  scene test;
  refusing_executor executor{test.sim, false, false};
  batcher all(executor, test.model.callable(), {});
  auto callers = callers_at({0ms, 1ms});
  std::vector<started> running;
  for (caller& each : callers) running.push_back(test.call(all, each));
  test.sim.run(test.wait(1h));
  CHECK(test.model.log == "0: 1, 1000: 2");
}

TEST_CASE("micro batcher: memory that runs out while a sample queues is that sample's, and everyone has an outcome") {
  int failures = 0;
  int thrown = 0;
  for (std::size_t n = 1, failed = 1; failed; ++n) {
    scene test;
    batcher all(test.sim, cobatch::bucketed(test.model.callable(), [](int x) { return x; }),
                {.max_delay = 1ms, .max_concurrent_batches = 4});
    int values = 0;
    int errors = 0;
    int refused = 0;
    const auto call = [&](int sample, nanoseconds deadline, std::size_t failing) -> started {
      try {
        fail_allocation_in(failing);
        const auto result = co_await all.predict(sample, {}, deadline);
        ++(result ? values : errors);
      } catch (const std::bad_alloc&) {
        ++refused;
      }
      if (sample == 4) CHECK(times(test.sim) == "11000");  // it has waited for max_delay: there are timers again
    };
    std::vector<started> running;
    running.reserve(4);
    running.push_back(call(1, 3h, n));  // starts the timer
    failed = !allocation_failure_is_pending();
    running.push_back(call(2, 1ms, failed ? 0 : n));  // starts a batch
    failed = failed || !allocation_failure_is_pending();
    running.push_back(call(3, 2h, 0));
    test.sim.run(test.wait(10ms));
    running.push_back(call(4, 2h, 0));
    test.sim.run(test.wait(1h));
    CHECK(values + errors + refused == 4);
    if (failed == 0) CHECK(values == 4);
    failures += static_cast<int>(failed);
    thrown += refused;
  }
  CHECK(failures > 0);
  CHECK(thrown > 0);
  CHECK(thrown <= failures);
}

// ---- Where, and at what price ----

TEST_CASE("micro batcher: each caller goes on on its own executor; without one, on the batcher's") {
  scene test;
  step_executor own;
  batcher all(test.sim, test.model.callable(), {});
  std::optional<outcome> first;
  std::optional<outcome> second;
  bool on_simulation = false;
  const auto call = [&](std::optional<outcome>& result) -> started {
    auto came = co_await all.predict(1);
    on_simulation = cobatch::detail::current_executor().refers_to(&test.sim);
    result.emplace(std::move(came));
  };
  const started with = own.run([&] { return call(first); });
  const started without = call(second);
  test.sim.run(test.wait(10ms));
  CHECK(on_simulation);
  CHECK(second);
  CHECK(!first);
  own.drain();
  CHECK(first);
}

TEST_CASE("micro batcher: steady state allocates nothing of its own") {
  simulation sim;
  std::vector<int> answer;
  std::size_t calls = 0;
  const auto predict_many = [&](std::span<const int> samples) {
    ++calls;
    answer.assign(samples.begin(), samples.end());
    return std::span<const int>(answer);
  };
  batcher all(sim, predict_many, {.max_batch_size = 8});
  int sum = 0;
  const auto user = [&](int rounds) -> started {
    co_await sim.schedule();
    for (int i = 0; i < rounds; ++i) {
      const auto result = co_await all.predict(1, {}, 1h);
      sum += *result;
    }
  };
  const auto wait = [&](nanoseconds delay) -> task<> { co_await sim.schedule_after(delay); };
  const auto users = [&](int rounds) {
    std::vector<started> running;
    for (int i = 0; i < 20; ++i) running.push_back(user(rounds));
    sim.run(wait(10ms));  // they have all queued, and are through
    return running.size();
  };
  const auto count = [&](int rounds) {
    const std::size_t before = allocations();
    users(rounds);
    return allocations() - before;
  };
  users(50);
  const std::size_t few = count(10);
  const std::size_t many = count(1000);
  CHECK(sum == 20 * 1060);
  CHECK(calls > 2000);
  CHECK(many == few);
}

TEST_CASE("micro batcher: samples and results may be move-only, and results of any kind") {
  scene test;
  using box = std::unique_ptr<int>;
  micro_batcher<box, box> movers(test.sim, [](std::span<const box> all) {
    std::vector<box> results;
    for (const box& each : all) results.push_back(std::make_unique<int>(*each + 1));
    return results;
  });
  micro_batcher<int, bool> odds(test.sim, [](std::span<const int> all) {
    std::vector<bool> results;
    for (const int each : all) results.push_back(each % 2 == 1);
    return results;
  });
  micro_batcher<int, void> writers(
      test.sim, [](std::span<const int> all) { return std::vector<expected<void, error>>(all.size()); });
  micro_batcher<int, std::string> failing(test.sim,
                                          [](std::span<const int>) -> task<expected<std::vector<std::string>, error>> {
                                            co_return cobatch::unexpected(error(errc::timed_out));
                                          });
  const auto calls = [&]() -> task<> {
    // Outside of CHECK, which evaluates what it is given twice on GCC 12 if there is a co_await in it.
    const auto moved = co_await movers.predict(std::make_unique<int>(1));
    const auto odd = co_await odds.predict(3);
    const auto written = co_await writers.predict(3);
    const auto failed = co_await failing.predict(3);
    CHECK(**moved == 2);
    CHECK(*odd);
    CHECK(written.has_value());
    CHECK(failed.error().code == errc::timed_out);
  };
  test.sim.run(calls());
}

TEST_CASE("micro batcher: samples that are aggregates with vectors in them arrive whole") {
  struct image {
    std::vector<int> pixels;
    std::string name;
  };
  simulation sim;
  const auto count = [](std::span<const image> all) {
    std::vector<std::size_t> results;
    for (const image& each : all) results.push_back(each.pixels.size() + each.name.size());
    return results;
  };
  micro_batcher<image, std::size_t> sizes(sim, count, {});
  const auto calls = [&]() -> task<> {
    image named{{1, 2, 3}, "a name that is too long for the small string optimisation"};
    const std::size_t expected_size = named.pixels.size() + named.name.size();
    const auto copied = co_await sizes.predict(named);
    CHECK(*copied == expected_size);
    const auto moved = co_await sizes.predict(std::move(named));
    CHECK(*moved == expected_size);
    CHECK(named.pixels.empty());
  };
  sim.run(calls());
}

TEST_CASE("micro batcher: a sample that cannot be moved into the batch fails alone") {
  simulation sim;
  micro_batcher<brittle, int> all(sim, brittle::numbers, {});
  std::string text;
  const auto call = [&](int n) -> started {
    brittle sample(n);
    co_await sim.schedule();
    const auto result = co_await all.predict(std::move(sample));
    text += std::to_string(n) + ":" + outline(result) + " ";
  };
  std::vector<started> running;
  const auto wait = [&](nanoseconds delay) -> task<> { co_await sim.schedule_after(delay); };
  for (const int breaks : {1, 2, 3}) {
    text.clear();
    for (int i = 1; i <= 3; ++i) running.push_back(call(i));
    sim.run(wait(500us));
    brittle::the_one_that_breaks = breaks;
    sim.run(wait(1s));
    brittle::the_one_that_breaks = 0;
    for (int i = 1; i <= 3; ++i) {
      CHECK(text.find(std::to_string(i) + (i == breaks ? ":exception " : ":" + std::to_string(i) + " ")) !=
            std::string::npos);
    }
  }
}

TEST_CASE("micro batcher: where no sample can be moved into the batch, predict_many is not called") {
  simulation sim;
  int calls = 0;
  const auto count = [&](std::span<const brittle> samples) {
    ++calls;
    return std::vector<int>(samples.size());
  };
  std::optional<micro_batcher<brittle, int>> all;
  all.emplace(sim, count, micro_batch_options{});
  // The caller goes on inside of what gives it the outcome, and destroys the batcher there.
  step_executor own;
  std::string text;
  const auto call = [&]() -> started {
    const auto result = co_await all->predict(brittle(7));
    text = outline(result);
    all.reset();
  };
  const started running = own.run(call);
  own.refusing = true;
  brittle::the_one_that_breaks = 7;
  const auto wait = [&]() -> task<> { co_await sim.schedule_after(1s); };
  sim.run(wait());
  brittle::the_one_that_breaks = 0;
  CHECK(text == "exception");
  CHECK(calls == 0);
  CHECK(!all);
}

TEST_CASE("micro batcher: options that make no sense are refused") {
  scene test;
  const auto make = [&](const micro_batch_options& options) { batcher all(test.sim, test.model.callable(), options); };
  CHECK_THROWS_AS(make({.max_batch_size = 0}), std::invalid_argument);
  CHECK_THROWS_AS(make({.max_delay = -1ns}), std::invalid_argument);
  CHECK_THROWS_AS(make({.max_concurrent_batches = 0}), std::invalid_argument);
  CHECK_THROWS_AS(make({.max_queue = 0}), std::invalid_argument);
  CHECK_THROWS_AS(make({.max_batch_cost = 0}), std::invalid_argument);
  CHECK_NOTHROW(make({.max_delay = no_timeout}));
}

TEST_CASE("micro batcher: what predict() returns has the shape that other runtimes accept") {
  using awaiter = decltype(std::declval<batcher&>().predict(1));
  static_assert(std::is_move_constructible_v<awaiter>);
  static_assert(!std::is_aggregate_v<awaiter>);
  static_assert(noexcept(std::declval<const awaiter&>().await_ready()));
  static_assert(std::is_same_v<decltype(std::declval<awaiter&>().await_suspend(std::coroutine_handle<>())), bool>);
  static_assert(std::is_same_v<decltype(std::declval<awaiter&>().await_resume()), outcome>);
  scene test;
  batcher all(test.sim, test.model.callable(), {});
  auto unused = all.predict(1);
  auto moved = std::move(unused);
  (void)moved;
  CHECK(all.waiting() == 0);
}

// ---- Everything at once ----

namespace {

struct setting {
  micro_batch_options options;
  nanoseconds per_call{0};
  nanoseconds closes_at = no_timeout;
};

/// Runs it, and checks all that must hold whatever happens.
void check_rules(std::uint64_t seed, const setting& chosen, std::deque<caller>& callers, std::set<int> poison) {
  CAPTURE(seed, chosen.options.max_batch_size, chosen.options.max_concurrent_batches, chosen.options.max_queue);
  scene test(seed);
  test.model.per_call = chosen.per_call;
  test.model.poison = std::move(poison);
  bool closed = false;
  {
    batcher all(test.sim, test.model.callable(), chosen.options);
    std::vector<started> running;
    std::size_t most_waiting = 0;
    const auto watch = [&]() -> started {
      for (int i = 0; i < 100; ++i) {
        most_waiting = std::max(most_waiting, all.waiting());
        co_await test.sim.schedule_after(100us);
      }
    };
    const auto close = [&]() -> started {
      co_await test.sim.schedule_after(chosen.closes_at);
      co_await all.close();
      closed = true;
    };
    for (caller& each : callers) {
      running.push_back(test.call(all, each));
      if (each.stops_at != no_timeout) running.push_back(test.stop_later(each));
    }
    running.push_back(watch());
    if (chosen.closes_at != no_timeout) running.push_back(close());
    test.sim.run(test.wait(1h));
    CHECK(most_waiting <= chosen.options.max_queue);
    CHECK(all.waiting() == 0);
  }
  CHECK(closed == (chosen.closes_at != no_timeout));
  CHECK(static_cast<std::size_t>(test.model.running.most()) <= chosen.options.max_concurrent_batches);
  CHECK(test.model.largest <= chosen.options.max_batch_size);

  for (const caller& each : callers) {
    REQUIRE(each.outcomes == 1);
    const auto runs = std::count_if(test.model.started.begin(), test.model.started.end(),
                                    [&](const auto& run) { return run.second == each.sample; });
    const bool poisonous = test.model.poison.contains(each.sample);
    if (*each.result) {
      CHECK(**each.result == 2 * each.sample);
      CHECK(!poisonous);
      CHECK(runs >= 1);
      if (chosen.options.max_concurrent_batches == cobatch::unlimited) {
        const auto run = std::find_if(test.model.started.begin(), test.model.started.end(),
                                      [&](const auto& one) { return one.second == each.sample; });
        CHECK(run->first.time_since_epoch() - each.at <= chosen.options.max_delay);
      }
      continue;
    }
    const error& why = each.result->error();
    CHECK((why.attempts > 0) == (runs > 0));
    switch (why.code) {
      case errc::exception:
        CHECK((poisonous || !chosen.options.isolate_failures));
        break;
      case errc::cancelled:
        CHECK(each.stops_at <= each.answered.time_since_epoch());
        break;
      case errc::deadline_exceeded:
        CHECK(each.at + each.deadline <= each.answered.time_since_epoch());
        if (runs == 0) CHECK(each.at + each.deadline == each.answered.time_since_epoch());
        break;
      case errc::queue_full:
        CHECK(chosen.options.max_queue != cobatch::unlimited);
        break;
      case errc::closed:
        CHECK(each.at >= chosen.closes_at);
        break;
      default:
        FAIL("unexpected: " << name_of(why.code));
    }
    if (runs > 1) CHECK(chosen.options.isolate_failures);
  }
}

}  // namespace

TEST_CASE("micro batcher: whatever happens, every caller gets exactly one outcome, and a right one") {
  for (std::uint64_t seed = 1; seed <= 4000; ++seed) {
    std::mt19937_64 random(seed);
    const auto below = [&](std::uint64_t n) { return static_cast<int>(random() % n); };
    setting chosen;
    chosen.options.max_batch_size = static_cast<std::size_t>(1 + below(8));
    chosen.options.max_delay = below(4) * 500us;
    chosen.options.max_concurrent_batches = below(3) == 0 ? cobatch::unlimited : static_cast<std::size_t>(1 + below(3));
    if (below(2)) chosen.options.max_queue = static_cast<std::size_t>(1 + below(10));
    chosen.options.isolate_failures = below(2) == 0;
    chosen.per_call = below(4) * 700us;
    if (below(3) == 0) chosen.closes_at = below(8) * 500us;
    std::deque<caller> callers;
    std::set<int> poison;
    const int count = 1 + below(30);
    for (int i = 1; i <= count; ++i) {
      callers.push_back({.sample = i, .at = below(8) * 500us});
      if (below(4) == 0) callers.back().stops_at = below(16) * 250us;
      if (below(4) == 0) callers.back().deadline = below(12) * 250us;
      if (below(12) == 0) poison.insert(i);
    }
    check_rules(seed, chosen, callers, poison);
  }
}

TEST_CASE("micro batcher: a stop at any moment harms nobody else") {
  for (std::uint64_t seed = 0; seed < 3; ++seed) {
    for (std::size_t victim = 0; victim < 7; ++victim) {
      for (int moment = 0; moment <= 60; ++moment) {
        setting chosen;
        chosen.options = {.max_batch_size = 3, .max_delay = 1ms, .isolate_failures = true};
        chosen.per_call = 1ms;
        auto callers = callers_at({0us, 100us, 200us, 900us, 1200us, 2500us, 2500us});
        callers[victim].stops_at = moment * 100us;
        check_rules(seed, chosen, callers, {5});
        for (std::size_t i = 0; i < callers.size(); ++i) {
          if (i != victim && i != 4) CHECK(callers[i].result->has_value());
        }
      }
    }
  }
}

TEST_CASE("micro batcher: whatever happens, a batch has one key and a cost within its limit, also if callers end") {
  for (std::uint64_t seed = 1; seed <= 2000; ++seed) {
    CAPTURE(seed);
    std::mt19937_64 random(seed);
    const auto below = [&](std::uint64_t n) { return static_cast<int>(random() % n); };
    scene test(seed);
    test.model.per_call = below(4) * 300us;
    const int keys = 1 + below(4);
    const int most_costly = 1 + below(6);
    const auto key = [&](int x) { return x % keys; };
    const auto cost = [&](int x) { return 1 + x % most_costly; };
    const micro_batch_options options{.max_batch_size = static_cast<std::size_t>(1 + below(6)),
                                      .max_delay = below(4) * 500us,
                                      .max_concurrent_batches = static_cast<std::size_t>(1 + below(3)),
                                      .max_queue = below(2) ? cobatch::unlimited
                                                            : static_cast<std::size_t>(4 + below(9)),
                                      .max_batch_cost = static_cast<std::size_t>(3 + below(8)),
                                      .isolate_failures = below(2) == 0};
    int broken_rules = 0;
    const auto predict_many = [&](std::span<const int> batch) {
      std::size_t sum = 0;
      for (const int each : batch) {
        sum += static_cast<std::size_t>(cost(each));
        broken_rules += key(each) != key(batch[0]);
      }
      broken_rules += batch.empty() || batch.size() > options.max_batch_size || sum > options.max_batch_cost;
      return test.model.predict(batch);
    };
    batcher all(test.sim, cobatch::bucketed(cobatch::weighted(predict_many, cost), key), options);
    std::deque<caller> callers;
    std::vector<started> running;
    const int count = 1 + below(30);
    for (int i = 1; i <= count; ++i) {
      callers.push_back({.sample = i, .at = below(8) * 500us});
      if (below(4) == 0) callers.back().stops_at = below(16) * 250us;
      if (below(4) == 0) callers.back().deadline = below(12) * 250us;
      if (below(12) == 0) test.model.poison.insert(i);
    }
    for (caller& each : callers) running.push_back(test.call(all, each));
    for (caller& each : callers) {
      if (each.stops_at != no_timeout) running.push_back(test.stop_later(each));
    }
    // Between the moments at which anything happens.
    std::set<std::size_t> destroyed;
    test.sim.run(test.wait(7us));
    for (int i = below(6); i > 0; --i) {
      const std::size_t victim = random() % callers.size();
      if (callers[victim].outcomes == 0) destroyed.insert(victim);
      running[victim].destroy();
      test.sim.run(test.wait(below(6) * 250us));
    }
    test.sim.run(test.wait(1h));
    CHECK(broken_rules == 0);
    CHECK(static_cast<std::size_t>(test.model.running.most()) <= options.max_concurrent_batches);
    CHECK(all.waiting() == 0);
    for (std::size_t i = 0; i < callers.size(); ++i) {
      const caller& each = callers[i];
      REQUIRE(each.outcomes == (destroyed.contains(i) ? 0 : 1));
      if (!each.result) continue;
      if (*each.result) {
        CHECK(**each.result == 2 * each.sample);
        CHECK(!test.model.poison.contains(each.sample));
      } else if (static_cast<std::size_t>(cost(each.sample)) > options.max_batch_cost && each.stops_at > each.at) {
        CHECK(each.result->error().attempts == 0);
      } else if (options.isolate_failures && each.result->error().code == errc::exception) {
        CHECK(test.model.poison.contains(each.sample));
      }
    }
  }
}
