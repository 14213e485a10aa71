#include <cobatch/thread_pool.hpp>

#include <atomic>
#include <chrono>
#include <coroutine>
#include <latch>
#include <memory>
#include <stdexcept>
#include <stop_token>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include <cobatch/executor.hpp>
#include <cobatch/sync_wait.hpp>
#include <cobatch/task.hpp>

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

}  // namespace

TEST_CASE("thread_pool: has as many threads as it was told, and at least one") {
  CHECK(thread_pool(3).concurrency() == 3);
  CHECK(thread_pool().concurrency() >= 1);
  CHECK_THROWS_AS(thread_pool(0), std::invalid_argument);
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

TEST_CASE("thread_pool: what a coroutine queues before it blocks its thread runs on the others") {
  thread_pool pool(3);
  std::latch meeting(3);
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
