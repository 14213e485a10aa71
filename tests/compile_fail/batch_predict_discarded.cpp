// expected: nodiscard
// flags: -Werror=unused-result
#include <cobatch/batch_predict.hpp>

#include <vector>

#include <cobatch/executor.hpp>

void f(cobatch::inline_executor& executor, std::vector<int>& samples) {
  cobatch::batch_predict(executor, samples, [](int x) { return x; });
}
