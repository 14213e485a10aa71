// A predict that takes move-only samples by value would empty the range of the caller: only one that the batch owns.
// expected: cobatch: predict must be callable
#include <cobatch/batch_predict.hpp>

#include <memory>
#include <vector>

#include <cobatch/executor.hpp>

void f(cobatch::inline_executor& executor, std::vector<std::unique_ptr<int>>& samples) {
  (void)cobatch::batch_predict(executor, samples, [](std::unique_ptr<int> sample) { return *sample; });
}
