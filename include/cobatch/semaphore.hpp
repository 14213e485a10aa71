#pragma once

#include <algorithm>
#include <concepts>
#include <coroutine>
#include <cstddef>
#include <new>
#include <optional>
#include <stdexcept>
#include <type_traits>
#include <utility>

#include <cobatch/detail/config.hpp>
#include <cobatch/detail/current_executor.hpp>
#include <cobatch/detail/semaphore_core.hpp>
#include <cobatch/detail/stop_token.hpp>
#include <cobatch/error.hpp>
#include <cobatch/expected.hpp>

namespace cobatch::inline COBATCH_ABI {

class async_semaphore;

namespace detail {

class acquire_awaiter;
class stoppable_acquire_awaiter;
struct semaphore_access;

/// An argument that counts: takes any integer type, so that a negative one is an error and not a huge number.
class non_negative {
 public:
  template <std::integral Integer>
  constexpr explicit(false) non_negative(Integer n) : value_(static_cast<std::size_t>(n)) {
    if constexpr (std::signed_integral<Integer>) {
      if (n < 0) throw_or_fail<std::invalid_argument>("async_semaphore: a number of permits must not be negative");
    }
  }
  constexpr explicit(false) operator std::size_t() const noexcept { return value_; }

 private:
  std::size_t value_;
};

}  // namespace detail

/// What acquire() gives: holds permits of an async_semaphore and gives them back when it is destroyed.
///
/// Resumes: giving back never runs a waiter that has an executor; see async_semaphore.
/// Lifetime: the semaphore must outlive the permit.
/// Thread safety: that of an int: not for two threads at once, but any thread may give it back.
class [[nodiscard]] permit {
 public:
  /// Holds nothing.
  permit() noexcept = default;
  permit(permit&& other) noexcept
      : semaphore_(std::exchange(other.semaphore_, nullptr)), weight_(std::exchange(other.weight_, 0)) {}
  /// Gives back what it held before.
  permit& operator=(permit&& other) noexcept {
    permit taken(std::move(other));
    std::swap(semaphore_, taken.semaphore_);
    std::swap(weight_, taken.weight_);
    return *this;
  }
  ~permit() {
    if (semaphore_) semaphore_->give(weight_);
  }

  /// True while it holds something, be it a weight of 0.
  explicit operator bool() const noexcept { return semaphore_ != nullptr; }
  /// How many permits of the semaphore it holds.
  std::size_t weight() const noexcept { return static_cast<std::size_t>(weight_); }

  /// Gives the permits back now; once it holds nothing, this does nothing.
  void release() noexcept {
    const detail::permit_count weight = std::exchange(weight_, 0);
    if (auto* const semaphore = std::exchange(semaphore_, nullptr)) semaphore->give(weight);
  }

  /// Lets go of the permits and returns how many they are: async_semaphore::release() gives them back.
  [[nodiscard]] std::size_t detach() noexcept {
    semaphore_ = nullptr;
    return static_cast<std::size_t>(std::exchange(weight_, 0));
  }

 private:
  friend detail::acquire_awaiter;
  friend detail::stoppable_acquire_awaiter;
  friend async_semaphore;
  permit(detail::semaphore_core& semaphore, detail::permit_count weight) noexcept
      : semaphore_(&semaphore), weight_(weight) {}

  detail::semaphore_core* semaphore_ = nullptr;
  detail::permit_count weight_ = 0;
};

/// A counting semaphore for coroutines: while no permit is free, acquire() suspends, and blocks no thread.
///
/// The numbers may be of any integer type; a negative one throws std::invalid_argument. Permits are counted
/// up to max(): what would go beyond it is dropped, nothing ever wraps.
///
/// Order: first come, first served, whatever the weights. A permit that is given back is handed to the oldest
/// waiter directly. Nobody overtakes: while anyone waits, a newcomer queues and try_acquire() fails.
/// Resumes: a waiter goes on on the executor on which it suspended, never inside release(). Where it suspended
/// on none, or that one refuses it, or resumes at once as inline_executor does, it goes on inside the call that
/// lets it: release(), set_limit(), request_stop(), or the destructor of a permit or of a waiting coroutine; a
/// chain of those, however long, runs on a flat stack. A coroutine that need not wait is not suspended.
/// Stops: with a stop token, acquire() ends with errc::cancelled when a stop is requested while it waits. What
/// has been granted stays granted, even where the waiter has not run yet.
/// Lifetime: it must outlive its permits; destroyed while a coroutine waits in it, it ends the program with a
/// message. A coroutine that waits may be destroyed, and leaves the queue; that no other thread grants or
/// stops it at that very moment, and that its executor is not to resume it any more, is the caller's part.
/// Thread safety: any thread may call any member at any time. What came before a permit was given back
/// happens before what comes after it is taken.
/// Complexity: O(1), except for set_limit(). Allocates nothing: a waiter lives in the awaiting frame.
class async_semaphore {
 public:
  /// `limit` permits, all of them free. A limit of 0 means paused: everyone waits.
  constexpr explicit async_semaphore(detail::non_negative limit) noexcept : core_(limit) {}
  async_semaphore(const async_semaphore&) = delete;
  async_semaphore& operator=(const async_semaphore&) = delete;

  /// `co_await s.acquire()` takes `weight` permits together and gives a permit that holds them.
  ///
  /// Nothing is taken before it is awaited. A weight of 0 takes nothing, but waits for its turn and until a
  /// permit is free.
  /// Errors: std::invalid_argument for a weight above the limit, unless that is 0 or so many are free by
  /// signals; also for a waiter, once set_limit() lowers the limit below its weight.
  /// Example: `const auto permit = co_await semaphore.acquire();`
  [[nodiscard]] detail::acquire_awaiter acquire(detail::non_negative weight = 1) noexcept;

  /// The same until a stop is requested, and without exceptions: gives an `expected<permit, error>`.
  ///
  /// Stops: at once and without a permit, even if one is free, where the stop was requested before the co_await.
  /// Errors: errc::cancelled, and errc::cost_exceeds_capacity for a weight above the limit.
  [[nodiscard]] detail::stoppable_acquire_awaiter acquire(detail::non_negative weight, std::stop_token stop) noexcept;

  /// `weight` permits if they are free and nobody waits (or is about to, on another thread), else nothing.
  [[nodiscard]] std::optional<permit> try_acquire(detail::non_negative weight = 1) noexcept;

  /// Adds n permits: those that permit::detach() took over, or signals.
  ///
  /// A signal needs no acquire() before it and is never lost. It adds to the permits in circulation, beyond
  /// limit() if need be, which does not change: async_semaphore(0) is a queue of signals.
  void release(detail::non_negative n = 1) noexcept { core_.give(clamp(n)); }

  /// Changes the limit. Raising it lets waiters go on as far as permits are really free then; lowering it
  /// revokes nothing, and nothing is granted until use is below it. 0 pauses: everyone waits.
  ///
  /// Errors: to waiters that weigh more than a limit other than 0, as in acquire().
  /// Complexity: O(1) and O(1) for each waiter that goes on; O(waiting()) where one has become too heavy.
  void set_limit(detail::non_negative n) noexcept { core_.set_limit(n); }

  /// The limit as last set.
  std::size_t limit() const noexcept { return core_.limit(); }

  /// How many permits are free at this moment; 0 while more are out than the limit allows. Those that a heavy
  /// waiter has not enough of yet count as free, but are not for others to take.
  std::size_t available() const noexcept { return core_.available(); }

  /// How many coroutines wait at this moment. Cheap to poll: one load, of a cache line that nobody writes
  /// while nobody waits.
  std::size_t waiting() const noexcept { return core_.waiting(); }

  /// The most permits that can be counted.
  static constexpr std::size_t max() noexcept { return static_cast<std::size_t>(detail::max_permits); }

 private:
  friend detail::semaphore_access;

  static constexpr detail::permit_count clamp(std::size_t n) noexcept {
    return std::min(detail::to_permits(n), detail::max_permits);
  }

  detail::semaphore_core core_;
};

// ---- Implementation ----

namespace detail {

/// For the library's own drivers, which take and give permits without a coroutine that awaits.
struct semaphore_access {
  static semaphore_core& core(async_semaphore& semaphore) noexcept { return semaphore.core_; }
};

/// One acquisition inside an awaiter. Movable until it is awaited.
class acquisition {
 public:
  acquisition(semaphore_core& semaphore, permit_count weight) noexcept : semaphore_(&semaphore), weight_(weight) {}
  acquisition(acquisition&& other) noexcept : acquisition(*other.semaphore_, other.weight_) {}
  ~acquisition() {
    if (stage_ != stage::idle) [[unlikely]]
      abandon();
  }

  semaphore_core& semaphore() const noexcept { return *semaphore_; }
  permit_count weight() const noexcept { return weight_; }
  semaphore_waiter& waiter() noexcept { return waiter_; }

  void take() noexcept { stage_ = stage::taken; }

  void prepare_to_wait(std::coroutine_handle<> awaiting) noexcept {
    ::new (&waiter_) semaphore_waiter(weight_);
    waiter_.handle = awaiting;
    waiter_.executor = current_executor();
    stage_ = stage::waiting;
  }

  /// How it ended; what was granted is the caller's from now on.
  semaphore_outcome end() noexcept {
    switch (std::exchange(stage_, stage::idle)) {
      case stage::taken:
        return semaphore_outcome::granted;
      case stage::waiting:
        return waiter_.outcome;
      case stage::idle:
        break;
    }
    return semaphore_outcome::none;
  }

 private:
  enum class stage : unsigned char { idle, taken, waiting };

  void abandon() noexcept {
    if (stage_ == stage::taken) return semaphore_->give(weight_);
    semaphore_->abandon(waiter_);
  }

  semaphore_core* semaphore_;
  permit_count weight_;
  stage stage_ = stage::idle;
  // Alive while waiting: to initialise it for a permit that is free would cost as much as the permit.
  union {
    semaphore_waiter waiter_;
  };
  static_assert(std::is_trivially_destructible_v<semaphore_waiter>);
};

class [[nodiscard]] acquire_awaiter {
 public:
  acquire_awaiter(semaphore_core& semaphore, permit_count weight) noexcept : acquisition_(semaphore, weight) {}

  // Takes nothing: some runtimes ask more than once.
  bool await_ready() const noexcept { return false; }

  bool await_suspend(std::coroutine_handle<> awaiting) noexcept {
    const auto result = acquisition_.semaphore().take_first(acquisition_.weight());
    if (result == semaphore_core::first_try::taken) [[likely]] {
      acquisition_.take();
      return false;
    }
    acquisition_.prepare_to_wait(awaiting);
    return !acquisition_.semaphore().wait_for(acquisition_.waiter(), result);
    // Where it is queued, *this may be gone: another thread may have resumed the coroutine.
  }

  [[nodiscard]] permit await_resume() {
    if (acquisition_.end() != semaphore_outcome::granted) [[unlikely]] {
      throw_or_fail<std::invalid_argument>(
          "async_semaphore: acquire() of a weight above the limit could never be granted; ask for less, "
          "raise the limit, or use acquire(weight, stop_token), which returns an error instead");
    }
    return permit(acquisition_.semaphore(), acquisition_.weight());
  }

 private:
  acquisition acquisition_;
};

class [[nodiscard]] stoppable_acquire_awaiter {
 public:
  stoppable_acquire_awaiter(semaphore_core& semaphore, permit_count weight, std::stop_token stop) noexcept
      : acquisition_(semaphore, weight), stop_(std::move(stop)) {}
  stoppable_acquire_awaiter(stoppable_acquire_awaiter&& other) noexcept
      : acquisition_(std::move(other.acquisition_)), stop_(std::move(other.stop_)) {}

  bool await_ready() const noexcept { return false; }

  //     the callback, on any thread                          this thread
  //     none ───stop()───> stopped ───wait_for()───> stopped: not suspended
  //                        none ──────wait_for()───> queued, granted or too_heavy
  //     queued ─stop()───> cancelled: resumed by the callback; in every other state the callback does nothing
  //
  // All of this is under the semaphore's mutex. The callback stands before the waiter is queued: nobody
  // resumes the coroutine, which destroys the callback, while it is under construction.
  bool await_suspend(std::coroutine_handle<> awaiting) {
    if (stop_.stop_requested()) return false;
    // Nothing that would have to be paid back later: the callback may run any time.
    if (acquisition_.semaphore().try_take(acquisition_.weight())) {
      acquisition_.take();
      return false;
    }
    acquisition_.prepare_to_wait(awaiting);
    if (stop_.stop_possible()) on_stop_.emplace(stop_, stop_waiter{&acquisition_});
    return !acquisition_.semaphore().wait_for(acquisition_.waiter(), semaphore_core::first_try::refused);
    // Where it is queued, *this may be gone: another thread may have resumed the coroutine.
  }

  [[nodiscard]] expected<permit, error> await_resume() {
    on_stop_.reset();  // waits for the callback to return, should it be running on another thread
    switch (acquisition_.end()) {
      case semaphore_outcome::granted:
        return permit(acquisition_.semaphore(), acquisition_.weight());
      case semaphore_outcome::too_heavy:
        return unexpected(error(errc::cost_exceeds_capacity));
      case semaphore_outcome::none:
      case semaphore_outcome::stopped:
      case semaphore_outcome::queued:
      case semaphore_outcome::cancelled:
        break;
    }
    return unexpected(error(errc::cancelled));
  }

 private:
  struct stop_waiter {
    acquisition* stopped;
    void operator()() const noexcept { stopped->semaphore().stop(stopped->waiter()); }
  };

  acquisition acquisition_;
  std::stop_token stop_;
  std::optional<std::stop_callback<stop_waiter>> on_stop_;  // destroyed before what it stops
};

}  // namespace detail

inline detail::acquire_awaiter async_semaphore::acquire(detail::non_negative weight) noexcept {
  return {core_, detail::to_permits(weight)};
}

inline detail::stoppable_acquire_awaiter async_semaphore::acquire(detail::non_negative weight,
                                                                  std::stop_token stop) noexcept {
  return {core_, detail::to_permits(weight), std::move(stop)};
}

inline std::optional<permit> async_semaphore::try_acquire(detail::non_negative weight) noexcept {
  const detail::permit_count wanted = detail::to_permits(weight);
  if (!core_.try_take(wanted)) return std::nullopt;
  return permit(core_, wanted);
}

}  // namespace cobatch
