#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <utility>
#include <vector>

#include <cobatch/detail/idle_count.hpp>
#include <cobatch/detail/punctual_wait.hpp>
#include <cobatch/detail/timer_queue.hpp>

namespace cobatch::detail {

/// The workers of a pool that have nothing to do: who sleeps, who of them minds the clock, and how they are woken.
///
/// One sleeper, the timekeeper, gets up for the earliest deadline; the others sleep until they are woken. A
/// timekeeper that gets up gives the role away: when it finds something to do, appoint_timekeeper() names the next.
///
/// Thread safety: `idle` and has_timekeeper() from any thread; everything else requires the pool's mutex.
class sleeping_workers {
 public:
  using nanoseconds = timer_queue::nanoseconds;

  /// What each worker brings along.
  class sleeper {
    friend sleeping_workers;
    std::condition_variable changed_;
    bool woken_ = false;
  };

  void reserve(std::size_t workers) { others_.reserve(workers); }

  idle_count idle;

  /// A hint for a worker that was the timekeeper: it reads its own store, or a later one.
  bool has_timekeeper() const noexcept { return has_timekeeper_.load(std::memory_order_relaxed); }

  /// False: there was nobody to wake. The timekeeper is woken only if no other sleeps.
  bool wake_one() noexcept;

  /// A deadline was set: somebody must not sleep past it.
  void mind(const timer_queue& timers, nanoseconds deadline) noexcept;

  /// If there are timers and sleepers but no timekeeper, one of the sleepers becomes it.
  void appoint_timekeeper(const timer_queue& timers) noexcept;

  /// Sleeps until woken or a deadline comes near; the caller is counted as sleeping before, as searching afterwards.
  /// Returns the deadline for which it got up a little early, zero if it was woken.
  nanoseconds sleep(std::unique_lock<std::mutex>& lock, sleeper& self, const timer_queue& timers);

 private:
  void set_timekeeper(sleeper* keeper) noexcept {
    timekeeper_ = keeper;
    has_timekeeper_.store(keeper != nullptr, std::memory_order_relaxed);
  }

  std::vector<sleeper*> others_;  // all that sleep but the timekeeper
  sleeper* timekeeper_ = nullptr;
  nanoseconds wakes_at_ = timer_queue::never;  // when the timekeeper will get up, or was told to look again
  // Whether timekeeper_ is set; written with it, read by whoever has just worked off a search.
  std::atomic<bool> has_timekeeper_{false};
};

// ---- Implementation ----

inline bool sleeping_workers::wake_one() noexcept {
  sleeper* chosen = timekeeper_;
  if (!others_.empty()) {
    chosen = others_.back();
    others_.pop_back();
  } else if (chosen != nullptr) {
    set_timekeeper(nullptr);
  } else {
    return false;
  }
  chosen->woken_ = true;
  // On its behalf, and now: the next push must see that somebody is about to search.
  idle.sleeping_to_searching();
  chosen->changed_.notify_one();
  return true;
}

inline void sleeping_workers::mind(const timer_queue& timers, nanoseconds deadline) noexcept {
  if (timekeeper_ == nullptr) {
    appoint_timekeeper(timers);
  } else if (deadline < wakes_at_) {
    wakes_at_ = deadline;
    timekeeper_->changed_.notify_one();
  }
}

inline void sleeping_workers::appoint_timekeeper(const timer_queue& timers) noexcept {
  if (timekeeper_ != nullptr || others_.empty() || timers.empty()) return;
  set_timekeeper(others_.back());
  others_.pop_back();
  wakes_at_ = timer_queue::immediately;  // it will look at the deadlines in any case
  timekeeper_->changed_.notify_one();
}

inline auto sleeping_workers::sleep(std::unique_lock<std::mutex>& lock, sleeper& self, const timer_queue& timers)
    -> nanoseconds {
  self.woken_ = false;
  others_.push_back(&self);  // reserved
  appoint_timekeeper(timers);
  while (!self.woken_) {
    const nanoseconds deadline = timekeeper_ == &self ? timers.earliest() : timer_queue::never;
    if (deadline == timer_queue::never) {
      if (timekeeper_ == &self) wakes_at_ = timer_queue::never;
      self.changed_.wait(lock);
      continue;
    }
    const nanoseconds now = steady_now();
    wakes_at_ = deadline - spin_before(deadline, now);
    if (wakes_at_ > now && self.changed_.wait_until(lock, steady_time(wakes_at_)) == std::cv_status::no_timeout) {
      continue;  // woken, or the deadlines have changed
    }
    if (self.woken_) break;
    set_timekeeper(nullptr);
    idle.sleeping_to_searching();
    return deadline;
  }
  return 0;
}

}  // namespace cobatch::detail
