#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <exception>
#include <cstdint>
#include <functional>
#include <mutex>
#include <stop_token>
#include <type_traits>
#include <utility>

#include <cobatch/batch_clock.hpp>
#include <cobatch/batch_gates.hpp>
#include <cobatch/batch_halting.hpp>
#include <cobatch/batch_hedges.hpp>
#include <cobatch/batch_lane.hpp>
#include <cobatch/batch_options.hpp>
#include <cobatch/batch_reporter.hpp>
#include <cobatch/batch_retries.hpp>
#include <cobatch/batch_types.hpp>
#include <cobatch/detail/config.hpp>
#include <cobatch/detail/current_executor.hpp>
#include <cobatch/detail/pump_core.hpp>
#include <cobatch/detail/results.hpp>
#include <cobatch/detail/source.hpp>
#include <cobatch/detail/start_mark.hpp>
#include <cobatch/detail/station.hpp>
#include <cobatch/error.hpp>
#include <cobatch/executor.hpp>
#include <cobatch/expected.hpp>
#include <cobatch/observer.hpp>

/// The machinery under batch_predict() and predict_stream(); nothing here is for users to spell.
///
///     detail/pump_core.hpp  how lanes and pumps share the work of all threads
///     batch_engine.hpp      one sample: taken, predicted, its outcome
///     batch_halting.hpp     what halts the batch
///     batch_gates.hpp       what must be had before an attempt: permits, weights, rate, an awaited input
///     batch_retries.hpp     attempts after a failure
///     batch_hedges.hpp      attempts beside one that takes long
///     batch_clock.hpp       timeouts, deadlines and whatever else becomes due
///     batch_reporter.hpp    what an observer is told
///
/// What no option asks for is not done: see batch_needs.

namespace cobatch::detail {

/// Types has `executor`, `source`, `predict` and `sink`: where outcomes go. The sink has
///
///     bool make_room(std::size_t end)  for an indexed source, under its lock: slots for the samples below `end`
///     made_slot(std::size_t index)     the slot of a sample for which room was made
///     bool reserve()                   sees to it that there is room for one more outcome; false: not just now
///     bool place(Lane&)                sets lane.slot (and lane.room) in the reserved room; false: no more samples
///     void settled(slot, index, room)  the outcome in the slot is final; any thread
///     bool room_came()                 after reserve() said no and the lane went: there is room again
///     void complete()                  all is over; *this may be gone after it
template <class Types>
class batch_engine : public pump_core<batch_engine<Types>, batch_lane<Types>> {
  using names = batch_types<Types>;
  using executor_type = typename names::executor;
  using predict_type = typename names::predict;
  using sink_type = typename names::sink;
  using cell_type = typename names::cell;
  using error_type = typename names::error_type;
  using traits = typename names::traits;
  using lane = batch_lane<Types>;
  using core = pump_core<batch_engine, lane>;

 public:
  using source = typename names::source;
  using result = typename names::result;

  batch_engine(executor_type& ex, source& samples, predict_type& predict, sink_type& sink, const batch_options& options,
               std::stop_token stop);
  ~batch_engine() {
    halting_.unlink();
    clock_.abandon();
    this->abandon_lanes();
  }

  /// Starts `pumps` pumps, or fewer if the executor or the cap allow no more.
  void start(std::size_t pumps);

  /// Asks for the end: nothing starts any more, what is in flight is asked to stop.
  void request_stop(halt why) { halting_.request(why); }
  halt why_halted() const noexcept { return halting_.why(); }
  bool halted() const noexcept { return why_halted() != halt::none; }

  /// Alone: `visit(range)` for what was handed out and never started.
  template <class Visit>
  void each_claimed(Visit&& visit) const {
    for (std::size_t i = 0; i < station_count_; ++i) visit(stations_[i].range);
  }

  /// For a stream with an observer.
  batch_reporter<Types>& reporter() noexcept { return reporter_; }

  /// From outside: there is room again, or it is to end. Another pump, unless there are as many lanes as may be; if
  /// there will be one, `need` is taken back before it can run.
  void wake(std::atomic<bool>* need = nullptr) {
    lane* const another = this->new_lane();
    if (!another) return;
    if (need) need->store(false);
    launch(*another);
  }

 private:
  friend core;
  friend lane;
  friend lane_base<lane>;
  friend batch_gates<Types>;
  friend batch_halting<Types>;
  friend batch_retries<Types>;
  friend batch_hedges<Types>;
  friend batch_clock<Types>;
  friend batch_reporter<Types>;

  // Whether no sample needs to be made, or weighed, between the end of one attempt and the start of the next in a lane.
  static constexpr bool samples_are_there =
      source::indexed && std::is_lvalue_reference_v<typename source::reference> && !names::weighs;

  // -- for pump_core --
  executor_ref loop() noexcept { return ref(ex_); }
  supply provide(station& here, lane* current);
  supply look_for_samples(station& here);
  void nothing_left() {
    if (needs_.gates) gates_.end_waits(false);
  }
  supply process(station& here, lane*& current, start_mark& mark);
  supply process_plainly(station& here, lane*& current, start_mark& mark);
  bool share(station& here);
  bool ask_at_turnstile(supply queue) noexcept { return gates_.ask_at_turnstile(queue); }
  void part_with(lane& self, supply why);
  bool more_came() noexcept { return !halted() && (retries_.any_ready() || sink_.room_came()); }
  bool may_add_lane() const noexcept { return !ended_; }
  bool source_ended() const noexcept {
    if constexpr (Types::can_pause) return source_.exhausted();
    return true;
  }
  /// *this may be gone after it, unless another lane is alive.
  void launch(lane& each) {
    if (execute_on(ex_, each.handle())) return;
    refused();
    this->pump(each);
  }
  void refused() noexcept { halting_.once(halt::executor); }
  bool complete(std::uint64_t live);
  void finish();
  void resumed(lane& self);

  // -- one attempt --
  enum class begun : unsigned char { suspended, ready, settled };
  claim take_sample(station& here, lane& self);
  template <bool Plain>
  begun begin(lane& self, std::size_t index, start_mark& mark);
  void before_attempt(lane& self);
  template <bool Plain>
  void collect(lane& self);
  bool conclude(lane& self);
  bool end_attempt(lane& self, bool suspended);
  void end_sample(lane& self, cell_type& cell);
  template <bool Plain, class... Value>
  void store(lane& self, Value&&... outcome);
  template <bool Plain>
  void failed(lane& self);
  void unreadable(lane& self);
  errc reason(const lane& self) const noexcept;
  void note_end(lane& self) noexcept {
    if (needs_.latencies) self.ended = now_of(ex_);
  }
  void sample_final(lane& self) noexcept;

  using core::mutex_, core::live_, core::stations_, core::station_count_, core::cap_;

  executor_type& ex_;
  predict_type& predict_;
  source& source_;
  sink_type& sink_;
  const batch_options options_;
  const batch_needs<Types> needs_;

  std::atomic<std::size_t> samples_started_{0};  // a count, ordering nothing
  bool ended_ = false;  // complete, but for the timekeeper; guarded by mutex_

  batch_gates<Types> gates_;
  batch_retries<Types> retries_;
  batch_hedges<Types> hedges_;
  batch_clock<Types> clock_;
  batch_reporter<Types> reporter_;
  batch_halting<Types> halting_;
};

// ---- Implementation ----

template <class Types>
batch_engine<Types>::batch_engine(executor_type& ex, source& samples, predict_type& predict, sink_type& sink,
                                  const batch_options& options, std::stop_token stop)
    : core(names::weighs ? options.max_concurrency : std::min(options.max_concurrency, options.max_weight)),
      ex_(ex),
      predict_(predict),
      source_(samples),
      sink_(sink),
      options_(options),
      needs_(options, stop.stop_possible()),
      gates_(*this, options),
      retries_(*this, options),
      hedges_(*this),
      clock_(*this),
      reporter_(*this),
      halting_(*this, std::move(stop)) {}

template <class Types>
void batch_engine<Types>::start(std::size_t pumps) {
  this->open_stations(std::min(concurrency_of(ex_), cap_));
  pumps = std::clamp<std::size_t>(pumps, 1, station_count_);
  if (needs_.gates) gates_.open();
  if (needs_.clock) clock_.make();

  lane* first = nullptr;
  for (std::size_t i = 0; i < pumps; ++i) {
    lane* const made = this->new_lane();
    if (!made) break;
    made->next_parked = first;
    first = made;
  }
  if (!first) throw_bad_alloc();
  if (options_.observer) reporter_.started();
  // From here on nothing throws.
  halting_.link();
  if (needs_.clock) clock_.start();
  while (first) {
    lane* const each = first;
    first = first->next_parked;
    each->next_parked = nullptr;
    launch(*each);
    // After the last one *this may be gone.
  }
}

/// The lane's handle was resumed: the executor lets it start or come back, or what it waited for has happened.
template <class Types>
void batch_engine<Types>::resumed(lane& self) {
  const bool waited = self.stage != lane_stage::idle && self.stage != lane_stage::twin;
  switch (self.stage) {
    case lane_stage::idle: break;
    case lane_stage::attempt:
      if (!conclude(self)) return;  // its sample is still in use, it will be resumed again; *this may be gone
      break;
    case lane_stage::input:
    case lane_stage::permit:
    case lane_stage::rate: gates_.came(self); break;
    case lane_stage::twin: self.stage = lane_stage::idle; break;
  }
  if (waited && !runs_here(ex_)) return launch(self);
  this->pump(self);
}

/// One sample, from its permits to its outcome, or to where it suspends: then `current` is null.
template <class Types>
supply batch_engine<Types>::process(station& here, lane*& current, start_mark& mark) {
  lane& self = *current;
  if (needs_.nothing) [[likely]] {
    if constexpr (source::indexed) return process_plainly(here, current, mark);
    switch (take_sample(here, self)) {
      case claim::taken: break;
      case claim::exhausted:
      case claim::no_room: return supply::none;
      case claim::elsewhere: return supply::contended;
    }
  } else {
    if constexpr (source::indexed) {
      if (needs_.only_a_permit && self.shared_permit && !self.has_turn) return process_plainly(here, current, mark);
    }
    const supply prepared = gates_.prepare(here, self, mark);
    if (prepared == supply::lost) current = nullptr;  // self may be gone
    if (prepared != supply::ready) return prepared;
    if (!self.has_sample) return supply::ready;  // it came to its end on the way
  }
  if (!needs_.counting) self.attempts = 1;
  self.has_sample = false;
  self.stage = lane_stage::attempt;
  const begun state = begin<false>(self, self.index, mark);
  if (state == begun::suspended && !mark.finished()) {  // self may be gone
    current = nullptr;
    return supply::ready;
  }
  self.stage = lane_stage::idle;
  if (state != begun::settled) collect<false>(self);
  if (needs_.nothing) {
    sink_.settled(self.slot, self.index, self.room);
  } else if (!end_attempt(self, false)) {
    current = nullptr;
  }
  return supply::ready;
}

template <class Types>
supply batch_engine<Types>::provide(station& here, lane* current) {
  if (needs_.nothing) return look_for_samples(here);
  if ((current && current->has_sample) || hedges_.wanted()) return supply::ready;
  supply found = look_for_samples(here);
  // A sample that is tried again queues at the tail; it is read already, where others are not.
  if (found != supply::ready && retries_.any_ready()) found = supply::ready;
  if (found != supply::ready || current || !needs_.gates) return found;
  return gates_.would_queue();  // for that no lane needs to be made
}

template <class Types>
supply batch_engine<Types>::look_for_samples(station& here) {
  if constexpr (source::indexed) {
    if (!here.range.empty()) return supply::ready;
    const auto make_room = [&](std::size_t end) { sink_.make_room(end); };
    if (source_.refill(here.range, station_count_, make_room)) return supply::ready;
    return this->steal(here);
  } else {
    return source_.exhausted() ? supply::none : supply::ready;
  }
}

template <class Types>
bool batch_engine<Types>::share(station& here) {
  if constexpr (source::indexed) {
    const std::size_t left = here.range.size();
    const index_range half{here.range.begin + left / 2, here.range.end};
    if (half.empty() || !source_.give_back(half)) return false;
    here.range.end = half.begin;
    return true;
  } else {
    return !source_.exhausted();
  }
}

template <class Types>
void batch_engine<Types>::part_with(lane& self, supply why) {
  if (self.pair) {
    // The second attempt of a sample that will not be made.
    hedges_.make_own(self, error(reason(self), {}, self.attempts));
    note_end(self);
    self.has_sample = false;
    hedges_.end_pair(self);
  } else if (self.has_sample) {
    // Read, but it will not be started; where it had been tried before, its last error stands.
    const errc unstarted = why_halted() == halt::executor ? errc::executor_stopped : errc::not_started;
    if (self.attempts == 0) settle(self.slot, error(unstarted, {}, 0));
    self.has_sample = false;
    note_end(self);
    sample_final(self);
  }
  if (options_.observer) reporter_.add_finished(std::exchange(self.finished, 0));
  gates_.leave(self);
  if (why == supply::none) nothing_left();
}

/// False: a sample sleeps and will come back, or a stream only pauses.
template <class Types>
bool batch_engine<Types>::complete(std::uint64_t live) {
  std::unique_lock lock(mutex_);
  while (halted() && retries_.give_up(lock)) {}
  if (!retries_.empty() || (!halted() && !source_ended())) return false;
  if (ended_ || live_.load() != live) return false;
  // From here on the timekeeper may complete it at any time, unless it is gone.
  ended_ = true;
  std::stop_source wake = clock_.end();
  lock.unlock();
  if (wake.stop_possible()) {
    wake.request_stop();
  } else {
    finish();
  }
  return true;
}

template <class Types>
void batch_engine<Types>::finish() {
  if (options_.observer) reporter_.ended();
  sink_.complete();  // *this may be gone
}

template <class Types>
claim batch_engine<Types>::take_sample(station& here, lane& self) {
  const bool at_tail = !source::indexed || here.range.empty();
  if (at_tail && needs_.retries && retries_.take(self)) return claim::taken;
  if constexpr (is_awaited<source>) {
    return claim::exhausted;  // read by gates_.pass_input()
  } else if constexpr (source::indexed) {
    if (at_tail) return claim::elsewhere;  // what was ready somebody else has taken: look again
    self.index = here.range.begin++;
    self.slot = sink_.made_slot(self.index);
  } else {
    const auto place = [&](std::size_t index) {
      self.index = index;
      return sink_.place(self);
    };
    const auto no_sample = [&] {
      self.attempts = 0;
      unreadable(self);
      sample_final(self);
    };
    const std::chrono::nanoseconds asked = options_.observer ? now_of(ex_) : std::chrono::nanoseconds::zero();
    const claim answer = source_.pull(self.cell, [&] { return sink_.reserve(); }, place, no_sample);
    if (answer != claim::taken) return answer;
    if (options_.observer) self.waited_for[static_cast<std::size_t>(wait_for::input)] += now_of(ex_) - asked;
  }
  self.target = self.slot;
  self.attempts = 0;
  self.has_sample = true;
  return claim::taken;
}

/// Calls predict for self.index. What it comes to goes to self.target. Plain, here and below: nothing is to be counted
/// or watched.
template <class Types>
template <bool Plain>
[[gnu::always_inline]] inline auto batch_engine<Types>::begin(lane& self, std::size_t index, start_mark& mark)
    -> begun {
  bool readable = false;
  const auto call = [&]() -> typename traits::raw {
    auto&& sample = static_cast<typename traits::argument>(source_.get(*self.sample, index));
    readable = true;
    if (!Plain && needs_.counting) before_attempt(self);
    if constexpr (traits::takes_token) {
      return std::invoke(predict_, static_cast<typename traits::argument>(sample), self.stop.get_token());
    } else {
      return std::invoke(predict_, static_cast<typename traits::argument>(sample));
    }
  };
  const auto attempted = [&]() -> begun {
    if constexpr (traits::is_awaitable) {
      return self.work.start(call, self.handle(), mark) ? begun::ready : begun::suspended;
    } else if constexpr (std::is_void_v<typename traits::raw>) {
      call();
      store<Plain>(self);
      return begun::settled;
    } else {
      store<Plain>(self, call());
      return begun::settled;
    }
  };
  return guarded(attempted, [&]() -> begun {
    if (readable) {
      failed<Plain>(self);
    } else {
      unreadable(self);
    }
    return begun::settled;
  });
}

template <class Types>
void batch_engine<Types>::before_attempt(lane& self) {
  ++self.attempts;
  if (self.attempts == 1 && (needs_.retries || needs_.hedges)) samples_started_.fetch_add(1, std::memory_order_relaxed);
  if (needs_.watching) clock_.watch(self);
  if (options_.observer) reporter_.attempt_started(self);
}

/// Predict's awaitable is ready: writes what it comes to.
template <class Types>
template <bool Plain>
[[gnu::always_inline]] inline void batch_engine<Types>::collect(lane& self) {
  if constexpr (traits::is_awaitable) {
    const auto take = [&](auto&&... outcome) { store<Plain>(self, std::forward<decltype(outcome)>(outcome)...); };
    guarded([&] { self.work.resume(take); }, [&] { failed<Plain>(self); });
  }
}

/// A run of samples where no option asks for anything: until the station's claim is used up, or somebody wants
/// something.
///
/// This is the loop that decides what a sample costs; it touches nothing that is shared, and little else.
template <class Types>
supply batch_engine<Types>::process_plainly(station& here, lane*& current, start_mark& mark) {
  lane& self = *current;
  index_range range = here.range;  // nobody else touches it while the station is ours
  self.attempts = 1;
  self.stage = lane_stage::attempt;
  bool hand_over = false;
  do {
    const std::size_t index = range.begin++;
    self.index = index;
    self.slot = self.target = sink_.made_slot(index);
    const begun state = begin<true>(self, index, mark);
    if (state == begun::suspended) {
      if (!mark.finished()) {  // self may be gone
        here.range = range;
        current = nullptr;
        return supply::ready;
      }
      mark.reopen(&self);
    }
    if (state != begun::settled) collect<true>(self);
    sink_.settled(self.slot, index, self.room);
    hand_over = !needs_.nothing && gates_.must_hand_over(self, false);
  } while (!range.empty() && !here.marked() && !halted() && !hand_over);
  self.stage = lane_stage::idle;
  here.range = range;
  if (hand_over) gates_.hand_over(self);
  return supply::ready;
}

/// Predict's awaitable has come to its end. False: the lane waits for the other attempt of its sample; self may be
/// gone.
template <class Types>
bool batch_engine<Types>::conclude(lane& self) {
  self.stage = lane_stage::idle;
  collect<false>(self);
  if (!needs_.nothing) return end_attempt(self, true);
  sink_.settled(self.slot, self.index, self.room);
  return true;
}

/// Inside the handler of what predict threw.
template <class Types>
template <bool Plain>
void batch_engine<Types>::failed(lane& self) {
  if (!Plain && needs_.watching) clock_.unwatch(self);
  if (self.target) settle(self.target, error(reason(self), std::current_exception(), self.attempts));
}

/// Inside the handler of what the input threw where this sample should have been.
template <class Types>
void batch_engine<Types>::unreadable(lane& self) {
  settle(self.slot, error(errc::input_failed, std::current_exception(), 0));
  note_end(self);
  halting_.once(halt::input);
}

/// Writes what predict came to. Whatever throws here is the sample's exception.
template <class Types>
template <bool Plain, class... Value>
void batch_engine<Types>::store(lane& self, Value&&... outcome) {
  if (!Plain && needs_.watching) {
    clock_.unwatch(self);
    if (!self.target) return;
  }
  result& slot = *self.target;
  if constexpr (is_expected_v<typename names::value>) {
    rewrite(slot, std::forward<Value>(outcome)...);
    if (!slot.has_value()) {
      if constexpr (std::is_same_v<error_type, error>) {
        slot.error().attempts = self.attempts;
        if (const errc why = reason(self); why != errc::exception) slot.error().code = why;
      } else {
        if (const errc why = reason(self); why != errc::exception) settle(&slot, error(why, {}, self.attempts));
      }
    }
  } else {
    rewrite_value<typename names::value>(slot, std::forward<Value>(outcome)...);
  }
}

/// What a failure is called: after a stop was asked for, that is the reason of the stop.
template <class Types>
errc batch_engine<Types>::reason(const lane& self) const noexcept {
  if (self.timed_out) return errc::timed_out;
  switch (halting_.asked()) {
    case halt::none: return errc::exception;
    case halt::closed: return errc::cancelled;
    default: return meaning(halting_.asked());
  }
}

/// The attempt's outcome is in self.target. False: the lane was lost.
template <class Types>
bool batch_engine<Types>::end_attempt(lane& self, bool suspended) {
  if (needs_.watching) {
    self.follows = samples_are_there && !suspended && needs_.latencies;
    if (options_.observer) reporter_.attempt_ended(self);
    if (self.in_flight_at_start != 0) gates_.report_to_limit(self);
    if (self.pair) return hedges_.end_pair(self);
  }
  gates_.give_way(self, suspended);
  end_sample(self, self.cell);
  return true;
}

/// The sample's outcome is in self.slot: final, or a reason to try again.
template <class Types>
void batch_engine<Types>::end_sample(lane& self, cell_type& cell) {
  if (!self.slot->has_value()) {
    if constexpr (names::repeats) {
      if (needs_.retries && retries_.retry(self, cell)) return;
    }
    if (self.attempts != 0) halting_.count_failure();  // but one that could not be read
  }
  sample_final(self);
}

/// The outcome in self.slot will not change any more; it came at self.ended.
template <class Types>
void batch_engine<Types>::sample_final(lane& self) noexcept {
  if (options_.observer) {
    ++self.finished;
    reporter_.finished(*self.slot, self.index, self.attempts, self.ended);
  }
  sink_.settled(self.slot, self.index, self.room);
}

}  // namespace cobatch::detail
