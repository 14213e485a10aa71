#include <cobatch/when_all.hpp>

#include <chrono>
#include <coroutine>
#include <memory>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include <cobatch/callback.hpp>
#include <cobatch/semaphore.hpp>
#include <cobatch/simulation.hpp>
#include <cobatch/sync_wait.hpp>
#include <cobatch/task.hpp>
#include <cobatch/thread_pool.hpp>
#include <cobatch/with_timeout.hpp>

#include "support/catch.hpp"

using cobatch::errc;
using cobatch::error;
using cobatch::expected;
using cobatch::simulation;
using cobatch::task;
using namespace std::chrono_literals;

namespace {

template <class T>
task<T> after(simulation& sim, std::chrono::milliseconds time, T value, std::stop_token stop = {}) {
  auto sleep = sim.schedule_after(time, std::move(stop));
  if (!co_await sleep) throw std::runtime_error("stopped");
  co_return value;
}

task<int> throws(simulation& sim, std::chrono::milliseconds time) {
  co_await sim.schedule_after(time);
  throw std::runtime_error("broken");
}

task<> nothing() { co_return; }

}  // namespace

TEST_CASE("when_all: gives all outcomes in their order, once the last has ended") {
  simulation sim;
  const auto body = [&]() -> task<> {
    const auto begin = sim.now();
    auto all = cobatch::when_all(after(sim, 30ms, 1), after(sim, 10ms, std::string("two")), nothing(), throws(sim, 20ms));
    const auto [one, two, three, four] = co_await all;
    CHECK(sim.now() - begin == 30ms);
    CHECK(one.value() == 1);
    CHECK(two.value() == "two");
    CHECK(three.has_value());
    CHECK(four.error().code == errc::exception);
    CHECK(four.error().message().find("broken") != std::string::npos);
  };
  sim.run(body());
}

TEST_CASE("when_all: what ends at once, move-only values, outcomes of the user's own error type") {
  struct my_error {
    explicit my_error(const error& why) : text(why.message()) {}
    explicit my_error(std::string what) : text(std::move(what)) {}
    std::string text;
  };
  const auto makes = []() -> task<std::unique_ptr<int>> { co_return std::make_unique<int>(7); };
  const auto refuses = []() -> task<expected<int, my_error>> {
    co_return cobatch::unexpected<my_error>(my_error("no"));
  };
  const auto fails = []() -> task<expected<int, my_error>> {
    throw std::runtime_error("broken");
    co_return 3;
  };
  const auto body = [&]() -> task<> {
    auto all = cobatch::when_all(makes(), refuses(), fails());
    auto outcomes = co_await all;
    static_assert(std::is_same_v<decltype(outcomes), std::tuple<expected<std::unique_ptr<int>, error>,
                                                                expected<int, my_error>, expected<int, my_error>>>);
    CHECK(*std::get<0>(outcomes).value() == 7);
    CHECK(std::get<1>(outcomes).error().text == "no");
    CHECK(std::get<2>(outcomes).error().text.find("broken") != std::string::npos);
  };
  cobatch::sync_wait(body());
}

TEST_CASE("when_all: not awaited, it does nothing") {
  bool ran = false;
  const auto work = [&]() -> task<> {
    ran = true;
    co_return;
  };
  { const auto all = cobatch::when_all(work(), work()); }
  CHECK_FALSE(ran);
}

TEST_CASE("when_all: on several threads, a million of them on a flat stack") {
  cobatch::thread_pool pool(4);
  const auto hop = [&](int x) -> task<int> {
    co_await pool.schedule();
    co_return x;
  };
  const auto body = [&]() -> task<long> {
    co_await pool.schedule();
    long sum = 0;
    for (int i = 0; i < 20'000; ++i) {
      auto all = cobatch::when_all(hop(1), hop(2), hop(3));
      const auto [a, b, c] = co_await all;
      sum += *a + *b + *c;
    }
    const auto at_once = [](int x) -> task<int> { co_return x; };
    for (int i = 0; i < 100'000; ++i) {
      auto all = cobatch::when_all(at_once(1), at_once(2));
      const auto [a, b] = co_await all;
      sum += *a + *b;
    }
    co_return sum;
  };
  CHECK(cobatch::sync_wait(body()) == 6 * 20'000 + 3 * 100'000);
}

TEST_CASE("when_any: the first value wins, the others are stopped and waited for") {
  simulation sim;
  const auto body = [&]() -> task<> {
    const auto begin = sim.now();
    const auto slow = [&](std::stop_token stop) { return after(sim, 1h, 1, std::move(stop)); };
    const auto fast = [&](std::stop_token stop) { return after(sim, 20ms, 2, std::move(stop)); };
    const auto stubborn = [&] { return after(sim, 50ms, 3); };
    const auto broken = [&] { return throws(sim, 1ms); };
    auto any = cobatch::when_any(slow, broken, fast, stubborn);
    const auto first = co_await any;
    CHECK(first.index == 2);
    CHECK(first.result.value() == 2);
    CHECK(sim.now() - begin == 50ms);
  };
  sim.run(body());
}

TEST_CASE("when_any: without a value it is the outcome of the last") {
  simulation sim;
  const auto body = [&]() -> task<> {
    const auto broken = [&](std::stop_token) { return throws(sim, 5ms); };
    const auto refuses = []() -> task<expected<int, error>> { co_return cobatch::unexpected<error>(errc::queue_full); };
    auto any = cobatch::when_any(broken, refuses);
    const auto first = co_await any;
    CHECK(first.index == 1);
    CHECK(first.result.error().code == errc::queue_full);
  };
  sim.run(body());
}

TEST_CASE("when_any: who is called when there is a value finds the token stopped") {
  const auto at_once = [](std::stop_token) -> task<int> { co_return 1; };
  bool stopped = false;
  const auto later = [&](std::stop_token stop) -> task<int> {
    stopped = stop.stop_requested();
    co_return 2;
  };
  const auto body = [&]() -> task<> {
    auto any = cobatch::when_any(at_once, later);
    const auto first = co_await any;
    CHECK(first.index == 0);
    CHECK(first.result.value() == 1);
  };
  cobatch::sync_wait(body());
  CHECK(stopped);
}

TEST_CASE("with_timeout: a value in time, a stop after it, and a late value all the same") {
  simulation sim;
  const auto body = [&]() -> task<> {
    const auto in = [&](std::chrono::milliseconds time) {
      return [&sim, time](std::stop_token stop) { return after(sim, time, 7, std::move(stop)); };
    };
    const auto fast = in(10ms), slow = in(1h);
    auto in_time = cobatch::with_timeout(sim, 0.1s, fast);
    const auto in_time_outcome = co_await in_time;
    CHECK(in_time_outcome.value() == 7);

    const auto begin = sim.now();
    auto too_late = cobatch::with_timeout(sim, 100ms, slow);
    const auto too_late_outcome = co_await too_late;
    CHECK(too_late_outcome.error().code == errc::timed_out);
    CHECK(sim.now() - begin == 100ms);

    const auto deaf = [&] { return after(sim, 300ms, 8); };
    auto late = cobatch::with_timeout(sim, 100ms, deaf);
    const auto late_outcome = co_await late;
    CHECK(late_outcome.value() == 8);
    CHECK(sim.now() - begin == 400ms);

    const auto broken = [&] { return throws(sim, 1ms); };
    auto fails = cobatch::with_timeout(sim, 100ms, broken);
    const auto fails_outcome = co_await fails;
    CHECK(fails_outcome.error().code == errc::exception);
  };
  sim.run(body());
}

namespace {

/// A coroutine that somebody else destroys.
struct owned {
  struct promise_type {
    owned get_return_object() { return {std::coroutine_handle<promise_type>::from_promise(*this)}; }
    std::suspend_never initial_suspend() const noexcept { return {}; }
    std::suspend_always final_suspend() const noexcept { return {}; }
    void return_void() const noexcept {}
    void unhandled_exception() const { throw; }
  };
  std::coroutine_handle<> frame;
};

struct counted {
  explicit counted(int& alive) : alive_(&alive) { ++alive; }
  counted(const counted& other) : alive_(other.alive_) { ++*alive_; }  // a move may throw
  counted& operator=(const counted&) = delete;
  ~counted() { --*alive_; }
  int* alive_;
};

}  // namespace

TEST_CASE("when_all, when_any: whoever awaits may be destroyed meanwhile, and those that are awaited go with it") {
  std::vector<cobatch::callback<int>> kept;
  int alive = 0;
  const auto work = [&]() -> task<int> {
    const counted here(alive);
    const auto keep = [&](cobatch::callback<int> done) { kept.push_back(std::move(done)); };
    const auto came = co_await cobatch::from_callback<int>(keep);
    co_return came.value();
  };
  const auto all = [&]() -> owned {
    auto both = cobatch::when_all(work(), work());
    (void)co_await both;
  };
  const auto any = [&]() -> owned {
    auto either = cobatch::when_any(work, work);
    (void)co_await either;
  };
  for (const owned& waits : {all(), any()}) {
    CHECK(alive > 0);
    waits.frame.destroy();
  }
  CHECK(alive == 0);
  for (const auto& done : kept) done(3);
}

TEST_CASE("when_all: a simulation that deadlocks inside of it says so") {
  simulation sim;
  cobatch::async_semaphore none(0);
  const auto waits = [&]() -> task<int> {
    const auto permit = co_await none.acquire();
    co_return 1;
  };
  const auto body = [&]() -> task<> {
    auto any = cobatch::when_any(waits, waits);
    (void)co_await any;
  };
  CHECK_THROWS_AS(sim.run(body()), cobatch::deadlock_error);
}

TEST_CASE("when_all: values whose move may throw; nothing is left when the await returns") {
  cobatch::thread_pool pool(2);
  int alive = 0;
  const auto makes = [&]() -> task<counted> {
    co_await pool.schedule();
    co_return counted(alive);
  };
  const auto body = [&]() -> task<> {
    for (int i = 0; i < 500; ++i) {
      {
        auto one = cobatch::when_all(makes());
        const auto [made] = co_await one;
        REQUIRE(made.has_value());
      }
      REQUIRE(alive == 0);
    }
  };
  cobatch::sync_wait(body());
}
