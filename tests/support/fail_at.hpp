#pragma once

#include <cstddef>
#include <utility>

/// Failures injected one at a time: whatever may fail calls may_fail(), and the n-th call throws.

/// What an injected failure throws.
struct injected_failure {};

// How many calls of may_fail() are left until one throws; 0: none does.
inline std::size_t failures_in = 0;

inline void may_fail() {
  if (failures_in > 0 && --failures_in == 0) throw injected_failure();
}

/// Calls `run()` with its n-th fallible operation failing, n = 1, 2, ..., until there is one in which none
/// failed; each time `check(what it returned, whether one failed)`. Returns how many operations there are
/// that may fail.
template <class Run, class Check>
std::size_t fail_at_each_point(Run&& run, Check&& check) {
  for (std::size_t n = 1;; ++n) {
    failures_in = n;
    auto outcome = run();
    const bool failed = std::exchange(failures_in, 0) == 0;
    check(std::move(outcome), failed);
    if (!failed) return n - 1;
  }
}
