#include <cobatch/task.hpp>

#include <functional>
#include <stdexcept>

#include <cobatch/executor.hpp>
#include <cobatch/sync_wait.hpp>

#include "support/catch.hpp"
#include "support/parking_place.hpp"
#include "support/started.hpp"

using cobatch::task;

// Symmetric transfer is no tail call without optimisation: a stack that grew with each of these would overflow.

namespace {

constexpr int many = 10'000'000;

task<int> one() {
  co_return 1;
}
task<> nothing() {
  co_return;
}

constexpr long deep = 1'000'000;

/// Tasks that await tasks: the lowest one does what `bottom` says.
template <class Bottom>
task<long> down(long levels, Bottom bottom) {
  if (levels == 0) co_return co_await bottom();
  co_return 1 + co_await down(levels - 1, bottom);
}

task<long> zero() {
  co_return 0;
}

}  // namespace

TEST_CASE("task: ten million that end synchronously do not deepen the stack") {
  int sum = 0;
  auto outer = [&]() -> started {
    for (int i = 0; i < many; ++i) {
      sum += co_await one();
      co_await nothing();
    }
  };
  const started run = outer();
  CHECK(run.done());
  CHECK(sum == many);
}

TEST_CASE("task: ten million inside a task do not deepen the stack") {
  auto middle = []() -> task<int> {
    int sum = 0;
    for (int i = 0; i < many; ++i) sum += co_await one();
    co_return sum;
  };
  int sum = 0;
  auto outer = [&]() -> started { sum = co_await middle(); };
  const started run = outer();
  CHECK(sum == many);
}

TEST_CASE("executor: ten million schedules on an inline executor do not deepen the stack") {
  cobatch::inline_executor here;
  int count = 0;
  auto outer = [&]() -> started {
    for (int i = 0; i < many; ++i) {
      co_await cobatch::schedule(here);
      ++count;
    }
  };
  const started run = outer();
  CHECK(count == many);
}

TEST_CASE("executor: ten million schedules on a post that calls at once do not deepen the stack") {
  cobatch::function_executor at_once{[](const std::function<void()>& f) { f(); }};
  int count = 0;
  auto outer = [&]() -> started {
    for (int i = 0; i < many; ++i) {
      co_await cobatch::schedule(at_once);
      ++count;
    }
  };
  const started run = outer();
  CHECK(count == many);
}

TEST_CASE("task: a million tasks, each awaited by the next, do not deepen the stack") {
  long sum = 0;
  auto outer = [&]() -> started { sum = co_await down(deep, zero); };
  const started run = outer();
  CHECK(run.done());
  CHECK(sum == deep);
}

TEST_CASE("task: a million tasks whose lowest one suspends end one after the other without a deep stack") {
  parking_place place;
  const auto bottom = [&]() -> task<long> {
    co_await place;
    co_return 0;
  };
  long sum = 0;
  auto outer = [&]() -> started { sum = co_await down(deep, bottom); };
  const started run = outer();
  REQUIRE_FALSE(run.done());
  place.parked.resume();
  CHECK(run.done());
  CHECK(sum == deep);
}

TEST_CASE("task: an exception comes up through many tasks") {
  const auto bottom = []() -> task<long> {
    throw std::runtime_error("from below");
    co_return 0;
  };
  constexpr long levels = 20'000;  // each throws anew
  bool caught = false;
  auto outer = [&]() -> started {
    try {
      co_await down(levels, bottom);
    } catch (const std::runtime_error&) {
      caught = true;
    }
  };
  const started run = outer();
  CHECK(caught);
}

TEST_CASE("task: a million tasks that await a deep one on their way up do not deepen the stack") {
  struct tower {
    static task<long> build(long levels) {
      if (levels == 0) co_return co_await zero();
      long below = co_await build(levels - 1);
      if (levels % 10'000 == 0) below += co_await down(1'000, zero);
      co_return below + 1;
    }
  };
  long sum = 0;
  auto outer = [&]() -> started { sum = co_await tower::build(deep); };
  const started run = outer();
  CHECK(sum == deep + deep / 10'000 * 1'000);
}

TEST_CASE("task: sync_wait inside of deep tasks waits for deep tasks") {
  const auto bottom = []() -> task<long> { co_return cobatch::sync_wait(down(1'000, zero)); };
  for (const long levels : {0, 1, 62, 63, 64, 65, 66, 127, 128, 129, 1'000}) {
    CAPTURE(levels);
    CHECK(cobatch::sync_wait(down(levels, bottom)) == 1'000 + levels);
  }
}
