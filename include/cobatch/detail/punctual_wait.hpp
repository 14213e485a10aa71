#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>

#if defined(__linux__)
#include <sys/prctl.h>
#endif

#include <cobatch/detail/abi.hpp>
#if defined(COBATCH_EXPLORE)
#include COBATCH_EXPLORE
#endif

/// Waiting for a deadline on the steady clock without being late: sleep until a little before, spin through the rest.

namespace cobatch::inline COBATCH_ABI::detail {

/// The steady clock in nanoseconds since its epoch.
inline std::int64_t steady_now() noexcept {
#if defined(COBATCH_EXPLORE)
  return COBATCH_SHARED::steady_now();
#else
  using namespace std::chrono;
  return duration_cast<nanoseconds>(steady_clock::now().time_since_epoch()).count();
#endif
}

/// The other way round.
inline std::chrono::steady_clock::time_point steady_time(std::int64_t since_epoch) noexcept {
  using namespace std::chrono;
  return steady_clock::time_point(duration_cast<steady_clock::duration>(nanoseconds(since_epoch)));
}

/// How long before a deadline to stop sleeping and start to spin. A thread wakes up some 30 to 90 microseconds late
/// (timer slack, scheduling); the spin hides most of that, and never costs more than a sixteenth of the wait.
constexpr std::int64_t spin_before(std::int64_t deadline, std::int64_t now) noexcept {
  return deadline <= now ? 0 : std::min<std::int64_t>((deadline - now) / 16, 50'000);
}

/// For a thread of our own: its timed waits end in time. (Linux lets them be 50 microseconds late by default.)
inline void make_waits_punctual() noexcept {
#if defined(__linux__)
  ::prctl(PR_SET_TIMERSLACK, 1UL, 0UL, 0UL, 0UL);
#endif
}

/// The same while it lives, for somebody else's thread.
class punctual_waits {
 public:
#if defined(__linux__)
  punctual_waits() noexcept : before_(::prctl(PR_GET_TIMERSLACK, 0UL, 0UL, 0UL, 0UL)) {
    if (before_ > 1) make_waits_punctual();
  }
  ~punctual_waits() {
    if (before_ > 1) ::prctl(PR_SET_TIMERSLACK, static_cast<unsigned long>(before_), 0UL, 0UL, 0UL);
  }
#else
  punctual_waits() noexcept {}
  ~punctual_waits() {}
#endif
  punctual_waits(const punctual_waits&) = delete;
  punctual_waits& operator=(const punctual_waits&) = delete;

 private:
#if defined(__linux__)
  const int before_;  // nanoseconds; a real-time thread has none
#endif
};

}  // namespace cobatch::detail
