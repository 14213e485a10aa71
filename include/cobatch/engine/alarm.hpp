#pragma once

#include <chrono>
#include <stop_token>
#include <utility>

#include <cobatch/detail/abi.hpp>
#include <cobatch/detail/atomic.hpp>
#include <cobatch/detail/mutex.hpp>
#include <cobatch/engine/types.hpp>

namespace cobatch::inline COBATCH_ABI::detail {

/// How others wake a batch's timekeeper, and how the two ends of a batch meet: that nobody is counted any more, and that
/// the timekeeper has gone. Whoever brings the second one finishes the batch.
class batch_alarm {
 public:
  /// Throws std::bad_alloc.
  void make() { wake_ = new_stop_source(); }
  /// The timekeeper is there, or is not after all.
  void expect_timekeeper(bool there) noexcept {
    const std::lock_guard lock(mutex_);
    ends_left_.store(there ? 2 : 1);
    gone_ = !there;
  }

  /// What is to be stopped so that the timekeeper looks again; under no lock, and as the last thing.
  std::stop_source take() {
    const std::lock_guard lock(mutex_);
    if (gone_ || over_) return std::stop_source(std::nostopstate);
    dormant_.store(false);
    return wake_;
  }
  void wake() { take().request_stop(); }
  /// Something may be due earlier than the timekeeper thinks.
  void wake_if_dormant() {
    if (dormant_.load()) [[unlikely]]
      wake();
  }

  /// Nobody is counted any more. What is to be stopped then.
  std::stop_source end() {
    const std::lock_guard lock(mutex_);
    over_ = true;
    return gone_ ? std::stop_source(std::nostopstate) : wake_;
  }
  void timekeeper_gone() {
    const std::lock_guard lock(mutex_);
    gone_ = true;
  }
  /// True: this was the second end, or there is but one. False: what it belongs to may be gone.
  [[nodiscard]] bool one_end() noexcept { return ends_left_.fetch_sub(1) == 1; }

  // -- by the timekeeper --
  /// Before it looks: whoever begins something from here on either is seen, or sees that it must wake us.
  void go_dormant() noexcept { dormant_.store(true); }
  void stay_awake() noexcept { dormant_.store(false); }
  /// False: it is over. What to sleep with, for longest_sleep() at most: where there is no memory, it cannot be woken.
  bool prepare_sleep() {
    const std::lock_guard lock(mutex_);
    if (over_) return false;
    // One that was taken and is stopped only later makes us look once more.
    const auto renew = [&] {
      wake_ = new_stop_source();
      return true;
    };
    const bool wakes = !wake_.stop_requested() || guarded(renew, [] { return false; });
    sleep_token_ = wakes ? wake_.get_token() : std::stop_token();
    return true;
  }
  std::chrono::nanoseconds longest_sleep() const noexcept {
    return sleep_token_.stop_possible() ? no_timeout : std::chrono::milliseconds(1);
  }
  bool is_over() {
    const std::lock_guard lock(mutex_);
    return over_;
  }
  const std::stop_token& sleep_token() const noexcept { return sleep_token_; }

 private:
  mutex mutex_;  // guards wake_, over_ and gone_
  std::stop_source wake_{std::nostopstate};
  bool over_ = false, gone_ = true;
  atomic<int> ends_left_{1};
  // It sleeps until it is woken. Sequentially consistent, like what it looks at: see go_dormant().
  atomic<bool> dormant_{false};
  std::stop_token sleep_token_;  // the timekeeper's own
};

}  // namespace cobatch::detail
