#pragma once

#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <utility>

#include <cobatch/detail/atomic.hpp>
#include <cobatch/detail/config.hpp>
#include <cobatch/detail/frame_pool.hpp>
#include <cobatch/detail/mutex.hpp>
#include <cobatch/detail/start_mark.hpp>
#include <cobatch/detail/stop_token.hpp>
#include <cobatch/detail/token_bucket.hpp>
#include <cobatch/detail/waiter.hpp>

namespace cobatch::inline COBATCH_ABI::detail {

enum class rate_outcome : unsigned char {
  none,       ///< not waiting, nothing taken
  stopped,    ///< stopped before it could queue
  queued,     ///< waits for its turn
  granted,    ///< the tokens are spent on it
  cancelled,  ///< taken out of the queue: nothing taken
};

/// One acquisition: a suspended coroutine, and the timer of its own executor. While it waits, all of it is the queue's.
class rate_waiter : public waiter {
 public:
  explicit rate_waiter(double wanted) noexcept : cost(wanted) {}

  /// The time on the clock of its executor.
  virtual std::int64_t now() const noexcept = 0;
  /// Starts its timer. True: that has ended at once. False: it resumes `then`, maybe before this returns.
  virtual bool start_timer(std::int64_t delay, std::stop_token stop, std::coroutine_handle<> then) = 0;
  /// After its end, once: true if the time has elapsed, false if it was stopped, or refused by its executor.
  virtual bool end_timer() = 0;
  /// In place of end_timer(), for one that runs.
  virtual void abandon_timer() noexcept = 0;

  double cost;
  rate_outcome outcome = rate_outcome::none;
  std::exception_ptr failure;  // what its timer threw

 protected:
  ~rate_waiter() = default;
};

/// The tokens, the queue and the waking of rate_limiter.
///
/// While anybody waits, one *driver* sees to the queue; everybody else just queues behind. The driver is either a
/// thread inside drive(), or a timer: that of the oldest waiter, on that waiter's executor. When the timer ends it
/// resumes `alarm_`, a coroutine that does nothing but call timer_ended(), and so becomes a thread inside drive()
/// again.
///
///     no driver ──a newcomer finds too few tokens──> timer
///     timer ──ends──> thread: grants whoever is due; the next one's timer, or, where nobody waits, no driver
///
/// The waiter whose timer it is (`timed_`) is resumed by the driver alone: the timer lives in its frame. To cancel it
/// is to stop the timer. All others can be taken out by anyone, at any time.
class rate_queue {
 public:
  rate_queue(double per_second, double burst)
      : bucket_(per_second, burst), rate_(per_second), alarm_(ring(*this).frame) {}
  rate_queue(const rate_queue&) = delete;
  rate_queue& operator=(const rate_queue&) = delete;
  ~rate_queue() {
    if (waiting() != 0) [[unlikely]]
      fail("a rate_limiter was destroyed while a coroutine waits in it");
    alarm_.destroy();
  }

  std::size_t waiting() const noexcept { return waiting_.load(std::memory_order_relaxed); }
  double per_second() const noexcept { return rate_.load(std::memory_order_relaxed); }
  double burst() const noexcept { return bucket_.burst(); }

  /// Takes tokens that are there at the time `now`, if nobody waits.
  bool try_take(double cost, std::int64_t now) noexcept {
    const std::lock_guard lock(mutex_);
    return try_take_locked(cost, now);
  }

  /// Takes waiter.cost tokens, or queues the waiter. True: it will be resumed once it is settled, maybe before this
  /// returns. False: it is settled. Its outcome tells how.
  inline bool wait(rate_waiter& waiter) noexcept;

  /// Takes a waiter out, if it still waits, and resumes it; one that has not queued yet will not. For a stop callback.
  inline void stop(rate_waiter& waiter) noexcept;

  /// For a waiter whose coroutine is destroyed while it waits, or after that and before it was resumed.
  inline void abandon(rate_waiter& waiter) noexcept;

  inline void set_rate(double per_second) noexcept;

 private:
  /// What resumes when a timer ends; one for the life of the queue, as there is one timer at a time.
  struct alarm {
    class promise_type : public pooled_frame {
     public:
      alarm get_return_object() noexcept { return {std::coroutine_handle<promise_type>::from_promise(*this)}; }
      std::suspend_always initial_suspend() const noexcept { return {}; }
      std::suspend_always final_suspend() const noexcept { return {}; }
      void return_void() const noexcept {}
      void unhandled_exception() const noexcept { fail("an exception left a rate_limiter"); }
    };
    std::coroutine_handle<> frame;
  };
  /// Calls from inside await_suspend: there the coroutine counts as suspended, so that the next timer can resume it,
  /// and whoever comes last can destroy it.
  struct timer_end {
    rate_queue* queue;
    bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<>) const noexcept { queue->timer_ended(); }
    void await_resume() const noexcept {}
  };
  COBATCH_COROUTINES_BEGIN
  static alarm ring(rate_queue& queue) {
    for (;;) co_await timer_end{&queue};
  }
  COBATCH_COROUTINES_END

  /// Whose timer is to run next, and for how long.
  struct turn {
    rate_waiter* head = nullptr;  // null: nobody waits
    std::int64_t delay = 0;
    std::stop_token stop = {};
  };

  // Under mutex_.
  inline bool try_take_locked(double cost, std::int64_t now) noexcept;
  inline void leave(rate_waiter& waiter, rate_outcome outcome) noexcept;
  inline turn next_turn(std::int64_t now, waiter_list& ready) noexcept;

  // Of the driver.
  inline void timer_ended() noexcept;
  inline void drive(turn next, waiter_list& ready) noexcept;
  inline bool sleep(turn& next) noexcept;
  inline turn wake(rate_waiter& woken, waiter_list& ready) noexcept;

  mutex mutex_;                      // guards all down to timer_stop_
  token_bucket bucket_;                   // its burst never changes: no lock
  waiter_list queue_;                     // and the outcome of all that are in it, or on their way there
  atomic<std::size_t> waiting_ = 0;  // written under mutex_; anyone may read it, and it publishes nothing
  atomic<double> rate_;              // likewise
  bool driven_ = false;                   // there is a driver
  rate_waiter* timed_ = nullptr;          // in queue_; written by the driver, which may read it without the lock
  std::stop_source timer_stop_;           // likewise; stops the timer of timed_
  start_mark* mark_ = nullptr;            // the driver's
  std::coroutine_handle<> alarm_;
};

// ---- Implementation ----

bool rate_queue::try_take_locked(double cost, std::int64_t now) noexcept {
  if (driven_ || bucket_.due(cost) > now) return false;
  bucket_.take(cost, now, false);
  return true;
}

bool rate_queue::wait(rate_waiter& waiter) noexcept {
  const std::int64_t now = waiter.now();
  waiter_list ready;
  turn next;
  {
    const std::lock_guard lock(mutex_);
    if (waiter.outcome == rate_outcome::stopped) return false;
    if (try_take_locked(waiter.cost, now)) {
      waiter.outcome = rate_outcome::granted;
      return false;
    }
    queue_.push_back(waiter);
    waiter.outcome = rate_outcome::queued;
    waiting_.store(waiting() + 1, std::memory_order_relaxed);
    if (driven_) return true;  // once unlocked, the waiter may be gone
    driven_ = true;
    next = next_turn(now, ready);
  }
  drive(std::move(next), ready);
  // From here on *this and the waiter may be gone, unless the waiter is in `ready`.
  const bool settled = ready.first() == &waiter;
  if (settled) ready.pop_front();
  resume_all(ready);
  return !settled;
}

void rate_queue::stop(rate_waiter& waiter) noexcept {
  waiter_list cancelled;
  std::stop_source timer{std::nostopstate};
  {
    const std::lock_guard lock(mutex_);
    if (waiter.outcome == rate_outcome::none) waiter.outcome = rate_outcome::stopped;
    if (waiter.outcome != rate_outcome::queued) return;
    if (&waiter == timed_) {
      waiting_.store(waiting() - 1, std::memory_order_relaxed);
      waiter.outcome = rate_outcome::cancelled;
      timer = timer_stop_;
    } else {
      leave(waiter, rate_outcome::cancelled);
      cancelled.push_back(waiter);
    }
  }
  // The timer may meanwhile be that of the next one: it is then started anew.
  if (timer.stop_possible()) timer.request_stop();
  resume_all(cancelled);
}

void rate_queue::abandon(rate_waiter& waiter) noexcept {
  bool timed = false;
  {
    const std::lock_guard lock(mutex_);
    timed = timed_ == &waiter;
    if (!timed) {
      if (waiter.outcome == rate_outcome::queued) {
        leave(waiter, rate_outcome::cancelled);
      } else if (waiter.linked()) {
        waiter.unlink();  // settled, and next to be resumed by this very thread
      }
    }
  }
  if (!timed) return;
  waiter.abandon_timer();
  const std::int64_t now = waiter.now();
  waiter_list ready;
  turn next;
  {
    const std::lock_guard lock(mutex_);
    if (waiter.outcome == rate_outcome::queued) {
      leave(waiter, rate_outcome::cancelled);
    } else {
      waiter.unlink();
    }
    next = next_turn(now, ready);
  }
  drive(std::move(next), ready);
  resume_all(ready);
}

void rate_queue::set_rate(double per_second) noexcept {
  std::stop_source timer{std::nostopstate};
  {
    const std::lock_guard lock(mutex_);
    bucket_.set_rate(per_second);
    rate_.store(per_second, std::memory_order_relaxed);
    if (timed_ != nullptr) timer = timer_stop_;
  }
  if (timer.stop_possible()) timer.request_stop();  // it is started anew, for as long as it takes now
}

void rate_queue::leave(rate_waiter& waiter, rate_outcome outcome) noexcept {
  waiter.unlink();
  waiter.outcome = outcome;
  waiting_.store(waiting() - 1, std::memory_order_relaxed);
}

/// Moves whoever is due to `ready`. From then on they wait, if anybody still does, for the timer of the one returned.
rate_queue::turn rate_queue::next_turn(std::int64_t now, waiter_list& ready) noexcept {
  while (auto* const head = static_cast<rate_waiter*>(queue_.first())) {
    const std::int64_t due = bucket_.due(head->cost);
    if (due > now) {
      timed_ = head;
      return {head, due - now, timer_stop_.get_token()};
    }
    bucket_.take(head->cost, now, true);
    leave(*head, rate_outcome::granted);
    ready.push_back(*head);
  }
  timed_ = nullptr;
  driven_ = false;
  return {};
}

/// The alarm has gone off, on the executor of timed_.
void rate_queue::timer_ended() noexcept {
  if (start_mark::finish(mark_, this)) return;  // inside sleep(): it goes on there
  waiter_list ready;
  drive(wake(*timed_, ready), ready);
  resume_all(ready);
}

/// Until nobody waits, or a timer sees to the queue. Then *this may be gone, but not before those in `ready` have been
/// resumed if nobody waits.
void rate_queue::drive(turn next, waiter_list& ready) noexcept {
  while (next.head != nullptr && sleep(next)) next = wake(*next.head, ready);
}

/// True: the timer has ended already. False: it runs, and is the driver; *this may be gone.
bool rate_queue::sleep(turn& next) noexcept {
  start_mark mark(this);
  mark_ = &mark;
  const bool ended = guarded([&] { return next.head->start_timer(next.delay, std::move(next.stop), alarm_); },
                             [&] {
                               next.head->failure = std::current_exception();
                               return true;
                             });
  return ended || mark.finished();
}

/// After the end of a timer: who settled, and whose turn it is now.
rate_queue::turn rate_queue::wake(rate_waiter& woken, waiter_list& ready) noexcept {
  bool elapsed = false;
  const bool stopped = timer_stop_.stop_requested();
  std::stop_source fresh{std::nostopstate};
  guarded(
      [&] {
        if (!woken.failure) elapsed = woken.end_timer();
        if (stopped) fresh = std::stop_source();
      },
      [&] { woken.failure = std::current_exception(); });
  const std::int64_t now = woken.now();

  const std::lock_guard lock(mutex_);
  if (fresh.stop_possible()) timer_stop_.swap(fresh);
  if (woken.outcome == rate_outcome::cancelled) {
    woken.unlink();
    ready.push_back(woken);
  } else if (woken.failure || (!elapsed && !stopped)) {  // its executor has no timer for it, or no more
    leave(woken, rate_outcome::cancelled);
    ready.push_back(woken);
  }
  return next_turn(now, ready);
}

}  // namespace cobatch::detail
