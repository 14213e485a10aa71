// What it costs that somebody watches: a batch of trivial samples with an observer, beside the same without one.

#include <cobatch/cobatch.hpp>

#include <chrono>
#include <cstddef>
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

using cobatch::batch_metrics;
using cobatch::batch_observer;
using cobatch::batch_predict;
using cobatch::observers;
using cobatch::run_loop;
using cobatch::sync_wait;
using cobatch::thread_pool;
using cobatch::trace_recorder;

constexpr std::size_t limit = 64;

results fan_out(run_loop& loop, const std::vector<int>& samples, batch_observer* observer) {
  return loop.run(batch_predict(loop, samples, twice, {.max_concurrency = limit, .observer = observer}));
}
results fan_out(thread_pool& pool, const std::vector<int>& samples, batch_observer* observer) {
  return sync_wait(batch_predict(pool, samples, twice, {.max_concurrency = limit, .observer = observer}));
}

// ---- The observers, each new for each run; and whether they saw all of it ----

bool saw(const batch_metrics& metrics, std::size_t samples) {
  const auto all = metrics.snapshot();
  return all.samples == samples && all.succeeded == samples && all.attempts == samples && all.batches == 1;
}
bool saw(const trace_recorder& trace, std::size_t samples) {
  return trace.recorded() == samples && trace.dropped() == 0;
}

/// Overrides nothing: the events alone.
struct hooks_only {
  explicit hooks_only(std::size_t) {}
  batch_observer* observer() { return &silent; }
  bool saw_all(std::size_t) const { return true; }

  batch_observer silent;
};

struct metrics_only {
  explicit metrics_only(std::size_t) {}
  batch_observer* observer() { return &metrics; }
  bool saw_all(std::size_t samples) const { return saw(metrics, samples); }

  batch_metrics metrics;
};

struct trace_only {
  explicit trace_only(std::size_t samples) : trace("trace", samples) {}
  batch_observer* observer() { return &trace; }
  bool saw_all(std::size_t samples) const { return saw(trace, samples); }

  trace_recorder trace;
};

struct metrics_and_trace {
  explicit metrics_and_trace(std::size_t samples) : trace("trace", samples) {}
  batch_observer* observer() { return &all; }
  bool saw_all(std::size_t samples) const { return saw(metrics, samples) && saw(trace, samples); }

  batch_metrics metrics;
  trace_recorder trace;
  observers<2> all{metrics, trace};
};

// ---- Beside none ----

/// Of the runs that count, in seconds: on the clock, and of all threads.
struct times {
  std::vector<double> wall, cpu;

  template <class Work>
  results take(Work work) {
    const auto begin = std::chrono::steady_clock::now();
    const double cpu_begin = cpu_seconds();
    results all = work();
    cpu.push_back(cpu_seconds() - cpu_begin);
    wall.push_back(seconds_since(begin));
    return all;
  }
};

struct pair_of_times {
  times observed, alone;
  bool alone_right = true;
};

template <class Watch>
struct watched {
  results all;
  std::unique_ptr<Watch> watch;
};

template <class Watch, class MakeExecutor>
void add_watched(const std::string& name, const measures& wanted, MakeExecutor make_executor) {
  auto taken = std::make_shared<pair_of_times>();
  add(name, wanted, [=](std::size_t n) {
    auto ex = std::shared_ptr(make_executor());
    auto samples = std::make_shared<std::vector<int>>(numbers(n));
    return job{[=] {
                 watched<Watch> run{{}, std::make_unique<Watch>(n)};
                 run.all = taken->observed.take([&] { return fan_out(*ex, *samples, run.watch->observer()); });
                 return run;
               },
               [=](const watched<Watch>& run) {
                 return taken->alone_right && are_doubles(run.all, n) && run.watch->saw_all(n);
               },
               [=](benchmark::State& state) {
                 auto& [observed, alone, right] = *taken;
                 const double each = 1e9 / static_cast<double>(n);
                 state.counters["more_ns_per_sample"] = (median(observed.wall) - median(alone.wall)) * each;
                 state.counters["more_cpu_ns_per_sample"] = (median(observed.cpu) - median(alone.cpu)) * each;
                 *taken = {};
               },
               [=] {
                 if (taken->alone.wall.empty()) taken->observed = {};  // what warmed up does not count
                 const results all = taken->alone.take([&] { return fan_out(*ex, *samples, nullptr); });
                 taken->alone_right = taken->alone_right && are_doubles(all, n);
               }};
  });
}

template <class MakeExecutor>
void add_all(const std::string& name, MakeExecutor make_executor) {
  const measures many{.samples = scaled(1'000'000)};
  // As many as a trace keeps by default: at first its memory grows.
  const measures fewer{.samples = scaled(200'000), .runs = 10};
  add(name + "none", many, [=](std::size_t n) {
    return job{[samples = numbers(n), ex = make_executor()] { return fan_out(*ex, samples, nullptr); }, doubles(n)};
  });
  add_watched<hooks_only>(name + "hooks_that_do_nothing", many, make_executor);
  add_watched<metrics_only>(name + "metrics", many, make_executor);
  add_watched<trace_only>(name + "trace", fewer, make_executor);
  add_watched<metrics_and_trace>(name + "metrics_and_trace", fewer, make_executor);
}

}  // namespace

void add_benchmarks() {
  add_all("observer/run_loop/", [] { return std::make_unique<run_loop>(); });
  for (const std::size_t threads : {1u, 2u}) {
    add_all("observer/pool_" + std::to_string(threads) + "/",
            [threads] { return std::make_unique<thread_pool>(threads); });
  }
}

}  // namespace bench
