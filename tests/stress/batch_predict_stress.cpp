#include <cobatch/batch_predict.hpp>

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <random>
#include <ranges>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <cobatch/executor.hpp>
#include <cobatch/predict_stream.hpp>
#include <cobatch/semaphore.hpp>
#include <cobatch/sync_wait.hpp>
#include <cobatch/task.hpp>
#include <cobatch/thread_pool.hpp>

#include "support/catch.hpp"
#include "support/effort.hpp"
#include "support/generated.hpp"
#include "support/lifetimes.hpp"
#include "support/outline.hpp"
#include "support/plain_threads.hpp"

using cobatch::async_semaphore;
using cobatch::batch_options;
using cobatch::batch_predict;
using cobatch::errc;
using cobatch::sync_wait;
using cobatch::task;
using cobatch::thread_pool;
using namespace std::chrono_literals;

// A lost lane or a lost wake-up shows as a hang, which ctest's time limit ends.

namespace {

using outcomes = std::vector<cobatch::expected<int, cobatch::error>>;

/// A number from a seed and a sample: what is random must not depend on which thread comes first.
std::uint32_t mixed(std::uint32_t seed, int sample) {
  std::uint32_t bits = seed ^ (static_cast<std::uint32_t>(sample) * 0x9e3779b9u);
  bits = (bits ^ (bits >> 16)) * 0x85ebca6bu;
  bits = (bits ^ (bits >> 13)) * 0xc2b2ae35u;
  return bits ^ (bits >> 16);
}

class dice {
 public:
  explicit dice(std::uint32_t seed) : engine_(seed) {}
  std::uint32_t operator()() { return static_cast<std::uint32_t>(engine_()); }

 private:
  std::mt19937 engine_;
};

void compute(unsigned turns) {
  std::atomic<unsigned> sink{0};
  for (unsigned i = 0; i < turns; ++i) sink.fetch_add(i, std::memory_order_relaxed);
}

auto unsized(int size) {
  return std::views::iota(0) | std::views::take_while([size](int x) { return x < size; });
}

/// All values, in order: sample i came to i.
void check_complete(const outcomes& results, int size) {
  REQUIRE(results.size() == static_cast<std::size_t>(size));
  for (int i = 0; i < size; ++i) {
    const auto& each = results[static_cast<std::size_t>(i)];
    if (!each) FAIL("sample " << i << ": " << each.error().message());
    if (*each != i) FAIL("sample " << i << " has the outcome of " << *each);
  }
}

/// A predict that ends in one of many ways, on whichever thread.
template <class Executor>
class various {
 public:
  various(std::uint32_t seed, Executor& executor, plain_threads& foreign, gauge& flight)
      : seed_(seed), executor_(&executor), foreign_(&foreign), flight_(&flight) {}

  task<int> operator()(int x) const {
    const auto inside = flight_->enter();
    const std::uint32_t random = mixed(seed_, x);
    switch (random % 6) {
      case 0:
        break;
      case 1:
        compute(random / 6 % 200);
        break;
      case 2:
        co_await cobatch::schedule(*executor_);
        break;
      case 3:
        co_await hop_to(*foreign_);
        break;
      case 4:
        co_await hop_to(*foreign_);
        compute(random / 6 % 100);
        co_await cobatch::schedule(*executor_);
        break;
      default:
        compute(random / 6 % 50);
        co_await cobatch::schedule(*executor_);
        co_await hop_to(*foreign_);
    }
    co_return x;
  }

 private:
  std::uint32_t seed_;
  Executor* executor_;
  plain_threads* foreign_;
  gauge* flight_;
};

/// Batches of many sizes and caps, of known and of unknown length, one after another.
template <class Executor>
void many_batches(Executor& executor, std::uint32_t seed, int rounds) {
  dice random(seed);
  plain_threads foreign(1);
  for (int round = 0; round < rounds; ++round) {
    const int size = static_cast<int>(random() % (round % 50 == 0 ? 3000 : 40));
    const std::size_t cap = random() % 2 == 0 ? cobatch::unlimited : 1 + random() % 8;
    gauge flight;
    const various<Executor> predict(random(), executor, foreign, flight);
    std::vector<int> samples(static_cast<std::size_t>(size));
    for (int i = 0; i < size; ++i) samples[static_cast<std::size_t>(i)] = i;
    const batch_options options{.max_concurrency = cap};
    switch (random() % 4) {
      case 0:
        check_complete(sync_wait(batch_predict(executor, samples, predict, options)), size);
        break;
      case 1:
        check_complete(sync_wait(batch_predict(executor, unsized(size), predict, options)), size);
        break;
      case 2:
        check_complete(sync_wait(batch_predict(executor, std::views::iota(0, size), predict, options)), size);
        break;
      default: {
        const auto plain = [](int x) { return x; };
        check_complete(sync_wait(batch_predict(executor, samples, plain, options)), size);
      }
    }
    if (cap != cobatch::unlimited) CHECK(flight.most() <= static_cast<long>(cap));
    CHECK(flight.inside() == 0);
  }
}

}  // namespace

TEST_CASE("batch_predict stress: many batches on a thread_pool, whose predicts go on on any thread") {
  const std::uint32_t seed = stress_seed();
  INFO("COBATCH_TEST_SEED=" << seed);
  for (const std::size_t threads : {1u, 2u, 4u}) {
    thread_pool pool(threads);
    many_batches(pool, seed + static_cast<std::uint32_t>(threads), effort(3000));
  }
}

TEST_CASE("batch_predict stress: many batches on threads that know nothing of cobatch") {
  const std::uint32_t seed = stress_seed();
  INFO("COBATCH_TEST_SEED=" << seed);
  for (const std::size_t threads : {2u, 4u}) {
    plain_threads executor(threads);
    many_batches(executor, seed + static_cast<std::uint32_t>(threads), effort(2000));
  }
}

TEST_CASE("batch_predict stress: tiny batches of synchronous predicts end once each") {
  const std::uint32_t seed = stress_seed();
  INFO("COBATCH_TEST_SEED=" << seed);
  dice random(seed);
  thread_pool pool(4);
  const auto loop = [&]() -> task<void> {
    for (int round = effort(40'000); round > 0; --round) {
      const int size = static_cast<int>(random() % 9);
      check_complete(co_await batch_predict(pool, std::views::iota(0, size), [](int x) { return x; }), size);
      const std::vector<int> samples(static_cast<std::size_t>(size), 1);
      CHECK(values_in(co_await batch_predict(pool, samples, [](int x) { return x; })) == size);
    }
  };
  sync_wait(loop());
}

TEST_CASE("batch_predict stress: uneven costs are shared between the threads") {
  const std::uint32_t seed = stress_seed();
  INFO("COBATCH_TEST_SEED=" << seed);
  thread_pool pool(4);
  for (int round = 0; round < effort(60) + 2; ++round) {
    const int size = 2000;
    std::vector<int> samples(size);
    for (int i = 0; i < size; ++i) samples[static_cast<std::size_t>(i)] = i;
    std::vector<std::atomic<int>> calls(size);
    const auto results = sync_wait(batch_predict(pool, samples, [&](int x) {
      ++calls[static_cast<std::size_t>(x)];
      compute(mixed(seed, x) % 40 == 0 ? 5000 : 5);
      return x;
    }));
    check_complete(results, size);
    for (const auto& each : calls) CHECK(each == 1);
  }
}

TEST_CASE("batch_predict stress: two batches of two executors share a semaphore whose limit changes") {
  const std::uint32_t seed = stress_seed();
  INFO("COBATCH_TEST_SEED=" << seed);
  dice random(seed);
  thread_pool pool(3);
  plain_threads threads(2), foreign(1);
  for (int round = 0; round < effort(400); ++round) {
    const std::size_t limit = 1 + random() % 6;
    async_semaphore semaphore(limit);
    gauge flight;
    const std::uint32_t first_seed = random(), second_seed = random();
    const int size = 60;
    const auto one = [&]() -> task<outcomes> {
      const various<thread_pool> predict(first_seed, pool, foreign, flight);
      co_return co_await batch_predict(pool, unsized(size), predict, {.max_concurrency = 100, .semaphore = &semaphore});
    };
    const auto other = [&]() -> task<outcomes> {
      const various<plain_threads> predict(second_seed, threads, foreign, flight);
      const std::vector<int> samples = [] {
        std::vector<int> numbers(size);
        for (int i = 0; i < size; ++i) numbers[static_cast<std::size_t>(i)] = i;
        return numbers;
      }();
      co_return co_await batch_predict(threads, samples, predict, {.max_concurrency = 4, .semaphore = &semaphore});
    };
    std::atomic<bool> ended = false;
    const bool changes = round % 2 == 0;
    std::thread changer([&] {
      dice own(first_seed);
      while (changes && !ended) {
        semaphore.set_limit(own() % (limit + 1));
        std::this_thread::yield();
      }
      semaphore.set_limit(limit);
    });
    const std::array<std::function<task<outcomes>()>, 2> both{one, other};
    const auto results = sync_wait(batch_predict(pool, both, [](const auto& each) { return each(); }));
    ended = true;
    changer.join();
    for (const auto& each : results) check_complete(each.value(), size);
    CHECK(flight.most() <= static_cast<long>(limit));
    CHECK(semaphore.available() == limit);
    CHECK(semaphore.waiting() == 0);
  }
}

TEST_CASE("batch_predict stress: a stop from another thread at any moment") {
  const std::uint32_t seed = stress_seed();
  INFO("COBATCH_TEST_SEED=" << seed);
  dice random(seed);
  thread_pool pool(3);
  plain_threads foreign(1);
  for (int round = 0; round < effort(2000); ++round) {
    std::stop_source stop;
    async_semaphore semaphore(2);
    census frames;
    const unsigned delay = random() % 3000;
    const bool gated = random() % 2 == 0;
    std::thread stopper([&] {
      compute(delay);
      stop.request_stop();
    });
    const std::uint32_t own = random();
    const auto predict = [&](int x, std::stop_token token) -> task<int> {
      const life frame(frames);
      const std::uint32_t bits = mixed(own, x);
      if (bits % 3 == 0) co_await cobatch::schedule(pool);
      if (bits % 3 == 1) co_await hop_to(foreign);
      if (bits % 5 == 0) co_await pool.schedule_after(std::chrono::microseconds(bits % 100), token);
      if (token.stop_requested()) throw std::runtime_error("stopped");
      co_return x;
    };
    const auto results = sync_wait(batch_predict(pool, unsized(300), predict,
                                                 {.max_concurrency = 8,
                                                  .semaphore = gated ? &semaphore : nullptr,
                                                  .stop = stop,
                                                  .timeout = 1s,
                                                  .max_failures = 3}));
    for (std::size_t i = 0; i < results.size(); ++i) {
      const auto& each = results[i];
      if (each) {
        CHECK(*each == static_cast<int>(i));
      } else {
        CHECK((each.error().code == errc::cancelled || each.error().code == errc::not_started));
      }
    }
    CHECK(frames.alive == 0);
    CHECK(semaphore.available() == 2);
    CHECK(semaphore.waiting() == 0);
    stopper.join();
  }
}

TEST_CASE("batch_predict stress: fail fast among threads, with timeouts that race the ends") {
  const std::uint32_t seed = stress_seed();
  INFO("COBATCH_TEST_SEED=" << seed);
  dice random(seed);
  thread_pool pool(3);
  for (int round = 0; round < effort(600); ++round) {
    const std::uint32_t own = random();
    census frames;
    const std::size_t budget = 1 + random() % 5;
    const auto predict = [&](int x, std::stop_token token) -> task<int> {
      const life frame(frames);
      const std::uint32_t bits = mixed(own, x);
      if (!co_await pool.schedule_after(std::chrono::microseconds(bits % 60), token))
        throw std::runtime_error("stopped");
      if (bits % 50 == 0) throw std::runtime_error("planned");
      co_return x;
    };
    const auto results = sync_wait(batch_predict(pool, unsized(200), predict,
                                                 {.max_concurrency = 16,
                                                  .timeout = std::chrono::microseconds(20 + random() % 100),
                                                  .deadline = std::chrono::microseconds(500 + random() % 5000),
                                                  .max_failures = budget}));
    CHECK(results.size() <= 200);
    for (std::size_t i = 0; i < results.size(); ++i) {
      if (results[i]) CHECK(*results[i] == static_cast<int>(i));
    }
    CHECK(frames.alive == 0);
  }
}

TEST_CASE("batch_predict stress: a single-pass input is read by several workers, one at a time") {
  const std::uint32_t seed = stress_seed();
  INFO("COBATCH_TEST_SEED=" << seed);
  thread_pool pool(4);
  for (int round = 0; round < effort(300); ++round) {
    std::atomic<int> inside = 0, overlaps = 0;
    int next = 0;  // not atomic: reading is exclusive
    const int size = 500;
    auto numbers = generated([&]() -> std::optional<std::unique_ptr<int>> {
      if (++inside != 1) ++overlaps;
      compute(mixed(seed, next) % 20);
      std::optional<std::unique_ptr<int>> made;
      if (next < size) made = std::make_unique<int>(next++);
      --inside;
      return made;
    });
    const auto results =
        sync_wait(batch_predict(pool, std::move(numbers), [&](const std::unique_ptr<int>& x) -> task<int> {
          if (mixed(seed, *x) % 4 == 0) co_await pool.schedule();
          compute(mixed(seed, *x) % 100);
          co_return *x;
        }));
    check_complete(results, size);
    CHECK(overlaps == 0);
  }
}

TEST_CASE("batch_predict stress: a stream that reads another one is never forgotten by it") {
  // Samples of some ten microseconds: each stage now has something ready, and now has to wait.
  const auto work = [](int turns) {
    volatile int sum = 0;
    for (int i = 0; i < turns; ++i) sum = sum + i;
  };
  constexpr int count = 20'000;
  for (const std::size_t threads : {std::size_t{2}, std::size_t{3}, std::size_t{8}}) {
    for (const std::size_t window : {std::size_t{1}, std::size_t{2}, std::size_t{64}}) {
      thread_pool pool(threads);
      const auto first_stage = [&](std::size_t x) {
        work(6000 + static_cast<int>(x % 1000));
        return x;
      };
      const auto second_stage = [&](const auto& item) {
        work(6000 + static_cast<int>(item.index % 700));
        return *item.result;
      };
      const auto run = [&]() -> task<std::size_t> {
        const auto samples = std::views::iota(std::size_t{0}, static_cast<std::size_t>(effort(count)));
        auto first = cobatch::predict_stream(pool, samples, first_stage, batch_options{.max_concurrency = window});
        auto second = cobatch::predict_stream(pool, first, second_stage, batch_options{.max_concurrency = window},
                                              cobatch::stream_options{.window = window + 1});
        std::size_t sum = 0;
        for (;;) {
          const auto item = co_await second.next();
          if (!item) break;
          sum += *item->result;
        }
        co_return sum;
      };
      const auto all = static_cast<std::size_t>(effort(count));
      CHECK(sync_wait(run()) == all * (all - 1) / 2);
    }
  }
}

TEST_CASE("batch_predict stress: a pool that stops in the middle of a batch accounts for every sample") {
  const std::uint32_t seed = stress_seed();
  INFO("COBATCH_TEST_SEED=" << seed);
  dice random(seed);
  for (int round = 0; round < effort(600); ++round) {
    census frames;
    async_semaphore semaphore(3);
    outcomes results;
    const unsigned delay = random() % 4000;
    const std::uint32_t own = random();
    const bool gated = random() % 2 == 0;
    {
      thread_pool pool(2);
      std::thread stopper([&] {
        compute(delay);
        pool.stop();
      });
      const auto predict = [&](int x) -> task<int> {
        const life frame(frames);
        const std::uint32_t bits = mixed(own, x);
        if (bits % 2 == 0) co_await pool.schedule();
        if (bits % 7 == 0) co_await pool.schedule_after(50us);
        co_return x;
      };
      results = sync_wait(batch_predict(pool, std::views::iota(0, 300), predict,
                                        {.max_concurrency = 6,
                                         .semaphore = gated ? &semaphore : nullptr,
                                         .timeout = round % 3 == 0 ? 1s : cobatch::no_timeout}));
      stopper.join();
    }
    REQUIRE(results.size() == 300);
    for (std::size_t i = 0; i < results.size(); ++i) {
      if (results[i]) {
        CHECK(*results[i] == static_cast<int>(i));
      } else {
        CHECK((results[i].error().code == errc::executor_stopped || results[i].error().code == errc::exception));
      }
    }
    CHECK(frames.alive == 0);
    CHECK(semaphore.available() == 3);
    CHECK(semaphore.waiting() == 0);
  }
}

namespace {

task<int> tree(thread_pool& pool, std::uint32_t seed, int depth) {
  if (depth == 0) {
    if (mixed(seed, depth) % 2 == 0) co_await pool.schedule();
    co_return 1;
  }
  const std::vector<int> samples{0, 1, 2};
  const auto results = co_await batch_predict(
      pool, samples, [&](int x) { return tree(pool, mixed(seed, x), depth - 1); }, {.max_concurrency = 1 + seed % 3});
  int sum = 0;
  for (const auto& each : results) sum += each.value();
  co_return sum;
}

}  // namespace

TEST_CASE("batch_predict stress: batches in batches on one pool") {
  const std::uint32_t seed = stress_seed();
  INFO("COBATCH_TEST_SEED=" << seed);
  thread_pool pool(3);
  for (int round = 0; round < effort(40) + 1; ++round) {
    CHECK(sync_wait(tree(pool, seed + static_cast<std::uint32_t>(round), 5)) == 243);
  }
}
