#pragma once

#include <chrono>
#include <cmath>
#include <cstdint>
#include <limits>

#include <cobatch/detail/abi.hpp>

namespace cobatch::inline COBATCH_ABI::detail {

// Arithmetic on times that come from users, from their clocks, or from a sum without end: what would be beyond the ends
// of the range is the end.

constexpr std::int64_t saturating_sum(std::int64_t a, std::int64_t b) noexcept {
  std::int64_t sum = 0;
  if (!__builtin_add_overflow(a, b, &sum)) return sum;
  return b < 0 ? std::numeric_limits<std::int64_t>::min() : std::numeric_limits<std::int64_t>::max();
}

constexpr std::chrono::nanoseconds saturating_sum(std::chrono::nanoseconds a, std::chrono::nanoseconds b) noexcept {
  return std::chrono::nanoseconds(saturating_sum(a.count(), b.count()));
}

constexpr std::chrono::nanoseconds saturating_difference(std::chrono::nanoseconds a,
                                                         std::chrono::nanoseconds b) noexcept {
  std::int64_t difference = 0;
  if (!__builtin_sub_overflow(a.count(), b.count(), &difference)) return std::chrono::nanoseconds(difference);
  return b.count() < 0 ? std::chrono::nanoseconds::max() : std::chrono::nanoseconds::min();
}

/// A number of nanoseconds that was computed; no number at all is zero.
inline std::chrono::nanoseconds saturating_nanoseconds(double count) noexcept {
  constexpr double beyond = 9223372036854775808.0;
  if (count >= beyond) return std::chrono::nanoseconds::max();
  if (count <= -beyond) return std::chrono::nanoseconds::min();
  return std::chrono::nanoseconds(std::isnan(count) ? 0 : static_cast<std::int64_t>(count));
}

}  // namespace cobatch::detail
