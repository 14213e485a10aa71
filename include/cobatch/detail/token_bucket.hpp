#pragma once

#include <algorithm>
#include <cmath>
#include <compare>
#include <cstdint>

#include <cobatch/detail/abi.hpp>

namespace cobatch::inline COBATCH_ABI::detail {

/// A point in time: whole nanoseconds, and the part of one that makes sums of thirds come out right.
///
/// What would be further than some 126 years away from the clock's epoch is cut down to that.
class fine_time {
 public:
  static constexpr std::int64_t farthest = 4'000'000'000'000'000'000;

  constexpr explicit fine_time(std::int64_t nanoseconds) noexcept
      : whole_(std::clamp(nanoseconds, -farthest, farthest)) {}

  /// `span` nanoseconds later; earlier, if it is negative.
  fine_time plus(double span) const noexcept {
    constexpr double longest = static_cast<double>(farthest);
    span = std::clamp(span, -longest, longest);
    const double whole = std::floor(span);
    fine_time sum(whole_ + static_cast<std::int64_t>(whole));
    sum.part_ = part_ + (span - whole);
    if (sum.part_ >= 1) {
      sum.part_ -= 1;
      ++sum.whole_;
    }
    return sum;
  }

  /// Nanoseconds from `earlier` to here.
  double since(const fine_time& earlier) const noexcept {
    return static_cast<double>(whole_ - earlier.whole_) + (part_ - earlier.part_);
  }

  constexpr std::int64_t nearest_nanosecond() const noexcept { return part_ < 0.5 ? whole_ : whole_ + 1; }

  friend constexpr auto operator<=>(const fine_time&, const fine_time&) noexcept = default;

 private:
  std::int64_t whole_;
  double part_ = 0;  // in [0, 1)
};

/// Tokens that come in at a constant rate, up to a number: when how many can be taken. Knows no clock and no lock.
///
/// The generic cell rate algorithm: there is no count of tokens that would have to be topped up, only the time at which
/// the bucket was, or will be, empty. Taking tokens moves it on by the time in which they come in.
class token_bucket {
 public:
  /// Full from the start.
  token_bucket(double per_second, double burst) noexcept
      : interval_(nanoseconds_per_token(per_second)), burst_(burst) {}

  double burst() const noexcept { return burst_; }

  /// The earliest time at which `cost` tokens can be taken. Above the burst: when the bucket is full; it is then in
  /// debt.
  std::int64_t due(double cost) const noexcept {
    return empty_.plus(std::min(cost, burst_) * interval_).nearest_nanosecond();
  }

  /// Takes tokens that are due. Tokens above the burst are lost, but for those that came in while a timer was late.
  ///
  /// `waited`: the taker was to be woken when they were due, so that, if it is late now, the timer is to blame. What
  /// came in meanwhile, in a millisecond at the most, is for those who waited with it, and for who asks within a
  /// millisecond.
  void take(double cost, std::int64_t now, bool waited) noexcept {
    now = std::clamp(now, -fine_time::farthest, fine_time::farthest);
    if (waited) {
      late_ = std::clamp<std::int64_t>(now - due(cost) + 1, 1, forgiven);  // 1: due() rounds
    } else if (now - last_ > forgiven) {
      late_ = 0;
    }
    empty_ = std::max(empty_, fine_time(now - late_).plus(-burst_ * interval_)).plus(cost * interval_);
    last_ = now;
  }

  /// Tokens come in at this rate from the last take() on.
  void set_rate(double per_second) noexcept {
    const fine_time last(last_);
    const double full = burst_ * interval_;
    const double filled = std::min(last.since(empty_), full) / interval_;
    interval_ = nanoseconds_per_token(per_second);
    if (last_ != never) empty_ = last.plus(-filled * interval_);
  }

 private:
  static constexpr std::int64_t never = -fine_time::farthest;
  static constexpr std::int64_t forgiven = 1'000'000;

  // Finite, so that nothing times it is no number.
  static double nanoseconds_per_token(double per_second) noexcept {
    return std::min(1e9 / per_second, static_cast<double>(fine_time::farthest));
  }

  double interval_;
  double burst_;
  fine_time empty_{never};
  std::int64_t last_ = never;  // when something was taken
  std::int64_t late_ = 0;
};

}  // namespace cobatch::detail
