// expected: must be constructible from cobatch::error
#include <cobatch/batch_predict.hpp>

#include <string>
#include <vector>

#include <cobatch/executor.hpp>
#include <cobatch/expected.hpp>

void f(cobatch::inline_executor& executor, std::vector<int>& samples) {
  (void)cobatch::batch_predict(executor, samples, [](int x) { return cobatch::expected<int, std::string>(x); });
}
