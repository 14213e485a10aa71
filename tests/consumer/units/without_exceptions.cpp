// SPDX-License-Identifier: BSL-1.0
#include <cobatch/cobatch.hpp>

#include <vector>

namespace {

int same(int x) {
  return x;
}

}  // namespace

int outcome_without_exceptions();
int outcome_without_exceptions() {
  cobatch::thread_pool pool(2);
  const std::vector<int> samples{1, 2, 3};
  return *cobatch::sync_wait(cobatch::batch_predict(pool, samples, &same))[2];
}
