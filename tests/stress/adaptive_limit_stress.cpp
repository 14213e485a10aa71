#include <cobatch/adaptive_limit.hpp>

#include <atomic>
#include <chrono>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <optional>
#include <random>
#include <stop_token>
#include <thread>
#include <utility>
#include <vector>

#include <cobatch/executor.hpp>
#include <cobatch/thread_pool.hpp>

#include "support/catch.hpp"

using cobatch::adaptive_algorithm;
using cobatch::adaptive_limit;
using cobatch::thread_pool;
using namespace std::chrono_literals;

namespace {

/// A coroutine that starts at once and destroys itself at its end.
struct detached {
  struct promise_type {
    detached get_return_object() const noexcept { return {}; }
    std::suspend_never initial_suspend() const noexcept { return {}; }
    std::suspend_never final_suspend() const noexcept { return {}; }
    void return_void() const noexcept {}
    void unhandled_exception() const noexcept { std::terminate(); }
  };
};

struct counts {
  std::atomic<std::size_t> tickets{0};
  std::atomic<std::size_t> stopped{0};
  std::atomic<std::size_t> holders{0};
  std::atomic<std::size_t> most{0};
  std::atomic<int> alive{0};
};

detached user(thread_pool& pool, adaptive_limit& limit, std::stop_token stop, std::uint64_t seed, int rounds,
              counts& all) {
  std::minstd_rand random(static_cast<std::minstd_rand::result_type>(seed));
  co_await cobatch::schedule(pool);
  for (int i = 0; i < rounds; ++i) {
    auto ticket = co_await limit.acquire(stop);
    if (!ticket) {
      ++all.stopped;
      continue;
    }
    ++all.tickets;
    const std::size_t holders = ++all.holders;
    for (std::size_t most = all.most; holders > most && !all.most.compare_exchange_weak(most, holders);) {}
    if (random() % 2 == 0) co_await cobatch::schedule(pool);
    --all.holders;
    switch (random() % 8) {
      case 0:
        ticket->dropped();
        break;
      case 1:
        ticket->release();
        break;
      case 2:
        break;
      default:
        ticket->succeeded(std::chrono::microseconds(100 + random() % 100));
    }
  }
  --all.alive;  // the last access to what the test owns
}

}  // namespace

TEST_CASE("adaptive limit: on several threads tickets are conserved and the cap is never exceeded") {
  const auto algorithm = GENERATE(adaptive_algorithm::aimd, adaptive_algorithm::gradient);
  const std::uint64_t seed = 31;
  CAPTURE(seed);
  constexpr int users = 40;
  constexpr int rounds = 500;
  thread_pool pool(4);
  adaptive_limit limit({.initial = 4, .max = 12, .algorithm = algorithm});
  counts all;
  all.alive = users;
  std::vector<std::stop_source> stops(users);
  for (std::size_t i = 0; i < users; ++i) user(pool, limit, stops[i].get_token(), seed + i, rounds, all);
  for (std::size_t i = 0; i < users; i += 4) {
    stops[i].request_stop();
    std::this_thread::sleep_for(200us);
  }
  while (all.alive != 0) std::this_thread::sleep_for(100us);
  CHECK(all.tickets + all.stopped == users * rounds);
  CHECK(all.most <= 12);
  CHECK(limit.in_flight() == 0);
  CHECK(limit.waiting() == 0);
  CHECK(limit.limit() >= 1);
  CHECK(limit.limit() <= 12);
  std::vector<adaptive_limit::ticket> tickets;
  while (auto ticket = limit.try_acquire()) tickets.push_back(std::move(*ticket));
  CHECK(tickets.size() == limit.limit());
}
