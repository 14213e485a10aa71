#include <cobatch/task_scope.hpp>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <stop_token>
#include <utility>

#include <cobatch/semaphore.hpp>
#include <cobatch/simulation.hpp>
#include <cobatch/sync_wait.hpp>
#include <cobatch/task.hpp>
#include <cobatch/thread_pool.hpp>

#include "support/catch.hpp"

using cobatch::scope_failure;
using cobatch::simulation;
using cobatch::task;
using cobatch::task_scope;
using namespace std::chrono_literals;

TEST_CASE("task_scope: join waits for all, those included that they spawn") {
  simulation sim;
  int ended = 0;
  const auto body = [&]() -> task<> {
    task_scope scope;
    const auto work = [&](int depth, auto& again) -> task<> {
      co_await sim.schedule_after(10ms);
      if (depth > 0) scope.spawn(again(depth - 1, again));
      ++ended;
    };
    for (int i = 0; i < 3; ++i) CHECK(scope.spawn(work(2, work)));
    CHECK(ended == 0);
    const auto begin = sim.now();
    co_await scope.join();
    CHECK(ended == 9);
    CHECK(sim.now() - begin == 30ms);
    CHECK_FALSE(scope.spawn(work(0, work)));
  };
  sim.run(body());
  CHECK(ended == 9);
}

TEST_CASE("task_scope: an empty one is joined at once, and one that was not used need not be") {
  { const task_scope unused; }
  task_scope scope;
  cobatch::sync_wait(scope.join());
}

TEST_CASE("task_scope: the first exception stops the others and is thrown by join") {
  simulation sim;
  int stopped = 0;
  const auto body = [&]() -> task<> {
    task_scope scope;
    const auto waits = [&]() -> task<> {
      auto sleep = sim.schedule_after(1h, scope.stop_token());
      if (!co_await sleep) ++stopped;
    };
    const auto breaks = [&]() -> task<> {
      co_await sim.schedule_after(5ms);
      throw std::runtime_error("broken");
    };
    scope.spawn(waits());
    scope.spawn(breaks());
    scope.spawn(waits());
    const auto begin = sim.now();
    bool threw = false;
    try {
      co_await scope.join();
    } catch (const std::runtime_error&) {
      threw = true;
    }
    CHECK(threw);
    CHECK(sim.now() - begin == 5ms);
  };
  sim.run(body());
  CHECK(stopped == 2);
}

TEST_CASE("task_scope: a failure that is kept stops nobody") {
  simulation sim;
  int ended = 0;
  const auto body = [&]() -> task<> {
    task_scope scope(scope_failure::is_kept);
    const auto works = [&]() -> task<> {
      co_await sim.schedule_after(10ms);
      if (!scope.stop_token().stop_requested()) ++ended;
    };
    const auto breaks = []() -> task<int> {
      throw std::runtime_error("broken");
      co_return 3;
    };
    scope.spawn(works());
    scope.spawn(breaks());
    scope.spawn(works());
    bool threw = false;
    try {
      co_await scope.join();
    } catch (const std::runtime_error&) {
      threw = true;
    }
    CHECK(threw);
  };
  sim.run(body());
  CHECK(ended == 2);
}

TEST_CASE("task_scope: a cap is a semaphore whose permits the tasks take along") {
  simulation sim;
  int now = 0, most = 0;
  const auto body = [&]() -> task<> {
    task_scope scope;
    cobatch::async_semaphore room(3);
    const auto work = [&](cobatch::permit) -> task<> {
      most = std::max(most, ++now);
      co_await sim.schedule_after(10ms);
      --now;
    };
    for (int i = 0; i < 10; ++i) {
      auto permit = co_await room.acquire();
      scope.spawn(work(std::move(permit)));
    }
    co_await scope.join();
  };
  sim.run(body());
  CHECK(most == 3);
}

TEST_CASE("task_scope: many tasks on several threads") {
  cobatch::thread_pool pool(4);
  std::atomic<int> ended = 0;
  const auto body = [&]() -> task<> {
    task_scope scope;
    const auto work = [&](int depth, auto& again) -> task<> {
      if (depth > 0) {
        scope.spawn(pool, again(depth - 1, again));
        scope.spawn(pool, again(depth - 1, again));
      }
      co_await pool.schedule();
      ++ended;
    };
    scope.spawn(pool, work(10, work));
    co_await scope.join();
    CHECK(ended == 2047);
  };
  for (int i = 0; i < 5; ++i) {
    ended = 0;
    cobatch::sync_wait(body());
  }
}
