#include <cobatch/callback.hpp>

#include <atomic>
#include <functional>
#include <thread>
#include <utility>

#include <cobatch/sync_wait.hpp>
#include <cobatch/task.hpp>
#include <cobatch/thread_pool.hpp>

#include "support/catch.hpp"
#include "support/effort.hpp"

using cobatch::sync_wait;
using cobatch::task;
using cobatch::thread_pool;

TEST_CASE("callback: two threads that race for the first call, and with the await that suspends") {
  thread_pool pool(2);
  // Two threads that call what they are given, as soon as it is there.
  struct racer {
    std::atomic<int> turn{0};
    cobatch::callback<int> done;
  };
  racer racers[2];
  std::atomic<bool> ends{false};
  const auto race = [&](racer& self, int value) {
    for (int turn = 1;; ++turn) {
      while (self.turn.load(std::memory_order_acquire) != turn) {
        if (ends) return;
        std::this_thread::yield();
      }
      const auto done = std::move(self.done);
      self.turn.store(-turn, std::memory_order_release);
      done(value);
    }
  };
  std::thread threads[2] = {std::thread(race, std::ref(racers[0]), 1), std::thread(race, std::ref(racers[1]), 2)};
  const auto loop = [&](int rounds) -> task<int> {
    co_await pool.schedule();  // so that it never goes on on a racer's thread
    int bad = 0;
    for (int i = 1; i <= rounds; ++i) {
      const auto initiate = [&](const cobatch::callback<int>& done) {
        for (racer& each : racers) {
          while (each.turn.load(std::memory_order_acquire) != (i == 1 ? 0 : 1 - i)) std::this_thread::yield();
          each.done = done;
          each.turn.store(i, std::memory_order_release);
        }
      };
      const auto result = co_await cobatch::from_callback<int>(initiate);
      if (!result || (*result != 1 && *result != 2)) ++bad;
    }
    co_return bad;
  };
  CHECK(sync_wait(loop(effort(20'000))) == 0);
  ends = true;
  for (std::thread& each : threads) each.join();
}
