#pragma once

#include <benchmark/benchmark.h>

#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>

#include <support/allocations.hpp>
#include <support/memory.hpp>

/// How every benchmark here is measured: the result of each run is checked, outside the time; calls of the heap are
/// counted in a run of their own, and memory in a process of its own.

namespace bench {

/// Fewer samples, for a look whether everything works (the environment variable COBATCH_BENCHMARK_QUICK).
bool quick();
inline std::size_t scaled(std::size_t samples) {
  return quick() ? samples / 10 : samples;
}

/// Every benchmark program defines it: the calls of add().
void add_benchmarks();

struct measures {
  std::size_t samples = 1;             ///< in one run
  benchmark::IterationCount runs = 5;  ///< in one repetition
  bool warm_up = true;                 ///< one run before the first that counts
  bool allocations = true;             ///< counter allocs_per_sample
  std::size_t result_size = 0;         ///< of one sample; with `memory`, this much is not counted
  bool memory = false;                 ///< counter peak_MB
};

/// What a benchmark does: `prepare()`, then `run()`, which is timed, then `right(its result)`; at the end of a repetition
/// `report(state)` may add counters.
template <class Run, class Right, class Report, class Prepare>
struct job {
  Run run;
  Right right;
  Report report{};
  Prepare prepare{};
};
struct report_nothing {
  void operator()(benchmark::State&) const {}
};
struct prepare_nothing {
  void operator()() const {}
};
template <class Run, class Right, class Report = report_nothing, class Prepare = prepare_nothing>
job(Run, Right, Report = {}, Prepare = {}) -> job<Run, Right, Report, Prepare>;

/// The processor time of all threads, in seconds.
double cpu_seconds();

namespace detail {

/// By name: what `--peak-memory-of` runs.
std::map<std::string, std::function<std::size_t()>>& memory_runs();

template <class SetUp>
std::size_t peak_memory_of(std::size_t samples, std::size_t result_size, SetUp& set_up) {
  {
    // The pages of the program itself, and of its threads, are not the batch's.
    auto small = set_up(std::size_t{64});
    (void)small.right(small.run());
  }
  auto job = set_up(samples);
  reset_peak_memory();
  const std::size_t before = resident_memory() + samples * result_size;
  (void)job.right(job.run());
  const std::size_t peak = peak_memory();
  return peak > before ? peak - before : 0;
}

/// Once for each benchmark of a program, not in each repetition.
struct once {
  double allocations_per_sample = -1;
  double peak_mb = -1;
};

template <class SetUp>
void measure(benchmark::State& state, const std::string& name, const measures& wanted, SetUp& set_up, once& known) {
  const auto samples = static_cast<double>(wanted.samples);
  auto job = set_up(wanted.samples);
  bool right = true;
  if (wanted.warm_up) right = right && job.right(job.run());
  if (wanted.allocations && known.allocations_per_sample < 0) {
    const allocation_count count;
    const auto result = job.run();
    known.allocations_per_sample = static_cast<double>(count.calls()) / samples;
    right = right && job.right(result);
  }
  if (wanted.memory && known.peak_mb < 0) {
    if (const auto peak = peak_memory_in_a_process_of_its_own(name)) known.peak_mb = static_cast<double>(*peak) / 1e6;
  }
  double cpu = 0;
  for (auto _ : state) {
    state.PauseTiming();
    job.prepare();
    const double cpu_before = cpu_seconds();
    state.ResumeTiming();
    const auto result = job.run();
    state.PauseTiming();
    cpu += cpu_seconds() - cpu_before;
    right = right && job.right(result);
    state.ResumeTiming();
  }
  if (!right) {
    state.SkipWithError("wrong results");
    return;
  }
  using benchmark::Counter;
  const auto runs = static_cast<double>(state.iterations());
  state.counters["ns_per_sample"] = Counter(samples * runs / 1e9, Counter::kIsRate | Counter::kInvert);
  state.counters["samples_per_second"] = Counter(samples * runs, Counter::kIsRate);
  state.counters["cpu_seconds"] = Counter(cpu, Counter::kAvgIterations);
  state.counters["cpu_ns_per_sample"] = Counter(cpu * 1e9 / samples, Counter::kAvgIterations);
  if (known.allocations_per_sample >= 0) state.counters["allocs_per_sample"] = known.allocations_per_sample;
  if (known.peak_mb >= 0) state.counters["peak_MB"] = known.peak_mb;
  job.report(state);
}

}  // namespace detail

/// Registers a benchmark. `set_up(samples)`, outside the time, gives a job.
template <class SetUp>
void add(const std::string& name, const measures& wanted, SetUp set_up) {
  if (wanted.memory) {
    detail::memory_runs()[name] = [wanted, set_up]() mutable {
      return detail::peak_memory_of(wanted.samples, wanted.result_size, set_up);
    };
  }
  auto known = std::make_shared<detail::once>();
  benchmark::RegisterBenchmark(name.c_str(),
                               [name, wanted, set_up, known](benchmark::State& state) mutable {
                                 detail::measure(state, name, wanted, set_up, *known);
                               })
      ->Iterations(wanted.runs)
      ->UseRealTime()
      ->Unit(benchmark::kMillisecond);
}

}  // namespace bench
