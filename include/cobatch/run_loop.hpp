#pragma once

#include <chrono>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <stop_token>
#include <utility>

#include <cobatch/detail/atomic.hpp>
#include <cobatch/detail/awaitable.hpp>
#include <cobatch/detail/condition_variable.hpp>
#include <cobatch/detail/config.hpp>
#include <cobatch/detail/current_executor.hpp>
#include <cobatch/detail/driver.hpp>
#include <cobatch/detail/handle_queue.hpp>
#include <cobatch/detail/mutex.hpp>
#include <cobatch/detail/polling_pace.hpp>
#include <cobatch/detail/punctual_wait.hpp>
#include <cobatch/detail/spin_pause.hpp>
#include <cobatch/detail/timer_awaiter.hpp>
#include <cobatch/detail/timer_queue.hpp>
#include <cobatch/detail/waiter.hpp>
#include <cobatch/executor.hpp>

namespace cobatch::inline COBATCH_ABI {

class run_loop;
namespace detail {
template <>
inline constexpr const char* executor_blocks<run_loop> = "the thread of a running run_loop";
}

/// An executor on the thread that calls run(): what is ready goes first in, first out, and timers between it.
///
/// Lifetime: what is still queued when run() returns goes on in the next run(). The destructor drains: it refuses new
/// work, resumes every sleeper with false, and runs what is queued to its end; no frame is lost.
/// Thread safety: execute(), schedule(), schedule_after() and stop requests from any thread; run() on one at a time.
class run_loop {
 public:
  run_loop() = default;
  run_loop(const run_loop&) = delete;
  run_loop& operator=(const run_loop&) = delete;
  ~run_loop();

  /// Awaits `awaitable` on this executor, on the calling thread, and returns its result or rethrows its exception.
  /// Blocks while there is nothing to do; it returns as soon as the awaitable is done, wherever that ended.
  ///
  /// Errors: std::system_error with errc::would_deadlock where this thread already runs the loop of an executor;
  /// std::logic_error if another thread is in run().
  /// Allocates: one coroutine frame, and the queues as they grow.
  template <detail::awaitable Awaitable>
  detail::driven_result<Awaitable> run(Awaitable&& awaitable);

  /// Whether a thread is in run() just now.
  bool is_running() const {
    const std::lock_guard lock(mutex_);
    return running_;
  }

  /// Queues the handle; false once the destructor has begun. From the loop's own thread without a lock.
  bool execute(std::coroutine_handle<> handle);
  static constexpr std::size_t concurrency() noexcept { return 1; }

  /// `co_await loop.schedule()` goes on behind what is ready.
  schedule_awaiter<run_loop> schedule() noexcept { return schedule_awaiter<run_loop>(*this); }

  /// `co_await loop.schedule_after(delay, token)`: true once the delay has elapsed, false as soon as it is stopped.
  ///
  /// Resumes: on this executor. A delay of zero or less is a schedule(); one too long for the clock never elapses.
  detail::timer_awaiter<run_loop> schedule_after(std::chrono::nanoseconds delay, std::stop_token token = {}) noexcept {
    return detail::timer_awaiter<run_loop>(*this, delay, std::move(token));
  }

 private:
  friend detail::timer_awaiter<run_loop>;
  using timer_queue = detail::timer_queue;
  class running;

  bool add_timer(detail::timer_node& node, timer_queue::nanoseconds delay);
  void stop_timer(detail::timer_node& node);
  void erase_timer(detail::timer_node& node);

  bool on_own_thread() const noexcept { return detail::current_executor().refers_to(this); }
  void resume_until_ended(running& loop);
  bool look_around(running& loop, bool wait);
  void wait(std::unique_lock<detail::mutex>& lock, running& loop);
  void call_attention() noexcept;
  template <class Take>
  void make_ready(Take take);

  detail::handle_queue ready_;  // used by the running thread only
  detail::polling_pace pace_;   // likewise
  bool timers_known_ = false;   // likewise: timers were there when it last looked

  // Set under mutex_ by threads that changed something the running thread should look at, cleared by it under mutex_.
  // A hint that keeps the busy loop off the mutex: before it sleeps it looks under the mutex. Hence relaxed
  // throughout.
  detail::atomic<bool> attention_{false};

  mutable detail::mutex mutex_;  // guards everything below
  detail::condition_variable changed_;
  detail::handle_queue injected_;  // from other threads
  timer_queue timers_;
  bool running_ = false;
  bool draining_ = false;
};

// ---- Implementation ----

/// One call of run(), or the destructor's drain.
class run_loop::running final : public detail::driver_end {
 public:
  explicit running(run_loop& self) : self_(&self), scope_(detail::ref(self)) {}
  running(const running&) = delete;
  running& operator=(const running&) = delete;
  ~running() {
    const std::lock_guard lock(self_->mutex_);
    self_->running_ = false;
  }

  void driver_ended() noexcept override {
    if (self_->on_own_thread()) {
      ended_here = true;
      return;
    }
    const std::lock_guard lock(self_->mutex_);
    ended_elsewhere = true;
    self_->call_attention();  // under the lock: run() may return, and the loop be destroyed, after the unlock
  }

  bool ended_here = false;       // used by the running thread only
  bool ended_elsewhere = false;  // guarded by mutex_

 private:
  run_loop* self_;
  detail::executor_scope scope_;
  detail::own_trampoline trampoline_;
};

template <detail::awaitable Awaitable>
detail::driven_result<Awaitable> run_loop::run(Awaitable&& awaitable) {
  detail::require_blockable_thread("run_loop::run");
  {
    const std::lock_guard lock(mutex_);
    if (running_) detail::throw_or_fail<std::logic_error>("run_loop::run was called while another thread is in it");
    running_ = true;
  }
  detail::outcome<detail::driven_result<Awaitable>> result;
  {
    running loop(*this);
    look_around(loop, false);  // what was left or sent before goes first
    auto driver = detail::drive(static_cast<Awaitable&&>(awaitable), result);
    if (!driver.start(result, loop)) resume_until_ended(loop);
  }
  return result.take();
}

inline run_loop::~run_loop() {
  if (on_own_thread()) detail::fail("a run_loop was destroyed inside its own run()");
  running loop(*this);
  {
    const std::lock_guard lock(mutex_);
    draining_ = true;
  }
  do {
    while (!ready_.empty()) ready_.pop().resume();
  } while (look_around(loop, false));
}

inline bool run_loop::execute(std::coroutine_handle<> handle) {
  if (on_own_thread()) {
    // draining_ is written by this thread only, in the destructor: no lock.
    if (draining_) return false;
    ready_.push(handle);
    return true;
  }
  const std::lock_guard lock(mutex_);
  if (draining_) return false;
  injected_.push(handle);
  call_attention();  // under the lock: once the coroutine runs, the loop may be destroyed
  return true;
}

inline bool run_loop::add_timer(detail::timer_node& node, timer_queue::nanoseconds delay) {
  const timer_queue::nanoseconds deadline = timer_queue::deadline_after(detail::steady_now(), delay);
  const std::lock_guard lock(mutex_);
  if (draining_ || !timers_.add(node, deadline)) return false;
  if (on_own_thread()) {
    timers_known_ = true;
  } else {
    call_attention();
  }
  return true;
}

inline void run_loop::stop_timer(detail::timer_node& node) {
  const std::lock_guard lock(mutex_);
  if (timers_.stop(node)) call_attention();
}

inline void run_loop::erase_timer(detail::timer_node& node) {
  const std::lock_guard lock(mutex_);
  if (node.linked()) timers_.erase(node);
}

/// Requires: mutex_ is held.
inline void run_loop::call_attention() noexcept {
  attention_.store(true, std::memory_order_relaxed);
  changed_.notify_one();
}

inline void run_loop::resume_until_ended(running& loop) {
  for (;;) {
    if (ready_.empty()) {
      if (!look_around(loop, true)) return;
    } else if (pace_.tick(timers_known_) || attention_.load(std::memory_order_relaxed)) {
      if (!look_around(loop, false)) return;
    }
    ready_.pop().resume();
    if (loop.ended_here) return;
  }
}

/// Moves what other threads sent, and what has come due, to ready_; first waits for some if `wait`. False: ready_ is
/// empty, or the driver has ended on another thread.
inline bool run_loop::look_around(running& loop, bool wait_for_some) {
  std::unique_lock lock(mutex_);
  if (wait_for_some) wait(lock, loop);
  attention_.store(false, std::memory_order_relaxed);
  ready_.reserve_more(injected_.size());
  while (!injected_.empty()) ready_.push(injected_.pop());
  if (timers_.empty()) {
    pace_.looked_around();
  } else if (draining_) {
    make_ready([&] { return timers_.take_stopped(); });
  } else {
    const timer_queue::nanoseconds now = detail::steady_now();
    make_ready([&] { return timers_.take_due(now); });
    pace_.looked_around(now);
  }
  timers_known_ = !timers_.empty();
  return !ready_.empty() && !loop.ended_elsewhere;
}

template <class Take>
void run_loop::make_ready(Take take) {
  for (;;) {
    ready_.reserve_more(1);  // before a timer is taken: what is taken must not be lost
    detail::timer_node* const node = take();
    if (!node) return;
    ready_.push(node->handle);
  }
}

/// Blocks until something is injected or due, or the driver has ended.
inline void run_loop::wait(std::unique_lock<detail::mutex>& lock, running& loop) {
  while (injected_.empty() && !loop.ended_elsewhere) {
    const timer_queue::nanoseconds deadline = timers_.earliest();
    if (deadline == timer_queue::never) {
      changed_.wait(lock);
      continue;
    }
    const timer_queue::nanoseconds now = detail::steady_now();
    if (deadline <= now) return;
    const timer_queue::nanoseconds early = deadline - detail::spin_before(deadline, now);
    attention_.store(false, std::memory_order_relaxed);
    {
      const detail::punctual_waits punctual;
      if (changed_.wait_until(lock, detail::steady_time(early)) == std::cv_status::no_timeout) continue;
    }
    lock.unlock();
    while (detail::steady_now() < deadline && !attention_.load(std::memory_order_relaxed)) detail::spin_pause();
    lock.lock();
  }
}

}  // namespace cobatch
