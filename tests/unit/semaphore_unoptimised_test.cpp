#include <cobatch/semaphore.hpp>

#include <algorithm>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <vector>

#include <cobatch/executor.hpp>
#include <cobatch/task.hpp>

#include "support/catch.hpp"
#include "support/started.hpp"
#include "support/step_executor.hpp"

using cobatch::async_semaphore;
using cobatch::permit;

namespace {

constexpr int length = 100'000;

// How far the stack reached between the calls of reset() and here().
struct stack_depth {
  std::uintptr_t lowest = UINTPTR_MAX;
  std::uintptr_t highest = 0;

  [[gnu::noinline]] void here() {
    // Not the address of a local: ASan may keep those elsewhere.
    const auto address = reinterpret_cast<std::uintptr_t>(__builtin_frame_address(0));
    lowest = std::min(lowest, address);
    highest = std::max(highest, address);
  }
  std::size_t bytes() const { return highest - lowest; }
};

started relay(async_semaphore& semaphore, stack_depth& depth, int& passed) {
  const permit held = co_await semaphore.acquire();
  depth.here();
  ++passed;
}

}  // namespace

TEST_CASE("semaphore: a chain of 100,000 hand-overs inside release runs on a flat stack") {  // [B9]
  async_semaphore semaphore(0);
  stack_depth depth;
  int passed = 0;
  std::vector<started> waiters;
  for (int i = 0; i < length; ++i) waiters.push_back(relay(semaphore, depth, passed));
  semaphore.release();
  CHECK(passed == length);
  CHECK(depth.bytes() < 16 * 1024);
}

TEST_CASE("semaphore: a chain of 100,000 hand-overs through an executor runs on a flat stack") {  // [B9]
  async_semaphore semaphore(0);
  step_executor ex;
  stack_depth depth;
  int passed = 0;
  std::vector<started> waiters;
  ex.run([&] {
    for (int i = 0; i < length; ++i) waiters.push_back(relay(semaphore, depth, passed));
  });
  semaphore.release();
  ex.drain();
  CHECK(passed == length);
  CHECK(depth.bytes() < 16 * 1024);
}

TEST_CASE("semaphore: a chain of 100,000 hand-overs to executors that resume at once has a flat stack") {  // [B9]
  async_semaphore semaphore(0);
  cobatch::inline_executor here;
  cobatch::function_executor at_once([](auto job) { job(); });
  stack_depth depth;
  int passed = 0;
  std::vector<started> waiters;
  for (int i = 0; i < length; ++i) {
    const auto ex = i % 2 == 0 ? cobatch::detail::ref(here) : cobatch::detail::ref(at_once);
    const cobatch::detail::executor_scope scope(ex);
    waiters.push_back(relay(semaphore, depth, passed));
  }
  semaphore.release();
  CHECK(passed == length);
  CHECK(depth.bytes() < 16 * 1024);
}

TEST_CASE("semaphore: 100,000 waiters freed by one release run on a flat stack") {
  async_semaphore semaphore(0);
  stack_depth depth;
  int passed = 0;
  std::vector<started> waiters;
  for (int i = 0; i < length; ++i) waiters.push_back(relay(semaphore, depth, passed));
  semaphore.release(length);
  CHECK(passed == length);
  CHECK(semaphore.available() == length);
  CHECK(depth.bytes() < 16 * 1024);
}

TEST_CASE("semaphore: a chain of 100,000 stops runs on a flat stack") {
  async_semaphore semaphore(0);
  stack_depth depth;
  int passed = 0;
  std::vector<std::stop_source> sources(length + 1);
  const auto stops_the_next = [&](std::size_t i) -> started {
    (void)co_await semaphore.acquire(1, sources[i].get_token());
    depth.here();
    ++passed;
    sources[i + 1].request_stop();
  };
  std::vector<started> waiters;
  for (std::size_t i = 0; i < length; ++i) waiters.push_back(stops_the_next(i));
  sources[0].request_stop();
  CHECK(passed == length);
  CHECK(depth.bytes() < 16 * 1024);
}

TEST_CASE("semaphore: a million acquires that need not wait, in a loop of tasks, run on a flat stack") {
  async_semaphore semaphore(1);
  stack_depth depth;
  const auto take_once = [](async_semaphore& s, stack_depth& d) -> cobatch::task<> {
    const permit held = co_await s.acquire();
    d.here();
  };
  const auto loop = [&]() -> started {
    for (int i = 0; i < 1'000'000; ++i) co_await take_once(semaphore, depth);
  };
  CHECK(loop().done());
  CHECK(depth.bytes() < 16 * 1024);
}
