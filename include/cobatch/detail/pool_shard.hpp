#pragma once

#include <algorithm>
#include <array>
#include <coroutine>
#include <cstddef>
#include <span>

#include <cobatch/detail/atomic.hpp>
#include <cobatch/detail/brief_mutex.hpp>
#include <cobatch/detail/cache_line.hpp>
#include <cobatch/detail/config.hpp>
#include <cobatch/detail/handle_queue.hpp>
#include <cobatch/detail/mutex.hpp>
#include <cobatch/detail/timer_queue.hpp>

namespace cobatch::inline COBATCH_ABI::detail {

/// What one worker of a pool shares with everybody, beside its ring: a queue for what comes from other threads, and
/// its timers.
///
/// Anybody takes what is due. While its worker sleeps, that minds the shard's deadlines itself; while it is awake it may
/// be computing for long, and the others mind them: deadline_to_mind() is what they need to know.
///
/// Thread safety: everything from any thread, unless it says that it is its worker's. No call lasts long.
class pool_shard {
 public:
  using nanoseconds = timer_queue::nanoseconds;

  /// Who has to be told of a change.
  enum class tell : unsigned char { refused, nobody, owner, others };

  /// Whether something is queued: sequentially consistent with push(); not any more: some time after take().
  bool has_queued() const noexcept { return has_queued_.load(); }

  /// The same as a hint.
  bool may_have_queued() const noexcept { return has_queued_.load(std::memory_order_relaxed); }

  /// The earliest deadline, if others have to mind it. Sequentially consistent with whatever makes it earlier, and
  /// get_up(); it may still be one that is gone.
  nanoseconds deadline_to_mind() const noexcept { return asleep_.load() ? timer_queue::never : deadline_.load(); }

  /// A hint: something could be taken at this moment.
  bool has_work(nanoseconds now) const noexcept {
    return may_have_queued() || deadline_.load(std::memory_order_relaxed) <= now;
  }

  /// Queues all, or none and `refused`: after stop(), or without memory. `owner`: its worker sleeps.
  tell push(std::span<const std::coroutine_handle<>> handles) noexcept {
    return guarded(
        [&] {
          const std::lock_guard lock(mutex_);
          if (stopped_) return tell::refused;
          queued_.reserve_more(handles.size());
          for (const std::coroutine_handle<> handle : handles) queued_.push(handle);
          has_queued_.store(!queued_.empty());
          return is_asleep() ? tell::owner : tell::others;
        },
        [] { return tell::refused; });
  }

  /// Sets a timer. `refused`: it, or everything, was stopped before. May throw std::bad_alloc, and has then changed
  /// nothing.
  tell add(timer_node& node, nanoseconds deadline) {
    const std::lock_guard lock(mutex_);
    if (stopped_ || !timers_.add(node, deadline)) return tell::refused;
    return publish();
  }

  /// Makes the timer due at once, if it has not been taken.
  tell stop(timer_node& node) noexcept {
    const std::lock_guard lock(mutex_);
    return timers_.stop(node) ? publish() : tell::nobody;
  }

  /// Removes the timer, if it has not been taken.
  void erase(timer_node& node) noexcept {
    const std::lock_guard lock(mutex_);
    if (!node.linked()) return;
    timers_.erase(node);
    publish();
  }

  /// Moves what is due, and then what is queued, to `taken`, no more than `most`; how many. `shares`: of what is
  /// queued no more than half, rounded up.
  template <std::size_t Most>
  std::size_t take(std::array<std::coroutine_handle<>, Most>& taken, std::size_t most, nanoseconds now,
                   bool shares) noexcept {
    std::size_t count = 0;
    const std::lock_guard lock(mutex_);
    // Where both wait, neither takes it all.
    const std::size_t most_due = queued_.empty() ? most : most - most / 2;
    while (count < most_due) {
      timer_node* const node = stopped_ ? timers_.take_stopped() : timers_.take_due(now);
      if (node == nullptr) break;
      taken[count++] = node->handle;
    }
    if (count > 0) publish();
    const std::size_t size = queued_.size();
    const std::size_t share = std::min(most - count, shares ? size - size / 2 : size);
    for (std::size_t i = 0; i < share; ++i) taken[count++] = queued_.pop();
    // relaxed: who still reads true looks once in vain.
    if (share > 0 && share == size) has_queued_.store(false, std::memory_order_relaxed);
    return count;
  }

  /// Its worker goes to sleep; until when it may. From now on it is told of what is earlier.
  nanoseconds lie_down() noexcept {
    const std::lock_guard lock(mutex_);
    asleep_.store(true);
    wakes_at_ = queued_.empty() ? earliest() : timer_queue::immediately;
    return wakes_at_;
  }

  /// Its worker is awake.
  void get_up() noexcept {
    const std::lock_guard lock(mutex_);
    asleep_.store(false);
  }

  /// Refuses everything from now on; all timers are due at once, as stopped ones.
  void stop() noexcept {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
    publish();
  }

  /// Stopped, and nothing is left.
  bool finished() noexcept {
    const std::lock_guard lock(mutex_);
    return stopped_ && queued_.empty() && timers_.empty();
  }

 private:
  nanoseconds earliest() const noexcept {
    return stopped_ && !timers_.empty() ? timer_queue::immediately : timers_.earliest();
  }

  tell tell_owner(nanoseconds deadline) noexcept {
    if (deadline >= wakes_at_) return tell::nobody;
    wakes_at_ = timer_queue::immediately;  // told once: it will look in any case
    return tell::owner;
  }

  /// After a change of the timers.
  tell publish() noexcept {
    const nanoseconds first = earliest();
    const nanoseconds before = deadline_.load(std::memory_order_relaxed);
    if (first == before) return tell::nobody;  // others read the line
    if (first > before) {
      deadline_.store(first, std::memory_order_relaxed);  // who still reads the earlier one looks once in vain
      return tell::nobody;
    }
    deadline_.store(first);
    return is_asleep() ? tell_owner(first) : tell::others;
  }

  bool is_asleep() const noexcept { return asleep_.load(std::memory_order_relaxed); }

  // All written under mutex_, read by everybody, busy workers as a hint, others before they sleep: see "Sleeping and
  // waking" in thread_pool.hpp.
  atomic<nanoseconds> deadline_{timer_queue::never};  // the earliest
  atomic<bool> has_queued_{false};
  atomic<bool> asleep_{false};

  line_gap gap_;
  brief_mutex mutex_;  // guards what follows
  bool stopped_ = false;
  nanoseconds wakes_at_ = timer_queue::never;  // while asleep: no later than that, or it was told to look
  handle_queue queued_;
  timer_queue timers_;
};

}  // namespace cobatch::detail
