#pragma once

#include <algorithm>
#include <cstdint>

namespace cobatch::detail {

/// How many coroutines a busy loop resumes between two looks at what is not in its own queue.
///
/// Every so many where there are no timers, as no clock is read then. With timers the number follows how long the
/// coroutines take, so that a look at the clock comes about every 20 microseconds: neither late nor dear.
class polling_pace {
 public:
  /// Before each resumption; true: look around first, then say looked_around.
  bool tick(bool timers) noexcept { return --left_ == 0 || timers != timers_; }

  /// After an idle time, which says nothing of the pace.
  void restart() noexcept { timers_ = false; }

  /// There are no timers.
  void looked_around() noexcept {
    timers_ = false;
    left_ = most;
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
    left_ = interval_;
  }

 private:
  static constexpr std::uint32_t most = 61;       // prime: in step with nothing
  static constexpr std::int64_t wanted = 20'000;  // ns

  std::uint32_t left_ = most;
  std::uint32_t interval_ = 1;
  std::int64_t last_look_ = 0;
  bool timers_ = false;
};

}  // namespace cobatch::detail
