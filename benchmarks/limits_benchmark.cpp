// What the limit does to throughput and latency: for predicts that wait, that compute, and that ask a server which
// slows down once it is asked too much at once. benchmarks/plot draws it.

#include <cobatch/cobatch.hpp>

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <support/compute.hpp>
#include <support/measure.hpp>
#include <support/samples.hpp>
#include <support/statistics.hpp>

namespace bench {
namespace {

using cobatch::batch_predict;
using cobatch::sync_wait;
using cobatch::task;
using cobatch::thread_pool;
using namespace std::chrono_literals;

/// Waits for a device or a network; any number can wait at the same time.
class io_bound {
 public:
  explicit io_bound(thread_pool& pool) : pool_(pool) {}
  task<int> predict(int x) {
    co_await pool_.schedule_after(1ms);
    co_return x * 2;
  }

 private:
  thread_pool& pool_;
};

/// Computes, in pieces: between them others have their turn.
class cpu_bound {
 public:
  explicit cpu_bound(thread_pool& pool) : pool_(pool) {}
  task<int> predict(int x) {
    for (int piece = 0; piece < 4; ++piece) {
      benchmark::DoNotOptimize(compute(static_cast<std::uint32_t>(x), 5 * turns_per_microsecond()));
      co_await pool_.schedule();
    }
    co_return x * 2;
  }

 private:
  thread_pool& pool_;
};

/// A server that answers so many requests at once in a millisecond each; beyond that each further one slows all down,
/// by more than it brings.
class slowing_server {
 public:
  explicit slowing_server(thread_pool& pool) : pool_(pool) {}
  task<int> predict(int x) {
    const double load = (asked_.fetch_add(1, std::memory_order_relaxed) + 1) / capacity;
    co_await pool_.schedule_after(std::chrono::microseconds(std::llround(1000 * std::max(1.0, std::pow(load, 1.3)))));
    asked_.fetch_sub(1, std::memory_order_relaxed);
    co_return x * 2;
  }

 private:
  static constexpr double capacity = 64;

  thread_pool& pool_;
  std::atomic<int> asked_{0};
};

/// `samples(limit)`: enough for some rounds at each limit, and no more than takes about a fifth of a second.
template <class Model, class Samples>
void add_model(const std::string& name, Samples samples_at) {
  for (std::size_t limit = 1; limit <= 4096; limit *= 2) {
    const std::size_t samples = samples_at(limit);
    add("limits/" + name + "/" + std::to_string(limit),
        {.samples = samples, .runs = 1, .warm_up = false, .allocations = false}, [=](std::size_t n) {
          struct state {
            thread_pool pool{2};
            Model model{pool};
            std::vector<int> samples;
            std::vector<double> latencies;
          };
          auto mine = std::make_shared<state>();
          mine->samples = numbers(n);
          mine->latencies.resize(n);
          return job{[=] {
                       const auto predict = [&state = *mine](int x) -> task<int> {
                         const auto begin = std::chrono::steady_clock::now();
                         const int doubled = co_await state.model.predict(x);
                         state.latencies[static_cast<std::size_t>(x)] = seconds_since(begin);
                         co_return doubled;
                       };
                       return sync_wait(batch_predict(mine->pool, mine->samples, predict, {.max_concurrency = limit}));
                     },
                     doubles(n),
                     [=](benchmark::State& bench) {
                       bench.counters["limit"] = static_cast<double>(limit);
                       bench.counters["p50_ms"] = quantile(mine->latencies, 0.5) * 1e3;
                       bench.counters["p99_ms"] = quantile(mine->latencies, 0.99) * 1e3;
                     }};
        });
  }
}

}  // namespace

void add_benchmarks() {
  const auto waits = [](std::size_t limit) { return std::min(scaled(200) * limit, scaled(40'000) + 4 * limit); };
  add_model<io_bound>("io_bound", waits);
  add_model<cpu_bound>("cpu_bound", [](std::size_t limit) { return std::max(scaled(10'000), 2 * limit); });
  add_model<slowing_server>("slowing_server", [](std::size_t limit) {
    return std::min(scaled(200) * limit, std::max(scaled(8'000), 4 * limit));
  });
}

}  // namespace bench
