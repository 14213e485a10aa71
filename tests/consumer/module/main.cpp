// SPDX-License-Identifier: BSL-1.0
#include <coroutine>
#include <cstdio>
#include <vector>

import cobatch;

int main() {
  cobatch::thread_pool pool(2);
  const std::vector<int> samples{1, 2, 3, 4};
  const auto predict = [&](int x) -> cobatch::task<int> {
    co_await pool.schedule();
    co_return x * x;
  };
  const auto results = cobatch::sync_wait(cobatch::batch_predict(pool, samples, predict, {.max_concurrency = 2}));
  int sum = 0;
  for (const auto& each : results) sum += each.value();
  std::printf("cobatch %s: %d\n", cobatch::version_string.data(), sum);
  return sum == 30 ? 0 : 1;
}
