#include <cobatch/detail/pool_shard.hpp>

#include <array>
#include <coroutine>

#include "support/catch.hpp"

using cobatch::detail::pool_shard;
using cobatch::detail::timer_queue;

TEST_CASE("pool_shard: nothing at all is taken, and nothing is queued by it") {
  pool_shard shard;
  CHECK(shard.push({}) != pool_shard::tell::refused);
  CHECK_FALSE(shard.has_queued());
  CHECK_FALSE(shard.has_work(0));
  CHECK(shard.lie_down() == timer_queue::never);
}

TEST_CASE("pool_shard: something is queued until the last of it is taken, also if nothing at all comes meanwhile") {
  pool_shard shard;
  const std::array<std::coroutine_handle<>, 2> two{std::noop_coroutine(), std::noop_coroutine()};
  std::array<std::coroutine_handle<>, 8> taken;
  shard.push(two);
  CHECK(shard.has_queued());
  CHECK(shard.take(taken, 1, 0, false) == 1);
  CHECK(shard.has_queued());
  shard.push({});
  CHECK(shard.has_queued());
  CHECK(shard.take(taken, 8, 0, false) == 1);
  CHECK_FALSE(shard.has_queued());
}

TEST_CASE("pool_shard: once stopped it refuses, even nothing at all") {
  pool_shard shard;
  shard.stop();
  CHECK(shard.push({}) == pool_shard::tell::refused);
  CHECK(shard.finished());
}
