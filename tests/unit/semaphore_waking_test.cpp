#include <cobatch/semaphore.hpp>

#include <coroutine>
#include <cstddef>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <cobatch/simulation.hpp>
#include <cobatch/task.hpp>

#include "semaphore_coroutines.hpp"
#include "support/catch.hpp"
#include "support/step_executor.hpp"

using cobatch::async_semaphore;
using cobatch::permit;
using namespace semaphore_coroutines;

namespace {

std::vector<started> take_each(async_semaphore& semaphore, numbers& log, int last) {
  std::vector<started> all;
  for (int i = 1; i <= last; ++i) all.push_back(take(semaphore, log, i));
  return all;
}

}  // namespace

TEST_CASE("semaphore: single releases wake the waiters first come, first served") {  // [B1]
  async_semaphore semaphore(0);
  step_executor ex;
  numbers log;
  const auto waiters = ex.run([&] { return take_each(semaphore, log, 3); });
  for (std::size_t i = 1; i <= 3; ++i) {
    semaphore.release();
    ex.drain();
    CHECK(log.size() == i);
  }
  CHECK(log == numbers{1, 2, 3});
}

TEST_CASE("semaphore: coroutines that take it again and again take turns") {  // [B2]
  async_semaphore semaphore(1);
  step_executor ex;
  std::vector<std::string> log;
  const auto worker = [&](std::string name) -> started {
    for (const char* const round : {"_1", "_2"}) {
      const permit held = co_await semaphore.acquire();
      log.push_back(name + round);
      co_await cobatch::schedule(ex);
    }
  };
  const started one = ex.run([&] { return worker("c1"); });
  const started two = ex.run([&] { return worker("c2"); });
  const started three = ex.run([&] { return worker("c3"); });
  ex.drain();
  CHECK(log == std::vector<std::string>{"c1_1", "c2_1", "c3_1", "c1_2", "c2_2", "c3_2"});
}

TEST_CASE("semaphore: a holder that releases and acquires again goes behind those who wait") {  // [B3]
  async_semaphore semaphore(1);
  step_executor ex;
  numbers log;
  const auto again = [&]() -> started {
    permit held = co_await semaphore.acquire();
    log.push_back(1);
    co_await cobatch::schedule(ex);
    held.release();
    held = co_await semaphore.acquire();
    log.push_back(4);
  };
  const started first = ex.run(again);
  const started second = ex.run([&] { return pass(semaphore, log, 2); });
  const started third = ex.run([&] { return pass(semaphore, log, 3); });
  ex.drain();
  CHECK(log == numbers{1, 2, 3, 4});
}

TEST_CASE("semaphore: permits are handed over, not published, before any waiter runs") {  // [B4]
  async_semaphore semaphore(0);
  step_executor ex;
  numbers log;
  const auto waiters = ex.run([&] { return take_each(semaphore, log, 3); });
  semaphore.release();
  semaphore.release();
  CHECK(semaphore.available() == 0);
  CHECK(semaphore.waiting() == 1);
  CHECK(log.empty());
  ex.drain();
  CHECK(log == numbers{1, 2});
  semaphore.release();
  ex.drain();
}

TEST_CASE("semaphore: an acquire between a release and the woken waiter does not overtake it") {  // [B5]
  async_semaphore semaphore(0);
  step_executor ex;
  numbers log;
  const started first = ex.run([&] { return take(semaphore, log, 1); });
  semaphore.release();
  const started second = ex.run([&] { return take(semaphore, log, 2); });
  CHECK_FALSE(second.done());
  ex.drain();
  CHECK(log == numbers{1});
  semaphore.release();
  ex.drain();
  CHECK(log == numbers{1, 2});
}

TEST_CASE("semaphore: try_acquire fails while anyone waits, even where permits are free") {  // [B6]
  async_semaphore semaphore(2);
  numbers log;
  permit one = semaphore.try_acquire().value();
  const started heavy = take(semaphore, log, 1, 2);
  CHECK(semaphore.available() == 1);
  CHECK_FALSE(semaphore.try_acquire());
  CHECK_FALSE(semaphore.try_acquire(0));
  one.release();
  CHECK(heavy.done());
  CHECK_FALSE(semaphore.try_acquire());
  semaphore.release(2);
  CHECK(semaphore.try_acquire());
}

TEST_CASE("semaphore: release(k) wakes as many as wait, and keeps the rest of the permits") {  // [B7]
  constexpr int waiters = 3;
  for (const std::size_t k : {1u, 2u, 3u, 5u}) {
    async_semaphore semaphore(0);
    step_executor ex;
    numbers log;
    const auto all = ex.run([&] { return take_each(semaphore, log, waiters); });
    semaphore.release(k);
    CHECK(semaphore.available() == (k > waiters ? k - waiters : 0));
    ex.drain();
    CHECK(log.size() == (k < waiters ? k : waiters));
    for (std::size_t i = 0; i < log.size(); ++i) CHECK(log[i] == static_cast<int>(i) + 1);
    semaphore.release(waiters);
    ex.drain();
    CHECK(log.size() == waiters);
  }
}

TEST_CASE("semaphore: one release wakes exactly one of five") {  // [B8]
  async_semaphore semaphore(0);
  step_executor ex;
  numbers log;
  const auto waiters = ex.run([&] { return take_each(semaphore, log, 5); });
  semaphore.release();
  CHECK(ex.queued() == 1);
  ex.drain();
  CHECK(log == numbers{1});
  CHECK(semaphore.waiting() == 4);
  semaphore.release(4);
  ex.drain();
}

TEST_CASE("semaphore: a release before the acquire is not lost") {  // [B10]
  async_semaphore semaphore(0);
  numbers log;
  semaphore.release(2);
  CHECK(take(semaphore, log, 1).done());
  CHECK(take(semaphore, log, 2).done());
  CHECK(semaphore.available() == 0);
}

TEST_CASE("semaphore: a permit released between await_ready and await_suspend completes the acquire") {  // [B11]
  async_semaphore semaphore(0);
  auto acquire = semaphore.acquire();
  CHECK_FALSE(acquire.await_ready());
  semaphore.release();
  CHECK_FALSE(acquire.await_suspend(std::noop_coroutine()));
  CHECK(acquire.await_resume().weight() == 1);
  CHECK(semaphore.available() == 1);
}

TEST_CASE("semaphore: of two acquires and one permit one completes and the other waits") {  // [B12]
  async_semaphore semaphore(1);
  permit result;
  {
    auto first = semaphore.acquire();
    auto second = semaphore.acquire();
    CHECK_FALSE(first.await_ready());
    CHECK_FALSE(second.await_ready());
    CHECK_FALSE(first.await_suspend(std::noop_coroutine()));
    CHECK(second.await_suspend(std::noop_coroutine()));
    CHECK(semaphore.available() == 0);
    CHECK(semaphore.waiting() == 1);
    result = first.await_resume();
  }
  CHECK(semaphore.waiting() == 0);
  result.release();
  CHECK(semaphore.available() == 1);
}

TEST_CASE("semaphore: what was granted goes back if the acquire is destroyed before its result is taken") {
  async_semaphore semaphore(1);
  {
    auto acquire = semaphore.acquire();
    CHECK_FALSE(acquire.await_suspend(std::noop_coroutine()));
    CHECK(semaphore.available() == 0);
  }
  CHECK(semaphore.available() == 1);
  permit held = semaphore.try_acquire().value();
  {
    auto acquire = semaphore.acquire();
    CHECK(acquire.await_suspend(std::noop_coroutine()));
    held.release();
    CHECK(semaphore.available() == 0);
  }
  CHECK(semaphore.available() == 1);
}

TEST_CASE("semaphore: weighted waiters go on first come, first served; no light one overtakes a heavy one") {  // [B14]
  async_semaphore semaphore(5);
  step_executor ex;
  numbers log;
  permit all = semaphore.try_acquire(5).value();
  const auto worker = [&](int number) -> started {
    const permit held = co_await semaphore.acquire(number);
    log.push_back(number);
    co_await cobatch::schedule(ex);
  };
  std::vector<started> workers;
  for (int i = 1; i <= 5; ++i) workers.push_back(ex.run([&] { return worker(i); }));
  all.release();
  ex.drain();
  CHECK(log == numbers{1, 2, 3, 4, 5});
  CHECK(semaphore.available() == 5);
}

TEST_CASE("semaphore: a light waiter stays behind a heavy one that does not fit yet") {  // [B14]
  async_semaphore semaphore(4);
  numbers log;
  permit three = semaphore.try_acquire(3).value();
  const started heavy = take(semaphore, log, 1, 4);
  const started light = take(semaphore, log, 2, 1);
  CHECK(log.empty());
  three.release();
  CHECK(log == numbers{1});
  semaphore.release(4);
  CHECK(log == numbers{1, 2});
}

TEST_CASE("semaphore: a waiter goes on on the executor on which it suspended, never inside release") {  // [E3]
  async_semaphore semaphore(0);
  step_executor mine;
  step_executor other;
  numbers log;
  const started waiter = mine.run([&] { return take(semaphore, log, 1); });
  other.run([&] { semaphore.release(); });
  CHECK(log.empty());
  CHECK(other.queued() == 0);
  CHECK(mine.queued() == 1);
  mine.drain();
  CHECK(log == numbers{1});
}

TEST_CASE("semaphore: a waiter without an executor goes on inside release") {  // [E3]
  async_semaphore semaphore(0);
  numbers log;
  const started waiter = take(semaphore, log, 1);
  semaphore.release();
  CHECK(log == numbers{1});
}

TEST_CASE("semaphore: a waiter whose executor refuses it goes on inside release") {
  async_semaphore semaphore(0);
  step_executor ex;
  numbers log;
  const started refused = ex.run([&] { return take(semaphore, log, 1); });
  ex.refusing = true;
  semaphore.release();
  CHECK(log == numbers{1});
}

TEST_CASE("semaphore: waiters with an executor are queued before those without one run") {
  async_semaphore semaphore(0);
  step_executor ex;
  numbers log;
  std::size_t queued = 0;
  const auto inside_release = [&]() -> started {
    const permit held = co_await semaphore.acquire();
    queued = ex.queued();
  };
  const started here = inside_release();
  const started there = ex.run([&] { return take(semaphore, log, 1); });
  semaphore.release(2);
  CHECK(queued == 1);
  ex.drain();
}

TEST_CASE("semaphore: waiters woken inside release run one after another, not one inside another") {  // [B9]
  async_semaphore semaphore(0);
  numbers log;
  const auto nested = [&](int number) -> started {
    permit held = co_await semaphore.acquire();
    log.push_back(number);
    held.release();  // grants the next, who runs when this one is through
    log.push_back(-number);
  };
  const started one = nested(1);
  const started two = nested(2);
  const started three = nested(3);
  semaphore.release();
  CHECK(log == numbers{1, -1, 2, -2, 3, -3});
}

TEST_CASE("semaphore: a plain thread may release, and the waiter sees what the thread wrote") {  // [B15] [E5]
  async_semaphore semaphore(0);
  int written = 0;
  int seen = 0;
  const auto coroutine = [&]() -> started {
    const permit held = co_await semaphore.acquire();
    seen = written;
  };
  const started waiter = coroutine();
  std::thread([&] {
    written = 42;
    semaphore.release();
  }).join();
  CHECK(waiter.done());
  CHECK(seen == 42);
}

TEST_CASE("semaphore: never more holders than permits, and all get their turn") {  // [D6]
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    cobatch::simulation sim(seed);
    async_semaphore semaphore(5);
    int holders = 0;
    int most = 0;
    int served = 0;
    const auto worker = [&](int number) -> started {
      const permit held = co_await semaphore.acquire();
      most = std::max(most, ++holders);
      co_await sim.schedule_after(std::chrono::milliseconds(1 + number % 3));
      --holders;
      ++served;
    };
    std::vector<started> workers;
    const auto all = [&]() -> cobatch::task<> {
      for (int i = 0; i < 20; ++i) workers.push_back(worker(i));
      while (served < 20) co_await sim.schedule_after(std::chrono::milliseconds(1));
    };
    sim.run(all());
    CHECK(most == 5);
    CHECK(semaphore.available() == 5);
    CHECK(semaphore.waiting() == 0);
  }
}
