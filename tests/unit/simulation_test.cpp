#include <cobatch/simulation.hpp>

#include <algorithm>
#include <chrono>
#include <coroutine>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <cobatch/batch_predict.hpp>
#include <cobatch/executor.hpp>
#include <cobatch/semaphore.hpp>
#include <cobatch/task.hpp>

#include "support/catch.hpp"
#include "support/started.hpp"

using cobatch::simulation;
using cobatch::task;
using namespace std::chrono_literals;

namespace {

static_assert(cobatch::timed_executor<simulation>);
static_assert(std::is_same_v<simulation::time_point::duration, std::chrono::nanoseconds>);

using sleep = decltype(std::declval<simulation&>().schedule_after(1ms));
static_assert(std::is_move_constructible_v<sleep> && !std::is_aggregate_v<sleep>);
static_assert(noexcept(std::declval<const sleep&>().await_ready()));

std::chrono::nanoseconds elapsed(const simulation& sim) {
  return sim.now().time_since_epoch();
}

/// The order in which `count` coroutines that are ready at the same time run.
std::vector<int> order_of(std::uint64_t seed, int count, std::chrono::nanoseconds delay) {
  simulation sim(seed);
  std::vector<int> order;
  std::vector<started> all;
  auto body = [&](int id) -> started {
    co_await sim.schedule_after(delay);
    order.push_back(id);
  };
  for (int id = 0; id < count; ++id) all.push_back(body(id));
  auto wait = [&]() -> task<> {
    while (order.size() < static_cast<std::size_t>(count)) co_await sim.schedule_after(1ms);
  };
  sim.run(wait());
  return order;
}

}  // namespace

TEST_CASE("simulation: time starts at zero, passes exactly, and only while everything sleeps") {
  simulation sim;
  CHECK(elapsed(sim) == 0ns);
  auto body = [&]() -> task<> {
    for (int i = 0; i < 1000; ++i) co_await sim.schedule();
    CHECK(elapsed(sim) == 0ns);
    {
      const bool elapsed_in_full = co_await sim.schedule_after(1h);
      CHECK(elapsed_in_full);
    }
    CHECK(elapsed(sim) == 1h);
    {
      const bool elapsed_in_full = co_await sim.schedule_after(1ns);
      CHECK(elapsed_in_full);
    }
  };
  sim.run(body());
  CHECK(elapsed(sim) == 1h + 1ns);
}

TEST_CASE("simulation: run returns the result or rethrows, and the clock goes on in the next run") {
  simulation sim;
  auto value = [&]() -> task<int> {
    co_await sim.schedule_after(1s);
    co_return 42;
  };
  auto fail = [&]() -> task<int> {
    co_await sim.schedule_after(1s);
    throw std::runtime_error("broken");
  };
  CHECK(sim.run(value()) == 42);
  CHECK_THROWS_AS(sim.run(fail()), std::runtime_error);
  CHECK(elapsed(sim) == 2s);
}

TEST_CASE("simulation: seed 0 runs what is ready first in, first out, and equal timers in the order they were set") {
  const std::vector<int> in_order{0, 1, 2, 3, 4, 5, 6, 7, 8, 9};
  CHECK(order_of(0, 10, 5ms) == in_order);
  CHECK(order_of(0, 10, 0ms) == in_order);
}

TEST_CASE("simulation: another seed shuffles all that is ready, the same way each time") {
  for (const auto delay : {0ms, 5ms}) {
    CHECK(order_of(1, 10, delay) == order_of(1, 10, delay));
    CHECK(order_of(1, 10, delay) != order_of(2, 10, delay));
    std::vector<int> order = order_of(1, 10, delay);
    CHECK_FALSE(std::is_sorted(order.begin(), order.end()));
    std::sort(order.begin(), order.end());
    CHECK(order == order_of(0, 10, delay));
  }
}

TEST_CASE("simulation: the order of a seed is the same on every platform") {
  CHECK(order_of(1, 8, 5ms) == std::vector<int>{3, 7, 6, 5, 2, 1, 4, 0});
}

TEST_CASE("simulation: over many seeds every order of three occurs") {
  std::vector<std::vector<int>> seen;
  for (std::uint64_t seed = 1; seed <= 100; ++seed) {
    const std::vector<int> order = order_of(seed, 3, 1us);
    if (std::find(seen.begin(), seen.end(), order) == seen.end()) seen.push_back(order);
  }
  CHECK(seen.size() == 6);
}

TEST_CASE("simulation: timers fire by deadline, whatever the order in which they were set") {
  simulation sim(7);
  std::vector<int> order;
  std::vector<started> all;
  auto body = [&](int id, std::chrono::nanoseconds delay) -> started {
    co_await sim.schedule_after(delay);
    order.push_back(id);
    CHECK(elapsed(sim) == delay);
  };
  all.push_back(body(3, 30ms));
  all.push_back(body(1, 10ms));
  all.push_back(body(2, 20ms));
  sim.run(sim.schedule_after(40ms));
  CHECK(order == std::vector<int>{1, 2, 3});
}

TEST_CASE("simulation: a stopped sleep gives false at once, and its timer moves no clock") {
  simulation sim;
  std::stop_source source;
  bool result = true;
  auto sleeper = [&]() -> started {
    result = co_await sim.schedule_after(1h, source.get_token());
    CHECK(elapsed(sim) == 1s);
  };
  const started asleep = sleeper();
  auto stopper = [&]() -> task<> {
    co_await sim.schedule_after(1s);
    source.request_stop();
    CHECK_FALSE(asleep.done());  // never inside request_stop()
    co_await sim.schedule();
  };
  sim.run(stopper());
  CHECK(asleep.done());
  CHECK_FALSE(result);
  CHECK(elapsed(sim) == 1s);
}

TEST_CASE("simulation: a sleep that is awaited again is slept again, and can be stopped again") {
  simulation sim;
  std::stop_source stop;
  auto body = [&]() -> task<> {
    auto sleep = sim.schedule_after(10ms, stop.get_token());
    const bool first = co_await sleep;
    const bool second = co_await sleep;
    CHECK(elapsed(sim) == 20ms);
    stop.request_stop();
    const bool third = co_await sleep;
    CHECK(elapsed(sim) == 20ms);
    CHECK((first && second && !third));
  };
  sim.run(body());
}

TEST_CASE("simulation: a stop at the very moment at which the timer elapsed changes nothing") {
  simulation sim;
  std::stop_source source;
  bool result = false;
  auto stopper = [&]() -> started {
    co_await sim.schedule_after(1s);
    source.request_stop();
  };
  auto sleeper = [&]() -> started { result = co_await sim.schedule_after(1s, source.get_token()); };
  const started first = stopper();
  const started second = sleeper();
  sim.run(sim.schedule_after(2s));
  CHECK(second.done());
  CHECK(result);
}

TEST_CASE("simulation: with a token that is stopped already nobody sleeps") {
  simulation sim;
  std::stop_source source;
  source.request_stop();
  CHECK_FALSE(sim.run(sim.schedule_after(1h, source.get_token())));
  CHECK_FALSE(sim.run(sim.schedule_after(0ns, source.get_token())));
  CHECK(elapsed(sim) == 0ns);
}

TEST_CASE("simulation: a delay of zero or less is a turn of the queue that elapsed") {
  simulation sim;
  std::vector<int> order;
  auto other = [&]() -> started {
    co_await sim.schedule();
    order.push_back(1);
  };
  auto body = [&]() -> task<> {
    const started queued_before = other();
    {
      const bool elapsed_in_full = co_await sim.schedule_after(-5s);
      CHECK(elapsed_in_full);
    }
    order.push_back(2);
    {
      const bool elapsed_in_full = co_await sim.schedule_after(std::chrono::nanoseconds::min());
      CHECK(elapsed_in_full);
    }
  };
  sim.run(body());
  CHECK(order == std::vector<int>{1, 2});
  CHECK(elapsed(sim) == 0ns);
}

TEST_CASE("simulation: a delay too long for the clock never elapses, but can be stopped") {
  simulation sim;
  std::stop_source source;
  bool result = true;
  auto sleeper = [&]() -> started {
    result = co_await sim.schedule_after(std::chrono::nanoseconds::max(), source.get_token());
  };
  auto body = [&]() -> task<> {
    co_await sim.schedule_after(1h);
    const started asleep = sleeper();
    co_await sim.schedule_after(24h * 365 * 100);
    CHECK_FALSE(asleep.done());
    source.request_stop();
    co_await sim.schedule();
    CHECK(asleep.done());
  };
  sim.run(body());
  CHECK_FALSE(result);
}

TEST_CASE("simulation: waiting for what can never come is a deadlock_error that tells the time") {
  simulation sim;
  bool destroyed = false;
  struct on_destruction {
    bool* flag;
    explicit on_destruction(bool& f) noexcept : flag(&f) {}
    on_destruction(const on_destruction&) = delete;
    on_destruction& operator=(const on_destruction&) = delete;
    ~on_destruction() { *flag = true; }
  };
  auto body = [&]() -> task<> {
    const on_destruction guard(destroyed);
    co_await sim.schedule_after(1500ms);
    co_await std::suspend_always();
  };
  std::string message;
  try {
    sim.run(body());
  } catch (const cobatch::deadlock_error& e) {
    message = e.what();
  }
  CHECK(message.find("1.500000000 s") != std::string::npos);
  CHECK(destroyed);
  CHECK(sim.run(sim.schedule_after(1ms)));  // and it is as good as new
  static_assert(std::is_base_of_v<std::logic_error, cobatch::deadlock_error>);
}

TEST_CASE("simulation: what is made ready by the destruction after a deadlock does not run any more") {
  simulation sim;
  cobatch::async_semaphore gate(1);
  bool ran = false;
  const auto holder = [&]() -> started {
    const auto held = co_await gate.acquire();
    co_await std::suspend_always();
  };
  const auto waiter = [&]() -> started {
    const auto held = co_await gate.acquire();
    ran = true;
  };
  const auto body = [&]() -> task<> {
    std::vector<started> both;  // destroyed from the front: the holder's end grants the waiter, which goes next
    both.push_back(holder());
    both.push_back(waiter());
    co_await std::suspend_always();
  };
  CHECK_THROWS_AS(sim.run(body()), cobatch::deadlock_error);
  CHECK(gate.available() == 1);
  sim.run(sim.schedule_after(1ms));
  CHECK_FALSE(ran);
}

TEST_CASE("simulation: a batch that deadlocks is destroyed with all that waits in it") {
  cobatch::async_semaphore gate(1);
  cobatch::async_semaphore never(0);
  for (unsigned seed = 0; seed < 20; ++seed) {
    simulation sim(seed);
    const std::vector<int> samples{1, 2, 3, 4};
    const auto predict = [&](int x) -> task<int> {
      const auto held = co_await gate.acquire();
      const auto stuck = co_await never.acquire();
      co_return x;
    };
    CHECK_THROWS_AS(sim.run(cobatch::batch_predict(sim, samples, predict)), cobatch::deadlock_error);
    CHECK(gate.available() == 1);
    CHECK(sim.run(cobatch::batch_predict(sim, samples, [](int x) { return x; })).size() == 4);
  }
}

TEST_CASE("simulation: a sleep that never ends is a deadlock, and is forgotten with its coroutine") {
  simulation sim;
  std::stop_source source;
  auto body = [&]() -> task<> { co_await sim.schedule_after(std::chrono::nanoseconds::max(), source.get_token()); };
  CHECK_THROWS_AS(sim.run(body()), cobatch::deadlock_error);
  source.request_stop();
  CHECK_THROWS_AS(sim.run(std::suspend_always()), cobatch::deadlock_error);
}

TEST_CASE("simulation: a sleeping coroutine may be destroyed") {
  simulation sim;
  auto sleeper = [&](std::chrono::nanoseconds delay) -> started { co_await sim.schedule_after(delay); };
  {
    std::vector<started> all;
    for (int i = 1; i <= 20; ++i) all.push_back(sleeper(i * 1ms));
    for (const std::size_t i : {3u, 0u, 19u, 7u}) all[i].destroy();
    sim.run(sim.schedule_after(10ms));
    CHECK(all[9].done());
    CHECK_FALSE(all[10].done());
  }
  CHECK_THROWS_AS(sim.run(std::suspend_always()), cobatch::deadlock_error);
  CHECK(elapsed(sim) == 10ms);
}

TEST_CASE("simulation: what is left when run returns goes on in the next run") {
  simulation sim;
  bool done = false;
  auto body = [&]() -> started {
    co_await sim.schedule_after(10ms);
    done = true;
  };
  const started later = body();
  sim.run(sim.schedule_after(5ms));
  CHECK_FALSE(done);
  sim.run(sim.schedule_after(5ms));
  CHECK(done);
}

TEST_CASE("simulation: its destructor wakes sleepers with false, runs what is queued and refuses the rest") {
  std::vector<std::string> log;
  auto sleeper = [&](simulation& sim) -> started {
    const bool result = co_await sim.schedule_after(1h);
    log.emplace_back(result ? "elapsed" : "stopped");
    {
      const bool elapsed_in_full = co_await sim.schedule_after(1h);
      CHECK_FALSE(elapsed_in_full);
    }
    try {
      co_await sim.schedule();
    } catch (const std::system_error& e) {
      CHECK(e.code() == cobatch::errc::executor_stopped);
      log.emplace_back("refused");
    }
  };
  auto queued = [&](simulation& sim) -> started {
    co_await sim.schedule();
    log.emplace_back("ran");
  };
  std::vector<started> all;
  {
    simulation sim;
    all.push_back(sleeper(sim));
    all.push_back(queued(sim));
  }
  CHECK(all[0].done());
  CHECK(all[1].done());
  CHECK(log == std::vector<std::string>{"ran", "stopped", "refused"});
}

TEST_CASE("simulation: run inside its own run is a std::logic_error; inside another's it works") {
  simulation sim;
  simulation other;
  auto nested = [&]() -> task<> {
    CHECK_THROWS_AS(sim.run(sim.schedule()), std::logic_error);
    other.run(other.schedule_after(1s));
    CHECK(cobatch::detail::runs_here(sim));
    co_await sim.schedule_after(1ms);
  };
  sim.run(nested());
  CHECK(elapsed(other) == 1s);
  CHECK(elapsed(sim) == 1ms);
}

TEST_CASE("simulation: what the engine asks of an executor") {
  simulation sim;
  sim.run(sim.schedule_after(3ms));
  CHECK(cobatch::detail::now_of(sim) == 3ms);
  CHECK(cobatch::detail::concurrency_of(sim) == 1);
  CHECK_FALSE(cobatch::detail::runs_here(sim));
}
