#pragma once

#include <cstddef>
#include <utility>

/// Every use of operator new in the test program, counted, and made to fail on demand; see allocations.cpp.

/// How many allocations this thread has made so far.
std::size_t allocations() noexcept;

/// How many of them this thread has not freed. What other threads free counts for them.
std::ptrdiff_t live_allocations() noexcept;

/// The n-th allocation of this thread from now on throws std::bad_alloc; 0: none does.
void fail_allocation_in(std::size_t n, bool and_all_later_ones = false) noexcept;

/// Whether the allocation that was to fail has been asked for.
bool allocation_has_failed() noexcept;

/// True: the allocation that was to fail has not been asked for yet. Switches the failure off.
bool allocation_failure_is_pending() noexcept;

/// Calls `run()` with its n-th allocation failing, n = 1, 2, ..., until there is one in which none failed;
/// each time `check(what it returned, whether one failed)`. Returns how many allocations there are.
template <class Run, class Check>
std::size_t fail_each_allocation(Run&& run, Check&& check) {
  for (std::size_t n = 1;; ++n) {
    fail_allocation_in(n);
    auto outcome = run();
    const bool failed = !allocation_failure_is_pending();
    check(std::move(outcome), failed);
    if (!failed) return n - 1;
  }
}
