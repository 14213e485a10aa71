#pragma once

#include <atomic>
#include <cstdint>

namespace cobatch::detail {

/// How many workers of a pool search for work and how many sleep, in one atomic word.
///
///     busy ──begin_search──> searching ──searching_to_sleeping──> sleeping
///       ^                     │     ^                                │
///       └─────end_search──────┘     └─────sleeping_to_searching──────┘
///
/// Written by every worker at each of its transitions, the last one mostly by its waker; read by whoever pushes work.
/// All sequentially consistent: what that is good for stands in thread_pool.hpp under "Sleeping and waking".
class idle_count {
 public:
  struct snapshot {
    std::uint32_t searching;
    std::uint32_t sleeping;
  };

  /// Somebody sleeps, and nobody is awake who will look for work before going to sleep.
  bool wake_needed() const noexcept {
    const snapshot now = unpack(counts_.load());
    return now.sleeping != 0 && now.searching == 0;
  }

  void begin_search() noexcept { counts_.fetch_add(one_searching); }
  /// The counts as they were just before.
  snapshot end_search() noexcept { return unpack(counts_.fetch_sub(one_searching)); }
  void searching_to_sleeping() noexcept { counts_.fetch_add(one_sleeping - one_searching); }
  void sleeping_to_searching() noexcept { counts_.fetch_sub(one_sleeping - one_searching); }

 private:
  static constexpr std::uint64_t one_searching = 1;
  static constexpr std::uint64_t one_sleeping = std::uint64_t{1} << 32;

  static constexpr snapshot unpack(std::uint64_t counts) noexcept {
    return {static_cast<std::uint32_t>(counts), static_cast<std::uint32_t>(counts >> 32)};
  }

  std::atomic<std::uint64_t> counts_{0};
};

}  // namespace cobatch::detail
