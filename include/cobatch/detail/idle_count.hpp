#pragma once

#include <cstddef>
#include <cstdint>

#include <cobatch/detail/abi.hpp>
#include <cobatch/detail/atomic.hpp>

namespace cobatch::inline COBATCH_ABI::detail {

/// How many workers of a pool search for work, how many sleep, and whether one of those that sleep is on watch (it
/// will look for work again by itself, soon), in one atomic word.
///
///     busy ──begin_search──> searching ──searching_to_sleeping──> sleeping ──begin_watch──> on watch
///       ^                     │     ^                                │                          │
///       └─────end_search──────┘     └─────sleeping_to_searching──────┴──────────────────────────┘
///
/// Written by every worker at each of its transitions, the last ones mostly by its waker; read by whoever pushes work.
/// All but idle() sequentially consistent: what that is good for stands in thread_pool.hpp under "Sleeping and waking".
class idle_count {
 public:
  struct snapshot {
    std::uint32_t searching;
    bool watched;
    std::uint32_t sleeping;
  };

  /// As many workers can be counted.
  static constexpr std::size_t most = std::size_t{1} << 20;

  /// Somebody sleeps, and nobody is awake who will look for work before going to sleep.
  bool wake_needed() const noexcept {
    const snapshot now = load();
    return now.sleeping != 0 && now.searching == 0;
  }
  /// Likewise, for what may wait until the one on watch looks.
  bool wake_needed_soon() const noexcept {
    const std::uint64_t counts = counts_.load();
    return counts >= one_sleeping && static_cast<std::uint32_t>(counts) == 0;
  }

  bool anyone_sleeps() const noexcept { return counts_.load() >= one_sleeping; }

  /// A hint: how many search or sleep.
  std::size_t idle() const noexcept {
    const snapshot now = unpack(counts_.load(std::memory_order_relaxed));
    return std::size_t{now.searching} + now.sleeping;
  }

  snapshot load() const noexcept { return unpack(counts_.load()); }

  void begin_search() noexcept { counts_.fetch_add(one_searching); }
  /// The counts as they were just before.
  snapshot end_search() noexcept { return unpack(counts_.fetch_sub(one_searching)); }
  void searching_to_sleeping() noexcept { counts_.fetch_add(one_sleeping - one_searching); }
  void begin_watch() noexcept { counts_.fetch_add(watch); }
  /// `watching`: it was the one on watch.
  void sleeping_to_searching(bool watching) noexcept {
    counts_.fetch_sub(one_sleeping - one_searching + (watching ? watch : 0));
  }

 private:
  static constexpr std::uint64_t one_searching = 1;
  static constexpr std::uint64_t watch = std::uint64_t{1} << 31;
  static constexpr std::uint64_t one_sleeping = std::uint64_t{1} << 32;

  static constexpr snapshot unpack(std::uint64_t counts) noexcept {
    return {static_cast<std::uint32_t>(counts & (watch - 1)), (counts & watch) != 0,
            static_cast<std::uint32_t>(counts >> 32)};
  }

  atomic<std::uint64_t> counts_{0};
};

}  // namespace cobatch::detail
