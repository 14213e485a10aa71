#include <cobatch/run_loop.hpp>

#include <atomic>
#include <chrono>
#include <coroutine>
#include <memory>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include <cobatch/executor.hpp>
#include <cobatch/sync_wait.hpp>
#include <cobatch/task.hpp>

#include "support/catch.hpp"
#include "support/detached.hpp"
#include "support/started.hpp"

#if defined(__linux__)
#include <sys/prctl.h>
#endif

using cobatch::run_loop;
using cobatch::task;
using namespace std::chrono_literals;

namespace {

static_assert(cobatch::timed_executor<run_loop>);

using sleep = decltype(std::declval<run_loop&>().schedule_after(1ms));
static_assert(std::is_move_constructible_v<sleep> && !std::is_aggregate_v<sleep>);

/// Goes on on a thread of its own.
class new_thread {
 public:
  explicit new_thread(std::thread& thread) noexcept : thread_(&thread) {}
  bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> handle) const {
    *thread_ = std::thread([handle] { handle.resume(); });
  }
  void await_resume() const noexcept {}

 private:
  std::thread* thread_;
};

}  // namespace

TEST_CASE("run_loop: run returns values, references, move-only values and nothing, or rethrows") {
  run_loop loop;
  int object = 0;
  auto value = [&]() -> task<std::unique_ptr<int>> {
    co_await loop.schedule();
    co_return std::make_unique<int>(42);
  };
  auto reference = [&]() -> task<int&> {
    co_await loop.schedule();
    co_return object;
  };
  auto fail = [&]() -> task<> {
    co_await loop.schedule();
    throw std::runtime_error("broken");
  };
  CHECK(*loop.run(value()) == 42);
  CHECK(&loop.run(reference()) == &object);
  loop.run(loop.schedule());
  CHECK_THROWS_AS(loop.run(fail()), std::runtime_error);
}

TEST_CASE("run_loop: everything runs on the thread that called run, first in, first out") {
  run_loop loop;
  std::vector<int> order;
  std::vector<started> all;
  auto body = [&](int id) -> started {
    for (int turn = 0; turn < 2; ++turn) {
      co_await loop.schedule();
      order.push_back(id + 10 * turn);
      CHECK(cobatch::detail::runs_here(loop));
    }
  };
  for (int id = 0; id < 3; ++id) all.push_back(body(id));
  CHECK(order.empty());
  auto wait = [&]() -> task<> {
    for (int turn = 0; turn < 3; ++turn) co_await loop.schedule();
  };
  loop.run(wait());
  CHECK(order == std::vector<int>{0, 1, 2, 10, 11, 12});
  CHECK_FALSE(cobatch::detail::runs_here(loop));
  CHECK(cobatch::detail::concurrency_of(loop) == 1);
}

TEST_CASE("run_loop: timers come by deadline, equal delays in the order in which they were set, never too early") {
  run_loop loop;
  std::vector<int> order;
  std::vector<started> all;
  auto body = [&](int id, std::chrono::nanoseconds delay) -> started {
    const auto deadline = std::chrono::steady_clock::now() + delay;
    const bool result = co_await loop.schedule_after(delay);
    CHECK(result);
    CHECK(std::chrono::steady_clock::now() >= deadline);
    order.push_back(id);
  };
  all.push_back(body(3, 3ms));
  all.push_back(body(1, 1ms));
  all.push_back(body(2, 1ms));
  loop.run(loop.schedule_after(4ms));
  CHECK(order == std::vector<int>{1, 2, 3});
}

TEST_CASE("run_loop: a busy loop still fires its timers") {
  run_loop loop;
  bool fired = false;
  auto sleeper = [&]() -> started {
    co_await loop.schedule_after(1ms);
    fired = true;
  };
  const started asleep = sleeper();
  auto busy = [&]() -> task<> {
    while (!fired) co_await loop.schedule();
  };
  loop.run(busy());
  CHECK(asleep.done());
}

TEST_CASE("run_loop: a stop from another thread wakes a sleeper on the loop with false") {
  run_loop loop;
  std::stop_source source;
  std::thread stopper;
  auto body = [&]() -> task<bool> {
    stopper = std::thread([&] { source.request_stop(); });
    const bool result = co_await loop.schedule_after(std::chrono::nanoseconds::max(), source.get_token());
    CHECK(cobatch::detail::runs_here(loop));
    co_return result;
  };
  CHECK_FALSE(loop.run(body()));
  stopper.join();
}

TEST_CASE("run_loop: a stopped token, zero and negative delays") {
  run_loop loop;
  std::stop_source source;
  source.request_stop();
  CHECK_FALSE(loop.run(loop.schedule_after(1h, source.get_token())));
  CHECK_FALSE(loop.run(loop.schedule_after(0ns, source.get_token())));
  CHECK(loop.run(loop.schedule_after(0ns)));
  CHECK(loop.run(loop.schedule_after(std::chrono::nanoseconds::min())));
}

TEST_CASE("run_loop: a sleeping coroutine may be destroyed") {
  run_loop loop;
  bool fired = false;
  auto sleeper = [&]() -> started {
    co_await loop.schedule_after(1ms);
    fired = true;
  };
  { const started destroyed = sleeper(); }
  loop.run(loop.schedule_after(2ms));
  CHECK_FALSE(fired);
}

TEST_CASE("run_loop: other threads may send coroutines to it, while it sleeps and while it is busy") {
  run_loop loop;
  std::atomic<int> arrived{0};
  constexpr int senders = 3;
  constexpr int rounds = 200;
  auto body = [&]() -> detached {
    co_await loop.schedule();
    arrived.fetch_add(1);
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < senders; ++i) {
    threads.emplace_back([&] {
      for (int k = 0; k < rounds; ++k) body();
    });
  }
  auto wait = [&]() -> task<> {
    while (arrived.load() < senders * rounds / 2) co_await loop.schedule();
    while (arrived.load() < senders * rounds) co_await loop.schedule_after(100us);
  };
  loop.run(wait());
  for (std::thread& each : threads) each.join();
  CHECK(arrived == senders * rounds);
}

TEST_CASE("run_loop: run returns when its awaitable ends on another thread") {
  for (int i = 0; i < 100; ++i) {
    run_loop loop;
    std::thread other;
    auto body = [&]() -> task<int> {
      co_await loop.schedule();
      co_await new_thread(other);
      co_return i;
    };
    CHECK(loop.run(body()) == i);
    other.join();
  }
}

TEST_CASE("run_loop: what is left when run returns goes on in the next run, also on another thread") {
  run_loop loop;
  int turns = 0;
  auto body = [&]() -> started {
    for (; turns < 4; ++turns) co_await loop.schedule();
    co_await loop.schedule_after(1ms);
    ++turns;
  };
  const started left = body();
  loop.run(loop.schedule());
  CHECK(turns >= 1);
  CHECK(turns < 5);
  std::thread([&] {
    auto wait = [&]() -> task<> {
      while (turns < 5) co_await loop.schedule_after(1ms);
    };
    loop.run(wait());
  }).join();
  CHECK(left.done());
}

TEST_CASE("run_loop: its destructor wakes sleepers with false, runs what is queued and refuses the rest") {
  std::vector<std::string> log;
  auto sleeper = [&](run_loop& loop) -> started {
    const bool first = co_await loop.schedule_after(1h);
    const bool second = co_await loop.schedule_after(1h);
    log.emplace_back(first || second ? "elapsed" : "stopped");
    try {
      co_await loop.schedule();
    } catch (const std::system_error& e) {
      CHECK(e.code() == cobatch::errc::executor_stopped);
      log.emplace_back("refused");
    }
  };
  auto queued = [&](run_loop& loop) -> started {
    co_await loop.schedule();
    log.emplace_back("ran");
  };
  std::vector<started> all;
  {
    run_loop loop;
    all.push_back(sleeper(loop));
    all.push_back(queued(loop));
  }
  CHECK(all[0].done());
  CHECK(all[1].done());
  CHECK(log == std::vector<std::string>{"ran", "stopped", "refused"});
}

TEST_CASE("run_loop: run inside a loop is errc::would_deadlock, on two threads at once a std::logic_error") {
  run_loop loop;
  run_loop other;
  auto nested = [&](run_loop& inner) -> task<> {
    co_await loop.schedule();
    try {
      inner.run(inner.schedule());
      FAIL("no error");
    } catch (const std::system_error& e) {
      CHECK(e.code() == cobatch::errc::would_deadlock);
    }
  };
  loop.run(nested(loop));
  loop.run(nested(other));
  bool refused = false;
  auto body = [&]() -> task<> {
    co_await loop.schedule();
    std::thread([&] {
      try {
        loop.run(loop.schedule());
      } catch (const std::logic_error&) {
        refused = true;
      }
    }).join();
  };
  loop.run(body());
  CHECK(refused);
}

#if defined(__linux__)
TEST_CASE("run_loop: the thread's own timed waits are as punctual as before") {
  const int before = ::prctl(PR_GET_TIMERSLACK, 0UL, 0UL, 0UL, 0UL);
  run_loop loop;
  const auto slack = [&]() -> task<int> {
    co_await loop.schedule_after(2ms);
    co_return ::prctl(PR_GET_TIMERSLACK, 0UL, 0UL, 0UL, 0UL);
  };
  CHECK(loop.run(slack()) == before);
  CHECK(::prctl(PR_GET_TIMERSLACK, 0UL, 0UL, 0UL, 0UL) == before);
}
#endif
