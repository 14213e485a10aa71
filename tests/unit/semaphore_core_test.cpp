#include <cobatch/detail/semaphore_core.hpp>

#include <coroutine>
#include <cstddef>

#include "support/catch.hpp"

using cobatch::detail::semaphore_core;
using cobatch::detail::semaphore_outcome;
using cobatch::detail::semaphore_waiter;
using first_try = semaphore_core::first_try;

namespace {

struct idle_waiter : semaphore_waiter {
  explicit idle_waiter(cobatch::detail::permit_count wanted) : semaphore_waiter(wanted) {
    handle = std::noop_coroutine();
  }
};

}  // namespace

TEST_CASE("semaphore core: raw handles can wait, be cancelled and wait again") {
  semaphore_core core(1);
  idle_waiter one(1), two(1), heavy(2);
  CHECK(core.acquire_or_wait(one));
  CHECK(one.outcome == semaphore_outcome::granted);
  CHECK(core.acquire_or_wait(heavy));
  CHECK(heavy.outcome == semaphore_outcome::too_heavy);
  CHECK_FALSE(core.acquire_or_wait(two));
  CHECK(two.outcome == semaphore_outcome::queued);
  CHECK(core.cancel(two));
  CHECK(two.outcome == semaphore_outcome::cancelled);
  CHECK_FALSE(core.cancel(two));
  CHECK_FALSE(core.acquire_or_wait(two));
  core.give(one.weight);
  CHECK(two.outcome == semaphore_outcome::granted);
  CHECK_FALSE(core.cancel(two));
  core.give(two.weight);
  CHECK(core.available() == 1);
}

TEST_CASE("semaphore core: a waiter stopped before it queues does not queue") {
  // The stop comes between the look at the token and the queue: its callback runs inside await_suspend.
  semaphore_core core(0);
  idle_waiter waiter(1);
  core.stop(waiter);
  CHECK(core.wait_for(waiter, first_try::refused));
  CHECK(waiter.outcome == semaphore_outcome::stopped);
  CHECK(core.waiting() == 0);
}

// What follows plays two threads that meet between the two halves of acquire_or_wait().

TEST_CASE("semaphore core: a permit given between the halves of an acquire is taken by the second") {
  semaphore_core core(0);
  idle_waiter waiter(1);
  CHECK(core.take_first(1) == first_try::overdrawn);
  core.give(1);
  CHECK(core.wait_for(waiter, first_try::overdrawn));
  CHECK(waiter.outcome == semaphore_outcome::granted);
  CHECK(core.available() == 0);
  core.give(1);
  CHECK(core.available() == 1);
}

TEST_CASE("semaphore core: an overdraft that makes another one queue lets it go on when it is paid back") {
  semaphore_core core(2);
  idle_waiter heavy(3), light(1);
  CHECK(core.take_first(3) == first_try::overdrawn);
  CHECK(core.available() == 0);
  CHECK_FALSE(core.try_take(1));
  CHECK_FALSE(core.acquire_or_wait(light));  // overdrawn too; closes the word and inherits the other's debt
  CHECK(core.waiting() == 1);
  CHECK(core.wait_for(heavy, first_try::overdrawn));
  CHECK(heavy.outcome == semaphore_outcome::too_heavy);
  CHECK(light.outcome == semaphore_outcome::granted);
  CHECK(core.available() == 1);
  CHECK(core.try_take(1));
}

TEST_CASE("semaphore core: an overdraft outlives closing and opening, and is paid back once") {
  semaphore_core core(4);
  CHECK(core.try_take(2));
  idle_waiter heavy(4), light(1);
  CHECK(core.take_first(4) == first_try::overdrawn);  // 2 - 4
  CHECK_FALSE(core.acquire_or_wait(light));           // closed, -2 free
  core.give(2);                                       // 0
  CHECK(light.outcome == semaphore_outcome::queued);
  core.give(1);  // 1: granted, 0 free, open
  CHECK(light.outcome == semaphore_outcome::granted);
  CHECK(core.waiting() == 0);
  CHECK(core.wait_for(heavy, first_try::overdrawn));  // 4 again, and all of them are for this one
  CHECK(heavy.outcome == semaphore_outcome::granted);
  CHECK(core.available() == 0);
}

TEST_CASE("semaphore core: an overdraft may be paid back after the limit has moved") {
  for (const std::size_t limit : {0u, 1u, 3u, 9u}) {
    semaphore_core core(2);
    idle_waiter waiter(3);
    CHECK(core.take_first(3) == first_try::overdrawn);
    core.set_limit(limit);
    const bool settled = core.wait_for(waiter, first_try::overdrawn);
    CHECK(settled == (limit != 0));
    if (!settled) {
      CHECK(core.available() == 0);
      CHECK(core.cancel(waiter));
    }
    if (waiter.outcome == semaphore_outcome::granted) core.give(3);
    CHECK((waiter.outcome == semaphore_outcome::granted) == (limit >= 3));
    CHECK(core.available() == limit);
    CHECK(core.waiting() == 0);
  }
}

TEST_CASE("semaphore core: what is tried on a closed word leaves no trace") {
  semaphore_core core(1);
  CHECK(core.try_take(1));
  idle_waiter waiter(1), others[3] = {idle_waiter(1), idle_waiter(1), idle_waiter(1)};
  CHECK_FALSE(core.acquire_or_wait(waiter));
  for (idle_waiter& each : others) {
    CHECK(core.take_first(each.weight) == first_try::refused);
    CHECK_FALSE(core.wait_for(each, first_try::refused));
  }
  CHECK(core.available() == 0);
  for (int i = 0; i < 4; ++i) core.give(1);
  CHECK(core.waiting() == 0);
  CHECK(core.available() == 0);
  // Refused, and only then opened: nothing to pay back.
  CHECK_FALSE(core.acquire_or_wait(waiter));
  CHECK(core.take_first(1) == first_try::refused);
  core.give(2);
  CHECK(waiter.outcome == semaphore_outcome::granted);
  CHECK(core.wait_for(others[0], first_try::refused));
  CHECK(others[0].outcome == semaphore_outcome::granted);
  CHECK(core.available() == 0);
}
