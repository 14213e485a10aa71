#pragma once

#include <chrono>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <ratio>
#include <stdexcept>
#include <string>
#include <utility>

#include <cobatch/detail/awaitable.hpp>
#include <cobatch/detail/config.hpp>
#include <cobatch/detail/current_executor.hpp>
#include <cobatch/detail/driver.hpp>
#include <cobatch/detail/handle_queue.hpp>
#include <cobatch/detail/stop_token.hpp>
#include <cobatch/detail/timer_awaiter.hpp>
#include <cobatch/detail/timer_queue.hpp>
#include <cobatch/detail/waiter.hpp>
#include <cobatch/executor.hpp>

namespace cobatch::inline COBATCH_ABI {

/// Thrown by simulation::run when everything waits and no timer is left: on another executor this would hang.
class deadlock_error : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

class simulation;
namespace detail {
template <>
inline constexpr const char* executor_blocks<simulation> = "the thread of a running simulation";
}

/// A deterministic executor on a virtual clock: an hour of sleeping takes microseconds, and the same seed gives the
/// same run on every machine.
///
/// While something is ready it runs and no time passes; when nothing is, time jumps to the next timer, and all timers
/// of that moment become ready together. Seed 0 runs what is ready first in, first out (timers of one moment in the
/// order in which they were set); any other seed picks at random among all that is ready.
///
/// Lifetime: what is still queued when run() returns goes on in the next run(). The destructor drains: it refuses new
/// work, resumes every sleeper with false, and runs what is queued to its end.
/// Thread safety: none; everything, stop requests included, happens on one thread.
class simulation {
 public:
  /// The type of now(): nanoseconds since the simulation was made.
  struct clock {
    using rep = std::int64_t;
    using period = std::nano;
    using duration = std::chrono::nanoseconds;
    using time_point = std::chrono::time_point<clock, duration>;
    static constexpr bool is_steady = true;
  };
  using duration = clock::duration;
  using time_point = clock::time_point;

  explicit simulation(std::uint64_t seed = 0) noexcept : seed_(seed), random_(seed) {}
  simulation(const simulation&) = delete;
  simulation& operator=(const simulation&) = delete;
  ~simulation();

  /// Awaits `awaitable` on this executor, on the calling thread, and returns its result or rethrows its exception.
  ///
  /// Errors: deadlock_error if everything waits and no timer is left; the coroutine that awaited is destroyed then,
  /// and with it what it owns. What that makes ready, up to the next run(), might be destroyed with it, and does not
  /// run any more. std::logic_error if this simulation is already running.
  /// Allocates: one coroutine frame, and the queues as they grow.
  template <detail::awaitable Awaitable>
  detail::driven_result<Awaitable> run(Awaitable&& awaitable);

  /// Whether we are inside run().
  bool is_running() const noexcept { return running_; }
  /// Whether everything waits for ever: from a deadlock_error to the next run().
  bool is_deadlocked() const noexcept { return deadlocked_; }

  /// The virtual time.
  time_point now() const noexcept { return time_point(duration(now_)); }

  /// Queues the handle; false once the destructor has begun.
  bool execute(std::coroutine_handle<> handle);
  static constexpr std::size_t concurrency() noexcept { return 1; }

  /// `co_await sim.schedule()` goes on behind what is ready (with a seed: somewhere among it).
  schedule_awaiter<simulation> schedule() noexcept { return schedule_awaiter<simulation>(*this); }

  /// `co_await sim.schedule_after(delay, token)`: true once virtual time has passed, false as soon as it is stopped.
  ///
  /// Resumes: on this executor. A delay of zero or less is a schedule(); one too long for the clock never elapses.
  detail::timer_awaiter<simulation> schedule_after(std::chrono::nanoseconds delay,
                                                   std::stop_token token = {}) noexcept {
    return detail::timer_awaiter<simulation>(*this, delay, std::move(token));
  }

 private:
  friend detail::timer_awaiter<simulation>;
  class running;

  bool add_timer(detail::timer_node& node, detail::timer_queue::nanoseconds delay) {
    return !draining_ && timers_.add(node, detail::timer_queue::deadline_after(now_, delay));
  }
  void stop_timer(detail::timer_node& node);
  void erase_timer(detail::timer_node& node) noexcept {
    if (node.linked()) timers_.erase(node);
  }

  bool resume_one();
  void make_due_ready();
  std::coroutine_handle<> pick() noexcept;
  std::uint64_t random() noexcept;
  [[noreturn]] void report_deadlock();

  detail::handle_queue ready_;
  detail::timer_queue timers_;
  detail::timer_queue::nanoseconds now_ = 0;
  std::uint64_t seed_;
  std::uint64_t random_;
  bool running_ = false;
  bool draining_ = false;
  bool deadlocked_ = false;  // from a deadlock to the next run()
};

// ---- Implementation ----

class simulation::running final : public detail::driver_end {
 public:
  explicit running(simulation& self) : self_(&self), scope_(detail::ref(self)) { self.running_ = true; }
  running(const running&) = delete;
  running& operator=(const running&) = delete;
  ~running() { self_->running_ = false; }

  void driver_ended() noexcept override { ended = true; }

  bool ended = false;

 private:
  simulation* self_;
  detail::executor_scope scope_;
  detail::own_trampoline trampoline_;
};

template <detail::awaitable Awaitable>
detail::driven_result<Awaitable> simulation::run(Awaitable&& awaitable) {
  if (running_) detail::throw_or_fail<std::logic_error>("simulation::run was called inside its own run");
  deadlocked_ = false;
  detail::outcome<detail::driven_result<Awaitable>> result;
  {
    running loop(*this);
    auto driver = detail::drive(static_cast<Awaitable&&>(awaitable), result);
    if (!driver.start(result, loop)) {
      while (!loop.ended) {
        if (!resume_one()) report_deadlock();
      }
    }
  }
  return result.take();
}

inline simulation::~simulation() {
  const running loop(*this);
  draining_ = true;
  for (;;) {
    while (!ready_.empty()) pick().resume();
    detail::timer_node* const node = timers_.take_stopped();
    if (!node) break;
    node->handle.resume();
  }
}

inline bool simulation::execute(std::coroutine_handle<> handle) {
  if (draining_) return false;
  if (!deadlocked_) ready_.push(handle);
  return true;
}

/// Resumes one coroutine, letting time pass if it must; false: there is none, and never will be.
inline bool simulation::resume_one() {
  if (ready_.empty() && timers_.earliest() > now_) {
    if (timers_.earliest() == detail::timer_queue::never) return false;
    now_ = timers_.earliest();
  }
  make_due_ready();
  pick().resume();
  return true;
}

inline void simulation::make_due_ready() {
  while (timers_.earliest() <= now_) {
    ready_.reserve_more(1);  // before a timer is taken: what is taken must not be lost
    if (detail::timer_node* const node = timers_.take_due(now_)) ready_.push(node->handle);
  }
}

/// Ready from this moment on, ahead of what comes later. Without memory, and after a deadlock, it stays due, and
/// resume_one() finds it.
inline void simulation::stop_timer(detail::timer_node& node) {
  if (timers_.stop(node) && !deadlocked_) detail::guarded([&] { make_due_ready(); }, [] {});
}

inline std::coroutine_handle<> simulation::pick() noexcept {
  if (seed_ == 0) return ready_.pop();
  // 32 random bits scaled to [0, size): the same on every platform, which std:: distributions are not.
  const std::uint64_t size = ready_.size();
  return ready_.pop_at(std::size_t{((random() >> 32) * size) >> 32});
}

/// splitmix64.
inline std::uint64_t simulation::random() noexcept {
  random_ += 0x9e3779b97f4a7c15u;
  std::uint64_t bits = random_;
  bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9u;
  bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebu;
  return bits ^ (bits >> 31);
}

inline void simulation::report_deadlock() {
  deadlocked_ = true;
  std::string fraction = std::to_string(now_ % 1'000'000'000);
  fraction.insert(0, 9 - fraction.size(), '0');
  const std::string message = "simulation: deadlock after " + std::to_string(now_ / 1'000'000'000) + "." + fraction +
                              " s of virtual time: everything waits and no timer is left";
  detail::throw_or_fail<deadlock_error>(message.c_str());
}

}  // namespace cobatch
