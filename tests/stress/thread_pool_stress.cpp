#include <cobatch/thread_pool.hpp>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <latch>
#include <random>
#include <stop_token>
#include <system_error>
#include <thread>
#include <vector>

#include <cobatch/sync_wait.hpp>
#include <cobatch/task.hpp>

#include "support/catch.hpp"
#include "support/detached.hpp"
#include "support/effort.hpp"

using cobatch::sync_wait;
using cobatch::task;
using cobatch::thread_pool;
using namespace std::chrono_literals;

// A lost wake-up or a lost coroutine shows as a hang, which ctest's time limit ends.

namespace {

/// Counts the coroutines that hold one.
class alive_mark {
 public:
  explicit alive_mark(std::atomic<int>& alive) noexcept : alive_(&alive) { alive_->fetch_add(1); }
  alive_mark(const alive_mark&) = delete;
  alive_mark& operator=(const alive_mark&) = delete;
  ~alive_mark() { alive_->fetch_sub(1); }

 private:
  std::atomic<int>* alive_;
};

void compute(unsigned turns) {
  std::atomic<unsigned> sink{0};
  for (unsigned i = 0; i < turns; ++i) sink.fetch_add(i, std::memory_order_relaxed);
}

}  // namespace

TEST_CASE("thread_pool stress: one coroutine after another wakes a pool that is just falling asleep") {
  const std::uint32_t seed = stress_seed();
  INFO("COBATCH_TEST_SEED=" << seed);
  std::mt19937 random(seed);
  thread_pool pool(3);
  int sum = 0;
  auto hop = [&]() -> task<int> {
    co_await pool.schedule();
    co_return 1;
  };
  const int rounds = effort(30'000);
  for (int i = 0; i < rounds; ++i) {
    sum += sync_wait(hop());
    compute(static_cast<unsigned>(random()) % 2000);
  }
  CHECK(sum == rounds);
}

TEST_CASE("thread_pool stress: a blocked thread's queue is always found by one that is just falling asleep") {
  const std::uint32_t seed = stress_seed();
  INFO("COBATCH_TEST_SEED=" << seed);
  std::mt19937 random(seed);
  thread_pool pool(2);
  const int rounds = effort(20'000);
  auto forks = [&]() -> task<int> {
    co_await pool.schedule();
    int joined = 0;
    for (int i = 0; i < rounds; ++i) {
      std::latch forked(1);
      [](thread_pool& on, std::latch& end) -> detached {
        co_await on.schedule();
        end.count_down();
      }(pool, forked);
      forked.wait();  // blocks this thread: only the other one can run it
      ++joined;
      compute(static_cast<unsigned>(random()) % 2000);
    }
    co_return joined;
  };
  CHECK(sync_wait(forks()) == rounds);
}

TEST_CASE("thread_pool stress: trees of coroutines that schedule, sleep, stop each other and fork") {
  const std::uint32_t seed = stress_seed();
  INFO("COBATCH_TEST_SEED=" << seed);
  for (int round = 0; round < effort(60); ++round) {
    std::atomic<int> alive{0};
    std::atomic<int> left{effort(3000)};
    std::atomic<bool> wrong{false};
    std::stop_source source;
    {
      thread_pool pool(1 + static_cast<std::size_t>(round) % 4);
      struct node {
        static detached run(thread_pool& on, std::atomic<int>& living, std::atomic<int>& budget,
                            std::atomic<bool>& failed, std::stop_source& stop, std::uint32_t own_seed) {
          const alive_mark mark(living);
          std::mt19937 dice(own_seed);
          try {
            for (int turn = 0; turn < 8; ++turn) {
              co_await on.schedule();
              if (!cobatch::detail::runs_here(on)) failed = true;
              switch (dice() % 8) {
                case 0:
                  co_await on.schedule_after(std::chrono::microseconds(dice() % 200));
                  break;
                case 1:
                  co_await on.schedule_after(std::chrono::microseconds(dice() % 200), stop.get_token());
                  break;
                case 2:
                  compute(static_cast<unsigned>(dice()) % 3000);
                  break;
                case 3:
                  if (dice() % 200 == 0) stop.request_stop();
                  break;
                default:
                  if (budget.fetch_sub(1) > 0)
                    run(on, living, budget, failed, stop, static_cast<std::uint32_t>(dice()));
              }
            }
          } catch (const std::system_error&) {  // the pool has stopped
          }
        }
      };
      for (std::uint32_t i = 0; i < 20; ++i) {
        node::run(pool, alive, left, wrong, source, seed + 1000 * static_cast<std::uint32_t>(round) + i);
      }
      if (round % 2 == 0) std::this_thread::sleep_for(std::chrono::microseconds(seed % 2000));
      if (round % 3 == 0) pool.stop();
    }
    REQUIRE(alive == 0);
    REQUIRE_FALSE(wrong);
  }
}

TEST_CASE("thread_pool stress: more than the rings hold, from within and from outside, arrives exactly once") {
  const std::uint32_t seed = stress_seed();
  INFO("COBATCH_TEST_SEED=" << seed);
  for (const std::size_t threads : {1u, 2u, 4u}) {
    thread_pool pool(threads);
    const int each = effort(20'000);
    std::vector<std::atomic<int>> runs(static_cast<std::size_t>(3 * each));
    std::latch done(3 * each);
    auto body = [&](std::size_t id) -> detached {
      co_await pool.schedule();
      runs[id].fetch_add(1);
      co_await pool.schedule();
      runs[id].fetch_add(1);
      done.count_down();
    };
    auto inside = [&](int first) -> task<> {
      co_await pool.schedule();
      for (int i = first; i < first + each; ++i) body(static_cast<std::size_t>(i));
    };
    std::thread outside([&] {
      for (int i = 0; i < each; ++i) body(static_cast<std::size_t>(i));
    });
    std::thread other([&] { sync_wait(inside(each)); });
    sync_wait(inside(2 * each));
    outside.join();
    other.join();
    done.wait();
    int wrong = 0;
    for (const auto& count : runs) wrong += count != 2;
    CHECK(wrong == 0);
  }
}
