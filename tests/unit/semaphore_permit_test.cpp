#include <cobatch/semaphore.hpp>

#include <optional>
#include <stdexcept>
#include <type_traits>
#include <utility>

#include "semaphore_coroutines.hpp"
#include "support/catch.hpp"

using cobatch::async_semaphore;
using cobatch::permit;
using namespace semaphore_coroutines;

static_assert(std::is_nothrow_move_constructible_v<permit> && std::is_nothrow_move_assignable_v<permit>);
static_assert(!std::is_copy_constructible_v<permit> && !std::is_copy_assignable_v<permit>);
static_assert(std::is_nothrow_default_constructible_v<permit> && !std::is_aggregate_v<permit>);
static_assert(!std::is_convertible_v<permit, bool> && std::is_constructible_v<bool, permit>);

TEST_CASE("permit: is given back when its scope ends, by return or by exception") {  // [D1]
  async_semaphore semaphore(2);
  const auto body = [&](bool fail) -> started {
    try {
      const permit held = co_await semaphore.acquire(2);
      if (fail) throw std::runtime_error("here");
      co_return;
    } catch (const std::runtime_error&) {}
  };
  for (const bool fail : {false, true}) {
    const started coroutine = body(fail);
    CHECK(coroutine.done());
    CHECK(semaphore.available() == 2);
  }
}

TEST_CASE("permit: moved from, it gives nothing back") {  // [D2]
  async_semaphore semaphore(1);
  {
    permit first = semaphore.try_acquire().value();
    permit second = std::move(first);
    CHECK_FALSE(first);
    CHECK(first.weight() == 0);
    CHECK(second);
    first.release();
    CHECK(semaphore.available() == 0);
  }
  CHECK(semaphore.available() == 1);
}

TEST_CASE("permit: assigning over one gives the old one back and wakes its waiter") {  // [D3]
  async_semaphore semaphore(1);
  async_semaphore other(1);
  permit held = semaphore.try_acquire().value();
  numbers log;
  const started waiter = take(semaphore, log, 1);
  held = other.try_acquire().value();
  CHECK(waiter.done());
  CHECK(other.available() == 0);
  held = permit();
  CHECK(other.available() == 1);
}

TEST_CASE("permit: assigned to itself it stays what it is") {
  async_semaphore semaphore(1);
  permit held = semaphore.try_acquire().value();
  permit& same = held;
  held = std::move(same);
  CHECK(held);
  CHECK(semaphore.available() == 0);
}

TEST_CASE("permit: released early and then destroyed, it is given back once") {  // [D4]
  async_semaphore semaphore(3);
  {
    permit held = semaphore.try_acquire(3).value();
    held.release();
    CHECK_FALSE(held);
    CHECK(semaphore.available() == 3);
    held.release();
  }
  CHECK(semaphore.available() == 3);
}

TEST_CASE("permit: try_acquire gives an empty optional where none is free") {  // [D5]
  async_semaphore semaphore(3);
  std::optional<permit> two = semaphore.try_acquire(2);
  REQUIRE(two);
  CHECK(*two);
  CHECK(two->weight() == 2);
  CHECK_FALSE(semaphore.try_acquire(2));
  two.reset();
  CHECK(semaphore.try_acquire(2));
}

TEST_CASE("permit: detached, its weight is the caller's to release") {
  async_semaphore semaphore(3);
  permit held = semaphore.try_acquire(2).value();
  const std::size_t weight = held.detach();
  CHECK_FALSE(held);
  CHECK(weight == 2);
  CHECK(semaphore.available() == 1);
  semaphore.release(weight);
  CHECK(semaphore.available() == 3);
}

TEST_CASE("permit: released by the coroutine that its release wakes, it is given back once") {
  async_semaphore semaphore(1);
  permit held = semaphore.try_acquire().value();
  const auto coroutine = [&]() -> started {
    const permit mine = co_await semaphore.acquire();
    held.release();
    CHECK_FALSE(held);
  };
  const started waiter = coroutine();
  held.release();
  CHECK(waiter.done());
  CHECK(semaphore.available() == 1);
}
