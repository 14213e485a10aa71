// SPDX-License-Identifier: BSL-1.0
// Writes the metrics of a batch that is running, for `promtool check metrics`.
#include <array>
#include <iostream>
#include <stdexcept>
#include <vector>

#include <cobatch/batch_predict.hpp>
#include <cobatch/metrics.hpp>
#include <cobatch/simulation.hpp>
#include <cobatch/task.hpp>

int main() {
  cobatch::simulation sim;
  cobatch::batch_metrics metrics;
  const std::vector<int> samples(100);
  int calls = 0;
  const auto predict = [&](int) -> cobatch::task<> {
    const int call = ++calls;
    co_await sim.schedule_after(std::chrono::milliseconds(call));
    if (call % 10 == 0) throw std::runtime_error("bad");
    if (call != 50) co_return;
    // In the middle of the batch; with labels that need escapes.
    const std::array labels{cobatch::metric_label{"model", "a \"b\"\\c\nd"}, cobatch::metric_label{"zone", "eu"}};
    metrics.write_prometheus(std::cout, "my_service", labels);
  };
  sim.run(cobatch::batch_predict(sim, samples, predict, {.max_concurrency = 8, .observer = &metrics}));
  metrics.write_prometheus(std::cout);
}
