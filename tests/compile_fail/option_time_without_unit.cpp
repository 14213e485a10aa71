// expected: a time needs its unit: write 5s, 0.5s or 200ms
#include <cobatch/batch_predict.hpp>

#include <vector>

#include <cobatch/executor.hpp>

void f(cobatch::inline_executor& executor, std::vector<int>& samples) {
  (void)cobatch::batch_predict(executor, samples, [](int x) { return x; }, {.timeout = 5});
}
