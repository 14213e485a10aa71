// SPDX-License-Identifier: BSL-1.0
#include <cobatch/cobatch.hpp>

#include <stdexcept>
#include <vector>

int outcome_without_exceptions();

namespace {

int model(int x) {
  if (x == 2) throw std::runtime_error("bad sample");
  return 10 * x;
}

}  // namespace

// Both units run batches of the same type; only this one can catch what a predict throws.
int main() {
  cobatch::thread_pool pool(2);
  const std::vector<int> samples{1, 2, 3};
  const auto results = cobatch::sync_wait(cobatch::batch_predict(pool, samples, &model));
  const bool right = results[0] == 10 && !results[1] && results[1].error().code == cobatch::errc::exception &&
                     results[2] == 30 && outcome_without_exceptions() == 3;
  return right ? 0 : 1;
}
