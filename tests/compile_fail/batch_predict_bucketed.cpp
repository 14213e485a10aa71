// expected: a predict that takes one sample has nothing to group
#include <cobatch/batch_predict.hpp>

#include <cstddef>
#include <vector>

#include <cobatch/executor.hpp>
#include <cobatch/micro_batch_options.hpp>

void f(cobatch::inline_executor& executor, std::vector<int>& samples) {
  const auto key = [](int x) { return static_cast<std::size_t>(x); };
  auto predict = cobatch::bucketed([](int x) { return x; }, key);
  (void)cobatch::batch_predict(executor, samples, predict);
}
