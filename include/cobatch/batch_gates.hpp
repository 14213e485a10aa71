#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <exception>
#include <mutex>
#include <optional>
#include <stop_token>
#include <utility>

#include <cobatch/adaptive_limit.hpp>
#include <cobatch/batch_lane.hpp>
#include <cobatch/batch_options.hpp>
#include <cobatch/batch_types.hpp>
#include <cobatch/detail/config.hpp>
#include <cobatch/detail/pump_core.hpp>
#include <cobatch/detail/source.hpp>
#include <cobatch/detail/start_mark.hpp>
#include <cobatch/detail/station.hpp>
#include <cobatch/detail/turnstile.hpp>
#include <cobatch/error.hpp>
#include <cobatch/executor.hpp>
#include <cobatch/rate_limiter.hpp>
#include <cobatch/semaphore.hpp>

namespace cobatch::detail {

/// What stands before an attempt: the permits of a limit, a semaphore and the weights, the rate, an input that is
/// awaited.
///
/// One lane at a time looks for them, and goes from gate to gate (admission_step); it suspends where one is closed and
/// comes back to that gate. (It is one walk through one state machine, hence one header.) Lanes keep the permit of a
/// shared semaphore from sample to sample while nobody else wants it.
template <class Types>
class batch_gates {
  using names = batch_types<Types>;
  using engine = batch_engine<Types>;
  using lane = batch_lane<Types>;
  using source = typename names::source;
  static constexpr bool has_timers = names::has_timers;
  static constexpr bool weighs = names::weighs;

 public:
  explicit batch_gates(engine& owner, const batch_options& options) : engine_(owner) {
    if (weighs && options.max_weight != unlimited) weights_.emplace(options.max_weight);
  }

  /// Before the first lane comes; only where there are gates at all.
  void open() {
    end_waits_ = std::stop_source();
    if (engine_.options_.semaphore) {
      const std::size_t permits = std::clamp<std::size_t>(engine_.options_.semaphore->limit(), 4, 40);
      quantum_time_ = static_cast<int>(permits) * hand_over_every;
    }
    if constexpr (engine::source::indexed) {
      quantum_ = std::clamp<std::size_t>(*engine_.source_.size_hint() / 64, 32, longest_quantum);
    }
  }

  supply prepare(station& here, lane& self, start_mark& mark);
  void give_way(lane& self, bool suspended);
  /// After a sample: whether the permit that is kept from sample to sample should go to somebody else.
  bool must_hand_over(lane& self, bool suspended);
  void hand_over(lane& self);
  void report_to_limit(lane& self);
  void leave(lane& self);

  /// What a new lane would come to just now.
  supply would_queue() const noexcept {
    if (turnstile_.is_taken()) return supply::queued;
    if (is_awaited<source> && input_turnstile_.is_taken() && !engine_.retries_.any_ready()) {
      return supply::queued_for_input;
    }
    return supply::ready;
  }
  bool ask_at_turnstile(supply queue) noexcept {
    return queue == supply::queued ? turnstile_.ask() : input_turnstile_.ask();
  }

  /// No sample is left: nobody needs to wait for a permit; or none may start any more, also none that was read.
  void end_waits(bool also_with_sample) { take_waits(also_with_sample).request_stop(); }
  /// The same, for who must not touch the engine once anybody is resumed: stop it.
  std::stop_source take_waits(bool also_with_sample);

  /// What a lane waited for in that stage has come, or will not.
  void came(lane& self);

  /// The cap on the sum of weights, or null.
  async_semaphore* weights() noexcept { return weights_ ? &*weights_ : nullptr; }

  // -- under the engine's lock --
  /// When the wait for permits that is under way will have lasted too long.
  std::chrono::nanoseconds queue_deadline() const noexcept { return queue_deadline_; }
  /// It has: whoever waits is to be stopped, without the lock.
  std::stop_source expire_wait();

 private:
  // For so long a lane keeps a permit that others wait for: long enough that its cost is not the handing over, short
  // enough that of two batches none is ahead by more than a few hundredths.
  static constexpr std::size_t longest_quantum = 8192;
  static constexpr std::chrono::nanoseconds hand_over_every = std::chrono::microseconds(25);  // of all permits

  verdict pass(lane& self, permit& into, async_semaphore& gate, std::size_t weight, start_mark& mark);
  verdict pass_rate(lane& self, start_mark& mark);
  verdict pass_input(lane& self, start_mark& mark);
  bool enter_input(lane& self);
  void leave_turnstile(lane& self);
  void leave_input(lane& self);
  void input_came(lane& self);
  void no_input(lane& self, std::exception_ptr thrown);
  bool begin_wait(lane& self, lane_stage stage, std::stop_token& stop);
  void end_wait(lane& self);
  void permit_came(lane& self);
  void rate_came(lane& self);
  permit& permit_for(lane& self) noexcept;
  bool has_all_permits(const lane& self) const noexcept;
  bool asked_for_permit() const noexcept;
  bool weigh(lane& self);
  void refuse_sample(lane& self, error why);

  engine& engine_;
  std::optional<async_semaphore> weights_;
  std::size_t quantum_ = 1024;
  std::chrono::nanoseconds quantum_time_{};
  turnstile turnstile_;
  turnstile input_turnstile_;  // who waits for an input must not keep those from their permits who have a sample
  std::atomic<bool> someone_waits_{false};  // a lane of ours waits in a semaphore: a hint for asked_for_permit()

  // Guarded by the engine's mutex.
  std::stop_source end_waits_{std::nostopstate};
  std::chrono::nanoseconds queue_deadline_ = no_timeout;
  bool queue_expired_ = false;
  bool waiter_has_sample_ = false;
};

// ---- Implementation ----

/// Everything that must be had before an attempt. ready: has_sample tells whether there is one to start; lost: the lane
/// waits, and goes on here when it is resumed; none and contended as for a pump.
template <class Types>
supply batch_gates<Types>::prepare(station& here, lane& self, start_mark& mark) {
  const batch_options& options = engine_.options_;
  if (engine_.needs_.hedges) {
    if (self.pair && engine_.hedges_.came_too_late(self)) return supply::ready;
    if (engine_.hedges_.wanted() && !engine_.hedges_.take(self) && !self.has_sample) {
      // That was perhaps all it came for: it must not queue for a permit that nothing needs.
      if (const supply more = engine_.provide(here, &self); more != supply::ready) return more;
    }
  }
  const bool waits_for_turn = engine_.needs_.gates && self.step != admission_step::done && !self.has_turn;
  if (waits_for_turn && !self.has_input_turn && !has_all_permits(self)) {
    if (!turnstile_.enter()) return supply::queued;
    self.has_turn = true;
  }
  const auto read = [&] {
    const claim answer = engine_.take_sample(here, self);
    return answer == claim::taken ? supply::ready : answer == claim::elsewhere ? supply::contended : supply::none;
  };
  for (;;) {
    verdict found = verdict::passed;
    switch (self.step) {
      case admission_step::limit:
        if (options.limit) found = pass(self, self.limit_permit, adaptive_access::semaphore(*options.limit), 1, mark);
        break;
      case admission_step::shared:
        if (options.semaphore && !weighs) found = pass(self, self.shared_permit, *options.semaphore, 1, mark);
        break;
      case admission_step::sample:
        if constexpr (is_awaited<source>) {
          if (self.has_input_turn || (!self.has_sample && !engine_.retries_.take(self))) {
            if (!enter_input(self)) return supply::queued_for_input;
            found = pass_input(self, mark);
            if (found != verdict::waits) leave_input(self);
          }
        } else if (!self.has_sample) {
          if (const supply got = read(); got != supply::ready) return got;
        }
        if (weighs && found == verdict::passed && !weigh(self)) return supply::ready;
        break;
      case admission_step::weight:
        if (weights_) found = pass(self, self.weight_permit, *weights_, self.weight, mark);
        break;
      case admission_step::weighted_shared:
        if (options.semaphore && weighs) found = pass(self, self.shared_permit, *options.semaphore, self.weight, mark);
        break;
      case admission_step::rate:
        if (options.rate) found = pass_rate(self, mark);
        break;
      case admission_step::done:
        leave_turnstile(self);
        self.step = admission_step::limit;
        return supply::ready;
    }
    switch (found) {
      case verdict::passed: self.step = static_cast<admission_step>(static_cast<std::uint8_t>(self.step) + 1); continue;
      case verdict::waits: return supply::lost;  // self may be gone
      case verdict::stopped:
        if (engine_.halted()) return supply::none;
        if (!std::exchange(self.queue_expired, false)) return supply::none;  // nothing left to wait for
        if (!self.has_sample) {
          if (is_awaited<source>) continue;  // no sample has waited
          if (const supply got = read(); got != supply::ready) return got;
        }
        refuse_sample(self, error(errc::queue_timed_out, {}, self.attempts));
        return supply::ready;
      case verdict::too_heavy:
        refuse_sample(self, error(errc::cost_exceeds_capacity, {}, self.attempts));
        return supply::ready;
    }
  }
}

template <class Types>
void batch_gates<Types>::came(lane& self) {
  switch (self.stage) {
    case lane_stage::input: return input_came(self);
    case lane_stage::permit: return permit_came(self);
    case lane_stage::rate: return rate_came(self);
    default: return;
  }
}

template <class Types>
std::stop_source batch_gates<Types>::expire_wait() {
  queue_deadline_ = no_timeout;
  queue_expired_ = true;
  // Taken under the same lock, for it is this wait that has expired and not the next one.
  return take_source(end_waits_);
}

/// The sample comes to its end before its first attempt, or its next one.
template <class Types>
void batch_gates<Types>::refuse_sample(lane& self, error why) {
  settle(self.slot, std::move(why));
  engine_.note_end(self);
  self.has_sample = false;
  self.step = admission_step::limit;
  self.weight_permit.release();
  if (weighs) self.shared_permit.release();
  leave_turnstile(self);
  engine_.halting_.count_failure();
  engine_.sample_final(self);
}

/// False: it has no weight, its cost() threw.
template <class Types>
bool batch_gates<Types>::weigh([[maybe_unused]] lane& self) {
  if constexpr (weighs) {
    const auto cost = [&] {
      const std::size_t asked = engine_.predict_.cost(std::as_const(engine_.source_.get(*self.sample, self.index)));
      self.weight = std::max<std::size_t>(asked, 1);
      return true;
    };
    return guarded(cost, [&] {
      refuse_sample(self, error(errc::exception, std::current_exception(), self.attempts));
      return false;
    });
  } else {
    return true;
  }
}

template <class Types>
auto batch_gates<Types>::pass(lane& self, permit& into, async_semaphore& gate, std::size_t weight, start_mark& mark)
    -> verdict {
  // First, for it must not be left for the next time: then it would pass without a permit.
  if (self.came_back != verdict::waits) return std::exchange(self.came_back, verdict::waits);
  if (into) return verdict::passed;
  if (auto taken = gate.try_acquire(weight)) {
    into = std::move(*taken);
    return verdict::passed;
  }
  std::stop_token stop;
  if (!begin_wait(self, lane_stage::permit, stop)) {
    if (engine_.options_.observer) engine_.reporter_.wait_ended(self, lane_stage::permit);
    return verdict::stopped;
  }
  if (!self.permit_wait.start([&] { return gate.acquire(weight, std::move(stop)); }, self.handle(), mark)) {
    if (!mark.finished()) return verdict::waits;  // self may be gone
    mark.reopen(&self);
  }
  permit_came(self);
  return std::exchange(self.came_back, verdict::waits);
}

/// The next sample of an asynchronous source.
template <class Types>
auto batch_gates<Types>::pass_input([[maybe_unused]] lane& self, [[maybe_unused]] start_mark& mark) -> verdict {
  if constexpr (is_awaited<source>) {
    if (self.came_back != verdict::waits) return std::exchange(self.came_back, verdict::waits);
    if (engine_.source_.exhausted() || !engine_.sink_.reserve()) return verdict::stopped;
    self.stage = lane_stage::input;
    if (engine_.options_.observer) engine_.reporter_.wait_started(self, lane_stage::input);
    const auto next = [&] { return engine_.source_.next(); };
    const auto begin_read = [&] { return self.input_wait.start(next, self.handle(), mark); };
    bool threw = false;
    const bool there = guarded(begin_read, [&] {
      threw = true;
      if (engine_.options_.observer) engine_.reporter_.wait_ended(self, lane_stage::input);
      no_input(self, std::current_exception());
      return true;
    });
    if (!there && !mark.finished()) return verdict::waits;  // self may be gone
    mark.reopen(&self);
    if (!threw) input_came(self);
    return std::exchange(self.came_back, verdict::waits);
  } else {
    return verdict::passed;
  }
}

template <class Types>
void batch_gates<Types>::input_came([[maybe_unused]] lane& self) {
  if constexpr (is_awaited<source>) {
    if (engine_.options_.observer) engine_.reporter_.wait_ended(self, lane_stage::input);
    self.stage = lane_stage::idle;
    const auto take = [&](auto&& next) {
      if (!next) {
        engine_.source_.end();
        self.came_back = verdict::stopped;
        return;
      }
      self.cell.sample.emplace(*std::forward<decltype(next)>(next));
      self.index = engine_.source_.count();
      engine_.sink_.place(self);
      self.target = self.slot;
      self.attempts = 0;
      self.has_sample = true;
      self.came_back = verdict::passed;
    };
    guarded([&] { self.input_wait.resume(take); }, [&] { no_input(self, std::current_exception()); });
  }
}

/// The asynchronous source threw.
template <class Types>
void batch_gates<Types>::no_input([[maybe_unused]] lane& self, [[maybe_unused]] std::exception_ptr thrown) {
  if constexpr (is_awaited<source>) {
    self.stage = lane_stage::idle;
    engine_.source_.end();
    self.attempts = 0;
    self.index = engine_.source_.count();
    engine_.sink_.place(self);
    settle(self.slot, error(errc::input_failed, std::move(thrown), 0));
    engine_.note_end(self);
    engine_.halting_.once(halt::input);
    engine_.sample_final(self);
    self.came_back = verdict::stopped;
  }
}

template <class Types>
auto batch_gates<Types>::pass_rate([[maybe_unused]] lane& self, [[maybe_unused]] start_mark& mark) -> verdict {
  if constexpr (has_timers) {
    if (self.came_back != verdict::waits) return std::exchange(self.came_back, verdict::waits);
    if (engine_.options_.rate->try_acquire(engine_.ex_, self.weight)) return verdict::passed;
    std::stop_token stop;
    if (!begin_wait(self, lane_stage::rate, stop)) {
      if (engine_.options_.observer) engine_.reporter_.wait_ended(self, lane_stage::rate);
      return verdict::stopped;
    }
    const auto acquire = [&] { return engine_.options_.rate->acquire(engine_.ex_, self.weight, std::move(stop)); };
    bool threw = false;
    const auto begin = [&] { return self.rate_wait.start(acquire, self.handle(), mark); };
    const bool there = guarded(begin, [&] { return threw = true; });
    if (threw) {
      end_wait(self);
      engine_.refused();  // no timer, no more samples
      return verdict::stopped;
    }
    if (!there) {
      if (!mark.finished()) return verdict::waits;  // self may be gone
      mark.reopen(&self);
    }
    rate_came(self);
    return std::exchange(self.came_back, verdict::waits);
  } else {
    return verdict::passed;
  }
}

/// False: the batch is halted, or there is nothing left to wait for.
template <class Types>
bool batch_gates<Types>::begin_wait(lane& self, lane_stage stage, std::stop_token& stop) {
  if (engine_.options_.observer) engine_.reporter_.wait_started(self, stage);
  std::unique_lock lock(engine_.mutex_);
  // Under the lock: whoever halts or ends the waiting afterwards stops this very token.
  if (engine_.halted()) return false;
  if constexpr (!source::indexed) {
    if (!self.has_sample && engine_.source_.exhausted() && !engine_.retries_.any_ready()) return false;
  }
  stop = end_waits_.get_token();
  self.stage = stage;
  someone_waits_.store(true, std::memory_order_relaxed);
  waiter_has_sample_ = self.has_sample;
  if (engine_.options_.queue_timeout == no_timeout) return true;
  queue_deadline_ = later(now_of(engine_.ex_), engine_.options_.queue_timeout);
  const bool wake = engine_.clock_.is_dormant();
  lock.unlock();
  if (wake) engine_.clock_.wake();
  return true;
}

template <class Types>
void batch_gates<Types>::end_wait(lane& self) {
  if (engine_.options_.observer) engine_.reporter_.wait_ended(self, self.stage);
  self.stage = lane_stage::idle;
  const std::lock_guard lock(engine_.mutex_);
  someone_waits_.store(false, std::memory_order_relaxed);
  queue_deadline_ = no_timeout;
  self.queue_expired = std::exchange(queue_expired_, false);
  self.follows = false;
}

template <class Types>
void batch_gates<Types>::permit_came(lane& self) {
  end_wait(self);
  self.permit_wait.resume([&](auto outcome) {
    if (outcome) {
      permit_for(self) = std::move(*outcome);
      if (&permit_for(self) == &self.shared_permit) self.kept_since = now_of(engine_.ex_);
      self.came_back = verdict::passed;
      self.queue_expired = false;  // at the same moment
    } else {
      self.came_back =
          outcome.error().code == errc::cost_exceeds_capacity ? verdict::too_heavy : verdict::stopped;
    }
  });
}

template <class Types>
void batch_gates<Types>::rate_came([[maybe_unused]] lane& self) {
  if constexpr (has_timers) {
    end_wait(self);
    self.came_back = verdict::stopped;
    const auto take = [&](bool granted) {
      if (granted) self.came_back = verdict::passed;
    };
    guarded([&] { self.rate_wait.resume(take); }, [&] { engine_.refused(); });  // no timer, no more samples
  }
}

template <class Types>
permit& batch_gates<Types>::permit_for(lane& self) noexcept {
  switch (self.step) {
    case admission_step::limit: return self.limit_permit;
    case admission_step::weight: return self.weight_permit;
    default: return self.shared_permit;
  }
}

template <class Types>
bool batch_gates<Types>::has_all_permits(const lane& self) const noexcept {
  return !engine_.needs_.gates_anew && (!engine_.options_.limit || self.limit_permit) &&
         (!engine_.options_.semaphore || self.shared_permit);
}

template <class Types>
void batch_gates<Types>::leave_turnstile(lane& self) {
  // self is alive, so the one that is started is never the last: no check is due.
  if (std::exchange(self.has_turn, false) && turnstile_.leave() && !engine_.halted()) engine_.start_another();
}

/// The permits are had. What comes after the input must be sought in turn; where that is nothing, the turn is over.
template <class Types>
bool batch_gates<Types>::enter_input(lane& self) {
  if (self.has_input_turn) return true;
  if (!input_turnstile_.enter()) return false;
  self.has_input_turn = true;
  if (!weighs && !engine_.options_.rate) leave_turnstile(self);
  return true;
}

template <class Types>
void batch_gates<Types>::leave_input(lane& self) {
  if (std::exchange(self.has_input_turn, false) && input_turnstile_.leave() && !engine_.halted()) {
    engine_.start_another();
  }
}

template <class Types>
std::stop_source batch_gates<Types>::take_waits(bool also_with_sample) {
  const std::lock_guard lock(engine_.mutex_);
  if (!someone_waits_.load(std::memory_order_relaxed) || (waiter_has_sample_ && !also_with_sample)) {
    return std::stop_source(std::nostopstate);
  }
  return take_source(end_waits_);
}

/// Every failure but a cancellation is a drop: whether the server was overloaded or broken, it should get fewer calls.
template <class Types>
void batch_gates<Types>::report_to_limit(lane& self) {
  const std::size_t in_flight = std::exchange(self.in_flight_at_start, 0);
  if (self.target && self.target->has_value()) {
    engine_.options_.limit->succeeded(self.ended - self.started, in_flight);
  } else if (self.timed_out || !engine_.halted()) {
    engine_.options_.limit->dropped();
  } else {
    engine_.options_.limit->ignored();
  }
}

/// The lane goes.
template <class Types>
void batch_gates<Types>::leave(lane& self) {
  self.limit_permit.release();
  self.shared_permit.release();
  self.weight_permit.release();
  leave_turnstile(self);
  leave_input(self);
}

/// Between two samples: a permit goes to whoever waits for one, unless that is only ourselves, and where the limit was
/// lowered. What each sample must have anew is given back in any case; and with the limit, what is had after it: two
/// batches that have both would wait for each other, if one could keep its permit while it waits for the limit.
template <class Types>
void batch_gates<Types>::give_way(lane& self, bool suspended) {
  self.limit_permit.release();
  self.weight_permit.release();
  if (!self.shared_permit) return;
  if (weighs || engine_.options_.limit || must_hand_over(self, suspended)) hand_over(self);
}

template <class Types>
void batch_gates<Types>::hand_over(lane& self) {
  self.shared_permit.release();
  self.kept_on = 0;
  self.kept_since = no_timeout;
}

template <class Types>
inline bool batch_gates<Types>::asked_for_permit() const noexcept {
  async_semaphore& shared = *engine_.options_.semaphore;
  const std::size_t ours = someone_waits_.load(std::memory_order_relaxed) ? 1 : 0;
  return shared.waiting() > ours || semaphore_access::core(shared).overdrawn();
}

/// To hand a permit over costs more than a short predict: such samples have a quantum. It begins when the lane gets a
/// permit that it has waited for; with any other permit, when after a sample that did not suspend others are first seen
/// to wait. (For how long one that did suspend has had its permit, nobody knows.)
template <class Types>
bool batch_gates<Types>::must_hand_over(lane& self, bool suspended) {
  if (!asked_for_permit()) [[likely]] {
    self.kept_on = 0;
    return false;
  }
  if (semaphore_access::core(*engine_.options_.semaphore).overdrawn()) return true;
  // Off its executor the lane has to queue there, and the permit must not queue with it.
  if (suspended && (self.kept_since == no_timeout || !runs_here(engine_.ex_))) return true;
  if (++self.kept_on == quantum_) return true;
  // The clock is not free: so many samples may pass between two looks at it.
  const std::size_t blind = suspended ? (self.kept_on <= 32 ? 1 : 4) : (self.kept_on <= 32 ? 4 : 32);
  if (self.kept_on % blind != 0 && self.kept_on != 1) return false;
  const std::chrono::nanoseconds now = now_of(engine_.ex_);
  if (self.kept_since == no_timeout) self.kept_since = now;
  return now - self.kept_since > quantum_time_;
}

}  // namespace cobatch::detail
