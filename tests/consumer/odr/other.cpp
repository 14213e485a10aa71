// SPDX-License-Identifier: BSL-1.0
#include <cobatch/cobatch.hpp>

#include <vector>

const void* address_in_other();
const void* address_in_other() {
  return &cobatch::version_string;
}

cobatch::task<int> doubled_in_other(cobatch::thread_pool& pool, const std::vector<int>& samples);
cobatch::task<int> doubled_in_other(cobatch::thread_pool& pool, const std::vector<int>& samples) {
  int sum = 0;
  for (const auto& each : co_await cobatch::batch_predict(pool, samples, [](int x) { return 2 * x; })) sum += *each;
  co_return sum;
}
