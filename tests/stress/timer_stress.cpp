#include <cobatch/thread_pool.hpp>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <latch>
#include <random>
#include <stop_token>
#include <thread>
#include <utility>
#include <vector>

#include <cobatch/run_loop.hpp>
#include <cobatch/sync_wait.hpp>
#include <cobatch/task.hpp>

#include "support/catch.hpp"
#include "support/detached.hpp"
#include "support/effort.hpp"
#include "support/started.hpp"

using cobatch::run_loop;
using cobatch::sync_wait;
using cobatch::task;
using cobatch::thread_pool;
using namespace std::chrono_literals;

namespace {

struct tally {
  std::atomic<int> elapsed{0};
  std::atomic<int> stopped{0};
  std::atomic<int> too_early{0};
};

/// Sleeps once and keeps count of how that ended.
template <class Executor>
task<> sleep_once(Executor& ex, std::chrono::nanoseconds delay, std::stop_token token, tally& counts) {
  const auto deadline = std::chrono::steady_clock::now() + delay;
  if (co_await ex.schedule_after(delay, token)) {
    counts.elapsed.fetch_add(1);
    if (std::chrono::steady_clock::now() < deadline) counts.too_early.fetch_add(1);
  } else {
    counts.stopped.fetch_add(1);
  }
}

template <class Executor>
detached sleep_detached(Executor& ex, std::chrono::nanoseconds delay, std::stop_token token, tally& counts,
                        std::latch& done) {
  co_await sleep_once(ex, delay, std::move(token), counts);
  done.count_down();
}

/// Sleeps for an hour, unless it is destroyed before.
template <class Executor>
started sleep_long(Executor& ex) {
  co_await ex.schedule_after(1h);
}

/// Sleeps shortly, again and again, until `end`.
template <class Executor>
detached keep_sleeping(Executor& ex, std::chrono::nanoseconds delay, const std::atomic<bool>& end, std::latch& ended) {
  while (!end.load()) co_await ex.schedule_after(delay);
  ended.count_down();
}

/// Starts sleepers and destroys them, while other timers come and go on `ex`.
template <class Executor>
void destroy_sleepers(Executor& ex, std::uint32_t seed, int rounds) {
  std::mt19937 random(seed);
  std::vector<started> sleepers;
  for (int i = 0; i < rounds; ++i) {
    if (sleepers.size() < 20) sleepers.push_back(sleep_long(ex));
    if (random() % 2 == 0) {
      std::swap(sleepers[random() % sleepers.size()], sleepers.back());
      sleepers.pop_back();
    }
  }
}

}  // namespace

TEST_CASE("timer stress: sleepers destroyed from outside while other timers come and go") {
  const std::uint32_t seed = stress_seed();
  INFO("COBATCH_TEST_SEED=" << seed);
  constexpr int others = 8;
  {
    thread_pool pool(4);
    std::atomic<bool> end{false};
    std::latch ended(others);
    for (int i = 0; i < others; ++i) keep_sleeping(pool, std::chrono::microseconds(20 + 7 * i), end, ended);
    std::thread other([&] { destroy_sleepers(pool, seed + 1, effort(20'000)); });
    destroy_sleepers(pool, seed, effort(20'000));
    other.join();
    end = true;
    ended.wait();
  }
  {
    run_loop loop;
    std::atomic<bool> end{false};
    std::latch ended(others);
    std::thread outside([&] {
      destroy_sleepers(loop, seed, effort(20'000));
      end = true;
    });
    auto all_end = [&]() -> task<> {
      for (int i = 0; i < others; ++i) keep_sleeping(loop, std::chrono::microseconds(20 + 7 * i), end, ended);
      while (!ended.try_wait()) co_await loop.schedule_after(20us);
    };
    loop.run(all_end());
    outside.join();
  }
}

TEST_CASE("timer stress: stops that race with deadlines wake each sleeper exactly once") {
  const std::uint32_t seed = stress_seed();
  INFO("COBATCH_TEST_SEED=" << seed);
  std::mt19937 random(seed);
  thread_pool pool(2);
  tally counts;
  const int rounds = effort(300);
  constexpr int sleepers = 50;
  for (int round = 0; round < rounds; ++round) {
    std::vector<std::stop_source> sources(sleepers);
    std::latch done(sleepers);
    std::thread stopper([&, stopper_seed = random()] {
      std::mt19937 dice(static_cast<std::uint32_t>(stopper_seed));
      for (auto& source : sources) {
        source.request_stop();
        if (dice() % 8 == 0) std::this_thread::sleep_for(std::chrono::microseconds(dice() % 30));
      }
    });
    for (auto& source : sources) {
      sleep_detached(pool, std::chrono::microseconds(random() % 150), source.get_token(), counts, done);
    }
    done.wait();
    stopper.join();
  }
  CHECK(counts.elapsed + counts.stopped == rounds * sleepers);
  CHECK(counts.too_early == 0);
}

TEST_CASE("timer stress: stops from other threads on a run_loop wake each sleeper exactly once") {
  const std::uint32_t seed = stress_seed();
  INFO("COBATCH_TEST_SEED=" << seed);
  std::mt19937 random(seed);
  tally counts;
  const int rounds = effort(300);
  constexpr int sleepers = 50;
  for (int round = 0; round < rounds; ++round) {
    run_loop loop;
    std::vector<std::stop_source> sources(sleepers);
    std::latch done(sleepers);
    std::thread stopper([&] {
      for (auto& source : sources) source.request_stop();
    });
    for (auto& source : sources) {
      sleep_detached(loop, std::chrono::microseconds(random() % 150), source.get_token(), counts, done);
    }
    auto wait = [&]() -> task<> {
      while (!done.try_wait()) co_await loop.schedule_after(20us);
    };
    loop.run(wait());
    stopper.join();
  }
  CHECK(counts.elapsed + counts.stopped == rounds * sleepers);
  CHECK(counts.too_early == 0);
}

TEST_CASE("timer stress: a hundred thousand sleep at once, some are stopped, all wake up") {
  const std::uint32_t seed = stress_seed();
  INFO("COBATCH_TEST_SEED=" << seed);
  std::mt19937 random(seed);
  const int sleepers = effort(100'000);
  thread_pool pool(2);
  tally counts;
  std::stop_source source;
  std::latch done(sleepers);
  for (int i = 0; i < sleepers; ++i) {
    const bool stoppable = i % 4 == 0;
    const auto delay = stoppable ? std::chrono::nanoseconds(1h) : std::chrono::microseconds(random() % 50'000);
    sleep_detached(pool, delay, stoppable ? source.get_token() : std::stop_token(), counts, done);
  }
  source.request_stop();
  done.wait();
  const int stoppable = (sleepers + 3) / 4;
  CHECK(counts.stopped == stoppable);
  CHECK(counts.elapsed == sleepers - stoppable);
  CHECK(counts.too_early == 0);
}

TEST_CASE("timer stress: pools destroyed among sleepers and stops lose nobody") {
  const std::uint32_t seed = stress_seed();
  INFO("COBATCH_TEST_SEED=" << seed);
  std::mt19937 random(seed);
  tally counts;
  const int rounds = effort(300);
  constexpr int sleepers = 40;
  for (int round = 0; round < rounds; ++round) {
    std::stop_source source;
    std::latch done(sleepers);
    std::thread stopper;
    {
      thread_pool pool(2);
      for (int i = 0; i < sleepers; ++i) {
        const auto delay = i % 2 == 0 ? std::chrono::nanoseconds(1h) : std::chrono::microseconds(random() % 100);
        sleep_detached(pool, delay, source.get_token(), counts, done);
      }
      stopper = std::thread([&] { source.request_stop(); });
    }
    CHECK(done.try_wait());
    stopper.join();
  }
  CHECK(counts.elapsed + counts.stopped == rounds * sleepers);
  CHECK(counts.too_early == 0);
}
