#include <cobatch/batch_predict.hpp>

#include <chrono>
#include <cstddef>
#include <functional>
#include <ranges>
#include <string>
#include <vector>

#include <cobatch/executor.hpp>
#include <cobatch/semaphore.hpp>
#include <cobatch/simulation.hpp>
#include <cobatch/sync_wait.hpp>
#include <cobatch/task.hpp>

#include "support/catch.hpp"
#include "support/lifetimes.hpp"
#include "support/outline.hpp"
#include "support/stranger.hpp"

// Compiled at -O0, where symmetric transfer is no tail call.

using cobatch::batch_predict;
using cobatch::simulation;
using cobatch::sync_wait;
using cobatch::task;
using namespace std::chrono_literals;

namespace {

// Sanitizers make each step some ten times slower; the stack they would overflow is no larger.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool sanitized = true;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
constexpr bool sanitized = true;
#else
constexpr bool sanitized = false;
#endif
#else
constexpr bool sanitized = false;
#endif
constexpr int ten_million = sanitized ? 500'000 : 10'000'000;
constexpr int a_million = sanitized ? 100'000 : 1'000'000;

/// Counts what it is called with, so that ten million outcomes need not be looked at one by one.
struct counter {
  long calls = 0;
  char operator()(int) {
    ++calls;
    return 0;
  }
};

template <class Executor, class Predict>
void check_ten_million(Executor& executor, Predict predict, const cobatch::batch_options& options = {}) {
  const auto results = sync_wait(batch_predict(executor, std::views::iota(0, ten_million), predict, options));
  CHECK(results.size() == static_cast<std::size_t>(ten_million));
  CHECK(values_in(results) == ten_million);
}

}  // namespace

TEST_CASE("batch_predict: 10 million plain predicts do not deepen the stack") {
  cobatch::inline_executor executor;
  counter calls;
  check_ten_million(executor, std::ref(calls));
  CHECK(calls.calls == ten_million);
}

TEST_CASE("batch_predict: 10 million tasks that do not suspend do not deepen the stack") {
  cobatch::inline_executor executor;
  check_ten_million(executor, [](int) -> task<char> { co_return 'x'; });
}

TEST_CASE("batch_predict: 10 million strangers' tasks that do not suspend do not deepen the stack") {
  cobatch::inline_executor executor;
  check_ten_million(executor, [](int) -> stranger::task<char> { co_return 'x'; });
}

TEST_CASE("batch_predict: 10 million predicts that go round through an inline executor do not deepen the stack") {
  cobatch::inline_executor executor;
  check_ten_million(executor, [&](int) -> task<char> {
    co_await cobatch::schedule(executor);
    co_return 'x';
  });
}

TEST_CASE("batch_predict: predicts that go round through a post that runs at once do not deepen the stack") {
  cobatch::function_executor executor([](auto f) { f(); }, 2);
  const auto results = sync_wait(batch_predict(executor, std::views::iota(0, a_million), [&](int) -> task<char> {
    co_await cobatch::schedule(executor);
    co_return 'x';
  }));
  CHECK(values_in(results) == a_million);
}

TEST_CASE("batch_predict: 10 million predicts on a simulation do not deepen the stack") {
  simulation sim;
  const auto results =
      sim.run(batch_predict(sim, std::views::iota(0, ten_million), [](int) -> task<char> { co_return 'x'; }));
  CHECK(values_in(results) == ten_million);
}

TEST_CASE("batch_predict: predicts under a semaphore, with times and tokens, do not deepen the stack") {
  simulation sim;
  cobatch::async_semaphore semaphore(1);
  std::stop_source stop;
  const auto results = sim.run(
      batch_predict(sim, std::views::iota(0, a_million), [](int, std::stop_token) -> task<char> { co_return 'x'; },
                    {.semaphore = &semaphore, .stop = stop, .timeout = 1s, .deadline = 1h, .max_failures = 5}));
  CHECK(values_in(results) == a_million);
}

TEST_CASE("batch_predict: a million predicts that wake each other up do not deepen the stack") {
  // Each predict resumes the coroutine of the one before it from inside its own call.
  simulation sim;
  std::coroutine_handle<> waiting;
  const auto results = sim.run(batch_predict(sim, std::views::iota(0, a_million),
                                             [&](int x) -> task<char> {
                                               if (waiting) std::exchange(waiting, nullptr).resume();
                                               if (x + 1 < a_million) {
                                                 co_await stranger::void_awaiter{
                                                     0, [&](std::coroutine_handle<> handle) { waiting = handle; }};
                                               }
                                               co_return 'x';
                                             },
                                             {.max_concurrency = 4}));
  CHECK(values_in(results) == a_million);
}

TEST_CASE("batch_predict: a million batches awaited one after another do not deepen the stack") {
  const std::vector<int> two{1, 2};
  const auto loop = [&](auto& executor) -> task<long> {
    long values = 0;
    for (int i = 0; i < a_million; ++i) {
      values += values_in(co_await batch_predict(executor, two, [](int x) { return x; }));
    }
    co_return values;
  };
  SECTION("on an inline executor") {
    cobatch::inline_executor executor;
    CHECK(sync_wait(loop(executor)) == 2 * a_million);
  }
  SECTION("on a post that runs at once") {
    cobatch::function_executor executor([](auto f) { f(); }, 2);
    CHECK(sync_wait(loop(executor)) == 2 * a_million);
  }
  SECTION("on a simulation") {
    simulation sim;
    CHECK(sim.run(loop(sim)) == 2 * a_million);
  }
}

TEST_CASE("batch_predict: a million batches of tasks awaited one after another do not deepen the stack") {
  const std::vector<int> two{1, 2};
  cobatch::inline_executor executor;
  const auto loop = [&]() -> task<long> {
    long values = 0;
    for (int i = 0; i < a_million; ++i) {
      values += values_in(co_await batch_predict(executor, two, [](int x) -> task<int> { co_return x; }));
    }
    co_return values;
  };
  CHECK(sync_wait(loop()) == 2 * a_million);
}

TEST_CASE("batch_predict: a million samples at limit 64 keep frames O(64)") {
  simulation sim;
  census frames;
  const auto results = sim.run(batch_predict(sim, std::views::iota(0, a_million),
                                             [&](int) -> task<char> {
                                               const life frame(frames);
                                               co_await sim.schedule();
                                               co_return 'x';
                                             },
                                             {.max_concurrency = 64}));
  CHECK(values_in(results) == a_million);
  CHECK(frames.most == 64);
  CHECK(frames.alive == 0);
}

TEST_CASE("batch_predict: a million samples under a semaphore of 64 keep frames O(64)") {
  simulation sim;
  census frames;
  cobatch::async_semaphore semaphore(64);
  const auto results = sim.run(batch_predict(sim, std::views::iota(0, a_million),
                                             [&](int) -> task<char> {
                                               const life frame(frames);
                                               co_await sim.schedule();
                                               co_return 'x';
                                             },
                                             {.semaphore = &semaphore}));
  CHECK(values_in(results) == a_million);
  CHECK(frames.most == 64);
  CHECK(semaphore.available() == 64);
}
