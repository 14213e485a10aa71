// SPDX-License-Identifier: BSL-1.0
#include <cobatch/cobatch.hpp>

#include <vector>

const void* address_in_other();
cobatch::task<int> doubled_in_other(cobatch::thread_pool& pool, const std::vector<int>& samples);

cobatch::task<int> doubled_here(cobatch::thread_pool& pool, const std::vector<int>& samples) {
  int sum = 0;
  for (const auto& each : co_await cobatch::batch_predict(pool, samples, [](int x) { return 2 * x; })) sum += *each;
  co_return sum;
}

// An inline variable is one object in the whole program, and both units run the same templates on the same pool.
int main() {
  cobatch::thread_pool pool(2);
  const std::vector<int> samples{1, 2, 3};
  const bool same =
      cobatch::sync_wait(doubled_here(pool, samples)) == cobatch::sync_wait(doubled_in_other(pool, samples));
  return same && &cobatch::version_string == address_in_other() ? 0 : 1;
}
