// SPDX-License-Identifier: BSL-1.0
#include <cobatch/observer.hpp>

#include <atomic>
#include <stdexcept>
#include <type_traits>

#include "support/catch.hpp"
#include "support/told.hpp"

using namespace std::chrono_literals;
using cobatch::errc;

static_assert(std::is_trivially_copyable_v<cobatch::attempt_event>);
static_assert(!std::is_constructible_v<cobatch::observers<1>, scribe>, "a temporary observer would be gone");

namespace {

struct thrower : cobatch::batch_observer {
  void attempt_started(const cobatch::attempt_event&) override { throw std::runtime_error("no"); }
};

}  // namespace

TEST_CASE("observer: hooks that are not overridden do nothing") {
  cobatch::batch_observer nothing;
  teller batch(nothing);
  batch.sample(0, 1ms);
  batch.retry(1, 1, errc::timed_out, 1ms);
  batch.taken(0, 0ns, 0ns);
  nothing.wait_started({});
  nothing.wait_ended({});
  batch.end();
}

TEST_CASE("observer: an exception from a hook is swallowed and counted") {
  thrower bad;
  std::atomic<std::uint64_t> failures{0};
  cobatch::detail::notify(&bad, failures, &cobatch::batch_observer::attempt_started, cobatch::attempt_event{});
  cobatch::detail::notify(&bad, failures, &cobatch::batch_observer::attempt_ended, cobatch::attempt_event{});
  CHECK(failures == 1);
}

TEST_CASE("observer: two batches never have the same number") {
  const auto first = cobatch::detail::next_batch_number();
  CHECK(cobatch::detail::next_batch_number() != first);
}

TEST_CASE("observers: all of them are told everything, in their order") {
  scribe first, second;
  cobatch::observers both(first, second);
  static_assert(std::is_same_v<decltype(both), cobatch::observers<2>>);
  teller batch(both, 8, 1);
  both.wait_started({});
  both.wait_ended({});
  batch.attempt(7, 1ms, 1, errc::timed_out);
  batch.retry(7, 1, errc::timed_out, 1ms);
  batch.sample(7, 1ms);
  batch.taken(7, 0ns, 0ns);
  batch.end();
  CHECK(first.lines == std::vector<std::string>{"batch_started", "wait_started", "wait_ended", "attempt_started 7",
                                                "attempt_ended 7", "sample_retried 7", "attempt_started 7",
                                                "attempt_ended 7", "sample_finished 7", "sample_taken 7", "batch_ended"});
  CHECK(second.lines == first.lines);
}

TEST_CASE("observers: one that throws keeps nothing from the others, and its exception goes on") {
  thrower bad;
  scribe good;
  cobatch::observers both(bad, good);
  CHECK_THROWS_AS(both.attempt_started({}), std::runtime_error);
  CHECK(good.lines.size() == 1);
}

TEST_CASE("observers: they nest") {
  scribe one, two, three;
  cobatch::observers inner(one, two);
  cobatch::observers outer(inner, three);
  outer.attempt_started({});
  CHECK(one.lines.size() + two.lines.size() + three.lines.size() == 3);
}
