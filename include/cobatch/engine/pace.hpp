#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>

#include <cobatch/detail/abi.hpp>

namespace cobatch::inline COBATCH_ABI::detail {

/// How often a loop looks at the clock, and what it has learned from that: a look every 64 samples, or every 20
/// microseconds where those take longer.
class loop_pace {
 public:
  using time = std::chrono::nanoseconds;
  static constexpr time turn = std::chrono::milliseconds(1);

  /// After each sample; true: look now.
  bool tick() noexcept { return --left_ == 0; }
  /// Before the next look is due.
  void look_early(time now) noexcept {
    const std::uint32_t passed = interval_ - left_;
    if (passed == 0 || began_ == never) return;
    cost_ = (now - last_) / passed;
    last_ = now;
    left_ = interval_;
  }
  void look(time now) noexcept {
    if (began_ == never) {
      began_ = now;
    } else {
      const time lasted = now - last_;
      cost_ = lasted / interval_;
      if (lasted < wanted / 2) {
        interval_ = std::min(2 * interval_, most);
      } else if (lasted > 2 * wanted) {
        interval_ = std::max<std::uint32_t>(1, static_cast<std::uint32_t>(interval_ * wanted.count() / lasted.count()));
      }
    }
    last_ = now;
    left_ = interval_;
  }
  bool turn_is_over() const noexcept { return last_ - began_ > turn; }
  void begin_turn() noexcept { began_ = last_; }
  /// In another loop: what was learned stays.
  void begin_anew() noexcept { began_ = never; }
  /// Where a sample that was in flight goes on: its end is no reason to look, only what is computed after it.
  void begin_resumed() noexcept { left_ = 2; }

  /// How many samples take some 40 microseconds; more by no more than four times than the last answer.
  std::size_t claim() noexcept {
    const auto fits = cost_ == never ? 1 : std::chrono::microseconds(40) / std::max(cost_, time(1));
    const std::size_t most_now = std::max<std::size_t>(1, std::min(4 * claim_, largest_claim));
    claim_ = std::clamp<std::size_t>(static_cast<std::size_t>(fits), 1, most_now);
    return claim_;
  }
  /// A sample has suspended: where samples are read, the next one is read alone.
  void read_one_by_one() noexcept { claim_ = 0; }
  /// Whether so many samples are worth another thread's while.
  bool worth_sharing(std::size_t samples) const noexcept {
    return cost_ != never && cost_.count() > 20'000 / static_cast<std::int64_t>(samples);
  }
  /// Samples are known to cost less than handing some to another thread would.
  bool cheap() const noexcept { return cost_ < std::chrono::nanoseconds(300); }

  /// While somebody lacks samples: whether it is time to see if some should be given away. After each that is not
  /// cheap; to look at the clock after each that is would cost more than they do.
  bool sharing_due() noexcept { return !cheap() || (++passed_ & 15u) == 0; }

 private:
  static constexpr time never = time::max();
  static constexpr time wanted = std::chrono::microseconds(20);
  static constexpr std::uint32_t most = 64;
  static constexpr std::size_t largest_claim = 1024;

  std::uint32_t left_ = 1, interval_ = 1;
  time began_ = never, last_{}, cost_ = never;
  std::size_t claim_ = 1;
  std::uint32_t passed_ = 0;
};

}  // namespace cobatch::detail
