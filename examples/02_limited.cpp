// Twenty samples under a semaphore of five, each logged as it finishes; one of them fails, and that stops no other.
#include <atomic>
#include <chrono>
#include <cstdio>
#include <random>
#include <stdexcept>
#include <vector>

#include <cobatch/cobatch.hpp>

struct sample {
  int value;
  std::chrono::milliseconds latency;
};

int main() {
  std::mt19937 random(42);
  std::vector<sample> samples;
  for (int i = 0; i < 20; ++i) samples.push_back({i, std::chrono::milliseconds(50 + random() % 201)});

  // Any number of batches may name the same semaphore: together they keep to it. For one batch alone
  // `.max_concurrency = 5` does the same.
  cobatch::async_semaphore at_most_five(5);
  cobatch::thread_pool pool;
  std::atomic<int> in_flight = 0;
  std::atomic<int> most_in_flight = 0;

  const auto begin = std::chrono::steady_clock::now();
  const auto seconds = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count(); };

  const auto predict = [&](const sample& x) -> cobatch::task<int> {
    const int now = ++in_flight;
    for (int most = most_in_flight; most < now && !most_in_flight.compare_exchange_weak(most, now);) {}
    co_await pool.schedule_after(x.latency);
    --in_flight;
    if (x.value == 13) {
      std::printf("%.2f s  sample %2d failed\n", seconds(), x.value);
      throw std::runtime_error("the server refused sample 13");
    }
    // One printf is one line, whole, from any thread: stdio locks its stream.
    std::printf("%.2f s  sample %2d is %2d\n", seconds(), x.value, 2 * x.value);
    co_return 2 * x.value;
  };

  const auto results = cobatch::sync_wait(cobatch::batch_predict(pool, samples, predict, {.semaphore = &at_most_five}));

  std::printf("\nin the order of the samples:\n");
  bool all_right = results.size() == samples.size();
  for (std::size_t i = 0; i < results.size(); ++i) {
    if (results[i]) {
      std::printf("%2d: %d\n", samples[i].value, *results[i]);
      all_right = all_right && *results[i] == 2 * samples[i].value;
    } else {
      std::printf("%2d: %s\n", samples[i].value, results[i].error().message().c_str());
      all_right = all_right && samples[i].value == 13 && results[i].error().code == cobatch::errc::exception;
    }
  }
  std::printf("never more than %d in flight\n", most_in_flight.load());
  return all_right && most_in_flight <= 5 ? 0 : 1;
}
