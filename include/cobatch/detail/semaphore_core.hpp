#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>

#include <cobatch/detail/config.hpp>
#include <cobatch/detail/waiter.hpp>

namespace cobatch::detail {

/// Permits as they are counted: signed, for what is free falls below zero where a limit is lowered below use.
using permit_count = std::int64_t;

inline constexpr permit_count max_permits = (permit_count{1} << 61) - 1;

/// A number of permits from outside. Above max_permits all are the same: more than there can ever be.
constexpr permit_count to_permits(std::size_t n) noexcept {
  return n > static_cast<std::size_t>(max_permits) ? max_permits + 1 : static_cast<permit_count>(n);
}

enum class semaphore_outcome : unsigned char {
  none,       ///< not waiting, nothing taken
  stopped,    ///< stopped before it could queue
  queued,     ///< waits for its turn
  granted,    ///< the permits are the waiter's
  too_heavy,  ///< more than the limit allows at all: nothing taken
  cancelled,  ///< taken out of the queue: nothing taken
};

/// One acquisition. Its owner sets handle, executor and weight; while it waits, the outcome is the
/// semaphore's.
class semaphore_waiter : public waiter {
public:
  constexpr explicit semaphore_waiter(permit_count wanted) noexcept : weight(wanted) {}

  permit_count weight;
  semaphore_outcome outcome = semaphore_outcome::none;
};

/// The counting, the queue and the waking of async_semaphore, for drivers of raw coroutine handles too.
///
/// `word_` is the whole state of a semaphore in which nobody waits:
///
///     word_ >= 0   open:   so many permits are free, the queue is empty
///     word_ <  0   closed: somebody waits, or more permits are out than the limit allows; closed_free_ says
///                          how many are free (below zero: too many are out), the number in word_ nothing
///
///     open   -> open     take: compare-exchange, give: fetch-add; both without the mutex
///     open   -> closed   compare-exchange under mutex_: a waiter queues, the limit is lowered
///     closed -> closed   under mutex_: give, queue, leave the queue, change the limit
///     closed -> open     store under mutex_, once the queue is empty and closed_free_ >= 0
///
/// So a newcomer cannot overtake: it finds the word closed, and queues. And no wake-up is lost: a give whose
/// fetch-add comes before the closing is counted by who closes; one whose fetch-add comes after it has
/// changed nothing that counts, and gives again under mutex_, where it finds the waiter queued. No permit is
/// to be had before its giver's last access but the unlocking: whoever is granted it may destroy the
/// semaphore.
class semaphore_core {
public:
  constexpr explicit semaphore_core(std::size_t limit) noexcept : word_(counted(limit)), limit_(limit) {}
  semaphore_core(const semaphore_core&) = delete;
  semaphore_core& operator=(const semaphore_core&) = delete;
  ~semaphore_core() {
    if (waiting() != 0) [[unlikely]]
      fail("an async_semaphore was destroyed while a coroutine waits in it");
  }

  std::size_t limit() const noexcept { return limit_.load(std::memory_order_relaxed); }
  std::size_t waiting() const noexcept { return waiting_.load(std::memory_order_relaxed); }
  std::size_t available() const noexcept {
    permit_count free = word_.load(std::memory_order_relaxed);
    if (free < 0) free = closed_free_.load(std::memory_order_relaxed);
    return static_cast<std::size_t>(std::clamp(free, permit_count{0}, max_permits));
  }

  /// Takes `weight` permits if they are free and nobody waits.
  bool try_take(permit_count weight) noexcept {
    permit_count word = word_.load(std::memory_order_relaxed);
    while (word >= needed_for(weight)) {
      // acquire: pairs with the release in give() and change(), so that what was done under the permits is
      // seen.
      if (word_.compare_exchange_weak(word, word - weight, std::memory_order_acquire,
                                      std::memory_order_relaxed)) {
        return true;
      }
    }
    return false;
  }

  /// Adds n permits, n <= max_permits. May resume coroutines that have no executor.
  void give(permit_count n) noexcept {
    if (n <= max_fast_give) [[likely]] {
      // No look at the word first: a load between two locked instructions costs as much as half of one.
      // release: pairs with the acquire in try_take(), wait_for() and change().
      const permit_count before = word_.fetch_add(n, std::memory_order_release);
      // From here on *this may be gone.
      if (before >= 0 && before <= max_permits - n) [[likely]]
        return;
      if (before >= 0) n = 0;  // given; only cut down to max_permits
    }
    give_slowly(n);
  }

  /// Takes waiter.weight permits, or queues the waiter. True: settled at once, as granted or too_heavy.
  /// False: it will be resumed once it is settled, maybe before this returns. Its outcome tells how.
  bool acquire_or_wait(semaphore_waiter& waiter) noexcept {
    if (try_take(waiter.weight)) {
      waiter.outcome = semaphore_outcome::granted;
      return true;
    }
    return wait_for(waiter);
  }

  /// The second half of acquire_or_wait(). True also for a waiter that has been stopped in between.
  [[gnu::noinline]] inline bool wait_for(semaphore_waiter& waiter) noexcept;

  /// Takes a queued waiter out and does not resume it; false: it was not in the queue any more. May resume
  /// others that have no executor, as give().
  bool cancel(semaphore_waiter& waiter) noexcept { return take_out(waiter, nullptr); }

  /// Takes a queued waiter out and resumes it; one that has not queued yet will not. For a stop callback.
  void stop(semaphore_waiter& waiter) noexcept {
    waiter_list cancelled;
    take_out(waiter, &cancelled);
    // Last: its coroutine waits for this very callback to return, which must not be running others then.
    resume_all(cancelled);
  }

  /// For a waiter that goes away, whatever its outcome: leaves the queue, or gives back what was granted.
  [[gnu::noinline]] void abandon(semaphore_waiter& waiter) noexcept {
    cancel(waiter);
    if (waiter.linked()) waiter.unlink();  // settled, and next to be resumed by this very thread
    if (waiter.outcome == semaphore_outcome::granted) give(waiter.weight);
  }

  inline void set_limit(std::size_t n) noexcept;

private:
  static constexpr permit_count closed = -(permit_count{1} << 62);
  // However many threads add so much at once, a closed word stays negative and an open one does not wrap.
  // What they add to a closed one is wiped off by change(), which each of them comes to.
  static constexpr permit_count max_fast_give = permit_count{1} << 32;

  static constexpr permit_count counted(std::size_t n) noexcept {
    return std::min(to_permits(n), max_permits);
  }

  // A weight of 0 takes nothing, but passes only where a permit is free: it waits its turn, and while paused.
  static constexpr permit_count needed_for(permit_count weight) noexcept {
    return std::max(weight, permit_count{1});
  }

  // Under mutex_: n more permits are free (n < 0: fewer); whoever can go on now moves to `ready`.
  inline void change(permit_count n, waiter_list& ready) noexcept;
  // Under mutex_.
  inline void dequeue(semaphore_waiter& waiter, semaphore_outcome outcome) noexcept;

  [[gnu::noinline]] inline void give_slowly(permit_count n) noexcept;
  [[gnu::noinline]] inline bool take_out(semaphore_waiter& waiter, waiter_list* cancelled) noexcept;

  // On a line of its own: who polls waiting() is not disturbed by who takes and gives.
  alignas(64) std::atomic<permit_count> word_;
  // The atomics from here on are written under mutex_; anyone may read them, and they publish nothing.
  alignas(64) std::atomic<std::size_t> waiting_ = 0;
  std::atomic<std::size_t> limit_;
  std::atomic<permit_count> closed_free_ = 0;
  // Guards all members below and above, but for word_ while it is open, and the outcome of every waiter that
  // is in the queue or on its way there.
  std::mutex mutex_;
  permit_count heaviest_ = 0;  // nobody in the queue weighs more
  waiter_list queue_;
};

// ---- Implementation ----

bool semaphore_core::wait_for(semaphore_waiter& waiter) noexcept {
  const std::lock_guard lock(mutex_);
  if (waiter.outcome == semaphore_outcome::stopped) return true;
  const bool too_heavy = limit() != 0 && waiter.weight > counted(limit());
  permit_count word = word_.load(std::memory_order_relaxed);
  while (word >= 0) {
    const bool fits = word >= needed_for(waiter.weight);  // given back since the try
    if (!fits && too_heavy) break;
    // acquire: pairs with the release in give() and change(). Who closes the word passes on what came with
    // it.
    if (!word_.compare_exchange_weak(word, fits ? word - waiter.weight : closed, std::memory_order_acquire,
                                     std::memory_order_relaxed)) {
      continue;
    }
    if (fits) {
      waiter.outcome = semaphore_outcome::granted;
      return true;
    }
    closed_free_.store(word, std::memory_order_relaxed);
    break;
  }
  if (too_heavy) {
    waiter.outcome = semaphore_outcome::too_heavy;
    return true;
  }
  heaviest_ = queue_.empty() ? waiter.weight : std::max(heaviest_, waiter.weight);
  queue_.push_back(waiter);
  waiter.outcome = semaphore_outcome::queued;
  waiting_.store(waiting() + 1, std::memory_order_relaxed);
  return false;
}

void semaphore_core::give_slowly(permit_count n) noexcept {
  waiter_list ready;
  {
    const std::lock_guard lock(mutex_);
    change(n, ready);
  }
  // From here on *this may be gone.
  resume_all(ready);
}

bool semaphore_core::take_out(semaphore_waiter& waiter, waiter_list* cancelled) noexcept {
  waiter_list ready;
  {
    const std::lock_guard lock(mutex_);
    if (waiter.outcome == semaphore_outcome::none && cancelled) waiter.outcome = semaphore_outcome::stopped;
    if (waiter.outcome != semaphore_outcome::queued) return false;
    dequeue(waiter, semaphore_outcome::cancelled);
    if (cancelled) cancelled->push_back(waiter);
    change(0, ready);  // whoever it stood in front of
  }
  resume_all(ready);
  return true;
}

void semaphore_core::set_limit(std::size_t n) noexcept {
  waiter_list ready;
  {
    const std::lock_guard lock(mutex_);
    const permit_count now = counted(n);
    const permit_count more = now - counted(limit());
    limit_.store(n, std::memory_order_relaxed);
    change(more, ready);
    if (n != 0 && heaviest_ > now) {
      for (waiter* next = queue_.first(); next != nullptr;) {
        auto& each = static_cast<semaphore_waiter&>(*next);
        next = queue_.after(next);
        if (each.weight <= now) continue;
        dequeue(each, semaphore_outcome::too_heavy);
        ready.push_back(each);
      }
      heaviest_ = now;
      change(0, ready);  // whoever they stood in front of
    }
  }
  resume_all(ready);
}

void semaphore_core::change(permit_count n, waiter_list& ready) noexcept {
  const auto plus_n = [n](permit_count free) { return std::min(free + n, max_permits); };
  permit_count word = word_.load(std::memory_order_relaxed);
  while (word >= 0) {
    const permit_count free = plus_n(word);
    // release: pairs with the acquire in try_take() and wait_for(). acquire: as in wait_for().
    if (word_.compare_exchange_weak(word, free >= 0 ? free : closed, std::memory_order_acq_rel,
                                    std::memory_order_relaxed)) {
      if (free < 0) closed_free_.store(free, std::memory_order_relaxed);
      return;
    }
  }
  permit_count free = plus_n(closed_free_.load(std::memory_order_relaxed));
  while (auto* const head = static_cast<semaphore_waiter*>(queue_.first())) {
    if (free < needed_for(head->weight)) break;
    free -= head->weight;
    dequeue(*head, semaphore_outcome::granted);
    ready.push_back(*head);
  }
  closed_free_.store(free, std::memory_order_relaxed);
  // release, where this opens it: pairs with the acquire in try_take() and wait_for().
  word_.store(queue_.empty() && free >= 0 ? free : closed, std::memory_order_release);
}

void semaphore_core::dequeue(semaphore_waiter& waiter, semaphore_outcome outcome) noexcept {
  waiter.unlink();
  waiter.outcome = outcome;
  waiting_.store(waiting() - 1, std::memory_order_relaxed);
}

}  // namespace cobatch::detail
