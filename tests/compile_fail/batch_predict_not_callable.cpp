// expected: cobatch: predict must be callable as predict(sample) or predict(sample, std::stop_token)
#include <cobatch/batch_predict.hpp>

#include <string>
#include <vector>

#include <cobatch/executor.hpp>

void f(cobatch::inline_executor& executor, std::vector<int>& samples) {
  (void)cobatch::batch_predict(executor, samples, [](const std::string& text) { return text.size(); });
}
