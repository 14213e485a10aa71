#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include <cobatch/detail/atomic.hpp>
#include <cobatch/detail/cache_line.hpp>
#include <cobatch/detail/config.hpp>
#include <cobatch/detail/mutex.hpp>
#include <cobatch/detail/waiter.hpp>

namespace cobatch::inline COBATCH_ABI::detail {

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

/// One acquisition. Its owner sets handle, executor and weight; the semaphore sets the outcome.
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
///     open    how many permits are free, less what is overdrawn just now (so it may be a little below zero);
///             the queue is empty
///     closed  far below zero, and the number means nothing: somebody waits, or more permits are out than
///             the limit allows; closed_free_ says how many are free, less what is overdrawn
///
///     open   -> open     take: fetch-sub or compare-exchange, give: fetch-add; without the mutex
///     open   -> closed   compare-exchange under mutex_: a waiter queues, the limit is lowered
///     closed -> closed   under mutex_: give, queue, leave the queue, change the limit
///     closed -> open     store under mutex_, once the queue is empty and closed_free_ >= 0
///
/// A fetch-add or fetch-sub that finds the word closed has changed nothing that counts, and is made good
/// under mutex_. A fetch-sub that finds it open, but too low, has overdrawn: whoever did it pays back under
/// mutex_, into the word or, if that has been closed since, into closed_free_, which inherited the debt.
/// Until then others may be queued who need not be; the payment lets them go on.
///
/// So a newcomer cannot overtake: it finds the word closed, and queues. And no wake-up is lost: a give whose
/// fetch-add comes before the closing is counted by who closes; one whose fetch-add comes after it gives
/// under mutex_, where it finds the waiter queued. No permit is to be had before its giver's last access but
/// the unlocking, for which the destructor waits: whoever is granted it may destroy the semaphore.
class semaphore_core {
 public:
  constexpr explicit semaphore_core(std::size_t limit) noexcept : word_(counted(limit)), limit_(limit) {}
  semaphore_core(const semaphore_core&) = delete;
  semaphore_core& operator=(const semaphore_core&) = delete;
  ~semaphore_core() {
    // Whoever gave back what was taken since may still be about to unlock it.
    const std::lock_guard lock(mutex_);
    if (waiting() != 0) [[unlikely]]
      fail("an async_semaphore was destroyed while a coroutine waits in it");
  }

  std::size_t limit() const noexcept { return limit_.load(std::memory_order_relaxed); }
  std::size_t waiting() const noexcept { return waiting_.load(std::memory_order_relaxed); }
  std::size_t available() const noexcept {
    permit_count free = word_.load(std::memory_order_relaxed);
    if (!is_open(free)) free = closed_free_.load(std::memory_order_relaxed);
    return static_cast<std::size_t>(std::clamp(free, permit_count{0}, max_permits));
  }

  /// More permits are out than the limit allows: whoever passes one on should give it back instead.
  bool overdrawn() const noexcept {
    return !is_open(word_.load(std::memory_order_relaxed)) && closed_free_.load(std::memory_order_relaxed) < 0;
  }

  enum class first_try : unsigned char { taken, refused, overdrawn };

  /// Takes `weight` permits if they are free and nobody waits; if not, wait_for() must follow, and be told.
  ///
  /// A single instruction: try_take(), a load and a compare-exchange, costs a half more just after a give().
  first_try take_first(permit_count weight) noexcept {
    if (weight > max_fast) [[unlikely]] {
      return try_take(weight) ? first_try::taken : first_try::refused;
    }
    // acquire: as in try_take().
    const permit_count before = word_.fetch_sub(weight, std::memory_order_acquire);
    if (before >= needed_for(weight)) [[likely]]
      return first_try::taken;
    return is_open(before) ? first_try::overdrawn : first_try::refused;
  }

  /// Takes `weight` permits if they are free and nobody waits.
  bool try_take(permit_count weight) noexcept {
    permit_count word = word_.load(std::memory_order_relaxed);
    while (word >= needed_for(weight)) {
      // acquire: pairs with the release in give() and change(): what was done under the permits is seen.
      if (word_.compare_exchange_weak(word, word - weight, std::memory_order_acquire, std::memory_order_relaxed)) {
        return true;
      }
    }
    return false;
  }

  /// Adds n permits, n <= max_permits. May resume coroutines that have no executor.
  void give(permit_count n) noexcept {
    if (n <= max_fast) [[likely]] {
      // No look at the word first, as in take_first().
      // release: pairs with the acquire wherever permits are taken.
      const permit_count before = word_.fetch_add(n, std::memory_order_release);
      if (is_open(before)) [[likely]] {
        if (before <= max_permits - n) [[likely]]
          return;  // *this may be gone
        n = 0;     // given; only cut down to max_permits
      }
    }
    give_slowly(n);
  }

  /// Takes waiter.weight permits, or queues the waiter. True: settled at once, as granted or too_heavy.
  /// False: it will be resumed once it is settled, maybe before this returns. Its outcome tells how.
  bool acquire_or_wait(semaphore_waiter& waiter) noexcept {
    const first_try result = take_first(waiter.weight);
    if (result != first_try::taken) return wait_for(waiter, result);
    waiter.outcome = semaphore_outcome::granted;
    return true;
  }

  /// The second half of acquire_or_wait(), after a first try (try_take() counts as refused). True also for a
  /// waiter that has been stopped in between.
  [[gnu::noinline]] inline bool wait_for(semaphore_waiter& waiter, first_try result) noexcept;

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
  static constexpr permit_count lowest_open = -(permit_count{1} << 61);
  // However many threads add or subtract so much at once, the word stays open or closed, and does not wrap.
  // What they change of a closed word is wiped off under mutex_, where each of them goes next.
  static constexpr permit_count max_fast = permit_count{1} << 32;

  static constexpr bool is_open(permit_count word) noexcept { return word >= lowest_open; }

  static constexpr permit_count counted(std::size_t n) noexcept { return std::min(to_permits(n), max_permits); }

  // A weight of 0 takes nothing, but passes only where a permit is free: it waits its turn, and while paused.
  static constexpr permit_count needed_for(permit_count weight) noexcept { return std::max(weight, permit_count{1}); }

  // Under mutex_: n more permits are free (n < 0: fewer); whoever can go on now moves to `ready`.
  inline void change(permit_count n, waiter_list& ready) noexcept;
  // Under mutex_.
  inline bool settle_or_queue(semaphore_waiter& waiter) noexcept;
  inline void dequeue(semaphore_waiter& waiter, semaphore_outcome outcome) noexcept;

  [[gnu::noinline]] inline void give_slowly(permit_count n) noexcept;
  [[gnu::noinline]] inline bool take_out(semaphore_waiter& waiter, waiter_list* cancelled) noexcept;

  // On a line of its own: who polls waiting() is not disturbed by who takes and gives.
  line_gap gap_before_;
  atomic<permit_count> word_;
  line_gap gap_behind_;
  // The atomics from here on are written under mutex_; anyone may read them, and they publish nothing.
  atomic<std::size_t> waiting_ = 0;
  atomic<std::size_t> limit_;
  atomic<permit_count> closed_free_ = 0;
  // Guards all members below and above, but for word_ while it is open, and the outcome of every waiter that
  // is in the queue or on its way there.
  mutex mutex_;
  permit_count heaviest_ = 0;  // nobody in the queue weighs more
  waiter_list queue_;
};

// ---- Implementation ----

bool semaphore_core::wait_for(semaphore_waiter& waiter, first_try result) noexcept {
  waiter_list ready;
  bool settled;
  {
    const std::lock_guard lock(mutex_);
    if (result == first_try::overdrawn) change(waiter.weight, ready);
    settled = settle_or_queue(waiter);
  }
  // If not settled, the waiter may be gone.
  resume_all(ready);
  return settled;
}

bool semaphore_core::settle_or_queue(semaphore_waiter& waiter) noexcept {
  if (waiter.outcome == semaphore_outcome::stopped) return true;
  const bool too_heavy = limit() != 0 && waiter.weight > counted(limit());
  permit_count word = word_.load(std::memory_order_relaxed);
  while (is_open(word)) {
    const bool fits = word >= needed_for(waiter.weight);  // given back since the first try
    if (!fits && too_heavy) break;
    // acquire: as in try_take(). Who closes the word passes on what came with its permits.
    if (!word_.compare_exchange_weak(word, fits ? word - waiter.weight : closed, std::memory_order_acquire,
                                     std::memory_order_relaxed)) {
      continue;
    }
    if (fits) {
      waiter.outcome = semaphore_outcome::granted;
      return true;
    }
    closed_free_.store(word, std::memory_order_relaxed);
    word = closed;
  }
  if (!is_open(word)) word_.store(closed, std::memory_order_relaxed);  // wipes off what was added to it
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
  while (is_open(word)) {
    const permit_count free = plus_n(word);
    // release: as in give(). acquire: as in settle_or_queue().
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
  // release, where this opens it: as in give().
  word_.store(queue_.empty() && free >= 0 ? free : closed, std::memory_order_release);
}

void semaphore_core::dequeue(semaphore_waiter& waiter, semaphore_outcome outcome) noexcept {
  waiter.unlink();
  waiter.outcome = outcome;
  waiting_.store(waiting() - 1, std::memory_order_relaxed);
}

}  // namespace cobatch::detail
