#include <cobatch/thread_pool.hpp>

#include <atomic>
#include <chrono>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <exception>
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

TEST_CASE("thread_pool stress: helpers that are queued, taken back or run elsewhere, each exactly once") {
  const std::uint32_t seed = stress_seed();
  INFO("COBATCH_TEST_SEED=" << seed);
  for (const std::size_t threads : {2u, 4u, 16u}) {
    thread_pool pool(threads);
    // A coroutine for each of the workers' nested calls: it is queued for others, then withdrawn if nobody came.
    struct helper {
      struct promise_type {
        explicit promise_type(std::atomic<int>& counter) noexcept : visits(&counter) {}
        struct last_word {
          bool await_ready() const noexcept { return false; }
          // Here it is suspended: whoever reads the count may destroy it.
          void await_suspend(std::coroutine_handle<promise_type> self) const noexcept {
            self.promise().visits->fetch_add(1);
          }
          void await_resume() const noexcept {}
        };
        helper get_return_object() noexcept { return {std::coroutine_handle<promise_type>::from_promise(*this)}; }
        std::suspend_always initial_suspend() const noexcept { return {}; }
        last_word final_suspend() const noexcept { return {}; }
        void return_void() const noexcept {}
        void unhandled_exception() const noexcept { std::terminate(); }
        std::atomic<int>* visits;
      };
      std::coroutine_handle<promise_type> frame;
      static helper run(std::atomic<int>&) { co_return; }
    };
    std::atomic<int> back{0};
    std::atomic<int> stolen{0};
    std::atomic<int> wrong{0};
    const auto nested = [&](auto& self, std::mt19937& dice, int depth) -> void {
      std::atomic<int> visits{0};
      const helper one = helper::run(visits);
      if (!pool.execute(one.frame)) wrong.fetch_add(1);
      compute(static_cast<unsigned>(dice()) % 300);
      if (depth > 0) self(self, dice, depth - 1);
      if (pool.take_back(one.frame)) {
        if (visits.load() != 0) wrong.fetch_add(1);
        back.fetch_add(1);
      } else {
        while (visits.load() == 0) std::this_thread::yield();  // others have it
        if (visits.load() != 1) wrong.fetch_add(1);
        stolen.fetch_add(1);
      }
      one.frame.destroy();
    };
    const int rounds = effort(3000);
    auto worker = [&](std::uint32_t own_seed) -> task<> {
      co_await pool.schedule();
      std::mt19937 dice(own_seed);
      for (int i = 0; i < rounds; ++i) {
        nested(nested, dice, static_cast<int>(dice() % 6));
        if (dice() % 8 == 0) co_await pool.schedule();
      }
    };
    sync_wait(worker(seed));
    CHECK(wrong == 0);
    CHECK(back + stolen >= rounds);
  }
}

TEST_CASE("thread_pool stress: many at once, from within and from outside, while threads fall asleep") {
  const std::uint32_t seed = stress_seed();
  INFO("COBATCH_TEST_SEED=" << seed);
  for (const std::size_t threads : {2u, 4u, 16u}) {
    thread_pool pool(threads);
    std::mt19937 random(seed);
    const auto burst = [&](std::size_t count, std::atomic<std::size_t>& ran, std::latch& done) {
      struct collect {
        std::vector<std::coroutine_handle<>>& to;
        bool await_ready() const noexcept { return false; }
        void await_suspend(std::coroutine_handle<> handle) const { to.push_back(handle); }
        void await_resume() const noexcept {}
      };
      std::vector<std::coroutine_handle<>> all;
      const auto one = [](std::vector<std::coroutine_handle<>>& to, std::atomic<std::size_t>& counter,
                          std::latch& end) -> detached {
        co_await collect{to};
        counter.fetch_add(1);
        end.count_down();
      };
      for (std::size_t i = 0; i < count; ++i) one(all, ran, done);
      return pool.execute_all(all);
    };
    bool taken = true;
    std::size_t wrong = 0;
    for (int round = 0; round < effort(2000); ++round) {
      const std::size_t count = random() % (2 * threads);
      std::atomic<std::size_t> ran{0};
      std::latch done(static_cast<std::ptrdiff_t>(count));
      if (round % 2 == 0) {
        taken = burst(count, ran, done) && taken;
      } else {
        auto within = [&]() -> task<> {
          co_await pool.schedule();
          taken = burst(count, ran, done) && taken;
        };
        sync_wait(within());
      }
      done.wait();
      wrong += ran != count;
      compute(static_cast<unsigned>(random()) % 5000);
    }
    CHECK(taken);
    CHECK(wrong == 0);
  }
}
