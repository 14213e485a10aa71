#include <cobatch/rate_limiter.hpp>

#include <atomic>
#include <chrono>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <random>
#include <stop_token>
#include <thread>
#include <utility>
#include <vector>

#include <cobatch/run_loop.hpp>
#include <cobatch/task.hpp>

#include "support/catch.hpp"

using cobatch::rate_limiter;
using cobatch::run_loop;
using cobatch::task;
using namespace std::chrono_literals;

namespace {

/// A run_loop on a thread of its own.
class loop_thread {
 public:
  loop_thread() : thread_([this] { loop.run(wait_for_end()); }) {}
  loop_thread(const loop_thread&) = delete;
  loop_thread& operator=(const loop_thread&) = delete;
  ~loop_thread() {
    end_.request_stop();
    thread_.join();
  }

  run_loop loop;

 private:
  task<> wait_for_end() { co_await loop.schedule_after(24h, end_.get_token()); }

  std::stop_source end_;
  std::thread thread_;
};

/// A coroutine that starts at once and destroys itself at its end.
struct detached {
  struct promise_type {
    detached get_return_object() const noexcept { return {}; }
    std::suspend_never initial_suspend() const noexcept { return {}; }
    std::suspend_never final_suspend() const noexcept { return {}; }
    void return_void() const noexcept {}
    void unhandled_exception() const noexcept { std::terminate(); }
  };
};

struct counts {
  std::atomic<int> granted{0};
  std::atomic<int> stopped{0};
  std::atomic<int> elsewhere{0};  // resumed on another executor than its own
  std::atomic<int> alive{0};
};

detached user(run_loop& loop, rate_limiter& limiter, std::stop_token stop, int rounds, double cost, counts& all) {
  co_await loop.schedule();
  for (int i = 0; i < rounds; ++i) {
    const bool granted = co_await limiter.acquire(loop, cost, stop);
    if (!cobatch::detail::current_executor().refers_to(&loop)) ++all.elsewhere;
    ++(granted ? all.granted : all.stopped);
  }
  --all.alive;  // the last access to what the test owns
}

/// One of several owners, each on its thread: whoever is last destroys the limiter.
detached owner(run_loop& loop, std::shared_ptr<rate_limiter> limiter, counts& all) {
  co_await loop.schedule();
  for (int i = 0; i < 2; ++i) {
    const bool granted = co_await limiter->acquire(loop);
    ++(granted ? all.granted : all.stopped);
  }
  limiter.reset();
  --all.alive;
}

void wait_until_none_is_alive(const counts& all) {
  while (all.alive != 0) std::this_thread::sleep_for(100us);
}

}  // namespace

TEST_CASE("rate limiter: on several threads each start is granted or stopped once, and the rate holds") {
  constexpr double rate = 20'000;
  constexpr int users = 48;
  constexpr int rounds = 40;
  const std::uint64_t seed = 20'240'601;
  CAPTURE(seed);
  std::mt19937_64 random(seed);
  for (int round = 0; round < 3; ++round) {
    rate_limiter limiter(rate, 1 + round);
    counts all;
    all.alive = users;
    std::vector<std::stop_source> stops(users);
    const auto begin = std::chrono::steady_clock::now();
    {
      loop_thread threads[3];
      for (std::size_t i = 0; i < users; ++i) {
        user(threads[i % 3].loop, limiter, stops[i].get_token(), rounds, 1, all);
      }
      for (std::stop_source& each : stops) {
        const auto action = random() % 8;
        if (action < 3) each.request_stop();
        if (action == 3) limiter.set_rate(rate + 1);
        if (action == 4) (void)limiter.try_acquire(threads[0].loop);
        std::this_thread::sleep_for(std::chrono::microseconds(random() % 400));
      }
      wait_until_none_is_alive(all);
    }
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - begin;
    CHECK(all.granted + all.stopped == users * rounds);
    CHECK(all.elsewhere == 0);
    CHECK(limiter.waiting() == 0);
    // The burst, what a late timer is forgiven, and what came in.
    CHECK(all.granted <= limiter.burst() + (elapsed.count() + 0.001) * (rate + 1));
  }
}

TEST_CASE("rate limiter: stops that race with grants leave nobody behind") {
  const std::uint64_t seed = 7;
  CAPTURE(seed);
  std::mt19937_64 random(seed);
  rate_limiter limiter(100'000);
  loop_thread threads[2];
  for (int round = 0; round < 300; ++round) {
    counts all;
    all.alive = 6;
    std::stop_source stops[2];
    for (std::size_t i = 0; i < 6; ++i) {
      user(threads[i % 2].loop, limiter, stops[i / 3].get_token(), 3, 1, all);
    }
    std::thread other([&] { stops[0].request_stop(); });
    const auto spins = random() % 2000;
    for (std::uint64_t i = 0; i < spins; ++i) std::atomic_signal_fence(std::memory_order_seq_cst);
    stops[1].request_stop();
    other.join();
    wait_until_none_is_alive(all);
    REQUIRE(all.granted + all.stopped == 18);
    REQUIRE(limiter.waiting() == 0);
  }
}

TEST_CASE("rate limiter: the last one to be granted may destroy it, on whichever thread that is") {
  loop_thread threads[2];
  for (int round = 0; round < 300; ++round) {
    counts all;
    all.alive = 4;
    auto limiter = std::make_shared<rate_limiter>(100'000);
    for (std::size_t i = 0; i < 4; ++i) owner(threads[i % 2].loop, limiter, all);
    limiter.reset();
    wait_until_none_is_alive(all);
    REQUIRE(all.granted == 8);
  }
}
