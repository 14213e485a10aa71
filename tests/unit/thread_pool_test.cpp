#include <cobatch/thread_pool.hpp>

#include <atomic>
#include <chrono>
#include <coroutine>
#include <cstddef>
#include <latch>
#include <memory>
#include <span>
#include <stdexcept>
#include <stop_token>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include <cobatch/executor.hpp>
#include <cobatch/sync_wait.hpp>
#include <cobatch/task.hpp>

#include "support/allocations.hpp"
#include "support/catch.hpp"
#include "support/detached.hpp"

using cobatch::sync_wait;
using cobatch::task;
using cobatch::thread_pool;
using namespace std::chrono_literals;

namespace {

static_assert(cobatch::timed_executor<thread_pool>);
static_assert(noexcept(std::declval<thread_pool&>().execute(std::declval<std::coroutine_handle<>>())));

using sleep = decltype(std::declval<thread_pool&>().schedule_after(1ms));
static_assert(std::is_move_constructible_v<sleep> && !std::is_aggregate_v<sleep>);

/// Counts up when it dies: a coroutine that holds one was not leaked.
class counted_down {
 public:
  explicit counted_down(std::atomic<int>& deaths) noexcept : deaths_(&deaths) {}
  counted_down(const counted_down&) = delete;
  counted_down& operator=(const counted_down&) = delete;
  ~counted_down() { deaths_->fetch_add(1); }

 private:
  std::atomic<int>* deaths_;
};

/// Suspends and hands the own handle over.
class handed_to {
 public:
  explicit handed_to(std::vector<std::coroutine_handle<>>& to) noexcept : to_(&to) {}
  bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> handle) const { to_->push_back(handle); }
  void await_resume() const noexcept {}

 private:
  std::vector<std::coroutine_handle<>>* to_;
};

}  // namespace

TEST_CASE("thread_pool: has as many threads as it was told, and at least one") {
  CHECK(thread_pool(3).concurrency() == 3);
  CHECK(thread_pool().concurrency() >= 1);
  CHECK_THROWS_AS(thread_pool(0), std::invalid_argument);
}

TEST_CASE("thread_pool: a number of threads that cannot be is refused, such as one below zero") {
  const std::size_t none = 0;
  for (const std::size_t threads : {none - 1, none - 2, (none - 1) / 2, (none - 1) / 1024, std::size_t{1} << 32}) {
    CHECK_THROWS_AS(thread_pool(threads), std::invalid_argument);
  }
}

TEST_CASE("thread_pool: where a thread cannot be started those that were are joined, and nothing is leaked") {
  const auto start = [] {
    try {
      return thread_pool(3).concurrency() == 3;
    } catch (const std::bad_alloc&) {
      return false;
    }
  };
  const std::size_t allocations =
      fail_each_allocation(start, [](bool started, bool failed) { CHECK(started != failed); });
  CHECK(allocations >= 3);
}

TEST_CASE("thread_pool: its threads are numbered, and no others") {
  std::atomic<unsigned> seen{0};
  std::latch meeting(3);
  thread_pool pool(3);
  thread_pool other(1);
  CHECK(pool.worker_index() == thread_pool::npos);
  auto meet = [&]() -> detached {
    co_await pool.schedule();
    if (other.worker_index() == thread_pool::npos) seen.fetch_or(1u << pool.worker_index());
    meeting.arrive_and_wait();  // blocks until three threads are in it
  };
  for (int i = 0; i < 3; ++i) meet();
  meeting.wait();
  CHECK(seen == 7);
}

TEST_CASE("thread_pool: tells how many of its threads have nothing to do") {
  std::latch met(3);
  std::latch end(1);
  thread_pool pool(2);
  auto work = [&]() -> detached {
    co_await pool.schedule();
    met.arrive_and_wait();
    end.wait();
  };
  work();
  work();
  met.arrive_and_wait();
  CHECK(pool.idle() == 0);
  end.count_down();
  while (pool.idle() != 2) std::this_thread::yield();
}

TEST_CASE("thread_pool: schedule goes on on one of its threads") {
  thread_pool pool(2);
  auto body = [&]() -> task<bool> {
    const auto caller = std::this_thread::get_id();
    CHECK_FALSE(cobatch::detail::runs_here(pool));
    co_await pool.schedule();
    CHECK(cobatch::detail::runs_here(pool));
    co_return std::this_thread::get_id() != caller;
  };
  CHECK(sync_wait(body()));
}

TEST_CASE("thread_pool: with one thread, what is queued runs first in, first out, whoever reschedules itself") {
  thread_pool pool(1);
  std::vector<int> order;
  std::latch done(3);
  auto body = [&](int id) -> detached {
    for (int turn = 0; turn < 3; ++turn) {
      co_await pool.schedule();
      order.push_back(10 * turn + id);
    }
    done.count_down();
  };
  auto begin = [&]() -> task<> {
    co_await pool.schedule();
    for (int id = 0; id < 3; ++id) body(id);
  };
  sync_wait(begin());
  done.wait();
  CHECK(order == std::vector<int>{0, 1, 2, 10, 11, 12, 20, 21, 22});
}

TEST_CASE("thread_pool: a coroutine that reschedules itself for ever starves neither others nor newcomers nor timers") {
  thread_pool pool(1);
  std::atomic<bool> stop{false};
  std::latch stopped(1);
  auto forever = [&]() -> detached {
    while (!stop.load()) co_await pool.schedule();
    stopped.count_down();
  };
  forever();
  auto newcomer = [&]() -> task<> {
    for (int i = 0; i < 100; ++i) co_await pool.schedule();
    co_await pool.schedule_after(1ms);
  };
  sync_wait(newcomer());
  stop = true;
  stopped.wait();
}

TEST_CASE("thread_pool: what comes from outside waits for a few resumptions, not for many") {
  thread_pool pool(1);
  bool arrived = false;
  int turns = 0;
  auto newcomer = [&]() -> detached {
    co_await pool.schedule();
    arrived = true;
  };
  auto busy = [&]() -> task<> {
    co_await pool.schedule();
    for (int i = 0; i < 20; ++i) co_await pool.schedule();
    std::thread([&] { newcomer(); }).join();
    while (!arrived) {
      ++turns;
      co_await pool.schedule();
    }
  };
  sync_wait(busy());
  CHECK(turns <= 5);
}

TEST_CASE("thread_pool: what a coroutine queues before it blocks its thread runs on the others") {
  std::latch meeting(3);  // outlives the pool: when begin() ends, the others may still be in it
  thread_pool pool(3);
  auto meet = [&]() -> detached {
    co_await pool.schedule();
    meeting.arrive_and_wait();  // blocks until three threads are in it
  };
  auto begin = [&]() -> task<> {
    co_await pool.schedule();
    meet();
    meet();
    meeting.arrive_and_wait();
  };
  sync_wait(begin());
}

TEST_CASE("thread_pool: much more than its rings hold is queued without loss") {
  for (const std::size_t threads : {1u, 2u}) {
    thread_pool pool(threads);
    constexpr int many = 5000;
    std::latch done(many);
    std::atomic<int> runs{0};
    auto body = [&]() -> detached {
      for (int turn = 0; turn < 3; ++turn) {
        co_await pool.schedule();
        runs.fetch_add(1);
      }
      done.count_down();
    };
    auto begin = [&]() -> task<> {
      co_await pool.schedule();
      for (int i = 0; i < many; ++i) body();
    };
    sync_wait(begin());
    done.wait();
    CHECK(runs == 3 * many);
  }
}

TEST_CASE("thread_pool: with one thread, what is queued runs first in, first out, however much it is") {
  thread_pool pool(1);
  constexpr int many = 1000;
  std::vector<int> order;
  std::latch done(many);
  auto body = [&](int id) -> detached {
    for (int turn = 0; turn < 3; ++turn) {
      co_await pool.schedule();
      order.push_back(many * turn + id);
    }
    done.count_down();
  };
  auto begin = [&]() -> task<> {
    co_await pool.schedule();
    for (int id = 0; id < many; ++id) body(id);
  };
  sync_wait(begin());
  done.wait();
  REQUIRE(order.size() == 3 * many);
  bool in_order = true;
  for (int i = 0; i < 3 * many; ++i) in_order = in_order && order[static_cast<std::size_t>(i)] == i;
  CHECK(in_order);
}

TEST_CASE(
    "thread_pool: however many reschedule themselves for ever, all of them, newcomers and timers get their turn") {
  for (const std::size_t threads : {1u, 2u, 4u}) {
    for (const std::size_t many : {255u, 256u, 257u, 300u, 2000u}) {
      thread_pool pool(threads);
      std::atomic<bool> stop{false};
      std::latch stopped(static_cast<std::ptrdiff_t>(many));
      std::latch turned(static_cast<std::ptrdiff_t>(many));
      auto forever = [&]() -> detached {
        for (int turn = 0; !stop.load(); ++turn) {
          if (turn == 20) turned.count_down();
          co_await pool.schedule();
        }
        stopped.count_down();
      };
      auto begin = [&]() -> task<> {
        co_await pool.schedule();
        for (std::size_t i = 0; i < many; ++i) forever();
      };
      sync_wait(begin());
      auto newcomer = [&]() -> task<> {
        for (int i = 0; i < 10; ++i) co_await pool.schedule();
        CHECK(co_await pool.schedule_after(1ms));
      };
      sync_wait(newcomer());
      turned.wait();
      stop = true;
      stopped.wait();
    }
  }
}

TEST_CASE("thread_pool: many at once go to as many threads, from within and from outside") {
  for (int round = 0; round < 50; ++round) {
    thread_pool pool(4);
    std::vector<std::coroutine_handle<>> waiting;
    std::latch from_outside(4);
    std::latch from_within(4);
    std::latch done(7);
    auto meet = [&](std::latch& at) -> detached {
      co_await handed_to(waiting);
      at.arrive_and_wait();  // blocks until four threads are in it
      done.count_down();
    };
    for (int i = 0; i < 4; ++i) meet(from_outside);
    CHECK(pool.execute_all(waiting));
    from_outside.wait();
    auto begin = [&]() -> task<> {
      co_await pool.schedule();
      waiting.clear();
      for (int i = 0; i < 3; ++i) meet(from_within);
      CHECK(pool.execute_all(waiting));
      from_within.arrive_and_wait();
    };
    sync_wait(begin());
    done.wait();
  }
}

TEST_CASE("thread_pool: many at once may be more than its threads, or none; after stop none is taken") {
  thread_pool pool(2);
  constexpr std::size_t many = 1000;
  std::vector<std::coroutine_handle<>> waiting;
  std::latch done(2 * many);
  auto body = [&]() -> detached {
    co_await handed_to(waiting);
    done.count_down();
  };
  auto begin = [&]() -> task<> {
    for (std::size_t i = 0; i < many; ++i) body();
    CHECK(pool.execute_all(std::span(waiting)));
    CHECK(pool.execute_all({}));
    co_await pool.schedule();
    waiting.clear();
    for (std::size_t i = 0; i < many; ++i) body();
    CHECK(pool.execute_all(waiting));
    CHECK(pool.execute_all({}));
  };
  sync_wait(begin());
  done.wait();
  CHECK(pool.execute_all({}));
  pool.stop();
  const std::coroutine_handle<> noop = std::noop_coroutine();
  CHECK_FALSE(pool.execute_all({&noop, 1}));
  CHECK_FALSE(pool.execute_all({}));
}

TEST_CASE("thread_pool: a thread takes back what it queued last, and nothing else") {
  thread_pool pool(1);
  std::vector<std::coroutine_handle<>> waiting;
  std::vector<int> ran;
  std::latch done(3);
  auto body = [&](int id) -> detached {
    co_await handed_to(waiting);
    ran.push_back(id);
    done.count_down();
  };
  auto begin = [&]() -> task<> {
    co_await pool.schedule();
    for (int id = 0; id < 3; ++id) body(id);
    CHECK_FALSE(pool.take_back(waiting[0]));  // not queued yet
    pool.execute(waiting[0]);
    pool.execute(waiting[1]);
    CHECK_FALSE(pool.take_back(waiting[0]));
    CHECK(pool.take_back(waiting[1]));
    CHECK_FALSE(pool.take_back(waiting[1]));
    CHECK(pool.take_back(waiting[0]));
    // Its owner again: in another order now.
    pool.execute(waiting[2]);
    pool.execute(waiting[0]);
    pool.execute(waiting[1]);
    co_await pool.schedule();
    CHECK_FALSE(pool.take_back(waiting[1]));  // it has run
  };
  const std::coroutine_handle<> noop = std::noop_coroutine();
  CHECK_FALSE(pool.take_back(noop));  // not one of its threads
  sync_wait(begin());
  done.wait();
  CHECK(ran == std::vector<int>{2, 0, 1});
}

TEST_CASE("thread_pool: what others have begun with is not taken back") {
  thread_pool pool(2);
  std::vector<std::coroutine_handle<>> waiting;
  std::latch begun(1);
  auto body = [&]() -> detached {
    co_await handed_to(waiting);
    begun.count_down();
  };
  auto begin = [&]() -> task<> {
    co_await pool.schedule();
    body();
    pool.execute(waiting[0]);
    begun.wait();  // blocks this thread: only the other one can run it
    CHECK_FALSE(pool.take_back(waiting[0]));
  };
  sync_wait(begin());
}

TEST_CASE("thread_pool: a thread that computes delays neither its timers nor what comes from outside") {
  for (int round = 0; round < 20; ++round) {
    constexpr int senders = 4;
    std::latch blocked(1);
    std::latch over(2 + senders);
    thread_pool pool(2);
    auto sleeper = [&](std::chrono::nanoseconds delay) -> detached {
      CHECK(co_await pool.schedule_after(delay));
      over.count_down();
    };
    auto newcomer = [&]() -> detached {
      co_await pool.schedule();
      over.count_down();
    };
    auto compute = [&]() -> task<> {
      co_await pool.schedule();
      sleeper(200us);
      sleeper(1us);
      blocked.count_down();
      over.wait();  // blocks this thread
    };
    // Threads with numbers of their own, so that each of the pool's threads is sent something.
    std::vector<std::thread> others;
    for (int i = 0; i < senders; ++i) {
      others.emplace_back([&] {
        blocked.wait();
        newcomer();
      });
    }
    sync_wait(compute());
    for (std::thread& each : others) each.join();
  }
}

TEST_CASE("thread_pool: threads outside send it work while it sleeps and while it is busy") {
  thread_pool pool(2);
  constexpr int rounds = 500;
  auto hop = [&]() -> task<int> {
    co_await pool.schedule();
    co_return 1;
  };
  std::vector<std::thread> senders;
  std::atomic<int> sum{0};
  for (int i = 0; i < 2; ++i) {
    senders.emplace_back([&] {
      for (int k = 0; k < rounds; ++k) sum.fetch_add(sync_wait(hop()));
    });
  }
  for (std::thread& each : senders) each.join();
  CHECK(sum == 2 * rounds);
}

TEST_CASE("thread_pool: a timer elapses, not before its time, and goes on on the pool") {
  thread_pool pool(2);
  auto body = [&]() -> task<> {
    for (int i = 0; i < 3; ++i) {
      const auto deadline = std::chrono::steady_clock::now() + 1ms;
      const bool result = co_await pool.schedule_after(1ms);
      CHECK(result);
      CHECK(std::chrono::steady_clock::now() >= deadline);
      CHECK(cobatch::detail::runs_here(pool));
    }
  };
  sync_wait(body());
}

TEST_CASE("thread_pool: an earlier timer set while a later one is waited for comes first") {
  thread_pool pool(2);
  std::atomic<int> place{0};
  std::latch done(2);
  int later = 0;
  int earlier = 0;
  auto body = [&](std::chrono::nanoseconds delay, int& own) -> detached {
    co_await pool.schedule_after(delay);
    own = place.fetch_add(1) + 1;
    done.count_down();
  };
  body(200ms, later);
  body(1ms, earlier);
  done.wait();
  CHECK(earlier == 1);
  CHECK(later == 2);
}

TEST_CASE("thread_pool: with one thread, equal delays elapse in the order in which they were set") {
  thread_pool pool(1);
  std::vector<int> order;
  std::latch done(20);
  auto body = [&](int id) -> detached {
    co_await pool.schedule_after(2ms);
    order.push_back(id);
    done.count_down();
  };
  auto begin = [&]() -> task<> {
    co_await pool.schedule();
    for (int id = 0; id < 20; ++id) body(id);
  };
  sync_wait(begin());
  done.wait();
  std::vector<int> expected;
  for (int id = 0; id < 20; ++id) expected.push_back(id);
  CHECK(order == expected);
}

TEST_CASE("thread_pool: a stop wakes a sleeper with false, on the pool") {
  thread_pool pool(2);
  for (int i = 0; i < 100; ++i) {
    std::stop_source source;
    auto body = [&]() -> task<bool> {
      co_await pool.schedule();
      const bool result = co_await pool.schedule_after(std::chrono::nanoseconds::max(), source.get_token());
      CHECK(cobatch::detail::runs_here(pool));
      co_return result;
    };
    std::thread stopper([&] { source.request_stop(); });
    CHECK_FALSE(sync_wait(body()));
    stopper.join();
  }
}

TEST_CASE("thread_pool: a stopped token, zero and negative delays") {
  thread_pool pool(1);
  std::stop_source source;
  source.request_stop();
  CHECK_FALSE(sync_wait(pool.schedule_after(1h, source.get_token())));
  CHECK_FALSE(sync_wait(pool.schedule_after(0ns, source.get_token())));
  CHECK(sync_wait(pool.schedule_after(0ns)));
  CHECK(sync_wait(pool.schedule_after(std::chrono::nanoseconds::min())));
}

TEST_CASE("thread_pool: stop refuses new work, wakes sleepers with false and may be called again") {
  thread_pool pool(2);
  std::latch asleep(2);
  std::latch done(2);
  std::atomic<int> stopped{0};
  auto sleeper = [&]() -> detached {
    co_await pool.schedule();
    asleep.count_down();
    if (!co_await pool.schedule_after(1h)) stopped.fetch_add(1);
    done.count_down();
  };
  sleeper();
  sleeper();
  asleep.wait();
  pool.stop();
  pool.stop();
  done.wait();
  CHECK(stopped == 2);
  CHECK_FALSE(pool.execute(std::noop_coroutine()));
  CHECK_THROWS_AS(sync_wait(pool.schedule()), std::system_error);
  CHECK_FALSE(sync_wait(pool.schedule_after(1h)));
  CHECK_FALSE(sync_wait(pool.schedule_after(0ns)));
}

TEST_CASE("thread_pool: a worker may stop it, and is then refused itself") {
  thread_pool pool(2);
  auto body = [&]() -> task<bool> {
    co_await pool.schedule();
    pool.stop();
    try {
      co_await pool.schedule();
    } catch (const std::system_error& e) {
      co_return e.code() == cobatch::errc::executor_stopped;
    }
    co_return false;
  };
  CHECK(sync_wait(body()));
}

TEST_CASE("thread_pool: its destructor runs what is queued and wakes who sleeps; no frame is lost") {
  std::atomic<int> deaths{0};
  std::atomic<int> turns{0};
  std::atomic<int> elapsed{0};
  constexpr int each = 300;
  // These outlive the pool: in its destructor the coroutines still use what they captured.
  auto runner = [&](thread_pool& pool) -> detached {
    const counted_down guard(deaths);
    try {
      for (;;) {
        co_await pool.schedule();
        turns.fetch_add(1);
      }
    } catch (const std::system_error&) {}
  };
  auto sleeper = [&](thread_pool& pool) -> detached {
    const counted_down guard(deaths);
    if (co_await pool.schedule_after(1h)) elapsed.fetch_add(1);
  };
  {
    thread_pool pool(2);
    for (int i = 0; i < each; ++i) {
      runner(pool);
      sleeper(pool);
    }
  }
  CHECK(deaths == 2 * each);
  CHECK(turns >= each);
  CHECK(elapsed == 0);
}

TEST_CASE("thread_pool: may be destroyed as soon as its last coroutine has ended") {
  for (int i = 0; i < 300; ++i) {
    auto pool = std::make_unique<thread_pool>(2);
    std::latch done(1);
    // The sender may still be inside execute() when the coroutine has ended, and with it this thread's wait.
    std::thread sender([&done, pool = pool.get()] {
      [](thread_pool& target, std::latch& end) -> detached {
        co_await target.schedule();
        end.count_down();
      }(*pool, done);
    });
    done.wait();
    pool.reset();
    sender.join();
  }
}

TEST_CASE("thread_pool: two pools do not mistake each other's threads for their own") {
  thread_pool first(1);
  thread_pool second(1);
  auto body = [&]() -> task<> {
    for (int i = 0; i < 100; ++i) {
      co_await first.schedule();
      CHECK(cobatch::detail::runs_here(first));
      CHECK_FALSE(cobatch::detail::runs_here(second));
      co_await second.schedule();
      CHECK(cobatch::detail::runs_here(second));
    }
  };
  sync_wait(body());
}
