#pragma once

#include <algorithm>
#include <array>
#include <barrier>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <thread>
#include <utility>
#include <vector>

/// Work that takes a known time, and what two bare threads would need for it.

namespace bench {

inline double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

/// Each turn waits for the one before; nothing of it touches memory.
[[gnu::noinline]] inline std::uint32_t compute(std::uint32_t x, std::uint64_t turns) {
  std::uint64_t state = x + 0x9e3779b97f4a7c15u;
  for (std::uint64_t i = 0; i < turns; ++i) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
  }
  return static_cast<std::uint32_t>(state >> 33);
}

/// How many turns take a microsecond here.
inline std::uint64_t turns_per_microsecond() {
  static const std::uint64_t turns = [] {
    constexpr std::uint64_t many = 200'000;
    double best = std::numeric_limits<double>::max();
    for (std::uint32_t i = 0; i < 50; ++i) {
      const auto begin = std::chrono::steady_clock::now();
      volatile std::uint32_t result = compute(i, many);
      (void)result;
      best = std::min(best, seconds_since(begin));
    }
    return static_cast<std::uint64_t>(static_cast<double>(many) / (best * 1e6));
  }();
  return turns;
}

/// List scheduling: each sample, in order, goes to the machine that is free first. Whoever knew all costs in advance and
/// paid nothing for the handing out would do this.
inline std::array<std::vector<std::uint32_t>, 2> list_schedule(const std::vector<std::uint32_t>& costs) {
  std::array<std::vector<std::uint32_t>, 2> machines;
  std::array<std::uint64_t, 2> busy_until{};
  for (std::uint32_t i = 0; i < costs.size(); ++i) {
    const std::size_t machine = busy_until[0] <= busy_until[1] ? 0 : 1;
    machines[machine].push_back(i);
    busy_until[machine] += costs[i];
  }
  return machines;
}

/// Runs both lists at once, on two threads, as plain loops: the seconds that this takes.
template <class Work>
double run_lists(const std::array<std::vector<std::uint32_t>, 2>& lists, Work work) {
  std::barrier both(3);
  const auto run = [&](const std::vector<std::uint32_t>& list) {
    both.arrive_and_wait();
    for (const std::uint32_t i : list) work(i);
    both.arrive_and_wait();
  };
  std::thread first(run, std::cref(lists[0])), second(run, std::cref(lists[1]));
  both.arrive_and_wait();
  const auto begin = std::chrono::steady_clock::now();
  both.arrive_and_wait();
  const double seconds = seconds_since(begin);
  first.join();
  second.join();
  return seconds;
}

}  // namespace bench
