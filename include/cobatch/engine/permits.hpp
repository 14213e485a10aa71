#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <stop_token>

#include <cobatch/batch_options.hpp>
#include <cobatch/detail/atomic.hpp>
#include <cobatch/detail/config.hpp>
#include <cobatch/detail/mutex.hpp>
#include <cobatch/engine/types.hpp>
#include <cobatch/semaphore.hpp>

/// What stands between a sample and its attempt, apart from the sample itself.

namespace cobatch::inline COBATCH_ABI::detail {

/// The wait for a permit or a token that is under way: at most one in a batch at a time. Who halts the batch, or sees
/// that nobody needs the permit any more, or that it takes too long, stops it.
class one_wait {
 public:
  /// Only where there is something to wait for. Throws std::bad_alloc.
  void make() { source_ = new_stop_source(); }

  /// A wait begins, unless `refused()`, which is asked under the lock. Its time is up at `deadline`. Throws
  /// std::bad_alloc.
  template <class Refused>
  bool begin(std::stop_token& stop, bool has_sample, std::chrono::nanoseconds deadline, Refused&& refused) {
    const std::lock_guard lock(mutex_);
    if (refused()) return false;
    // Not one that somebody has taken, who may stop it at any time.
    if (taken_) source_ = new_stop_source();
    taken_ = false;
    stop = source_.get_token();
    waits_.store(true, std::memory_order_relaxed);
    has_sample_ = has_sample;
    deadline_.store(deadline.count());  // seq_cst: as attempt_watch::begins()
    return true;
  }
  /// True: because its time was up.
  bool end() {
    const std::lock_guard lock(mutex_);
    waits_.store(false, std::memory_order_relaxed);
    deadline_.store(no_timeout.count(), std::memory_order_relaxed);
    return std::exchange(expired_, false);
  }
  /// A hint.
  bool under_way() const noexcept { return waits_.load(std::memory_order_relaxed); }
  std::chrono::nanoseconds deadline() const noexcept {
    return std::chrono::nanoseconds(deadline_.load());
  }

  /// What is to be stopped, under no lock and as the last thing: whoever is resumed by it may end the batch.
  std::stop_source take(bool also_with_sample) {
    const std::lock_guard lock(mutex_);
    if (!waits_.load(std::memory_order_relaxed) || (has_sample_ && !also_with_sample)) {
      return std::stop_source(std::nostopstate);
    }
    taken_ = true;
    return source_;
  }
  /// The same where its time is up.
  std::stop_source expire(std::chrono::nanoseconds now) {
    const std::lock_guard lock(mutex_);
    if (deadline() > now) return std::stop_source(std::nostopstate);
    deadline_.store(no_timeout.count(), std::memory_order_relaxed);
    expired_ = taken_ = true;
    return source_;
  }

 private:
  mutex mutex_;  // guards all of it; the atomics are written under it and may be read at any time
  std::stop_source source_{std::nostopstate};
  atomic<std::int64_t> deadline_{no_timeout.count()};
  atomic<bool> waits_{false};
  bool expired_ = false;
  bool taken_ = false;  // source_, to be stopped
  bool has_sample_ = false;
};

/// For how long a lane keeps a permit of a shared semaphore from sample to sample though others wait for it: to hand one
/// over costs much more than a short predict.
class permit_share {
 public:
  permit_share(const batch_options& options, std::optional<std::size_t> samples) noexcept
      : semaphore_(options.semaphore) {
    if (semaphore_) time_ = hand_over_every * static_cast<int>(std::clamp<std::size_t>(semaphore_->limit(), 4, 40));
    if (samples) samples_ = std::clamp<std::size_t>(*samples / 64, 32, most_samples);
  }

  /// Others wait for a permit than `ours`, or more are out than the limit allows.
  bool asked_for(bool ours) const noexcept {
    return semaphore_->waiting() > (ours ? 1u : 0u) || semaphore_access::core(*semaphore_).overdrawn();
  }

  /// After a sample. Its share begins when the lane gets a permit that it has waited for; with any other permit, when
  /// after a sample that did not suspend others are first seen to wait: for how long one that did suspend has had its
  /// permit, nobody knows.
  template <class Lane, class Executor>
  bool is_over(Lane& lane, bool suspended, bool ours, Executor& ex) const {
    if (!asked_for(ours)) [[likely]] {
      lane.kept_on = 0;
      return false;
    }
    if (semaphore_access::core(*semaphore_).overdrawn()) return true;
    if (suspended && lane.kept_since == no_timeout) return true;
    if (++lane.kept_on == samples_) return true;
    // The clock is not free: so many samples may pass between two looks at it.
    const std::size_t blind = suspended ? (lane.kept_on <= 32 ? 1 : 4) : (lane.kept_on <= 32 ? 4 : 32);
    if (lane.kept_on % blind != 0 && lane.kept_on != 1) return false;
    const std::chrono::nanoseconds now = now_of(ex);
    if (lane.kept_since == no_timeout) lane.kept_since = now;
    return now - lane.kept_since > time_;
  }

 private:
  static constexpr std::size_t most_samples = 8192;
  static constexpr std::chrono::nanoseconds hand_over_every = std::chrono::microseconds(25);  // of all permits

  async_semaphore* semaphore_;
  std::size_t samples_ = 1024;
  std::chrono::nanoseconds time_{};
};

}  // namespace cobatch::detail
