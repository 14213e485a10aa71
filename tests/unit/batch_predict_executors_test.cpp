#include <cobatch/batch_predict.hpp>

#include <atomic>
#include <chrono>
#include <coroutine>
#include <cstddef>
#include <deque>
#include <functional>
#include <optional>
#include <ranges>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include <cobatch/error.hpp>
#include <cobatch/executor.hpp>
#include <cobatch/expected.hpp>
#include <cobatch/semaphore.hpp>
#include <cobatch/simulation.hpp>
#include <cobatch/sync_wait.hpp>
#include <cobatch/task.hpp>

#include "support/catch.hpp"
#include "support/generated.hpp"
#include "support/lifetimes.hpp"
#include "support/outline.hpp"
#include "support/plain_threads.hpp"
#include "support/started.hpp"
#include "support/step_executor.hpp"

using cobatch::batch_predict;
using cobatch::errc;
using cobatch::error;
using cobatch::expected;
using cobatch::simulation;
using cobatch::sync_wait;
using cobatch::task;
using namespace std::chrono_literals;

namespace {

const std::vector<int> six{0, 1, 2, 3, 4, 5};

using outcomes = std::vector<expected<int, error>>;

/// A simulation that takes so many handles and refuses all that come after; its timers it refuses with them.
class refusing_simulation {
 public:
  refusing_simulation(std::size_t taken, bool throws) : left_(taken), throws_(throws) {}

  bool execute(std::coroutine_handle<> handle) {
    if (left_ == 0) {
      refused = true;
      if (throws_) throw std::runtime_error("refused");
      return false;
    }
    --left_;
    return loop.execute(handle);
  }
  std::size_t concurrency() const noexcept { return 3; }
  bool running_in_this_thread() const noexcept { return cobatch::detail::runs_here(inner()); }
  auto now() const noexcept { return loop.now(); }
  auto schedule_after(std::chrono::nanoseconds delay, std::stop_token token = {}) {
    return loop.schedule_after(delay, std::move(token));
  }

  simulation loop;
  bool refused = false;

 private:
  simulation& inner() const noexcept { return const_cast<simulation&>(loop); }

  std::size_t left_;
  bool throws_;
};

}  // namespace

TEST_CASE("batch_predict: nothing runs before the executor runs it") {
  step_executor executor;
  std::string log;
  const auto go = [&]() -> started {
    const auto results = co_await batch_predict(executor, six, [&](int x) {
      log += std::to_string(x);
      return x;
    });
    log += " done";
    CHECK(values_in(results) == 6);
  };
  const started batch = go();
  CHECK(log.empty());
  CHECK(executor.queued() > 0);
  executor.drain();
  CHECK(log == "012345 done");
  CHECK(batch.done());
}

TEST_CASE("batch_predict: a predict that another thread completes leaves the next one, and the end, to the executor") {
  plain_threads own(2), foreign(2);
  std::atomic<int> wrong = 0;
  const auto run = [&]() -> task<outcomes> {
    auto results = co_await batch_predict(own, std::views::iota(0, 200),
                                          [&](int x) -> task<int> {
                                            if (!own.here()) ++wrong;
                                            if (x % 3 != 0) co_await hop_to(foreign);
                                            if (x % 3 == 2) throw x;
                                            co_return x;
                                          },
                                          {.max_concurrency = 5});
    if (!own.here()) ++wrong;
    co_return results;
  };
  for (int round = 0; round < 10; ++round) {
    const auto results = sync_wait(run());
    CHECK(results.size() == 200);
    CHECK(values_in(results) == 134);
  }
  CHECK(wrong == 0);
}

TEST_CASE("batch_predict: permits that another thread gives back leave what starts next to the executor") {
  plain_threads own(2), foreign(2);
  cobatch::async_semaphore semaphore(2);
  std::atomic<int> wrong = 0;
  const auto batch = [&](plain_threads& on, plain_threads& hops) -> task<outcomes> {
    auto results = co_await batch_predict(on, std::views::iota(0, 100),
                                          [&](int x) -> task<int> {
                                            if (!on.here()) ++wrong;
                                            co_await hop_to(hops);
                                            co_return x;
                                          },
                                          {.semaphore = &semaphore});
    if (!on.here()) ++wrong;
    co_return results;
  };
  const std::vector<bool> both{false, true};
  const auto results = sync_wait(
      batch_predict(own, both, [&](bool swapped) { return swapped ? batch(foreign, own) : batch(own, foreign); }));
  CHECK(values_in(results) == 2);
  CHECK(values_in(*results[0]) == 100);
  CHECK(values_in(*results[1]) == 100);
  CHECK(wrong == 0);
  CHECK(semaphore.available() == 2);
}

TEST_CASE("batch_predict: on an inline executor everything ends inside the co_await") {
  cobatch::inline_executor executor;
  bool ended = false;
  const auto go = [&]() -> started {
    for (int i = 0; i < 10; ++i) {
      CHECK(outline(co_await batch_predict(executor, six, [](int x) { return x; })) == "0 1 2 3 4 5");
      CHECK(outline(co_await batch_predict(executor, six, [](int x) -> task<int> { co_return x; })) == "0 1 2 3 4 5");
    }
    ended = true;
  };
  const started batch = go();
  CHECK(ended);
}

TEST_CASE("batch_predict: a function that posts is an executor") {
  std::deque<std::function<void()>> queue;
  cobatch::function_executor executor([&](auto f) { queue.push_back(f); }, 3);
  std::string result;
  const auto go = [&]() -> started {
    result = outline(co_await batch_predict(executor, six, [&](int x) -> task<int> {
      co_await cobatch::schedule(executor);
      co_return x;
    }));
  };
  const started batch = go();
  while (!queue.empty()) {
    auto next = std::move(queue.front());
    queue.pop_front();
    next();
  }
  CHECK(result == "0 1 2 3 4 5");
}

TEST_CASE(
    "batch_predict: an executor may refuse any handle, nothing hangs, nothing leaks, every sample is accounted for") {
  census frames;
  cobatch::async_semaphore semaphore(2);
  const auto run_with = [&](auto samples, const cobatch::batch_options& options, bool sized) {
    for (const bool throws : {false, true}) {
      bool refused = true;
      for (std::size_t taken = 0; refused; ++taken) {
        INFO("handles taken: " << taken << ", throws: " << throws);
        REQUIRE(taken < 1000);
        refusing_simulation executor(taken, throws);
        int wrong = 0;
        const auto results = executor.loop.run(batch_predict(
            executor, samples,
            [&](int x, std::stop_token token) -> task<int> {
              const life frame(frames);
              if (!executor.running_in_this_thread()) ++wrong;
              co_await executor.loop.schedule_after((x % 3) * 1ms, token);
              if (x % 2 == 0) co_await cobatch::schedule(executor);
              co_return x;
            },
            options));
        refused = executor.refused;
        CHECK(wrong == 0);
        CHECK(frames.alive == 0);
        CHECK(semaphore.available() == 2);
        CHECK(semaphore.waiting() == 0);
        if (sized) CHECK(results.size() == 6);
        for (const auto& each : results) {
          if (each) continue;
          CHECK(refused);
          const errc code = each.error().code;
          CHECK((code == errc::executor_stopped || code == errc::exception));
          if (code == errc::exception) CHECK(each.error().exception);
        }
        if (!refused) CHECK(values_in(results) == 6);
      }
    }
  };
  std::stop_source stop;
  run_with(std::views::all(six), {}, true);
  run_with(std::views::all(six), {.max_concurrency = 2}, true);
  run_with(std::views::iota(0, 6), {.max_concurrency = 2}, true);
  run_with(std::views::iota(0) | std::views::take_while([](int x) { return x < 6; }), {}, false);
  run_with(std::views::all(six), {.semaphore = &semaphore}, true);
  run_with(std::views::iota(0, 6), {.semaphore = &semaphore, .stop = stop}, true);
  run_with(std::views::all(six), {.timeout = 1h}, true);
  run_with(std::views::all(six), {.max_concurrency = 2, .semaphore = &semaphore, .timeout = 1h, .deadline = 2h}, true);
}

TEST_CASE("batch_predict: an executor that refuses everything gives executor_stopped for every sample") {
  step_executor executor;
  executor.refusing = true;
  std::vector<expected<int, error>> results;
  const auto go = [&]() -> started { results = co_await batch_predict(executor, six, [](int x) { return x; }); };
  const started batch = go();
  REQUIRE(batch.done());
  CHECK(count_of(results, errc::executor_stopped) == 6);
  CHECK(results[0].error().attempts == 0);
}

TEST_CASE("batch_predict: an executor that is destroyed in the middle drains the batch") {
  std::vector<expected<int, error>> results;
  census frames;
  bool ended = false;
  std::optional<started> batch;
  // It outlives the executor: in the executor's destructor the coroutine still uses what it captured.
  const auto go = [&](simulation& sim) -> started {
    results = co_await batch_predict(sim, six,
                                     [&](int x) -> task<int> {
                                       const life frame(frames);
                                       if (!co_await sim.schedule_after(x * 1s)) throw std::runtime_error("no timer");
                                       co_return x;
                                     },
                                     {.max_concurrency = 2});
    ended = true;
  };
  {
    simulation sim;
    batch.emplace(go(sim));
    const auto wait = [](simulation& s) -> task<void> { co_await s.schedule_after(1500ms); };
    sim.run(wait(sim));
  }
  CHECK(ended);
  CHECK(frames.alive == 0);
  REQUIRE(results.size() == 6);
  CHECK(results[0].value() == 0);
  CHECK(results[1].value() == 1);
  CHECK(values_in(results) == 2);
}

namespace {

/// A batch in a batch in a batch: sums 3^depth leaves.
task<int> nested(simulation& sim, int depth, std::size_t cap) {
  if (depth == 0) {
    co_await sim.schedule_after(1ms);
    co_return 1;
  }
  const std::vector<int> samples(3, depth - 1);
  const auto results =
      co_await batch_predict(sim, samples, [&](int next) { return nested(sim, next, cap); }, {.max_concurrency = cap});
  int sum = 0;
  for (const auto& each : results) sum += each.value();
  co_return sum;
}

task<int> nested_inline(cobatch::inline_executor& executor, int depth) {
  if (depth == 0) co_return 1;
  const std::vector<int> samples(3, depth - 1);
  const auto results =
      co_await batch_predict(executor, samples, [&](int next) { return nested_inline(executor, next); });
  int sum = 0;
  for (const auto& each : results) sum += each.value();
  co_return sum;
}

task<int> nested_on_threads(plain_threads& threads, int depth) {
  if (depth == 0) co_return 1;
  const std::vector<int> samples(3, depth - 1);
  const auto results =
      co_await batch_predict(threads, samples, [&](int next) { return nested_on_threads(threads, next); });
  int sum = 0;
  for (const auto& each : results) sum += each.value();
  co_return sum;
}

}  // namespace

TEST_CASE("batch_predict: batches nest at any depth on one executor") {
  for (std::uint64_t seed = 0; seed < 5; ++seed) {
    for (const std::size_t cap : {std::size_t{1}, std::size_t{2}, cobatch::unlimited}) {
      simulation sim(seed);
      CHECK(sim.run(nested(sim, 5, cap)) == 243);
    }
  }
  cobatch::inline_executor executor;
  CHECK(sync_wait(nested_inline(executor, 5)) == 243);
  plain_threads threads(2);
  CHECK(sync_wait(nested_on_threads(threads, 5)) == 243);
}

TEST_CASE("batch_predict: a batch of one executor may be awaited on another") {
  simulation sim;
  plain_threads threads(2);
  const auto results = sync_wait(batch_predict(threads, six, [&](int x) -> task<std::string> {
    cobatch::inline_executor executor;
    co_return outline(co_await batch_predict(executor, std::views::iota(0, x), [](int y) { return y; }));
  }));
  CHECK(outline(results) == "0 0 1 0 1 2 0 1 2 3 0 1 2 3 4");
}
