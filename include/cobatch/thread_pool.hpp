#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <stop_token>
#include <thread>
#include <utility>

#include <cobatch/detail/cache_line.hpp>
#include <cobatch/detail/config.hpp>
#include <cobatch/detail/current_executor.hpp>
#include <cobatch/detail/handle_queue.hpp>
#include <cobatch/detail/idle_count.hpp>
#include <cobatch/detail/polling_pace.hpp>
#include <cobatch/detail/punctual_wait.hpp>
#include <cobatch/detail/sleeping_workers.hpp>
#include <cobatch/detail/spin_pause.hpp>
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
/// Lifetime: the destructor is stop() and then waits until all that is queued has run, so no frame is lost. It must
/// not run on one of the pool's own threads.
/// Thread safety: everything from any thread; execute() may race with the end of the coroutine that it hands over,
/// even if that is what lets another thread destroy the pool.
class thread_pool {
 public:
  /// Starts the threads.
  /// Errors: std::invalid_argument if `threads` is 0; std::system_error if one cannot be started.
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
  /// Resumes: on the pool. A delay of zero or less is a schedule(); one too long for the clock never elapses. After
  /// stop() it gives false at once, without suspending.
  detail::timer_awaiter<thread_pool> schedule_after(std::chrono::nanoseconds delay,
                                                    std::stop_token token = {}) noexcept {
    return detail::timer_awaiter<thread_pool>(*this, delay, std::move(token));
  }

  /// Refuses new work from now on; what is queued still runs, and who sleeps resumes at once with false. Does not
  /// wait. Once or more often, from any thread, the pool's own included.
  void stop() noexcept;

 private:
  friend detail::timer_awaiter<thread_pool>;
  using timer_queue = detail::timer_queue;
  struct worker;
  enum class parked : unsigned char { not_at_all, woken, leave };
  static constexpr int search_turns = 7;
  static constexpr std::size_t batch = 64;  // handles moved at once
  using handles = std::array<std::coroutine_handle<>, batch>;

  bool add_timer(detail::timer_node& node, timer_queue::nanoseconds delay);
  void stop_timer(detail::timer_node& node);
  void erase_timer(detail::timer_node& node);

  void work(worker& self);
  std::coroutine_handle<> next(worker& self);
  std::coroutine_handle<> search(worker& self);
  std::size_t take_shared(worker& self) noexcept;
  std::size_t steal(worker& self) noexcept;
  void keep(worker& self, std::size_t first, std::size_t end) noexcept;
  void after_search() noexcept;
  parked park(worker& self);
  bool any_ring_has_work() const noexcept;

  bool inject(worker* self, std::coroutine_handle<> handle) noexcept;
  void wake_one_if_needed() noexcept;
  void update_deadline() noexcept;

  // The worker that this thread is, of whatever pool.
  static inline thread_local constinit worker* this_worker_ = nullptr;

  std::size_t size_;
  std::unique_ptr<worker[]> workers_;

  // Read on every push and at every turn of a worker's loop, seldom written. `idle` is atomic; the rest of it is
  // guarded by mutex_.
  detail::line_gap gap_before_;
  detail::sleeping_workers sleepers_;
  // The earliest deadline; written under mutex_. A hint, hence relaxed: before a worker sleeps it asks timers_.
  std::atomic<timer_queue::nanoseconds> next_deadline_{timer_queue::never};
  // Whether injected_ holds something; written under mutex_, read as a hint by busy workers and in after_search().
  std::atomic<bool> has_injected_{false};
  // Written by stop() under mutex_. A worker that reads it late pushes as if before the stop, and runs it itself.
  std::atomic<bool> stopped_{false};

  detail::line_gap gap_behind_;
  std::mutex mutex_;               // guards what follows, and sleepers_
  detail::handle_queue injected_;  // from other threads, and what does not fit into a ring
  timer_queue timers_;
};

// ---- Implementation ----

struct alignas(64) thread_pool::worker {
  detail::work_ring ring;
  thread_pool* pool = nullptr;
  detail::polling_pace pace;
  timer_queue::nanoseconds spin_until = 0;  // the deadline for which it woke up a little early
  std::size_t victim = 0;                   // where it stole last
  detail::work_ring::lone_item lone;
  handles taken;  // on the way to here from elsewhere
  std::thread thread;
  detail::sleeping_workers::sleeper sleep;
};

inline thread_pool::thread_pool(std::size_t threads) : size_(threads) {
  if (threads == 0) detail::throw_or_fail<std::invalid_argument>("a thread_pool needs at least one thread");
  workers_ = std::make_unique<worker[]>(threads);
  if (threads == 1) workers_[0].ring.never_stolen_from();
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
  if (stopped_.load(std::memory_order_relaxed)) return false;
  if (!self->ring.push(handle)) return inject(self, handle);
  wake_one_if_needed();
  return true;
}

inline void thread_pool::stop() noexcept {
  const std::lock_guard lock(mutex_);
  if (stopped_.load(std::memory_order_relaxed)) return;
  stopped_.store(true, std::memory_order_relaxed);
  update_deadline();
  while (sleepers_.wake_one()) {}
}

/// Queues a handle under the mutex: one from outside, or one that does not fit into the ring of `self`, along with
/// half of that ring. Nothing is touched after the unlock: the coroutine may already have let someone destroy the
/// pool.
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
        if (sleepers_.idle.wake_needed()) sleepers_.wake_one();
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
inline std::coroutine_handle<> thread_pool::next(worker& self) {
  const bool timers = next_deadline_.load(std::memory_order_relaxed) != timer_queue::never;
  if (self.pace.tick(timers)) [[unlikely]] {
    if (timers) {
      self.pace.looked_around(detail::steady_now());
    } else {
      self.pace.looked_around();
    }
    keep(self, 0, take_shared(self));
  }
  if (const auto handle = self.ring.pop()) return handle;
  return search(self);
}

/// Own ring is empty: looks everywhere else, sleeps if there is nothing.
inline std::coroutine_handle<> thread_pool::search(worker& self) {
  sleepers_.idle.begin_search();
  for (int turn = 0;;) {
    std::size_t count = take_shared(self);
    if (count == 0) count = steal(self);
    if (count > 0) {
      const std::coroutine_handle<> first = self.taken[0];
      keep(self, 1, count);
      self.pace.restart();
      after_search();
      return first;
    }
    if (self.spin_until != 0 && detail::steady_now() < self.spin_until) {
      detail::spin_pause();
    } else if (turn < search_turns) {
      // Rarer and rarer: each look takes cache lines away from those that work.
      for (int i = 0; i < 1 << turn; ++i) detail::spin_pause();
      ++turn;
    } else {
      self.spin_until = 0;
      const parked outcome = park(self);
      if (outcome == parked::leave) return nullptr;
      turn = outcome == parked::woken ? 0 : search_turns - 1;
    }
  }
}

/// Takes a batch of what is due or injected, as many as the own ring has room for; how many.
inline std::size_t thread_pool::take_shared(worker& self) noexcept {
  const timer_queue::nanoseconds deadline = next_deadline_.load(std::memory_order_relaxed);
  const timer_queue::nanoseconds now = deadline == timer_queue::never ? 0 : detail::steady_now();
  const bool due = deadline != timer_queue::never && deadline <= now;
  if (!due && !has_injected_.load(std::memory_order_relaxed)) return 0;

  std::size_t count = 0;
  const std::size_t most = std::min(batch, self.ring.room());
  const std::lock_guard lock(mutex_);
  if (due) {
    const bool all = stopped_.load(std::memory_order_relaxed);
    while (count < most) {
      detail::timer_node* const node = all ? timers_.take_stopped() : timers_.take_due(now);
      if (!node) break;
      self.taken[count++] = node->handle;
    }
    update_deadline();
  }
  const std::size_t share = std::min(most - count, injected_.size() / size_ + 1);
  for (std::size_t i = 0; i < share && !injected_.empty(); ++i) self.taken[count++] = injected_.pop();
  if (injected_.empty()) has_injected_.store(false);
  return count;
}

/// Takes up to a batch from the first worker that has some; how many.
inline std::size_t thread_pool::steal(worker& self) noexcept {
  for (std::size_t i = 0; i < size_; ++i) {
    self.victim = self.victim + 1 < size_ ? self.victim + 1 : 0;
    worker& victim = workers_[self.victim];
    if (&victim == &self) continue;
    if (const std::size_t count = victim.ring.steal(self.taken, self.lone)) return count;
  }
  return 0;
}

/// Moves self.taken[first, end) to the own ring, which has room for it.
inline void thread_pool::keep(worker& self, std::size_t first, std::size_t end) noexcept {
  if (first >= end) return;
  self.ring.push(self.taken.data() + first, end - first);
  wake_one_if_needed();
}

// ---- Sleeping and waking ----
//
// A push wakes a sleeper only if there is one and nobody is searching: whoever searches will find the work. No
// wake-up is lost, because each side first writes and then reads, all of it sequentially consistent:
//
//     a push             stores the ring's tail (or has_injected_),   then reads idle: sleepers, no searcher -> wake
//     a worker to sleep  moves from searching to sleeping in idle,    then reads all tails: work -> stay awake
//     a worker that      moves from searching to busy in idle,        then, if it was the last searcher and some
//     found something                                                 sleep, reads all of them: work -> wake
//
// Of a push and either of the others at least one sees the other. What is injected and what is due is also looked at
// under mutex_ before sleeping. A waker counts the sleeper as searching itself, so that of many pushes in a row only
// the first wakes somebody; and that one, if there is more than it can take, wakes the next.

/// After a push to the own ring.
inline void thread_pool::wake_one_if_needed() noexcept {
  if (!sleepers_.idle.wake_needed()) return;
  const std::lock_guard lock(mutex_);
  if (sleepers_.idle.wake_needed()) sleepers_.wake_one();
}

/// Found something: no longer searching. Passes on what was left undone because this thread was.
inline void thread_pool::after_search() noexcept {
  const detail::idle_count::snapshot before = sleepers_.idle.end_search();
  if (before.sleeping == 0) return;
  const bool timers = next_deadline_.load(std::memory_order_relaxed) != timer_queue::never;
  const bool keeper_wanted = timers && !sleepers_.has_timekeeper();
  const bool work_left = before.searching == 1 && (has_injected_.load() || any_ring_has_work());
  if (!keeper_wanted && !work_left) return;
  const std::lock_guard lock(mutex_);
  if (work_left && sleepers_.idle.wake_needed()) sleepers_.wake_one();
  sleepers_.appoint_timekeeper(timers_);
}

inline bool thread_pool::any_ring_has_work() const noexcept {
  return std::any_of(workers_.get(), workers_.get() + size_, [](const worker& each) { return !each.ring.empty(); });
}

/// Sleeps unless there is something to do; the caller is searching, before and after.
inline thread_pool::parked thread_pool::park(worker& self) {
  std::unique_lock lock(mutex_);
  if (!injected_.empty() || timers_.earliest() == timer_queue::immediately) return parked::not_at_all;
  if (stopped_.load(std::memory_order_relaxed)) {
    if (!timers_.empty()) return parked::not_at_all;
    sleepers_.idle.end_search();
    return parked::leave;
  }
  sleepers_.idle.searching_to_sleeping();
  if (any_ring_has_work()) {
    sleepers_.idle.sleeping_to_searching();
    return parked::not_at_all;
  }
  self.spin_until = sleepers_.sleep(lock, self.sleep, timers_);
  return parked::woken;
}

// ---- Timers ----

inline bool thread_pool::add_timer(detail::timer_node& node, timer_queue::nanoseconds delay) {
  const timer_queue::nanoseconds deadline = timer_queue::deadline_after(detail::steady_now(), delay);
  const std::lock_guard lock(mutex_);
  if (stopped_.load(std::memory_order_relaxed) || !timers_.add(node, deadline)) return false;
  update_deadline();
  sleepers_.mind(timers_, deadline);
  return true;
}

inline void thread_pool::stop_timer(detail::timer_node& node) {
  const std::lock_guard lock(mutex_);
  if (!timers_.stop(node)) return;
  update_deadline();
  sleepers_.mind(timers_, timer_queue::immediately);
}

inline void thread_pool::erase_timer(detail::timer_node& node) {
  const std::lock_guard lock(mutex_);
  if (!node.linked()) return;
  timers_.erase(node);
  update_deadline();
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

}  // namespace cobatch
