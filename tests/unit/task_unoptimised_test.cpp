#include <cobatch/task.hpp>

#include <functional>

#include <cobatch/executor.hpp>

#include "support/catch.hpp"
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
