#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <limits>
#include <utility>
#include <vector>

#include <cobatch/detail/abi.hpp>
#include <cobatch/detail/atomic.hpp>
#include <cobatch/detail/brief_mutex.hpp>
#include <cobatch/detail/cache_line.hpp>
#include <cobatch/detail/condition_variable.hpp>
#include <cobatch/detail/idle_count.hpp>
#include <cobatch/detail/mutex.hpp>
#include <cobatch/detail/punctual_wait.hpp>
#include <cobatch/detail/timer_queue.hpp>

namespace cobatch::inline COBATCH_ABI::detail {

/// The workers of a pool that sleep: who they are, how each is woken, and which of them minds the others' clocks.
///
/// Each sleeps at a bell of its own; the list of them is locked for a few instructions only. One of them may be the
/// keeper: it gets up for the earliest deadline of the workers that are awake, and, where it is on watch, soon in any
/// case.
///
/// Thread safety: everything from any thread; what takes a `self` from the worker that this is.
class sleeping_workers {
 public:
  using nanoseconds = timer_queue::nanoseconds;
  static constexpr std::size_t nobody = std::numeric_limits<std::size_t>::max();

  /// What each worker brings along.
  class sleeper {
   public:
    /// Its worker, once awake: who asked it to come and take one handle; nobody, if that is not why it was woken.
    std::size_t take_caller() noexcept { return std::exchange(caller_, nobody); }

   private:
    friend sleeping_workers;

    std::size_t place_ = nobody;  // in the list, and guarded by its mutex

    mutex mutex_;  // guards what follows
    condition_variable rung_;
    bool woken_ = false;  // by name: it is no longer in the list, and already counted as searching
    bool told_ = false;   // to get up and look
    std::size_t caller_ = nobody;
  };

  void reserve(std::size_t workers) { list_.reserve(workers); }

  idle_count counts;

  // ---- Waking ----

  /// Wakes one if that is still needed, see idle_count.
  void wake_one() noexcept;

  /// Likewise, this one, if it sleeps.
  void wake(sleeper& one) noexcept;

  /// Makes this one look at its deadlines, if it sleeps. It may come too late, and is then harmless.
  static void tell(sleeper& one) noexcept;

  /// Wakes up to `most`, each directly, and asks them to take a handle from `caller` each.
  void wake_some(std::size_t most, std::size_t caller) noexcept;

  /// When the keeper will get up, at the latest; never, if there is none. Sequentially consistent with keep_watch().
  nanoseconds keeper_wakes_at() const noexcept { return keeper_wakes_at_.load(); }

  /// There is a deadline among those that the keeper minds: it looks again, if it would be late. Without a keeper one
  /// of the sleepers does.
  void mind(nanoseconds deadline) noexcept;

  // ---- Sleeping ----

  /// From now on `self` can be woken, and counts as sleeping.
  void lie_down(sleeper& self) noexcept;

  /// Makes `self` the keeper if there is none, or none on watch where `watch`; false if not, or if it has been woken.
  /// The caller then looks at the deadlines, in this order, and says until when it sleeps.
  bool keep_watch(sleeper& self, bool watch) noexcept;
  void keeper_sleeps_until(sleeper& self, nanoseconds deadline) noexcept;

  /// Sleeps until it is woken, told to look, or `deadline`; true if it was woken. In any case it counts as searching
  /// afterwards.
  bool sleep(sleeper& self, nanoseconds deadline);

 private:
  /// Requires: mutex_ is held, and it is in the list.
  void remove(sleeper& one) noexcept;
  sleeper& choose() noexcept;

  static void ring(sleeper& one, std::size_t caller = nobody) noexcept;

  // Written under mutex_, read by whoever publishes a deadline.
  atomic<nanoseconds> keeper_wakes_at_{timer_queue::never};

  line_gap gap_;
  brief_mutex mutex_;  // guards what follows
  std::vector<sleeper*> list_;
  sleeper* keeper_ = nullptr;
  bool watching_ = false;  // the keeper
};

// ---- Implementation ----

inline void sleeping_workers::wake_one() noexcept {
  sleeper* chosen = nullptr;
  {
    const std::lock_guard lock(mutex_);
    if (!counts.wake_needed()) return;
    chosen = &choose();
    remove(*chosen);
  }
  ring(*chosen);
}

inline void sleeping_workers::wake(sleeper& one) noexcept {
  {
    const std::lock_guard lock(mutex_);
    if (one.place_ == nobody || !counts.wake_needed()) return;
    remove(one);
  }
  ring(one);
}

inline void sleeping_workers::wake_some(std::size_t most, std::size_t caller) noexcept {
  std::array<sleeper*, 32> chosen;
  while (most > 0) {
    std::size_t count = 0;
    {
      const std::lock_guard lock(mutex_);
      while (count < std::min(most, chosen.size()) && !list_.empty()) {
        chosen[count] = &choose();
        remove(*chosen[count++]);
      }
    }
    if (count == 0) return;
    for (std::size_t i = 0; i < count; ++i) ring(*chosen[i], caller);
    most -= count;
  }
}

inline void sleeping_workers::mind(nanoseconds deadline) noexcept {
  sleeper* told = nullptr;
  {
    const std::lock_guard lock(mutex_);
    if (list_.empty() || deadline >= keeper_wakes_at_.load(std::memory_order_relaxed)) return;
    if (keeper_ == nullptr) keeper_ = list_.back();
    told = keeper_;
    keeper_wakes_at_.store(timer_queue::immediately);  // it will look at all deadlines in any case
  }
  tell(*told);
}

inline void sleeping_workers::lie_down(sleeper& self) noexcept {
  {
    const std::lock_guard lock(self.mutex_);
    self.woken_ = self.told_ = false;
    self.caller_ = nobody;
  }
  const std::lock_guard lock(mutex_);
  self.place_ = list_.size();
  list_.push_back(&self);  // reserved
  counts.searching_to_sleeping();
}

inline bool sleeping_workers::keep_watch(sleeper& self, bool watch) noexcept {
  const std::lock_guard lock(mutex_);
  if (self.place_ == nobody || (keeper_ != nullptr && (!watch || watching_))) return false;
  keeper_ = &self;  // one that was before sleeps on
  watching_ = watch;
  if (watch) counts.begin_watch();
  keeper_wakes_at_.store(timer_queue::never);
  return true;
}

inline void sleeping_workers::keeper_sleeps_until(sleeper& self, nanoseconds deadline) noexcept {
  const std::lock_guard lock(mutex_);
  if (keeper_ == &self) keeper_wakes_at_.store(deadline);
}

inline bool sleeping_workers::sleep(sleeper& self, nanoseconds deadline) {
  {
    std::unique_lock lock(self.mutex_);
    while (!self.woken_ && !self.told_) {
      if (deadline == timer_queue::never) {
        self.rung_.wait(lock);
      } else if (steady_now() >= deadline ||
                 self.rung_.wait_until(lock, steady_time(deadline)) == std::cv_status::timeout) {
        break;
      }
    }
    if (self.woken_) return true;
  }
  {
    const std::lock_guard lock(mutex_);
    if (self.place_ != nobody) {
      remove(self);
      return false;
    }
  }
  // Somebody has just taken it out of the list, and is about to ring.
  std::unique_lock lock(self.mutex_);
  while (!self.woken_) self.rung_.wait(lock);
  return true;
}

inline void sleeping_workers::remove(sleeper& one) noexcept {
  sleeper* const last = list_.back();
  list_[one.place_] = last;
  last->place_ = one.place_;
  list_.pop_back();
  one.place_ = nobody;
  bool watched = false;
  if (keeper_ == &one) {
    keeper_ = nullptr;
    watched = std::exchange(watching_, false);
    keeper_wakes_at_.store(timer_queue::never);
  }
  // On its behalf, and now: the next push must see that somebody is about to search.
  counts.sleeping_to_searching(watched);
}

/// The last one to lie down, but the keeper only if no other sleeps.
inline auto sleeping_workers::choose() noexcept -> sleeper& {
  sleeper* const last = list_.back();
  return last == keeper_ && list_.size() > 1 ? *list_[list_.size() - 2] : *last;
}

/// To one that was removed from the list.
inline void sleeping_workers::ring(sleeper& one, std::size_t caller) noexcept {
  {
    const std::lock_guard lock(one.mutex_);
    one.woken_ = true;
    one.caller_ = caller;
  }
  one.rung_.notify_one();
}

inline void sleeping_workers::tell(sleeper& one) noexcept {
  {
    const std::lock_guard lock(one.mutex_);
    one.told_ = true;
  }
  one.rung_.notify_one();
}

}  // namespace cobatch::detail
