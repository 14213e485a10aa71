#pragma once

#include <algorithm>
#include <chrono>
#include <coroutine>
#include <cstddef>
#include <mutex>
#include <stop_token>
#include <utility>

#include <cobatch/batch_lane.hpp>
#include <cobatch/batch_options.hpp>
#include <cobatch/batch_retries.hpp>
#include <cobatch/batch_types.hpp>
#include <cobatch/detail/config.hpp>
#include <cobatch/detail/intrusive_list.hpp>
#include <cobatch/detail/timekeeper.hpp>
#include <cobatch/error.hpp>
#include <cobatch/executor.hpp>
#include <cobatch/expected.hpp>

namespace cobatch::detail {

/// Whatever a batch does because of the time: one coroutine, the timekeeper, sleeps until the next thing is due, for
/// all lanes. A batch is not over before its timekeeper has ended.
template <class Types>
class batch_clock {
  using names = batch_types<Types>;
  using engine = batch_engine<Types>;
  using lane = batch_lane<Types>;

 public:
  explicit batch_clock(engine& owner) noexcept : engine_(owner) {}
  ~batch_clock() { abandon(); }

  void make();
  void start();
  /// Where the executor was deserted.
  void abandon() noexcept {
    if (timekeeper_) std::exchange(timekeeper_, nullptr).destroy();
  }

  void watch(lane& self);
  void unwatch(lane& self);
  /// Something is due before what it sleeps for.
  void wake() { take_wake().request_stop(); }
  /// The same, for who must not touch the engine once anybody is resumed: stop it.
  std::stop_source take_wake();

  // -- under the engine's lock --
  /// The batch has ended: what is to be stopped then, without the lock, so that the timekeeper ends as well.
  std::stop_source end() { return gone_ ? std::stop_source(std::nostopstate) : wake_; }
  bool is_dormant() const noexcept { return dormant_; }

  // -- for the timekeeper --
  std::chrono::nanoseconds expire();
  auto sleep(std::chrono::nanoseconds pause) { return engine_.ex_.schedule_after(pause, sleep_token_); }
  bool woken() const noexcept { return sleep_token_.stop_requested(); }
  void refused() noexcept { engine_.refused(); }
  void timekeeper_ended();

 private:
  static constexpr std::chrono::nanoseconds shortest_look = std::chrono::milliseconds(1);

  std::chrono::nanoseconds next_event(std::chrono::nanoseconds now);

  engine& engine_;
  std::coroutine_handle<> timekeeper_;
  std::stop_token sleep_token_;  // its own

  // Guarded by the engine's mutex.
  intrusive_list<timeout_tag> with_timeout_;  // lanes whose attempt has a timeout, the oldest first
  std::chrono::nanoseconds deadline_ = no_timeout;
  std::stop_source wake_{std::nostopstate};
  bool looked_in_vain_ = false;  // the timekeeper found nothing to wait for when it last looked
  bool dormant_ = false;         // it sleeps until it is woken
  bool gone_ = true;
};

// ---- Implementation ----

/// Whatever it needs memory for; only where anything may become due.
template <class Types>
void batch_clock<Types>::make() {
  if constexpr (names::has_timers) {
    wake_ = std::stop_source();
    timekeeper_ = timekeeper<batch_clock>::of(*this).handle();
  }
}

/// Before the first lane comes.
template <class Types>
void batch_clock<Types>::start() {
  if constexpr (names::has_timers) {
    if (engine_.options_.deadline != no_timeout) deadline_ = later(now_of(engine_.ex_), engine_.options_.deadline);
    const auto set_gone = [&](bool gone) {
      const std::lock_guard lock(engine_.mutex_);  // the user's stop may come on another thread
      gone_ = gone;
    };
    set_gone(false);
    if (!execute_on(engine_.ex_, timekeeper_)) {
      abandon();
      set_gone(true);
      engine_.refused();
    }
  }
}

template <class Types>
void batch_clock<Types>::watch(lane& self) {
  if (!self.pair && self.stop_used && engine_.needs_.tokens) self.renew_stop();
  self.timed_out = false;
  // A predict that follows the last one at once starts when that one has ended: the clock is not free.
  self.started = self.follows ? self.ended : now_of(engine_.ex_);
  self.follows = false;
  if (engine_.options_.limit) self.in_flight_at_start = engine_.options_.limit->started();
  if (engine_.options_.timeout == no_timeout && !engine_.needs_.hedges) return;
  bool asleep = false;
  {
    const std::lock_guard lock(engine_.mutex_);
    if (engine_.options_.timeout != no_timeout) with_timeout_.push_back(self);
    if (engine_.needs_.hedges && !self.pair) engine_.hedges_.watch(self);
    asleep = dormant_;
  }
  if (asleep) [[unlikely]]
    wake();
}

/// Nobody finds the lane any more; what its attempt comes to goes to self.target.
template <class Types>
void batch_clock<Types>::unwatch(lane& self) {
  engine_.note_end(self);
  if (engine_.options_.timeout == no_timeout && !engine_.needs_.hedges) return;
  bool delay_is_known = false;
  {
    const std::lock_guard lock(engine_.mutex_);
    list_link<timeout_tag>& timeout = self;
    if (timeout.linked()) with_timeout_.erase(timeout);
    if (engine_.needs_.hedges) delay_is_known = engine_.hedges_.unwatch(self);
  }
  if (delay_is_known) wake();
  if (self.pair && !self.own) {
    engine_.hedges_.make_own(self, error(errc::not_started, {}, 0));
    self.target = self.own ? &*self.own : nullptr;
  }
}

template <class Types>
std::stop_source batch_clock<Types>::take_wake() {
  const std::lock_guard lock(engine_.mutex_);
  if (gone_ || engine_.ended_) return std::stop_source(std::nostopstate);
  dormant_ = looked_in_vain_ = false;
  return take_source(wake_);
}

/// Does what is due. How long to sleep then; zero or less: the batch has ended.
template <class Types>
std::chrono::nanoseconds batch_clock<Types>::expire() {
  const std::chrono::nanoseconds now = now_of(engine_.ex_);
  std::size_t wanted = 0;
  std::unique_lock lock(engine_.mutex_);
  if (deadline_ <= now) {
    deadline_ = no_timeout;
    lock.unlock();
    engine_.request_stop(halt::deadline);
    lock.lock();
  }
  while (auto* const oldest = with_timeout_.first()) {
    lane& late = *static_cast<lane*>(oldest);
    if (later(late.started, engine_.options_.timeout) > now) break;
    with_timeout_.erase(*oldest);
    late.timed_out = true;
    if (engine_.needs_.tokens) {
      late.stop_used = true;
      std::stop_source stop = late.stop;
      lock.unlock();
      stop.request_stop();
      lock.lock();
    }
  }
  if (engine_.gates_.queue_deadline() <= now) {
    std::stop_source waits = engine_.gates_.expire_wait();
    lock.unlock();
    waits.request_stop();
    lock.lock();
  }
  if (engine_.needs_.hedges) engine_.hedges_.start_due(lock, now);
  if (!engine_.halted()) {
    wanted = engine_.retries_.wake(now);
  } else if (engine_.retries_.give_up(lock)) {
    wanted = 1;  // whoever left last left the end to us
  }
  if (wanted != 0) {
    lock.unlock();
    for (lane* another = nullptr; wanted != 0 && (another = engine_.new_lane()) != nullptr; --wanted) {
      engine_.launch(*another);
    }
    lock.lock();
  }
  if (engine_.ended_) return std::chrono::nanoseconds::zero();
  sleep_token_ = wake_.get_token();
  const std::chrono::nanoseconds next = next_event(now);
  return next == no_timeout ? no_timeout : std::max(next - now, std::chrono::nanoseconds(1));
}

/// Under the lock. Whatever begins later is due no earlier than this, or wakes the timekeeper.
///
/// While attempts come and go, nobody needs to wake it: none that begins later can be due before a full delay from now.
/// But once it has looked in vain it goes dormant until it is woken: a batch that hangs must not look alive to a
/// simulation.
template <class Types>
std::chrono::nanoseconds batch_clock<Types>::next_event(std::chrono::nanoseconds now) {
  std::chrono::nanoseconds next = std::min({deadline_, engine_.gates_.queue_deadline(), engine_.retries_.next_due()});
  std::chrono::nanoseconds from_now = no_timeout;
  bool waits = engine_.gates_.queue_deadline() != no_timeout;
  bool told = false;  // of what begins next, as looking after each delay would be too often
  const auto look_after = [&](std::chrono::nanoseconds delay) {
    if (delay < shortest_look) {
      told = true;
    } else {
      from_now = std::min(from_now, later(now, delay));
    }
  };
  const auto consider = [&](std::chrono::nanoseconds delay, auto* oldest) {
    if (oldest) {
      next = std::min(next, later(static_cast<lane*>(oldest)->started, delay));
      waits = true;
    } else {
      look_after(delay);
    }
  };
  if (engine_.options_.timeout != no_timeout) consider(engine_.options_.timeout, with_timeout_.first());
  if (engine_.options_.queue_timeout != no_timeout) look_after(engine_.options_.queue_timeout);
  if (engine_.needs_.hedges && !engine_.halted() && !engine_.hedges_.wanted()) {
    consider(engine_.hedges_.delay(), engine_.hedges_.oldest());
  }
  const bool in_vain_again = !waits && looked_in_vain_;
  looked_in_vain_ = !waits;
  dormant_ = in_vain_again || told;
  return in_vain_again ? next : std::min(next, from_now);
}

/// Its timers may be gone before the batch is: then what slept has nobody else to end it than a lane that is made now.
template <class Types>
void batch_clock<Types>::timekeeper_ended() {
  const auto has_ended = [&](bool gone) {
    const std::lock_guard lock(engine_.mutex_);
    if (gone) {
      timekeeper_ = nullptr;
      gone_ = true;
    }
    return engine_.ended_;
  };
  // Until gone_ is set the engine waits for us, and after that for this lane, if there is one.
  lane* const another = has_ended(false) ? nullptr : engine_.new_lane();
  const bool ended = has_ended(true);  // *this may be gone, unless it has ended or there is a lane
  if (another) {
    engine_.launch(*another);
  } else if (ended) {
    engine_.finish();
  }
}

}  // namespace cobatch::detail
