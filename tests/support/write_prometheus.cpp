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
  // Two of them in one exposition, one of which has failed with codes of the user's own.
  cobatch::batch_metrics failed;
  for (const int code : {20, 21, 200}) {
    cobatch::sample_event own;
    own.failure = static_cast<cobatch::errc>(code);
    failed.sample_finished(own);
  }
  cobatch::prometheus_writer("two")
      .add(metrics.snapshot(), {{"model", "a"}})
      .add(failed.snapshot(), {{"model", "\xff not UTF-8"}})
      .write(std::cout);
}
