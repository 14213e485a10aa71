#include <cobatch/engine/retries.hpp>

#include <chrono>
#include <cstddef>

#include "support/allocations.hpp"
#include "support/catch.hpp"

using std::chrono::nanoseconds;

namespace {

struct sample {
  std::size_t index;
};
using queue = cobatch::detail::retry_queue<sample>;

}  // namespace

TEST_CASE("retry_queue: samples come back in the order in which they are due") {
  queue waits;
  CHECK(waits.push({1}, nanoseconds(20), false) == queue::pushed::is_next);
  CHECK(waits.push({2}, nanoseconds(10), false) == queue::pushed::is_next);
  CHECK(waits.push({3}, nanoseconds(20), false) == queue::pushed::sleeps);
  CHECK(waits.push({4}, nanoseconds(0), true) == queue::pushed::ready);
  CHECK(waits.next_due() == nanoseconds(10));
  CHECK(waits.wake(nanoseconds(20)) == 3);
  sample next{};
  for (const std::size_t expected : {4u, 2u, 1u, 3u}) {
    REQUIRE(waits.take(next));
    CHECK(next.index == expected);
  }
  CHECK_FALSE(waits.take(next));
}

TEST_CASE("retry_queue: where some always sleep and some are always ready, it does not grow") {
  queue waits;
  for (std::size_t i = 0; i < 3; ++i) waits.push({i}, nanoseconds(1 + i), false);
  waits.wake(nanoseconds(2));
  std::size_t before = 0;
  for (long due = 4; due < 100'000; ++due) {
    sample next{};
    REQUIRE(waits.take(next));
    REQUIRE(waits.push(next, nanoseconds(due), false) != queue::pushed::no_memory);
    waits.wake(nanoseconds(due - 1));
    if (due == 100) before = allocations();
  }
  CHECK(allocations() == before);
}

TEST_CASE("retry_queue: to wake needs no memory") {
  queue waits;
  for (std::size_t i = 0; i < 100; ++i) waits.push({i}, nanoseconds(1), false);
  fail_allocation_in(1);
  CHECK(waits.wake(nanoseconds(1)) == 100);
  CHECK(allocation_failure_is_pending());
}
