#pragma once

#include <chrono>
#include <concepts>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>
#include <type_traits>
#include <utility>

#include <cobatch/detail/attempt.hpp>
#include <cobatch/detail/config.hpp>
#include <cobatch/detail/rate_queue.hpp>
#include <cobatch/detail/stop_token.hpp>
#include <cobatch/executor.hpp>

namespace cobatch::inline COBATCH_ABI {

namespace detail {

template <class Executor>
class rate_acquire;

/// A number of tokens: of any arithmetic type, finite and not negative.
class token_cost {
 public:
  template <class Number>
    requires std::is_arithmetic_v<Number>
  constexpr explicit(false) token_cost(Number n) : tokens_(static_cast<double>(n)) {
    if (!(tokens_ >= 0 && tokens_ <= std::numeric_limits<double>::max())) {
      throw_or_fail<std::invalid_argument>(
          "rate_limiter: a cost must be finite and not negative; 1 is one start at the rate of the limiter");
    }
  }
  constexpr explicit(false) operator double() const noexcept { return tokens_; }

 private:
  double tokens_;
};

}  // namespace detail

/// Lets so many start per second, whoever asks: a token bucket that batches, streams and lone coroutines share.
///
/// Tokens come in evenly, `per_second` of them; a start takes one, or as many as it costs. Up to `burst` tokens are
/// kept while nobody asks (as far as they come in within 126 years), and the bucket is full at first. So the first start is at once, with a burst of 1
/// consecutive starts are exactly 1/per_second apart (to the nearest nanosecond, and without any drift), and within a
/// time t no more than burst + t * per_second start.
///
/// A cost above the burst is allowed: it waits until the bucket is full, goes into debt, and makes those behind it wait
/// for that. So nothing waits for ever, and the rate holds in the long run.
///
/// A timer that is up to a millisecond late costs no throughput: the tokens that came in meanwhile stay, beyond the
/// burst, for those who waited too and those who ask right after. (Real timers are late by 50 microseconds and more,
/// each time.) What came in before that millisecond is lost, so that a thread that was blocked does not make up for it
/// in one go.
///
/// Order: first come, first served, whatever the costs, the executors and the kinds of users; while anyone waits,
/// a newcomer queues and try_acquire() fails.
/// Resumes: a waiter goes on on the executor that it gave to acquire(), never inside a call of somebody else; where
/// that executor has stopped, inside the call that found out. A coroutine that need not wait is not suspended.
/// Stops: a stopped waiter leaves the queue and has cost nothing; those behind it move up at once. One that has been
/// granted its tokens already keeps them, even where it has not run yet.
/// Progress: the oldest waiter's executor keeps the time for all: while its thread is blocked, or in nobody's run(),
/// those behind it wait too.
/// Clocks: all executors that share a limiter must share a clock. All but simulation have the steady clock; a limiter
/// must not outlast its simulation.
/// Lifetime: ends the program with a message if it is destroyed while a coroutine waits in it. A coroutine that waits
/// may be destroyed: it leaves the queue. It is for the caller to see that its executor is not resuming it at that very
/// moment.
/// Thread safety: all members may be called from any thread at any time.
/// Allocates: when it is made, a coroutine frame; each time a timer is stopped, a stop state. acquire() nothing, but
/// for what the executor's timers need.
class rate_limiter {
 public:
  /// `per_second` tokens come in each second, up to `burst` of them are kept.
  ///
  /// Errors: std::invalid_argument unless per_second is positive and finite, and burst at least 1 and finite.
  explicit rate_limiter(double per_second, double burst = 1)
      : queue_((check_rate(per_second), per_second), (check_burst(burst), burst)) {}
  rate_limiter(const rate_limiter&) = delete;
  rate_limiter& operator=(const rate_limiter&) = delete;

  /// `co_await limiter.acquire(ex)` suspends until it may start: true. False: stopped, or `ex` has stopped.
  ///
  /// The cost may be a fraction (0.5 tokens) or 0, which takes nothing, but waits its turn, and for the end of a debt.
  /// Stops: at once, with nothing taken, even where a token is there, if the stop was requested before the co_await.
  /// Errors: std::invalid_argument for a cost that is negative, infinite or no number; what the timer throws.
  /// Complexity: O(1), one clock read and one lock where a token is there.
  /// Example: `const bool granted = co_await limiter.acquire(pool, 1, token);`
  template <executor Executor>
  [[nodiscard]] detail::rate_acquire<Executor> acquire(Executor& ex, detail::token_cost cost = 1,
                                                       std::stop_token stop = {}) {
    return detail::rate_acquire<Executor>(queue_, ex, cost, std::move(stop));
  }

  /// Takes a token, or `cost` tokens, if they are there now and nobody waits. Needs no timers, only the executor's
  /// clock.
  template <executor Executor>
  [[nodiscard]] bool try_acquire(Executor& ex, detail::token_cost cost = 1) {
    return queue_.try_take(cost, detail::now_of(ex).count());
  }

  /// How many coroutines wait at this moment. One relaxed load: cheap to poll.
  std::size_t waiting() const noexcept { return queue_.waiting(); }

  /// The rate as last set.
  double per_second() const noexcept { return queue_.per_second(); }
  /// How many tokens are kept at most.
  double burst() const noexcept { return queue_.burst(); }

  /// Changes the rate, also for those who wait already. What has come in since the last start is counted anew.
  ///
  /// Errors: std::invalid_argument unless per_second is positive and finite.
  void set_rate(double per_second) {
    check_rate(per_second);
    queue_.set_rate(per_second);
  }

 private:
  static void check_rate(double per_second) {
    if (!(per_second > 0 && per_second <= std::numeric_limits<double>::max())) {
      detail::throw_or_fail<std::invalid_argument>(
          "rate_limiter: per_second must be positive and finite; for no limit use no rate_limiter");
    }
  }
  static void check_burst(double burst) {
    if (!(burst >= 1 && burst <= std::numeric_limits<double>::max())) {
      detail::throw_or_fail<std::invalid_argument>(
          "rate_limiter: burst must be at least 1 and finite; 1 spaces starts evenly");
    }
  }

  detail::rate_queue queue_;
};

// ---- Implementation ----

namespace detail {

template <class Executor>
struct timer_of {
  static_assert(timed_executor<Executor>,
                "cobatch: rate_limiter::acquire() needs an executor with timers (schedule_after), such as run_loop, "
                "thread_pool or simulation; on one without timers use try_acquire()");
  struct none {
    bool await_ready() const noexcept { return true; }
    void await_suspend(std::coroutine_handle<>) const noexcept {}
    bool await_resume() const noexcept { return false; }
  };
  static none start(Executor&, std::chrono::nanoseconds, std::stop_token) { return {}; }
};

template <timed_executor Executor>
struct timer_of<Executor> {
  static decltype(auto) start(Executor& ex, std::chrono::nanoseconds delay, std::stop_token stop) {
    return ex.schedule_after(delay, std::move(stop));
  }
};

/// What acquire() returns. Movable until it is awaited.
template <class Executor>
class [[nodiscard]] rate_acquire final : private rate_waiter {
 public:
  rate_acquire(rate_queue& queue, Executor& ex, double wanted, std::stop_token stop) noexcept
      : rate_waiter(wanted), queue_(&queue), ex_(&ex), stop_(std::move(stop)) {}
  rate_acquire(rate_acquire&& other) noexcept
      : rate_acquire(*other.queue_, *other.ex_, other.cost, std::move(other.stop_)) {}
  ~rate_acquire() {
    on_stop_.reset();
    if (waits_) [[unlikely]]
      queue_->abandon(*this);
  }

  // Takes nothing: some runtimes ask more than once.
  bool await_ready() const noexcept { return false; }

  // The callback stands before the waiter is queued: nobody resumes the coroutine, which destroys the callback, while
  // it is under construction. A stop between the two is seen by rate_queue::wait().
  bool await_suspend(std::coroutine_handle<> awaiting) {
    outcome = rate_outcome::none;
    if (stop_.stop_requested()) return false;
    if (queue_->try_take(cost, now())) {
      outcome = rate_outcome::granted;
      return false;
    }
    if (stop_.stop_possible()) on_stop_.emplace(stop_, stop_waiting{this});
    handle = awaiting;
    executor = detail::ref(*ex_);
    waits_ = true;
    return queue_->wait(*this);
    // Where it is queued, *this may be gone: another thread may have resumed the coroutine.
  }

  bool await_resume() {
    on_stop_.reset();  // waits for the callback to return, should it be running on another thread
    waits_ = false;
    if (failure) [[unlikely]]
      std::rethrow_exception(std::exchange(failure, nullptr));
    return outcome == rate_outcome::granted;
  }

 private:
  struct stop_waiting {
    rate_acquire* self;
    void operator()() const noexcept { self->queue_->stop(*self); }
  };

  std::int64_t now() const noexcept override { return now_of(*ex_).count(); }

  bool start_timer(std::int64_t delay, std::stop_token stop, std::coroutine_handle<> then) override {
    const auto start = [&]() -> decltype(auto) {
      return timer_of<Executor>::start(*ex_, std::chrono::nanoseconds(delay), std::move(stop));
    };
    return timer_.start(start, then);
  }
  bool end_timer() override {
    bool elapsed = false;
    timer_.resume([&](auto&& result) { elapsed = static_cast<bool>(result); });
    return elapsed;
  }
  void abandon_timer() noexcept override { timer_.abandon(); }

  using timer = decltype(timer_of<Executor>::start(std::declval<Executor&>(), {}, {}));

  rate_queue* queue_;
  Executor* ex_;
  std::stop_token stop_;
  std::optional<std::stop_callback<stop_waiting>> on_stop_;
  attempt<timer> timer_;
  bool waits_ = false;
};

}  // namespace detail

}  // namespace cobatch
