#pragma once

#include <algorithm>
#include <cstdint>

#include <cobatch/detail/abi.hpp>

namespace cobatch::inline COBATCH_ABI::detail {

/// How many coroutines a busy loop resumes between two looks at what is not in its own queue.
///
/// Every so many where there are no timers, as no clock is read then; after a few if something is known to wait. With
/// timers the number follows how long the coroutines take, so that a look at the clock comes about every 20
/// microseconds: neither late nor dear.
class polling_pace {
 public:
  /// Before each resumption; true: look around first, then say looked_around. `waiting`: something is known to wait
  /// there, for no more than a few resumptions.
  bool tick(bool timers, bool waiting = false) noexcept {
    --left_;
    return left_ == 0 || timers != timers_ || (waiting && left_ <= left_soon_);
  }

  /// After an idle time, which says nothing of the pace.
  void restart() noexcept { timers_ = false; }

  /// There are no timers.
  void looked_around() noexcept {
    timers_ = false;
    start(most);
  }

  /// `now` in nanoseconds, read in this look.
  void looked_around(std::int64_t now) noexcept {
    const std::int64_t elapsed = now - last_look_;
    if (!timers_) {
      interval_ = 1;  // nothing is known of the pace
    } else if (elapsed > 2 * wanted) {
      interval_ = static_cast<std::uint32_t>(std::max<std::int64_t>(1, interval_ * wanted / elapsed));
    } else if (elapsed < wanted) {
      interval_ = std::min(most, 2 * interval_);
    }
    timers_ = true;
    last_look_ = now;
    start(interval_);
  }

 private:
  static constexpr std::uint32_t most = 61;  // prime: in step with nothing
  static constexpr std::uint32_t few = 4;
  static constexpr std::int64_t wanted = 20'000;  // ns

  void start(std::uint32_t interval) noexcept {
    left_ = interval;
    left_soon_ = interval - std::min(few, interval);
  }

  std::uint32_t left_ = most;
  std::uint32_t left_soon_ = most - few;
  std::uint32_t interval_ = 1;
  std::int64_t last_look_ = 0;
  bool timers_ = false;
};

}  // namespace cobatch::detail
