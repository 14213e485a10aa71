// expected: only looks awaitable
#include <cobatch/batch_predict.hpp>

#include <future>
#include <vector>

#include <cobatch/executor.hpp>

void f(cobatch::inline_executor& executor, std::vector<int>& samples) {
  (void)cobatch::batch_predict(executor, samples, [](int x) { return std::async([x] { return x; }); });
}
