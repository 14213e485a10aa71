#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <stop_token>
#include <thread>
#include <utility>
#include <vector>

#include <cobatch/detail/config.hpp>
#include <cobatch/detail/current_executor.hpp>
#include <cobatch/detail/handle_queue.hpp>
#include <cobatch/detail/idle_count.hpp>
#include <cobatch/detail/polling_pace.hpp>
#include <cobatch/detail/punctual_wait.hpp>
#include <cobatch/detail/timer_awaiter.hpp>
#include <cobatch/detail/timer_queue.hpp>
#include <cobatch/detail/work_ring.hpp>
#include <cobatch/executor.hpp>

namespace cobatch {

class thread_pool;
namespace detail {
template <>
inline constexpr const char* executor_blocks<thread_pool> = "a thread_pool worker";
}

/// An executor of several threads: a queue each, work stealing between them, timers; an idle pool uses no CPU.
///
/// Order: a coroutine that reschedules itself goes behind all that is queued on its thread and starves nobody.
/// Lifetime: the destructor is stop() and then waits until all that is queued has run, so no frame is lost. It must not
/// run on one of the pool's own threads.
/// Thread safety: everything from any thread; execute() may race with the end of the coroutine that it hands over, even
/// if that is what lets another thread destroy the pool.
class thread_pool {
 public:
  /// Starts the threads. Errors: std::invalid_argument if `threads` is 0; std::system_error if one cannot be started.
  explicit thread_pool(std::size_t threads = std::max(1u, std::thread::hardware_concurrency()));
  thread_pool(const thread_pool&) = delete;
  thread_pool& operator=(const thread_pool&) = delete;
  ~thread_pool();

  /// Queues the handle; false after stop(), or where there is no memory to queue it: it was not taken.
  ///
  /// Resumes: on a pool thread, never inside execute().
  /// Allocates: nothing, but where its queue of work from outside grows.
  bool execute(std::coroutine_handle<> handle) noexcept;

  /// The number of threads.
  std::size_t concurrency() const noexcept { return size_; }

  /// `co_await pool.schedule()` goes on on the pool, behind what is queued on this thread.
  schedule_awaiter<thread_pool> schedule() noexcept { return schedule_awaiter<thread_pool>(*this); }

  /// `co_await pool.schedule_after(delay, token)`: true once the delay has elapsed, false as soon as it is stopped.
  ///
  /// Resumes: on the pool. A delay of zero or less is a schedule(); one too long for the clock never elapses. After stop()
  /// it gives false at once, without suspending.
  detail::timer_awaiter<thread_pool> schedule_after(std::chrono::nanoseconds delay,
                                                    std::stop_token token = {}) noexcept {
    return detail::timer_awaiter<thread_pool>(*this, delay, std::move(token));
  }

  /// Refuses new work from now on; what is queued still runs, and who sleeps resumes at once with false. Does not wait.
  /// Once or more often, from any thread, the pool's own included.
  void stop() noexcept;

 private:
  friend detail::timer_awaiter<thread_pool>;
  using timer_queue = detail::timer_queue;
  struct worker;
  enum class parked : unsigned char { try_again, leave };
  static constexpr std::size_t batch = 64;  // handles moved at once
  using handles = std::array<std::coroutine_handle<>, batch>;

  bool add_timer(detail::timer_node& node, timer_queue::nanoseconds delay);
  void stop_timer(detail::timer_node& node) noexcept;
  void erase_timer(detail::timer_node& node) noexcept;

  void work(worker& self);
  std::coroutine_handle<> next(worker& self) noexcept;
  std::coroutine_handle<> search(worker& self) noexcept;
  std::coroutine_handle<> take_shared(worker& self) noexcept;
  std::coroutine_handle<> steal(worker& self) noexcept;
  std::coroutine_handle<> keep_first(worker& self, const handles& taken, std::size_t count) noexcept;
  void after_search() noexcept;
  parked park(worker& self) noexcept;
  bool any_ring_has_work() const noexcept;

  bool inject(worker* self, std::coroutine_handle<> handle) noexcept;
  void wake_one_if_needed() noexcept;
  void wake_one() noexcept;
  void wake(worker& sleeper) noexcept;
  void appoint_timekeeper() noexcept;
  void update_deadline() noexcept;

  // The worker that this thread is, of whatever pool.
  static inline thread_local constinit worker* this_worker_ = nullptr;

  std::size_t size_;
  std::unique_ptr<worker[]> workers_;

  // Read on every push and every turn of a worker's loop, seldom written.
  alignas(64) detail::idle_count idle_;
  // The earliest deadline; written under mutex_. A hint (relaxed): who is about to sleep reads timers_ under mutex_.
  std::atomic<timer_queue::nanoseconds> next_deadline_{timer_queue::never};
  // Whether injected_ holds something; written under mutex_. A busy worker reads it as a hint; see after_search().
  std::atomic<bool> has_injected_{false};
  // Whether timekeeper_ is set; written under mutex_. See after_search().
  std::atomic<bool> has_timekeeper_{false};
  // Written under mutex_ by stop(). On a worker of its own a push that reads it late is one that came before the stop.
  std::atomic<bool> stopped_{false};

  alignas(64) std::mutex mutex_;  // guards everything below, and the fields of worker that say so
  detail::handle_queue injected_;  // from other threads, and what does not fit into a ring
  timer_queue timers_;
  std::vector<worker*> sleepers_;  // all that sleep but the timekeeper
  worker* timekeeper_ = nullptr;   // the one sleeper that wakes up for the earliest deadline
  timer_queue::nanoseconds wakes_at_ = timer_queue::never;  // when it will
};

// ---- Implementation ----

struct alignas(64) thread_pool::worker {
  detail::work_ring ring;
  thread_pool* pool = nullptr;
  detail::polling_pace pace;
  timer_queue::nanoseconds spin_until = 0;  // the deadline for which it woke up a little early
  std::size_t victim = 0;                   // where it steals first
  std::thread thread;
  std::condition_variable woken_changed;
  bool woken = false;  // guarded by mutex_
};

inline thread_pool::thread_pool(std::size_t threads) : size_(threads) {
  if (threads == 0) detail::throw_or_fail<std::invalid_argument>("a thread_pool needs at least one thread");
  workers_ = std::make_unique<worker[]>(threads);
  sleepers_.reserve(threads);
  detail::guarded(
      [&] {
        for (std::size_t i = 0; i < threads; ++i) {
          workers_[i].pool = this;
          workers_[i].victim = i;
          workers_[i].thread = std::thread([this, i] { work(workers_[i]); });
        }
      },
      [&] {
        stop();
        for (std::size_t i = 0; i < threads && workers_[i].thread.joinable(); ++i) workers_[i].thread.join();
        std::rethrow_exception(std::current_exception());
      });
}

inline thread_pool::~thread_pool() {
  if (this_worker_ != nullptr && this_worker_->pool == this) {
    detail::fail("a thread_pool was destroyed on one of its own threads, for the end of which it would have to wait");
  }
  stop();
  for (std::size_t i = 0; i < size_; ++i) workers_[i].thread.join();
}

inline bool thread_pool::execute(std::coroutine_handle<> handle) noexcept {
  worker* const self = this_worker_;
  if (self == nullptr || self->pool != this) return inject(nullptr, handle);
  if (stopped_.load(std::memory_order_relaxed)) [[unlikely]] return false;
  if (!self->ring.push(handle)) [[unlikely]] return inject(self, handle);
  wake_one_if_needed();
  return true;
}

inline void thread_pool::stop() noexcept {
  const std::lock_guard lock(mutex_);
  if (stopped_.load(std::memory_order_relaxed)) return;
  stopped_.store(true, std::memory_order_relaxed);
  update_deadline();
  while (!sleepers_.empty() || timekeeper_) wake_one();
}

/// Queues a handle under the mutex: one from outside, or one that does not fit into the ring of `self`, along with half
/// of that ring. Nothing is touched after the unlock: the coroutine may already have let someone destroy the pool.
inline bool thread_pool::inject(worker* self, std::coroutine_handle<> handle) noexcept {
  return detail::guarded(
      [&] {
        const std::lock_guard lock(mutex_);
        if (stopped_.load(std::memory_order_relaxed)) return false;
        handles moved;
        injected_.reserve_more(batch + 1);
        if (self != nullptr) {
          const std::size_t count = self->ring.take_half(moved);
          for (std::size_t i = 0; i < count; ++i) injected_.push(moved[i]);
        }
        injected_.push(handle);
        has_injected_.store(true);
        if (idle_.wake_needed()) wake_one();
        return true;
      },
      [] { return false; });
}

// ---- A worker's loop ----

inline void thread_pool::work(worker& self) {
  this_worker_ = &self;
  const detail::executor_scope scope(detail::ref(*this));
  detail::make_waits_punctual();
  while (const std::coroutine_handle<> handle = next(self)) handle.resume();
  this_worker_ = nullptr;
}

/// What to resume now; sleeps while there is nothing; null: the pool has stopped and all is done.
inline std::coroutine_handle<> thread_pool::next(worker& self) noexcept {
  const bool timers = next_deadline_.load(std::memory_order_relaxed) != timer_queue::never;
  if (self.pace.tick(timers)) [[unlikely]] {
    if (timers) {
      self.pace.looked_around(detail::steady_now());
    } else {
      self.pace.looked_around();
    }
    if (const auto handle = take_shared(self)) return handle;
  }
  if (const auto handle = self.ring.pop()) return handle;
  return search(self);
}

/// Own ring is empty: looks everywhere else, sleeps if there is nothing.
inline std::coroutine_handle<> thread_pool::search(worker& self) noexcept {
  idle_.begin_search();
  for (int turn = 0;; ++turn) {
    std::coroutine_handle<> handle = take_shared(self);
    if (!handle) handle = steal(self);
    if (handle) {
      self.pace.restart();
      after_search();
      return handle;
    }
    if (turn < 64 || (self.spin_until != 0 && detail::steady_now() < self.spin_until)) {
      detail::spin_pause();
      continue;
    }
    self.spin_until = 0;
    if (park(self) == parked::leave) return nullptr;
    turn = 0;
  }
}

/// A batch of what is due or injected: returns the first, the rest goes to the own ring.
inline std::coroutine_handle<> thread_pool::take_shared(worker& self) noexcept {
  const timer_queue::nanoseconds deadline = next_deadline_.load(std::memory_order_relaxed);
  const timer_queue::nanoseconds now = deadline == timer_queue::never ? 0 : detail::steady_now();
  const bool due = deadline != timer_queue::never && deadline <= now;
  if (!due && !has_injected_.load(std::memory_order_relaxed)) return nullptr;

  handles taken;
  std::size_t count = 0;
  const std::size_t most = std::min(batch, self.ring.room());
  {
    const std::lock_guard lock(mutex_);
    if (due) {
      const bool all = stopped_.load(std::memory_order_relaxed);
      while (count < most) {
        detail::timer_node* const node = all ? timers_.take_stopped() : timers_.take_due(now);
        if (!node) break;
        taken[count++] = node->handle;
      }
      update_deadline();
    }
    const std::size_t share = std::min(most - count, injected_.size() / size_ + 1);
    for (std::size_t i = 0; i < share && !injected_.empty(); ++i) taken[count++] = injected_.pop();
    if (injected_.empty()) has_injected_.store(false);
  }
  return keep_first(self, taken, count);
}

inline std::coroutine_handle<> thread_pool::steal(worker& self) noexcept {
  handles taken;
  for (std::size_t i = 0; i < size_; ++i) {
    self.victim = self.victim + 1 < size_ ? self.victim + 1 : 0;
    worker& victim = workers_[self.victim];
    if (&victim == &self) continue;
    if (const std::size_t count = victim.ring.take_half(taken)) return keep_first(self, taken, count);
  }
  return nullptr;
}

/// Requires: the ring has room for the rest.
inline std::coroutine_handle<> thread_pool::keep_first(worker& self, const handles& taken, std::size_t count) noexcept {
  if (count == 0) return nullptr;
  if (count > 1) {
    self.ring.push(taken.data() + 1, count - 1);
    wake_one_if_needed();
  }
  return taken[0];
}

// ---- Sleeping and waking ----
//
// A push wakes a sleeper only if there is one and nobody is searching: whoever searches will find the work. No wake-up is
// lost, because both sides first write and then read, all of it sequentially consistent:
//
//     push:    store the ring's tail (or has_injected_);   then read idle_: sleepers and no searcher -> wake one
//     sleeper: idle_: from searching to sleeping;          then read all tails (under mutex_ also injected_ and timers_)
//     searcher that found work: idle_: from searching to busy; then, if it was the last, read all of them: work -> wake
//
// Of each pair at least one sees the other. A waker moves the sleeper to searching itself, so that of many pushes in a row
// only the first wakes somebody; that one, if there is more than it can take, wakes the next.

/// After a push to the own ring.
inline void thread_pool::wake_one_if_needed() noexcept {
  if (!idle_.wake_needed()) [[likely]] return;
  const std::lock_guard lock(mutex_);
  if (idle_.wake_needed()) wake_one();
}

/// Requires: mutex_ is held. The timekeeper only if there is no other.
inline void thread_pool::wake_one() noexcept {
  if (!sleepers_.empty()) {
    worker& sleeper = *sleepers_.back();
    sleepers_.pop_back();
    wake(sleeper);
  } else if (timekeeper_) {
    wake(*std::exchange(timekeeper_, nullptr));
    has_timekeeper_.store(false, std::memory_order_relaxed);
  }
}

/// Requires: mutex_ is held, and `sleeper` was taken out of the books.
inline void thread_pool::wake(worker& sleeper) noexcept {
  sleeper.woken = true;
  idle_.sleeping_to_searching();
  sleeper.woken_changed.notify_one();
}

/// Found something: no longer searching. Passes on what was left undone because this thread was searching.
inline void thread_pool::after_search() noexcept {
  const detail::idle_count::snapshot before = idle_.end_search();
  if (before.sleeping == 0) return;
  // If this thread was the timekeeper, its own store to has_timekeeper_, or a later one, is what it reads.
  const bool keeper_wanted = !has_timekeeper_.load(std::memory_order_relaxed) &&
                             next_deadline_.load(std::memory_order_relaxed) != timer_queue::never;
  const bool work_left = before.searching == 1 && (has_injected_.load() || any_ring_has_work());
  if (!keeper_wanted && !work_left) return;
  const std::lock_guard lock(mutex_);
  if (work_left && idle_.wake_needed()) wake_one();
  appoint_timekeeper();
}

/// Requires: mutex_ is held. If there are timers and sleepers but no timekeeper, one of the sleepers becomes it.
inline void thread_pool::appoint_timekeeper() noexcept {
  if (timekeeper_ || sleepers_.empty() || timers_.empty()) return;
  timekeeper_ = sleepers_.back();
  sleepers_.pop_back();
  has_timekeeper_.store(true, std::memory_order_relaxed);
  wakes_at_ = timer_queue::immediately;
  timekeeper_->woken_changed.notify_one();
}

/// Requires: mutex_ is held.
inline void thread_pool::update_deadline() noexcept {
  const bool at_once = stopped_.load(std::memory_order_relaxed) && !timers_.empty();
  const timer_queue::nanoseconds deadline = at_once ? timer_queue::immediately : timers_.earliest();
  // Written only where it changes: every worker reads the line.
  if (deadline != next_deadline_.load(std::memory_order_relaxed)) {
    next_deadline_.store(deadline, std::memory_order_relaxed);
  }
}

inline bool thread_pool::any_ring_has_work() const noexcept {
  return std::any_of(workers_.get(), workers_.get() + size_, [](const worker& each) { return !each.ring.empty(); });
}

/// Sleeps until woken or a deadline comes near; the caller is searching, before and after.
inline thread_pool::parked thread_pool::park(worker& self) noexcept {
  std::unique_lock lock(mutex_);
  if (!injected_.empty() || timers_.earliest() == timer_queue::immediately) return parked::try_again;
  if (stopped_.load(std::memory_order_relaxed)) {
    if (!timers_.empty()) return parked::try_again;
    idle_.end_search();
    return parked::leave;
  }
  idle_.searching_to_sleeping();
  if (any_ring_has_work()) {
    idle_.sleeping_to_searching();
    return parked::try_again;
  }
  self.woken = false;
  sleepers_.push_back(&self);
  appoint_timekeeper();
  while (!self.woken) {
    if (timekeeper_ != &self) {
      self.woken_changed.wait(lock);
      continue;
    }
    const timer_queue::nanoseconds deadline = timers_.earliest();
    if (deadline == timer_queue::never) {
      wakes_at_ = deadline;
      self.woken_changed.wait(lock);
      continue;
    }
    const timer_queue::nanoseconds now = detail::steady_now();
    wakes_at_ = deadline - detail::spin_before(deadline, now);
    if (wakes_at_ > now && self.woken_changed.wait_until(lock, detail::steady_time(wakes_at_)) == std::cv_status::no_timeout) {
      continue;  // woken, or the deadlines have changed
    }
    if (self.woken || timekeeper_ != &self) continue;
    timekeeper_ = nullptr;  // after_search() appoints another one
    has_timekeeper_.store(false, std::memory_order_relaxed);
    idle_.sleeping_to_searching();
    self.spin_until = deadline;
    return parked::try_again;
  }
  return parked::try_again;
}

// ---- Timers ----

inline bool thread_pool::add_timer(detail::timer_node& node, timer_queue::nanoseconds delay) {
  const timer_queue::nanoseconds deadline = timer_queue::deadline_after(detail::steady_now(), delay);
  const std::lock_guard lock(mutex_);
  if (stopped_.load(std::memory_order_relaxed) || !timers_.add(node, deadline)) return false;
  update_deadline();
  if (!timekeeper_) {
    appoint_timekeeper();
  } else if (deadline < wakes_at_) {
    wakes_at_ = deadline;
    timekeeper_->woken_changed.notify_one();
  }
  return true;
}

inline void thread_pool::stop_timer(detail::timer_node& node) noexcept {
  const std::lock_guard lock(mutex_);
  if (!timers_.stop(node)) return;
  update_deadline();
  if (idle_.wake_needed()) wake_one();  // a searcher finds it: park() looks for it
}

inline void thread_pool::erase_timer(detail::timer_node& node) noexcept {
  const std::lock_guard lock(mutex_);
  if (!node.linked()) return;
  timers_.erase(node);
  update_deadline();
}

}  // namespace cobatch
