#include <support/measure.hpp>

#include <benchmark/benchmark.h>
#include <malloc.h>
#include <sys/prctl.h>

#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <iostream>
#include <limits>
#include <string>
#include <string_view>

namespace bench {

bool quick() {
  static const bool value = std::getenv("COBATCH_BENCHMARK_QUICK") != nullptr;
  return value;
}

double cpu_seconds() {
  timespec used{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
  return static_cast<double>(used.tv_sec) + static_cast<double>(used.tv_nsec) / 1e9;
}

std::map<std::string, std::function<std::size_t()>>& detail::memory_runs() {
  static std::map<std::string, std::function<std::size_t()>> runs;
  return runs;
}

}  // namespace bench

int main(int argc, char** argv) {
  bench::add_benchmarks();
  constexpr std::string_view peak_memory_of = "--peak-memory-of=";
  if (argc == 2 && std::string_view(argv[1]).starts_with(peak_memory_of)) {
    ::prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);  // so that a page is 4 KiB
    const auto run = bench::detail::memory_runs().find(std::string(argv[1]).substr(peak_memory_of.size()));
    if (run == bench::detail::memory_runs().end()) return EXIT_FAILURE;
    std::cout << run->second() << '\n';
    return EXIT_SUCCESS;
  }

  // The heap keeps its pages from run to run, for everyone alike: the vector of the results would otherwise be new
  // memory each time, and what the kernel takes to clear that would hide all else.
  ::mallopt(M_MMAP_MAX, 0);
  ::mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());

  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return EXIT_FAILURE;
  benchmark::AddCustomContext("compiler", COBATCH_BENCHMARK_COMPILER);
  benchmark::AddCustomContext("flags", COBATCH_BENCHMARK_FLAGS);
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return EXIT_SUCCESS;
}
