#include <cobatch/micro_batcher.hpp>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <stdexcept>
#include <stop_token>
#include <thread>
#include <utility>
#include <vector>

#include <cobatch/callback.hpp>
#include <cobatch/sync_wait.hpp>
#include <cobatch/task.hpp>
#include <cobatch/thread_pool.hpp>

#include "support/catch.hpp"
#include "support/detached.hpp"
#include "support/effort.hpp"

using cobatch::errc;
using cobatch::micro_batch_options;
using cobatch::micro_batcher;
using cobatch::sync_wait;
using cobatch::task;
using cobatch::thread_pool;
using namespace std::chrono_literals;

namespace {

using batcher = micro_batcher<int, int>;

constexpr int poisonous = 97;  // and its multiples

/// Doubles numbers: at once, later on the pool, or (where the pool is not stopped) on a thread that is not of the pool.
auto doubling(thread_pool& pool, std::atomic<std::uint32_t>& calls, bool on_foreign_threads = true) {
  return [&pool, &calls, on_foreign_threads](std::span<const int> samples) -> task<std::vector<int>> {
    const std::uint32_t call = ++calls;
    if (call % 3 == 1) co_await pool.schedule_after(std::chrono::microseconds(call % 100));
    if (on_foreign_threads && call % 16 == 2) {
      std::thread other;
      const auto initiate = [&](cobatch::callback<void> done) { other = std::thread([done] { done(); }); };
      const auto rung = co_await cobatch::from_callback<void>(initiate);
      other.join();
      if (!rung) throw std::runtime_error("not rung");
    }
    std::vector<int> results;
    for (const int each : samples) {
      if (each % poisonous == 0) throw std::runtime_error("poison");
      results.push_back(2 * each);
    }
    co_return results;
  };
}

struct tally {
  std::atomic<int> values{0}, errors{0}, wrong{0}, elsewhere{0};
  std::atomic<int> alive{0};

  void wait() const {
    while (alive != 0) std::this_thread::yield();
  }
};

detached user(thread_pool& pool, batcher& all, std::uint64_t seed, int rounds, std::stop_token stop, tally& counts) {
  co_await pool.schedule();
  std::mt19937_64 random(seed);
  for (int i = 0; i < rounds; ++i) {
    const int sample = static_cast<int>(random() % 1000) + 1;
    const auto deadline = random() % 4 == 0 ? std::chrono::nanoseconds(random() % 500'000) : cobatch::no_timeout;
    const std::stop_token token = random() % 2 ? stop : std::stop_token();
    const auto result = co_await all.predict(sample, token, deadline);
    if (!cobatch::detail::current_executor().refers_to(&pool)) ++counts.elsewhere;
    ++(result ? counts.values : counts.errors);
    if (result && *result != 2 * sample) ++counts.wrong;
    if (!result && result.error().code == errc::exception && sample % poisonous != 0) ++counts.wrong;
  }
  --counts.alive;  // the last access to what the test owns
}

}  // namespace

TEST_CASE("micro batcher: on several threads every caller gets exactly one outcome, and a right one") {
  const std::uint32_t seed = stress_seed();
  INFO("COBATCH_TEST_SEED=" << seed);
  std::mt19937_64 random(seed);
  thread_pool pool(4);
  const int rounds = effort(1000);
  constexpr int users = 32;
  for (int round = 0; round < 8; ++round) {
    std::atomic<std::uint32_t> calls{0};
    micro_batch_options options{.max_batch_size = 1 + random() % 16,
                                .max_delay = std::chrono::microseconds(random() % 3 * 50),
                                .max_concurrent_batches = 1 + random() % 4,
                                .max_queue = random() % 2 ? cobatch::unlimited : 1 + random() % 20,
                                .isolate_failures = true};
    std::optional<batcher> made;
    if (round % 2 == 0) {
      made.emplace(pool, doubling(pool, calls), options);
    } else {
      options.max_batch_cost = 8;
      made.emplace(pool,
                   cobatch::bucketed(cobatch::weighted(doubling(pool, calls), [](int x) { return 1 + x % 8; }),
                                     [](int x) { return x % 3; }),
                   options);
    }
    batcher& all = *made;
    tally counts;
    counts.alive = users;
    std::stop_source stop;
    for (int i = 0; i < users; ++i) user(pool, all, random(), rounds, stop.get_token(), counts);
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 5000));
    stop.request_stop();
    counts.wait();
    sync_wait(all.close());
    CHECK(counts.values + counts.errors == users * rounds);
    CHECK(counts.wrong == 0);
    CHECK(counts.elsewhere == 0);
    CHECK(all.waiting() == 0);
  }
}

TEST_CASE("micro batcher: close() races with newcomers, and with others who close") {
  const std::uint32_t seed = stress_seed();
  INFO("COBATCH_TEST_SEED=" << seed);
  std::mt19937_64 random(seed);
  thread_pool pool(3);
  for (int round = 0; round < effort(300); ++round) {
    std::atomic<std::uint32_t> calls{0};
    tally counts;
    constexpr int users = 6;
    counts.alive = users;
    {
      batcher all(pool, doubling(pool, calls), {.max_batch_size = 4, .max_delay = 100us, .isolate_failures = true});
      for (int i = 0; i < users; ++i) user(pool, all, random(), 10, {}, counts);
      std::this_thread::sleep_for(std::chrono::microseconds(random() % 300));
      std::thread other([&] { sync_wait(all.close()); });
      sync_wait(all.close());
      other.join();
      counts.wait();
    }
    REQUIRE(counts.values + counts.errors == users * 10);
    REQUIRE(counts.wrong == 0);
  }
}

TEST_CASE("micro batcher: the last caller may destroy it, on whichever thread that is") {
  const std::uint32_t seed = stress_seed();
  INFO("COBATCH_TEST_SEED=" << seed);
  std::mt19937_64 random(seed);
  thread_pool pool(4);
  for (int round = 0; round < effort(2000); ++round) {
    std::atomic<std::uint32_t> calls{static_cast<std::uint32_t>(round)};
    tally counts;
    constexpr int users = 5;
    counts.alive = users;
    std::stop_source stop;
    auto all = std::make_shared<batcher>(
        pool, doubling(pool, calls),
        micro_batch_options{.max_batch_size = 3, .max_delay = 20us, .max_concurrent_batches = 2});
    const auto owner = [](thread_pool& on, std::shared_ptr<batcher> owned, std::stop_token token,
                          tally& all_counts) -> detached {
      co_await on.schedule();
      {
        const auto result = co_await owned->predict(1, token, 1s);
        ++(result ? all_counts.values : all_counts.errors);
      }
      owned.reset();
      --all_counts.alive;
    };
    for (int i = 0; i < users; ++i) owner(pool, all, stop.get_token(), counts);
    all.reset();
    const auto spins = random() % 3000;
    for (std::uint64_t i = 0; i < spins; ++i) std::atomic_signal_fence(std::memory_order_seq_cst);
    stop.request_stop();
    counts.wait();
    REQUIRE(counts.values + counts.errors == users);
  }
}

TEST_CASE("micro batcher: callers that only push may end it, close it and be gone before their push returns") {
  const std::uint32_t seed = stress_seed();
  INFO("COBATCH_TEST_SEED=" << seed);
  std::mt19937_64 random(seed);
  thread_pool pool(4);
  for (int round = 0; round < effort(2000); ++round) {
    tally counts;
    constexpr int users = 24;
    counts.alive = users;
    std::atomic<std::uint32_t> calls{0};
    const auto at_once = [&calls](std::span<const int> samples) {
      ++calls;
      return std::vector<int>(samples.begin(), samples.end());
    };
    const std::size_t key_count = 1 + random() % 3;
    auto all = std::make_shared<batcher>(
        pool, cobatch::bucketed(at_once, [=](int x) { return static_cast<std::size_t>(x) % key_count; }),
        micro_batch_options{.max_batch_size = 1 + random() % 5, .max_delay = 20us, .max_concurrent_batches = 3});
    const auto owner = [](thread_pool& on, std::shared_ptr<batcher> owned, int sample, tally& all_counts) -> detached {
      co_await on.schedule();
      for (int i = 0; i < 5; ++i) {
        const auto result = co_await owned->predict(sample);
        ++(result ? all_counts.values : all_counts.errors);
        if (result ? *result != sample : result.error().code != errc::closed) ++all_counts.wrong;
        if (sample == 0 && i == 2) co_await owned->close();
      }
      owned.reset();
      --all_counts.alive;
    };
    for (int i = 0; i < users; ++i) owner(pool, all, i, counts);
    all.reset();
    counts.wait();
    REQUIRE(counts.values + counts.errors == users * 5);
    REQUIRE(counts.wrong == 0);
  }
}

TEST_CASE("micro batcher: stops race with the push, with those who look, and with the batch") {
  const std::uint32_t seed = stress_seed();
  INFO("COBATCH_TEST_SEED=" << seed);
  std::mt19937_64 random(seed);
  thread_pool pool(3);
  for (int round = 0; round < effort(1000); ++round) {
    tally counts;
    constexpr int users = 12;
    counts.alive = users;
    std::stop_source stop;
    const auto at_once = [](std::span<const int> samples) { return std::vector<int>(samples.begin(), samples.end()); };
    {
      batcher all(pool, at_once, {.max_batch_size = 4, .max_delay = 10us});
      const auto user = [](thread_pool& on, batcher& of, int sample, std::stop_token token,
                           tally& all_counts) -> detached {
        co_await on.schedule();
        if (sample % 3 == 0) token = std::stop_token();
        for (int i = 0; i < 8; ++i) {
          const auto result = co_await of.predict(sample, token);
          ++(result ? all_counts.values : all_counts.errors);
          if (!result && (result.error().code != errc::cancelled || sample % 3 == 0)) ++all_counts.wrong;
        }
        --all_counts.alive;
      };
      for (int i = 0; i < users; ++i) user(pool, all, i, stop.get_token(), counts);
      const auto spins = random() % 20'000;
      for (std::uint64_t i = 0; i < spins; ++i) std::atomic_signal_fence(std::memory_order_seq_cst);
      stop.request_stop();
      CHECK(all.waiting() <= std::size_t{users});  // which takes what is in the inboxes
      counts.wait();
      sync_wait(all.close());
    }
    REQUIRE(counts.values + counts.errors == users * 8);
    REQUIRE(counts.wrong == 0);
  }
}

TEST_CASE("micro batcher: a pool that stops in the middle leaves nobody waiting") {
  const std::uint32_t seed = stress_seed();
  INFO("COBATCH_TEST_SEED=" << seed);
  std::mt19937_64 random(seed);
  for (int round = 0; round < effort(200); ++round) {
    std::atomic<std::uint32_t> calls{0};
    tally counts;
    constexpr int users = 8;
    counts.alive = users;
    {
      std::optional<thread_pool> pool(2);
      auto all =
          std::make_unique<batcher>(*pool, doubling(*pool, calls, false), micro_batch_options{.max_batch_size = 4});
      const auto call = [](thread_pool& on, batcher& of, tally& all_counts) -> detached {
        for (int i = 0; i < 20; ++i) {
          (void)on;
          const auto result = co_await of.predict(i);
          ++(result ? all_counts.values : all_counts.errors);
        }
        --all_counts.alive;
      };
      for (int i = 0; i < users; ++i) call(*pool, *all, counts);
      std::this_thread::sleep_for(std::chrono::microseconds(random() % 3000));
      pool->stop();
      counts.wait();
      all.reset();
    }
    REQUIRE(counts.values + counts.errors == users * 20);
  }
}
