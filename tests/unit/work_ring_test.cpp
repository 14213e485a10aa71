#include <cobatch/detail/work_ring.hpp>

#include <array>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "support/allocations.hpp"
#include "support/catch.hpp"

using cobatch::detail::work_ring;

namespace {

/// Stands for a coroutine, and is never resumed.
std::coroutine_handle<> handle(std::size_t id) {
  return std::coroutine_handle<>::from_address(reinterpret_cast<void*>(8 * (id + 1)));
}

std::size_t id_of(std::coroutine_handle<> one) {
  return reinterpret_cast<std::uintptr_t>(one.address()) / 8 - 1;
}

struct thief {
  std::array<std::coroutine_handle<>, 64> taken{};
  work_ring::glance seen;

  std::size_t steal(work_ring& ring, std::int64_t now) { return ring.steal(taken, seen, now); }
};

constexpr std::int64_t soon = work_ring::pause;
constexpr std::int64_t long_after = 1'000'000;

}  // namespace

TEST_CASE("work_ring: first in, first out, through several times its first size, and while it grows") {
  for (const bool solo : {false, true}) {
    work_ring ring;
    if (solo) ring.never_stolen_from();
    std::size_t pushed = 0;
    std::size_t popped = 0;
    bool in_order = true;
    for (std::size_t round = 0; round < 3000; ++round) {
      REQUIRE(ring.push(handle(pushed++)));
      if (round % 3 != 0) REQUIRE(ring.push(handle(pushed++)));
      in_order = in_order && ring.pop() == handle(popped++);
    }
    CHECK(pushed - popped > 4 * std::size_t{work_ring::first_capacity} / 2);
    while (const auto one = ring.pop()) in_order = in_order && id_of(one) == popped++;
    CHECK(in_order);
    CHECK(popped == pushed);
    CHECK(ring.empty());
  }
}

TEST_CASE("work_ring: without memory to grow it refuses, and has lost nothing") {
  work_ring ring;
  for (std::size_t i = 0; i < work_ring::first_capacity; ++i) REQUIRE(ring.push(handle(i)));
  fail_allocation_in(1);
  CHECK_FALSE(ring.push(handle(7)));
  CHECK_FALSE(allocation_failure_is_pending());
  fail_allocation_in(1);
  CHECK(ring.make_room(1) == 0);
  CHECK_FALSE(allocation_failure_is_pending());
  CHECK(ring.make_room(1) >= 1);
  CHECK(ring.push(handle(work_ring::first_capacity)));
  for (std::size_t i = 0; i <= work_ring::first_capacity; ++i) CHECK(ring.pop() == handle(i));
}

TEST_CASE("work_ring: a thief takes the older half of many, at once") {
  work_ring ring;
  for (std::size_t i = 0; i < 11; ++i) ring.push(handle(i));
  thief one;
  REQUIRE(one.steal(ring, 0) == 6);
  for (std::size_t i = 0; i < 6; ++i) CHECK(one.taken[i] == handle(i));
  CHECK(ring.pop() == handle(6));
}

TEST_CASE("work_ring: few are left to an owner that comes to them, and taken from one that does not") {
  work_ring ring;
  thief one;
  for (std::size_t i = 0; i < 3; ++i) ring.push(handle(i));
  CHECK(one.steal(ring, 0) == 0);
  CHECK(one.steal(ring, 1) == 0);  // too soon to know
  for (std::size_t i = 0; i < 3; ++i) {
    CHECK(ring.pop() == handle(i));
    ring.push(handle(3 + i));
  }
  CHECK(one.steal(ring, soon) == 0);      // the owner has got through as many as there are
  CHECK(one.steal(ring, 2 * soon) == 0);  // a new look
  CHECK(ring.pop() == handle(3));
  CHECK(one.steal(ring, 3 * soon) == 1);  // only one of two since then
  CHECK(one.taken[0] == handle(4));
}

TEST_CASE("work_ring: a thief that takes naps sees as well that an owner does not come to what it has") {
  for (const std::size_t items : {1u, 4u, 7u}) {
    for (const std::int64_t nap : {50'000, 400'000}) {
      work_ring ring;
      thief one;
      for (std::size_t i = 0; i < items; ++i) ring.push(handle(i));
      CHECK(one.steal(ring, 0) == 0);
      for (std::size_t i = 0; i < items; ++i) ring.push(ring.pop());
      CHECK(one.steal(ring, nap) == 0);  // says only that it came to all of them some time
      ring.push(ring.pop());
      CHECK(one.steal(ring, nap + soon) == (items == 1 ? 0 : (items + 1) / 2));
    }
  }
}

TEST_CASE("work_ring: a thief that takes naps leaves what moves to its owner") {
  work_ring ring;
  thief one;
  for (std::size_t i = 0; i < 3; ++i) ring.push(handle(i));
  for (std::int64_t now = 0; now < 100 * long_after; now += long_after) {
    for (const std::int64_t look : {now, now + soon}) {
      CHECK(one.steal(ring, look) == 0);
      for (std::size_t i = 0; i < 3; ++i) ring.push(ring.pop());
    }
  }
}

TEST_CASE("work_ring: an owner that comes to nothing during a nap is relieved of half at the end of it") {
  work_ring ring;
  thief one;
  for (std::size_t i = 0; i < 4; ++i) ring.push(handle(i));
  CHECK(one.steal(ring, 0) == 0);
  CHECK(one.steal(ring, long_after) == 2);
}

TEST_CASE("work_ring: a thief that was asked to takes one, however few there are") {
  work_ring ring;
  thief one;
  ring.push(handle(0));
  CHECK(ring.steal_one(one.taken) == 1);
  CHECK(ring.steal_one(one.taken) == 0);
  CHECK(ring.empty());
}

TEST_CASE("work_ring: the newest is taken back, newest first; what is older, or gone, is not") {
  for (const bool solo : {false, true}) {
    work_ring ring;
    if (solo) ring.never_stolen_from();
    CHECK_FALSE(ring.take_back(handle(0)));
    for (std::size_t i = 0; i < 3; ++i) ring.push(handle(i));
    CHECK_FALSE(ring.take_back(handle(0)));
    CHECK(ring.take_back(handle(2)));
    CHECK_FALSE(ring.take_back(handle(2)));
    CHECK(ring.take_back(handle(1)));
    ring.push(handle(3));
    CHECK(ring.pop() == handle(0));
    CHECK(ring.pop() == handle(3));
    CHECK_FALSE(ring.take_back(handle(3)));
    CHECK(ring.pop() == nullptr);
  }
}

TEST_CASE("work_ring: what a thief has taken is not taken back") {
  work_ring ring;
  thief one;
  ring.push(handle(0));
  CHECK(one.steal(ring, 0) == 0);
  CHECK(one.steal(ring, long_after) == 1);
  CHECK_FALSE(ring.take_back(handle(0)));
  ring.push(handle(1));
  CHECK(ring.pop() == handle(1));
}

TEST_CASE("work_ring: a thief that watches a lone item does not take what was pushed in its place") {
  work_ring ring;
  thief one;
  ring.push(handle(0));
  CHECK(one.steal(ring, 0) == 0);
  CHECK(ring.take_back(handle(0)));
  ring.push(handle(1));
  CHECK(one.steal(ring, soon) == 0);  // not the one that it saw
  CHECK(one.steal(ring, 2 * soon) == 0);
  CHECK(one.steal(ring, 3 * soon) == 1);
  CHECK(one.taken[0] == handle(1));
}
