// SPDX-License-Identifier: BSL-1.0
#include <cobatch/cobatch.hpp>

#include <chrono>
#include <cstdio>
#include <ranges>
#include <stop_token>
#include <vector>

#if defined(__cpp_exceptions) || defined(__cpp_rtti)
#error "this file is compiled with -fno-exceptions -fno-rtti"
#endif

using namespace std::chrono_literals;
using cobatch::errc;

namespace {

int failures = 0;

void check(bool holds, const char* what) {
  if (holds) return;
  std::printf("FAILED: %s\n", what);
  ++failures;
}

cobatch::task<void> on_a_pool(cobatch::thread_pool& pool) {
  const std::vector<int> samples{1, 2, 3, 4, 5, 6};
  cobatch::async_semaphore semaphore(2);
  const auto results = co_await cobatch::batch_predict(pool, samples,
                                                       [&](int x) -> cobatch::task<int> {
                                                         co_await pool.schedule();
                                                         co_return x* x;
                                                       },
                                                       {.max_concurrency = 4, .semaphore = &semaphore, .deadline = 1h});
  int sum = 0;
  for (const auto& each : results) sum += each ? *each : 0;
  check(sum == 91, "every sample has its value");
  check(semaphore.available() == 2, "every permit came back");

  const auto lazy = co_await cobatch::batch_predict(
      pool, std::views::iota(0) | std::views::take_while([](int x) { return x < 100; }), [](int x) { return x; });
  check(lazy.size() == 100 && *lazy[99] == 99, "an input of unknown length");
}

cobatch::task<void> on_a_simulation(cobatch::simulation& sim) {
  const std::vector<int> samples{5, 50, 6, 60};
  const auto predict = [&](int x, std::stop_token token) -> cobatch::task<cobatch::expected<int, cobatch::error>> {
    if (!co_await sim.schedule_after(x * 1ms, token)) co_return cobatch::unexpected(cobatch::error(errc::queue_full));
    co_return x;
  };
  const auto results =
      co_await cobatch::batch_predict(sim, samples, predict, {.max_concurrency = 2, .timeout = 10ms, .deadline = 15ms});
  check(results[0].has_value() && results[2].has_value(), "what was quick enough");
  check(!results[1] && results[1].error().code == errc::timed_out, "an attempt that took too long");
  check(!results[3] && results[3].error().code == errc::deadline_exceeded, "what the deadline has stopped");
}

}  // namespace

int main() {
  cobatch::thread_pool pool(2);
  cobatch::sync_wait(on_a_pool(pool));
  cobatch::simulation sim;
  sim.run(on_a_simulation(sim));
  return failures;
}
