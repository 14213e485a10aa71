// Ten samples, each answered by a model that takes 0.1 to 0.5 s: all of them together take as long as the slowest.
#include <chrono>
#include <cstdio>
#include <random>
#include <vector>

#include <cobatch/cobatch.hpp>

using namespace std::chrono_literals;

struct sample {
  int value;
  std::chrono::milliseconds latency;  // of the simulated model
};

int main() {
  std::mt19937 random(42);  // a fixed seed: every run is the same
  std::vector<sample> samples;
  std::chrono::milliseconds one_after_another = 0ms;
  for (int i = 1; i <= 10; ++i) {
    samples.push_back({i, std::chrono::milliseconds(100 + random() % 401)});
    one_after_another += samples.back().latency;
  }

  cobatch::thread_pool pool;
  const auto predict = [&](const sample& x) -> cobatch::task<int> {
    co_await pool.schedule_after(x.latency);  // suspends this coroutine, blocks no thread
    co_return 2 * x.value;
  };

  const auto begin = std::chrono::steady_clock::now();
  const auto results = cobatch::sync_wait(cobatch::batch_predict(pool, samples, predict));
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;

  bool all_right = results.size() == samples.size();
  for (std::size_t i = 0; i < results.size(); ++i) {  // results are in the order of the samples
    if (results[i]) {
      std::printf("%2d -> %2d\n", samples[i].value, *results[i]);
    } else {
      std::printf("%2d -> error: %s\n", samples[i].value, results[i].error().message().c_str());
    }
    all_right = all_right && results[i] == 2 * samples[i].value;
  }
  std::printf("%.2f s; one after another it would have been %.2f s\n", took.count(),
              std::chrono::duration<double>(one_after_another).count());
  return all_right ? 0 : 1;
}
