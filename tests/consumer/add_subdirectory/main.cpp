// SPDX-License-Identifier: BSL-1.0
#include <cobatch/cobatch.hpp>

#include <cstdio>
#include <vector>

static_assert(COBATCH_VERSION > 0);

cobatch::task<int> sum_of_squares(cobatch::thread_pool& pool, const std::vector<int>& samples) {
  const auto results =
      co_await cobatch::batch_predict(pool, samples, [](int x) { return x * x; }, {.max_concurrency = 2});
  int sum = 0;
  for (const auto& each : results) sum += each.value();
  co_return sum;
}

int main() {
  cobatch::thread_pool pool(2);
  const std::vector<int> samples{1, 2, 3, 4};
  const int sum = cobatch::sync_wait(sum_of_squares(pool, samples));
  std::printf("cobatch %s: %d\n", cobatch::version_string.data(), sum);
  return sum == 30 ? 0 : 1;
}
