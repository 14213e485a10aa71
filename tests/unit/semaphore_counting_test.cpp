#include <cobatch/semaphore.hpp>

#include <cstddef>
#include <limits>
#include <optional>
#include <stdexcept>
#include <type_traits>
#include <utility>
#include <vector>

#include <cobatch/detail/awaitable.hpp>

#include "semaphore_coroutines.hpp"
#include "support/catch.hpp"
#include "support/step_executor.hpp"

using cobatch::async_semaphore;
using cobatch::permit;
using namespace semaphore_coroutines;

namespace {

using acquire_awaitable = decltype(std::declval<async_semaphore&>().acquire());
using stoppable_awaitable = decltype(std::declval<async_semaphore&>().acquire(1, std::stop_token()));

template <class T>
constexpr bool is_a_portable_awaitable =
    std::is_move_constructible_v<T> && !std::is_copy_constructible_v<T> && !std::is_aggregate_v<T> &&
    cobatch::detail::awaitable<T> && noexcept(std::declval<const T&>().await_ready()) &&
    std::is_same_v<bool, decltype(std::declval<T&>().await_suspend(std::coroutine_handle<>()))>;

static_assert(is_a_portable_awaitable<acquire_awaitable>);
static_assert(is_a_portable_awaitable<stoppable_awaitable>);
static_assert(std::is_same_v<permit, cobatch::detail::await_result<acquire_awaitable>>);
static_assert(
    std::is_same_v<cobatch::expected<permit, cobatch::error>, cobatch::detail::await_result<stoppable_awaitable>>);

// [A10] The semaphore itself is no awaitable: `co_await semaphore` does not compile.
static_assert(!cobatch::detail::awaitable<async_semaphore&>);
static_assert(!std::is_copy_constructible_v<async_semaphore> && !std::is_move_constructible_v<async_semaphore>);

constinit async_semaphore static_semaphore(3);

}  // namespace

TEST_CASE("semaphore: as many try_acquire as the limit succeed, the next one fails") {  // [A1]
  for (const std::size_t limit : {1u, 2u, 7u}) {
    async_semaphore semaphore(limit);
    CHECK(semaphore.available() == limit);
    std::vector<permit> permits;
    for (std::size_t i = 0; i < limit; ++i) {
      std::optional<permit> taken = semaphore.try_acquire();
      REQUIRE(taken);
      permits.push_back(std::move(*taken));
      CHECK(semaphore.available() == limit - i - 1);
    }
    CHECK_FALSE(semaphore.try_acquire());
    CHECK_FALSE(semaphore.try_acquire());
    CHECK(semaphore.available() == 0);
  }
}

TEST_CASE("semaphore: of 0 permits try_acquire fails and acquire suspends") {  // [A2]
  async_semaphore semaphore(0);
  numbers log;
  CHECK_FALSE(semaphore.try_acquire());
  started waiting = take(semaphore, log, 1);
  CHECK_FALSE(waiting.done());
  CHECK(semaphore.waiting() == 1);
  semaphore.release();
  CHECK(waiting.done());
}

TEST_CASE("semaphore: a negative number is an error, never a huge number") {  // [A3]
  const int minus_one = -1;
  CHECK_THROWS_AS(async_semaphore(minus_one), std::invalid_argument);
  async_semaphore semaphore(1);
  CHECK_THROWS_AS(semaphore.acquire(minus_one), std::invalid_argument);
  CHECK_THROWS_AS(semaphore.try_acquire(-2L), std::invalid_argument);
  CHECK_THROWS_AS(semaphore.release(minus_one), std::invalid_argument);
  CHECK_THROWS_AS(semaphore.set_limit(minus_one), std::invalid_argument);
  CHECK(semaphore.available() == 1);
  CHECK(semaphore.limit() == 1);
}

TEST_CASE("semaphore: limit() does not depend on what is taken") {  // [A4]
  async_semaphore semaphore(64);
  const std::optional<permit> taken = semaphore.try_acquire(32);
  CHECK(semaphore.limit() == 64);
  CHECK(semaphore.available() == 32);
}

TEST_CASE("semaphore: acquire with a permit free does not suspend") {  // [A5]
  async_semaphore semaphore(2);
  step_executor ex;
  permit taken;
  const started taker = ex.run([&] { return take_into(semaphore, taken); });
  CHECK(taker.done());
  CHECK(ex.queued() == 0);
  CHECK(taken.weight() == 1);
  CHECK(semaphore.available() == 1);
}

TEST_CASE("semaphore: k acquires and k releases restore the count, in either order") {  // [A6]
  constexpr std::size_t limit = 5;
  async_semaphore semaphore(limit);
  for (std::size_t k = 1; k <= limit; ++k) {
    for (const bool first_in_first_out : {true, false}) {
      std::vector<permit> permits;
      for (std::size_t i = 0; i < k; ++i) permits.push_back(semaphore.try_acquire().value());
      CHECK(semaphore.available() == limit - k);
      for (std::size_t i = 0; i < k; ++i) {
        permits[first_in_first_out ? i : k - 1 - i].release();
        CHECK(semaphore.available() == limit - k + i + 1);
      }
    }
  }
}

TEST_CASE("semaphore: release with nobody waiting adds a permit that try_acquire gets") {  // [A7]
  async_semaphore semaphore(0);
  semaphore.release();
  CHECK(semaphore.available() == 1);
  CHECK(semaphore.try_acquire());
}

TEST_CASE("semaphore: the holder of the only permit cannot take it again until it is given back") {  // [A8]
  async_semaphore semaphore(1);
  {
    const std::optional<permit> held = semaphore.try_acquire();
    CHECK(held);
    CHECK_FALSE(semaphore.try_acquire());
  }
  CHECK(semaphore.try_acquire());
}

TEST_CASE("semaphore: release beyond the limit adds permits that stay, and the limit as it is") {  // [A9]
  async_semaphore semaphore(2);
  semaphore.release(3);
  CHECK(semaphore.limit() == 2);
  CHECK(semaphore.available() == 5);
  CHECK(semaphore.try_acquire(5));
  CHECK(semaphore.available() == 5);
  semaphore.set_limit(1);
  CHECK(semaphore.available() == 4);
  semaphore.release(0);
  CHECK(semaphore.available() == 4);
}

TEST_CASE("semaphore: counts end at max() and never wrap") {  // [A9]
  constexpr std::size_t huge = std::numeric_limits<std::size_t>::max();
  constexpr std::size_t most = async_semaphore::max();
  async_semaphore semaphore(huge);
  CHECK(semaphore.limit() == huge);
  CHECK(semaphore.available() == most);
  for (int i = 0; i < 10; ++i) {
    semaphore.release(huge);
    semaphore.release(1);
    semaphore.release(1'000'000);
  }
  CHECK(semaphore.available() == most);
  CHECK_FALSE(semaphore.try_acquire(huge));
  {
    const std::optional<permit> all = semaphore.try_acquire(most);
    REQUIRE(all);
    CHECK(semaphore.available() == 0);
    semaphore.release(huge);
    CHECK(semaphore.available() == most);
  }
  CHECK(semaphore.available() == most);
  semaphore.set_limit(0);
  CHECK(semaphore.available() == 0);
  semaphore.set_limit(huge);
  CHECK(semaphore.available() == most);
}

TEST_CASE("semaphore: an acquire that is never awaited takes nothing") {  // [B13]
  async_semaphore semaphore(1);
  {
    [[maybe_unused]] auto plain = semaphore.acquire();
    [[maybe_unused]] auto stoppable = semaphore.acquire(1, std::stop_token());
    auto moved = std::move(plain);
    CHECK_FALSE(moved.await_ready());
    CHECK(semaphore.available() == 1);
  }
  CHECK(semaphore.available() == 1);
}

TEST_CASE("semaphore: an acquire may be moved before it is awaited") {
  async_semaphore semaphore(1);
  numbers log;
  const auto coroutine = [](async_semaphore& s, numbers& l) -> started {
    auto made = s.acquire();
    auto moved = std::move(made);
    const permit taken = co_await moved;
    l.push_back(static_cast<int>(taken.weight()));
    auto stoppable = s.acquire(1, std::stop_token());
    auto moved_stoppable = std::move(stoppable);
    const auto result = co_await std::move(moved_stoppable);
    l.push_back(result.has_value() ? 1 : 0);
  };
  started waiting = coroutine(semaphore, log);
  semaphore.release();
  CHECK(waiting.done());
  CHECK(log == numbers{1, 1});
}

TEST_CASE("semaphore: a weight of 0 takes nothing, but waits until a permit is free") {
  async_semaphore semaphore(1);
  permit nothing;
  {
    const started taker = take_into(semaphore, nothing, 0);
    CHECK(taker.done());
    CHECK(nothing);
    CHECK(nothing.weight() == 0);
    CHECK(semaphore.available() == 1);
  }
  permit one = semaphore.try_acquire().value();
  CHECK_FALSE(semaphore.try_acquire(0));
  const started taker = take_into(semaphore, nothing, 0);
  CHECK_FALSE(taker.done());
  one.release();
  CHECK(taker.done());
  nothing.release();
  CHECK(semaphore.available() == 1);
}

TEST_CASE("semaphore: can be a global variable without an initialisation at run time") {
  CHECK(static_semaphore.try_acquire(3));
  CHECK(static_semaphore.available() == 3);
}
