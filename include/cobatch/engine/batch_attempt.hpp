#pragma once

#include <algorithm>
#include <chrono>
#include <exception>
#include <type_traits>
#include <utility>

#include <cobatch/detail/abi.hpp>
#include <cobatch/engine/batch_engine.hpp>

namespace cobatch::inline COBATCH_ABI::detail {

// One attempt, around the call of predict: its time, its outcome, and whether there is to be another.

template <class Types>
void batch_engine<Types>::before_attempt(lane& self) {
  ++self.sample.attempts;
  if (needs_.counts_starts && self.sample.attempts == 1) samples_started_.fetch_add(1, std::memory_order_relaxed);
  // A twin's is a fresh one, and may be stopped from the moment at which it has become one.
  if (needs_.tokens && !self.is_twin && self.stop_used) self.renew_stop(attempts_stop());
  self.timed_out = false;
  if (!needs_.latencies) return;
  // A predict that follows the last one at once starts when that one has ended: the clock is not free.
  self.started = std::exchange(self.follows, false) ? self.ended : now_of(ex_);
  if (options_.limit) self.limit_in_flight = options_.limit->started();
  if (needs_.watches) {
    watch_.begins(self);
    alarm_.wake_if_dormant();
  }
  if (options_.observer) report_.attempt_started(self);
}

/// What a lane waited for has happened, on a thread that is not the executor's: the lane queues there first.
template <class Types>
void batch_engine<Types>::happened(lane& self) {
  if (self.at != stage::attempt) return;
  if (needs_.latencies) {
    if (needs_.watches) watch_.ended(self);
    note_end(self);
    self.end_known = true;
  }
  // A permit that others wait for must not queue with it.
  if (self.shared_permit && share_.asked_for(wait_.under_way())) hand_over_permit(self);
}

/// The attempt is over; nobody finds it any more.
template <class Types>
void batch_engine<Types>::measure(lane& self) noexcept {
  if (!needs_.latencies) return;
  if (!std::exchange(self.end_known, false)) {
    if (needs_.watches) watch_.ended(self);
    note_end(self);
  }
  const time ran = self.ended - self.started;
  // A timeout of zero or less has passed at once for whatever suspends.
  self.timed_out = needs_.timeouts && ran >= options_.timeout && (self.waited || ran > time::zero());
  if (needs_.hedges) {
    if (!self.pair && watch_.record(ran)) alarm_.wake();
    if (self.pair && !self.own) {
      make_own(self, error(errc::not_started, {}, 0));
      self.target = self.own ? &*self.own : nullptr;
    }
  }
}

template <class Types>
void batch_engine<Types>::note_end(lane& self) noexcept {
  if (needs_.latencies) self.ended = now_of(ex_);
}

/// The outcome of one of two attempts. Where the user's own error type throws it has none, and the slot stays as it is.
template <class Types>
void batch_engine<Types>::make_own(lane& self, error why) {
  guarded([&] { self.own.emplace(unexpect, std::move(why)); }, [&] { self.own.reset(); });
}

/// Inside the handler of what predict threw.
template <class Types>
template <bool Plain>
void batch_engine<Types>::failed(lane& self) {
  if (!Plain) measure(self);
  if (self.target) fail<Plain>(self, error(reason(self.timed_out), std::current_exception(), self.sample.attempts));
}

/// The attempt ends with an error of ours.
template <class Types>
template <bool Plain>
void batch_engine<Types>::fail(lane& self, error why) {
  if constexpr (!Plain && !std::is_same_v<error_type, error>) {
    if (needs_.retries) self.cause.emplace(why);
  }
  settle(self.target, std::move(why));
}

/// The attempt's outcome is in self.target.
template <class Types>
void batch_engine<Types>::attempt_ended(lane& self) {
  if (!needs_.latencies) return;
  self.follows = samples_are_there && !self.waited;
  if (options_.observer) report_.attempt_ended(self);
  if (self.limit_in_flight == 0) return;
  const std::size_t in_flight = std::exchange(self.limit_in_flight, 0);
  // Every failure but a cancellation is a drop: overloaded or broken, the server should get fewer calls.
  if (self.target && self.target->has_value()) {
    options_.limit->succeeded(self.ended - self.started, in_flight);
  } else if (self.timed_out || !halted()) {
    options_.limit->dropped();
  } else {
    options_.limit->ignored();
  }
}

/// One of two attempts of a sample has ended: the first value wins. True: it was the last of them.
template <class Types>
bool batch_engine<Types>::end_pair(lane& self) {
  auto end = watch_.end_attempt(self, self.own && self.own->has_value());
  if (end.writes && self.own) {
    guarded([&] { rewrite(*self.sample.slot, std::move(*self.own)); },
            [&] {
              settle(self.sample.slot, error(errc::exception, std::current_exception(), self.sample.attempts));
            });
  }
  if constexpr (!std::is_same_v<error_type, error>) {
    if (!end.writes) self.cause.reset();  // not what stands in the slot
  }
  self.own.reset();
  self.target = self.sample.slot;
  self.is_twin = false;
  give_way(self);
  end.loser.request_stop();
  if (!watch_.leave_pair(self)) {
    self.sample.item = nullptr;
    return false;
  }
  if constexpr (std::is_same_v<error_type, error>) {
    if (!self.sample.slot->has_value()) self.sample.slot->error().attempts = self.sample.attempts;
  }
  return true;
}

/// Between two samples: a permit goes to whoever waits for one, unless that is only ourselves, and where the limit was
/// lowered. What each sample must have anew is given back in any case; and with the limit, what is had after it: two
/// batches that have both would wait for each other, if one could keep its permit while it waits for the limit.
template <class Types>
void batch_engine<Types>::give_way(lane& self) {
  if (!needs_.gates) return;
  self.limit_permit.release();
  self.weight_permit.release();
  if (!self.shared_permit) return;
  if (names::weighs || options_.limit || share_.is_over(self, self.waited, wait_.under_way(), ex_)) {
    hand_over_permit(self);
  }
}

template <class Types>
void batch_engine<Types>::hand_over_permit(lane& self) {
  self.shared_permit.release();
  self.kept_on = 0;
  self.kept_since = no_timeout;
}

/// The lane has no sample and goes.
template <class Types>
void batch_engine<Types>::part_with(lane& self) {
  self.follows = false;
  if (self.finished != 0) report_.add_finished(std::exchange(self.finished, 0));
  sink_.hand_over(self.done);
  if (!needs_.gates) return;
  self.limit_permit.release();
  self.weight_permit.release();
  hand_over_permit(self);
}

template <class Types>
void batch_engine<Types>::before_a_turn(lane& self) {
  self.follows = false;
  if (self.shared_permit && share_.asked_for(wait_.under_way())) hand_over_permit(self);
}

/// What the caller's condition, or the caller's error itself, says of the failure in the sample's slot.
template <class Types>
bool batch_engine<Types>::worth_another(const lane& self) {
  const error_type& why = self.sample.slot->error();
  const retry_condition& retry_if = options_.retry.retry_if;
  if constexpr (is_stream_item<std::remove_cvref_t<typename source::reference>>) {
    if (!source_.get(self.sample.item, self.sample.index).result.has_value()) return false;  // failed before it came here
  }
  if (retry_if && retry_if.template takes<error_type>()) return retry_if(why);
  if constexpr (!std::is_same_v<error_type, error>) {
    // A condition that knows only our errors is asked about those.
    if (retry_if && self.cause) return retry_if(*self.cause);
    if constexpr (requires { static_cast<bool>(why.retryable()); }) return static_cast<bool>(why.retryable());
  }
  return true;
}

/// True: the sample sleeps and comes back; until then its last error stands in its slot.
template <class Types>
bool batch_engine<Types>::try_again(lane& self) {
  sample_type& sample = self.sample;
  if (sample.slot->has_value()) return false;
  if (sample.attempts == 0) return false;  // it could not be read
  const auto final_failure = [&] {
    count_failure();
    return false;
  };
  const retry_policy& policy = options_.retry;
  if (!calls_.repeats || !needs_.retries || halted() || sample.attempts >= policy.max_attempts) return final_failure();
  time delay = time::zero();
  const bool wanted = guarded(
      [&] {
        if (!worth_another(self)) return false;
        if (names::has_timers) delay = backoff_.after(sample.attempts, sample.index, asked_delay(sample.slot->error()));
        return true;
      },
      [&] {
        settle(sample.slot, error(errc::exception, std::current_exception(), sample.attempts));
        return false;
      });
  if (!wanted) return final_failure();
  const bool at_once = delay <= time::zero();
  const time due = at_once ? time::zero() : later(now_of(ex_), delay);
  if (!at_once && due >= deadline_) return final_failure();  // without a deadline: never
  const double made = static_cast<double>(retries_made_.fetch_add(1, std::memory_order_relaxed) + 1);
  const auto give_up = [&] {
    retries_made_.fetch_sub(1, std::memory_order_relaxed);
    return final_failure();
  };
  if (policy.budget < unlimited_budget && made > policy.budget * samples_started()) return give_up();
  // Before anybody can take it up again.
  if (options_.observer) report_.retried(sample, self.ended, std::max(delay, time::zero()));
  head.add_holder();
  using pushed = typename retry_queue<sample_type>::pushed;
  const pushed how = retries_.push(sample, due, at_once);
  if (how == pushed::no_memory) {
    head.drop_spare_holder();
    return give_up();
  }
  if (how == pushed::is_next) alarm_.wake();
  sample.item = nullptr;
  return true;
}

/// The outcome in the sample's slot will not change any more; it came at self.ended.
template <class Types>
void batch_engine<Types>::sample_final(lane& self) {
  if (options_.observer) {
    ++(self.worker ? self.loop->finished : self.finished);
    report_.finished(self.sample, self.ended);
  }
  settled(self.worker ? self.loop->done : self.done, std::exchange(self.sample, sample_type{}));
}

/// Into the outcomes of a loop, or of a lane that comes back one by one: what is in a lane's is handed over when it
/// goes, but that of a stream at once.
template <class Types>
inline void batch_engine<Types>::settled(handful& done, const sample_type& sample) {
  sink_.settled(done, sample);
  if constexpr (Types::can_pause) {
    if (loop* const here = loop::innermost_of(this); !here || &here->done != &done) sink_.hand_over(done);
  }
}

template <class Types>
bool batch_engine<Types>::begin_wait(lane& self, wait_for what, std::stop_token& stop) {
  const std::size_t index = self.has_sample ? self.sample.index : wait_event::no_sample;
  if (options_.observer) self.wait_began = report_.wait_started(&self, index, what);
  hand_over(*self.loop);
  const bool times = options_.queue_timeout != no_timeout;
  const auto begin = [&] {
    return wait_.begin(stop, self.has_sample, times ? later(now_of(ex_), options_.queue_timeout) : no_timeout,
                       [&] { return halted() || (!self.has_sample && !anything_to_start(self.worker)); });
  };
  const bool waits = guarded(begin, [&] {
    wait_failed();
    return false;
  });
  if (!waits) {
    if (options_.observer) report_.wait_ended(&self, index, what, self.wait_began);
  } else if (times) {
    alarm_.wake_if_dormant();
  }
  return waits;
}

/// True: its time was up.
template <class Types>
bool batch_engine<Types>::end_wait(lane& self, wait_for what) {
  const std::size_t index = self.has_sample ? self.sample.index : wait_event::no_sample;
  if (options_.observer) {
    self.waited_for[static_cast<std::size_t>(what)] += report_.wait_ended(&self, index, what, self.wait_began);
  }
  self.at = stage::idle;
  self.follows = false;
  const bool expired = wait_.end();
  if (what == wait_for::permits && options_.semaphore) self.kept_since = now_of(ex_);
  return expired;
}

// ---- Asynchronous sources ----

template <class Types>
auto batch_engine<Types>::input_wait_began(const void* reader) -> time {
  return options_.observer ? report_.wait_started(reader, wait_event::no_sample, wait_for::input) : time::zero();
}

template <class Types>
auto batch_engine<Types>::input_wait_ended(const void* reader, time began) -> time {
  return options_.observer ? report_.wait_ended(reader, wait_event::no_sample, wait_for::input, began) : time::zero();
}

/// Inside the handler of what the input threw where this sample should have been.
template <class Types>
void batch_engine<Types>::unreadable([[maybe_unused]] item_type& item) {
  if constexpr (!source::indexed) {
    const sample_type sample{item.index, item.slot, &item, 0};
    settle(sample.slot, error(errc::input_failed, std::current_exception(), 0));
    halt_once(halt::input);
    if (options_.observer) {
      report_.add_finished(1);
      report_.finished(sample, now_of(ex_));
    }
    typename sink_type::handful one;
    sink_.settled(one, sample);
    sink_.hand_over(one);
  }
}

}  // namespace cobatch::detail
