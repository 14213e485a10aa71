#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <stop_token>
#include <type_traits>
#include <utility>
#include <vector>

#include <cobatch/adaptive_limit.hpp>
#include <cobatch/batch_lane.hpp>
#include <cobatch/batch_options.hpp>
#include <cobatch/detail/config.hpp>
#include <cobatch/detail/current_executor.hpp>
#include <cobatch/detail/histogram.hpp>
#include <cobatch/detail/intrusive_list.hpp>
#include <cobatch/detail/predict_traits.hpp>
#include <cobatch/detail/pump_core.hpp>
#include <cobatch/detail/random.hpp>
#include <cobatch/detail/results.hpp>
#include <cobatch/detail/retry_queue.hpp>
#include <cobatch/detail/source.hpp>
#include <cobatch/detail/start_mark.hpp>
#include <cobatch/detail/station.hpp>
#include <cobatch/detail/timekeeper.hpp>
#include <cobatch/detail/turnstile.hpp>
#include <cobatch/error.hpp>
#include <cobatch/executor.hpp>
#include <cobatch/expected.hpp>
#include <cobatch/observer.hpp>
#include <cobatch/rate_limiter.hpp>
#include <cobatch/semaphore.hpp>

/// The machinery under batch_predict() and predict_stream(); nothing here is for users to spell. How lanes and pumps share
/// the work is told in detail/pump_core.hpp; here is what is done with one sample: its permits, its attempts, its outcome,
/// and what stops it. What no option asks for is behind one flag, plain_.

namespace cobatch::detail {

/// The slot of a sample whose predict comes to Value.
template <class Value>
struct slot_of {
  using type = expected<Value, error>;
};
template <class T, class E>
struct slot_of<expected<T, E>> {
  using type = expected<T, E>;
};

/// What a lane in that stage waits for, in an observer's words.
constexpr wait_for waits_for(lane_stage stage) noexcept {
  return stage == lane_stage::rate ? wait_for::rate : stage == lane_stage::input ? wait_for::input : wait_for::permits;
}

/// Whether predict comes from weighted().
template <class Predict>
inline constexpr bool weighs_samples = false;
template <class Predict, class Cost>
inline constexpr bool weighs_samples<weighted_predict<Predict, Cost>> = true;

/// How long the error itself asks to wait before the next attempt.
template <class Error>
std::chrono::nanoseconds asked_delay(const Error& why) {
  if constexpr (requires { std::chrono::nanoseconds(why.retry_after()); }) {
    return std::chrono::nanoseconds(why.retry_after());
  } else {
    return std::chrono::nanoseconds::zero();
  }
}
inline std::chrono::nanoseconds asked_delay([[maybe_unused]] const error& why) {
#if COBATCH_EXCEPTIONS
  if (why.exception) {
    try {
      std::rethrow_exception(why.exception);
    } catch (const retry_later& later) {
      return later.retry_after();
    } catch (...) {
    }
  }
#endif
  return std::chrono::nanoseconds::zero();
}

/// Why a batch takes no more samples.
enum class halt : std::uint8_t {
  none,
  user,      ///< the user's stop token
  failures,  ///< max_failures
  deadline,
  input,     ///< the input threw
  executor,  ///< the executor refused a handle
  closed,    ///< the stream was closed
};

/// Throws std::invalid_argument, with what to do, for options that make no sense.
template <class Executor, class Traits>
void check(const batch_options& options) {
  const auto refuse_if = [](bool wrong, const char* message) {
    if (wrong) throw_or_fail<std::invalid_argument>(message);
  };
  const retry_policy& retry = options.retry;
  const hedge_policy& hedge = options.hedge;
  const bool hedges = hedge.delay != no_timeout || hedge.quantile > 0;
  refuse_if(options.max_concurrency == 0, "max_concurrency is 0, no sample could ever start: use at least 1");
  refuse_if(options.max_weight == 0, "max_weight is 0, no sample could ever start: use at least 1");
  refuse_if(options.max_failures == 0, "max_failures is 0: use 1 to stop at the first failure");
  refuse_if(retry.max_attempts == 0, "retry.max_attempts is 0: use 1 for no retries");
  refuse_if(!(retry.multiplier >= 1), "retry.multiplier is below 1: backoffs must not shrink");
  refuse_if(!(retry.budget >= 0), "retry.budget is negative or no number: use a share such as 0.1");
  refuse_if(!(hedge.quantile >= 0 && hedge.quantile < 1), "hedge.quantile is not in [0, 1): use one such as 0.95");
  refuse_if(!(hedge.max_extra >= 0), "hedge.max_extra is negative or no number: use a share such as 0.05");
  refuse_if(std::is_rvalue_reference_v<typename Traits::argument> && (hedges || retry.max_attempts > 1),
            "retry and hedge call predict again with the same sample, but this predict takes its samples away: let it "
            "take them by reference");
  if constexpr (!timed_executor<Executor>) {
    refuse_if(options.timeout != no_timeout || options.deadline != no_timeout || options.queue_timeout != no_timeout ||
                  hedges || options.rate ||
                  (retry.max_attempts > 1 && retry.initial_backoff > std::chrono::nanoseconds::zero()),
              "timeout, deadline, queue_timeout, hedge, rate and a retry with a backoff need an executor with "
              "schedule_after(): use thread_pool or run_loop, or give yours that member");
  }
}

/// What a sample of Source comes to.
template <class Source, class Predict>
struct outcome_of {
  using traits = predict_traits<Predict, typename Source::reference, Source::owned>;
  using result = typename slot_of<typename traits::value>::type;

  static_assert(std::is_constructible_v<typename result::error_type, error>,
                "cobatch: the error type E2 of an expected<U, E2> that predict returns must be constructible from "
                "cobatch::error, which is what a sample gets that was stopped, or whose predict threw");
};

/// Types has `executor`, `source`, `predict` and `sink`: where outcomes go. The sink has
///
///     bool make_room(std::size_t end)  for an indexed source, under its lock: slots for the samples below `end`
///     made_slot(std::size_t index)     the slot of a sample for which room was made
///     bool reserve()                   sees to it that there is room for one more outcome; false: not just now
///     bool place(Lane&)                sets lane.slot (and lane.room) in the reserved room; false: take no more samples
///     void settled(slot, index, room)  the outcome in the slot is final; any thread
///     bool room_came()                 after reserve() said no and the lane went: there is room again
///     void complete()                  all is over; *this may be gone after it
template <class Types>
class batch_engine : public pump_core<batch_engine<Types>, batch_lane<batch_engine<Types>>> {
  using executor_type = typename Types::executor;
  using predict_type = typename Types::predict;
  using sink_type = typename Types::sink;
  using lane = batch_lane<batch_engine>;
  using core = pump_core<batch_engine, lane>;
  using traits = typename outcome_of<typename Types::source, predict_type>::traits;
  using value = typename traits::value;

 public:
  using source = typename Types::source;
  using result = typename outcome_of<source, predict_type>::result;
  using error_type = typename result::error_type;
  using cell_type = typename source::cell;

  batch_engine(executor_type& ex, source& samples, predict_type& predict, sink_type& sink, const batch_options& options,
               std::stop_token stop);
  ~batch_engine() {
    user_link_.reset();
    if (timekeeper_) timekeeper_.destroy();
    this->abandon_lanes();
  }

  /// Starts `pumps` pumps, or fewer if the executor or the cap allow no more.
  void start(std::size_t pumps);

  /// Asks for the end: nothing starts any more, what is in flight is asked to stop.
  void request_stop(halt why);

  halt why_halted() const noexcept { return halt_.load(std::memory_order_relaxed); }
  bool halted() const noexcept { return why_halted() != halt::none; }

  /// Alone: `visit(range)` for what was handed out and never started.
  template <class Visit>
  void each_claimed(Visit&& visit) const {
    for (std::size_t i = 0; i < station_count_; ++i) visit(stations_[i].range);
  }

  /// Only with an observer: a stream's consumer takes a result, which it could have had since `ready`.
  void observe_taken(const result& outcome, std::size_t index, std::chrono::nanoseconds finished,
                     std::chrono::nanoseconds ready) {
    sample_event event;
    event.batch = number_;
    event.index = index;
    event.attempts = 0;
    event.failure = failure_in(outcome);
    event.at = now_of(ex_);
    event.waited_for_turn = ready - finished;
    event.waited_for_consumer = event.at - ready;
    tell(&batch_observer::sample_taken, event);
  }

  /// From outside: there is room again, or it is to end. Another pump, unless there are as many lanes as may be.
  void wake() {
    lane* const another = this->new_lane();
    if (another && !execute_on(ex_, another->handle())) {
      refused();
      this->pump(*another);
    }
  }

 private:
  friend core;
  friend lane;
  friend lane_base<lane>;
  friend timekeeper<batch_engine>;

  static constexpr bool has_timers = timed_executor<executor_type>;
  static constexpr bool weighs = weighs_samples<predict_type>;
  // A predict that takes its samples away cannot be called a second time with the same one.
  static constexpr bool repeats =
      !std::is_rvalue_reference_v<typename traits::argument> && std::is_move_constructible_v<cell_type>;

  static constexpr std::uint64_t enough_latencies = 20;  // before a quantile of them means something
  static constexpr std::chrono::nanoseconds shortest_look = std::chrono::milliseconds(1);

  struct no_wait {};
  static auto rate_wait_type() {
    if constexpr (has_timers) {
      return std::type_identity<attempt<decltype(std::declval<rate_limiter&>().acquire(
          std::declval<executor_type&>(), std::size_t{1}, std::stop_token()))>>();
    } else {
      return std::type_identity<no_wait>();
    }
  }
  using rate_wait = typename decltype(rate_wait_type())::type;
  static auto input_wait_type() {
    if constexpr (is_awaited<source>) {
      return std::type_identity<attempt<typename source::awaitable_type>>();
    } else {
      return std::type_identity<no_wait>();
    }
  }
  using input_wait = typename decltype(input_wait_type())::type;

  struct retry_entry {
    std::chrono::nanoseconds due;
    std::uint64_t order = 0;
    retry_entry* next = nullptr;
    std::size_t index;
    result* slot;
    void* room;
    std::uint32_t attempts;
    cell_type cell;
  };

  struct on_user_stop {
    batch_engine* self;
    void operator()() const noexcept { self->request_stop(halt::user); }
  };

  // -- for pump_core --
  executor_ref loop() noexcept { return ref(ex_); }
  supply provide(station& here, lane* current);
  supply process(station& here, lane*& current, start_mark& mark);
  supply process_plainly(station& here, lane*& current, start_mark& mark);
  bool share(station& here);
  bool ask_at_turnstile() noexcept { return turnstile_.ask(); }
  void part_with(lane& self, supply why);
  bool more_came() noexcept { return !halted() && (ready_retries_.load() != 0 || sink_.room_came()); }
  bool may_add_lane() const noexcept { return !ended_; }
  bool source_ended() const noexcept {
    if constexpr (Types::can_pause) return source_.exhausted();
    return true;
  }
  void refused() noexcept { halt_once(halt::executor); }
  bool complete(std::uint64_t live);
  void finish();
  void resumed(lane& self);

  // -- what stands before an attempt --
  supply prepare(station& here, lane& self, start_mark& mark);
  verdict pass(lane& self, permit& into, async_semaphore& gate, std::size_t weight, start_mark& mark);
  verdict pass_rate(lane& self, start_mark& mark);
  verdict pass_input(lane& self, start_mark& mark);
  void input_came(lane& self);
  void no_input(lane& self, std::exception_ptr thrown);
  bool begin_wait(lane& self, lane_stage stage, std::stop_token& stop);
  void end_wait(lane& self);
  void permit_came(lane& self);
  void rate_came(lane& self);
  permit& permit_for(lane& self) noexcept;
  bool has_all_permits(const lane& self) const noexcept;
  void leave_turnstile(lane& self);
  void end_waits(bool also_with_sample);
  void give_way(lane& self);
  claim take_sample(station& here, lane& self);
  bool take_retry(lane& self);
  bool weigh(lane& self);
  void refuse_sample(lane& self, error why);

  // -- one attempt --
  enum class begun : unsigned char { suspended, ready, settled };
  begun begin(lane& self, std::size_t index);
  void before_attempt(lane& self);
  void collect(lane& self);
  bool conclude(lane& self);
  bool end_attempt(lane& self);
  void end_sample(lane& self, cell_type& cell);
  template <class... Value>
  void store(lane& self, Value&&... outcome);
  void failed(lane& self);
  void unreadable(lane& self);
  void settle(result* into, error why);
  errc reason(const lane& self) const noexcept;
  void sample_final(result* slot, std::size_t index, void* room, std::uint32_t attempts) noexcept;
  void report_to_limit(lane& self);

  // -- again --
  bool retry(lane& self, cell_type& cell);
  bool worth_retrying(const lane& self) const;
  std::chrono::nanoseconds backoff(const lane& self) const;
  void count_failure();
  bool double_oldest(lane& twin);
  lane* oldest_due_for_hedge(std::chrono::nanoseconds now);
  void hedge_what_is_due(std::unique_lock<std::mutex>& lock, std::chrono::nanoseconds now);
  bool take_hedge(lane& self);
  std::chrono::nanoseconds hedge_delay() const noexcept;
  bool came_too_late(lane& twin);
  bool end_pair(lane& self);

  // -- telling the observer --
  template <class Event>
  void tell(void (batch_observer::*hook)(const Event&), const Event& event) noexcept {
    notify(options_.observer, hook_failures_, hook, event);
  }
  static errc failure_in(const result& outcome) noexcept;
  std::size_t limit_now() const noexcept;
  void observe_start();
  void observe_end();
  void observe_wait(lane& self, lane_stage stage);
  void observe_waited(lane& self, lane_stage stage);
  void observe_attempt(lane& self);
  void observe_attempt_end(lane& self);

  // -- stopping and time --
  bool halt_once(halt why) noexcept;
  std::chrono::nanoseconds after(std::chrono::nanoseconds delay) noexcept { return later(now_of(ex_), delay); }
  static std::chrono::nanoseconds later(std::chrono::nanoseconds from, std::chrono::nanoseconds delay) noexcept {
    return delay > no_timeout - from ? no_timeout : from + delay;
  }
  void watch(lane& self);
  void unwatch(lane& self);
  std::chrono::nanoseconds next_event(std::chrono::nanoseconds now);
  void wake_timekeeper();
  std::chrono::nanoseconds expire();
  auto sleep(std::chrono::nanoseconds pause) { return ex_.schedule_after(pause, sleep_token_); }
  bool woken() const noexcept { return sleep_token_.stop_requested(); }
  void timekeeper_ended();

  using core::mutex_, core::live_, core::stations_, core::station_count_, core::cap_;

  executor_type& ex_;
  predict_type& predict_;
  source& source_;
  sink_type& sink_;
  const batch_options options_;
  const bool retries_on_;
  const bool hedges_on_;
  const bool timed_;       // a timekeeper is needed
  const bool watched_;     // attempts have a timeout, may be hedged, or have their latency taken
  const bool gated_;       // something must be had before an attempt
  const bool each_anew_;   // the rate, or a weight: must be had for each sample anew
  const bool hands_out_tokens_;
  const bool plain_;       // none of all this

  // Set once, by whoever halts the batch; read before each sample. Orders nothing but itself.
  std::atomic<halt> halt_{halt::none};
  // Counts, ordering nothing.
  std::atomic<std::size_t> failures_{0}, samples_started_{0}, retries_made_{0};
  // Entries in retries_ that may be taken. seq_cst: the timekeeper first counts and then looks for room for a lane, a
  // lane that goes first gives its room back and then looks here; one of them sees the other.
  std::atomic<std::size_t> ready_retries_{0};
  std::atomic<bool> hedge_wanted_{false};  // an attempt is due to be doubled and has no lane: a hint for the next free one
  turnstile turnstile_;
  std::atomic<bool> someone_waits_{false};  // a lane of ours waits in a semaphore: a hint for give_way()

  // Guarded by mutex_, down to sleep_token_.
  intrusive_list<timeout_tag> with_timeout_;  // lanes whose attempt has a timeout, the oldest first
  intrusive_list<hedge_tag> unhedged_;        // lanes whose attempt may still be doubled, the oldest first
  retry_queue<retry_entry> retries_;
  histogram latencies_;                       // of attempts, for hedge_policy::quantile
  std::size_t hedges_made_ = 0;
  std::chrono::nanoseconds deadline_ = no_timeout;
  std::chrono::nanoseconds queue_deadline_ = no_timeout;  // of the lane that waits for a permit
  bool queue_expired_ = false;
  bool waiter_has_sample_ = false;
  bool ended_ = false;           // complete, but for the timekeeper
  bool looked_in_vain_ = false;  // the timekeeper found nothing to wait for when it last looked
  bool dormant_ = false;         // it sleeps until it is woken
  bool timekeeper_gone_ = true;
  std::stop_source wake_{std::nostopstate};
  std::stop_source end_waits_{std::nostopstate};
  std::stop_token sleep_token_;  // the timekeeper's own

  // Only with an observer. Counts, ordering nothing.
  std::atomic<std::uint64_t> hook_failures_{0};
  std::atomic<std::size_t> in_flight_{0}, finished_{0};
  std::uint64_t number_ = 0;
  std::chrono::nanoseconds began_{};

  std::optional<async_semaphore> weights_;
  std::uint64_t seed_ = 0;
  std::coroutine_handle<> timekeeper_;
  std::stop_source stop_{std::nostopstate};
  std::stop_token user_stop_;
  std::optional<std::stop_callback<on_user_stop>> user_link_;
};

// ---- Implementation ----

template <class Types>
batch_engine<Types>::batch_engine(executor_type& ex, source& samples, predict_type& predict, sink_type& sink,
                                  const batch_options& options, std::stop_token stop)
    : core(weighs ? options.max_concurrency : std::min(options.max_concurrency, options.max_weight)),
      ex_(ex),
      predict_(predict),
      source_(samples),
      sink_(sink),
      options_(options),
      retries_on_(options.retry.max_attempts > 1),
      hedges_on_(options.hedge.delay != no_timeout || options.hedge.quantile > 0),
      timed_(has_timers && (options.timeout != no_timeout || options.deadline != no_timeout ||
                            options.queue_timeout != no_timeout || hedges_on_ || retries_on_)),
      watched_(options.timeout != no_timeout || hedges_on_ || options.limit || options.observer),
      gated_(is_awaited<source> || options.semaphore || options.limit || options.rate || (weighs && options.max_weight != unlimited)),
      each_anew_(is_awaited<source> || options.rate || (weighs && gated_)),
      hands_out_tokens_(traits::takes_token &&
                        (timed_ || options.max_failures != unlimited || stop.stop_possible() || Types::can_pause)),
      plain_(!timed_ && !watched_ && !gated_ && !retries_on_ && options.max_failures == unlimited && !hands_out_tokens_ &&
             !options.observer),
      user_stop_(std::move(stop)) {
  if (weighs && options.max_weight != unlimited) weights_.emplace(options.max_weight);
  if (retries_on_ && options.retry.jitter) seed_ = seed_or_random(options.retry.seed);
}

template <class Types>
void batch_engine<Types>::start(std::size_t pumps) {
  this->open_stations(std::min(concurrency_of(ex_), cap_));
  pumps = std::clamp<std::size_t>(pumps, 1, station_count_);
  if (hands_out_tokens_) stop_ = std::stop_source();
  if (gated_) end_waits_ = std::stop_source();
  if (timed_) wake_ = std::stop_source();

  lane* first = nullptr;
  for (std::size_t i = 0; i < pumps; ++i) {
    lane* const made = this->new_lane();
    if (!made) break;
    made->next_parked = first;
    first = made;
  }
  if (!first) throw_bad_alloc();
  if (options_.observer) observe_start();
  // From here on nothing throws.
  if (user_stop_.stop_possible()) user_link_.emplace(std::move(user_stop_), on_user_stop{this});
  if constexpr (has_timers) {
    if (timed_) {
      if (options_.deadline != no_timeout) deadline_ = after(options_.deadline);
      timekeeper_ = timekeeper<batch_engine>::of(*this).handle();
      timekeeper_gone_ = false;
      if (!execute_on(ex_, timekeeper_)) {
        std::exchange(timekeeper_, nullptr).destroy();
        timekeeper_gone_ = true;
        refused();
      }
    }
  }
  while (first) {
    lane* const each = first;
    first = first->next_parked;
    each->next_parked = nullptr;
    if (!execute_on(ex_, each->handle())) {
      refused();
      this->pump(*each);
    }
    // After the last one *this may be gone.
  }
}

// -- for pump_core --

/// The lane's handle was resumed: the executor lets it start or come back, or what it waited for has happened.
template <class Types>
void batch_engine<Types>::resumed(lane& self) {
  const bool waited = self.stage != lane_stage::idle && self.stage != lane_stage::twin;
  switch (self.stage) {
    case lane_stage::idle: break;
    case lane_stage::attempt:
      if (!conclude(self)) return;  // its sample is still in use, it will be resumed again; *this may be gone
      break;
    case lane_stage::input: input_came(self); break;
    case lane_stage::permit: permit_came(self); break;
    case lane_stage::rate: rate_came(self); break;
    case lane_stage::twin: self.stage = lane_stage::idle; break;
  }
  if (waited && !runs_here(ex_)) {
    if (execute_on(ex_, self.handle())) return;  // *this may be gone
    refused();
  }
  this->pump(self);
}

/// One sample, from its permits to its outcome, or to where it suspends: then `current` is null.
template <class Types>
supply batch_engine<Types>::process(station& here, lane*& current, start_mark& mark) {
  lane& self = *current;
  if (plain_) [[likely]] {
    if constexpr (source::indexed) return process_plainly(here, current, mark);
    switch (take_sample(here, self)) {
      case claim::taken: break;
      case claim::exhausted:
      case claim::no_room: return supply::none;
      case claim::elsewhere: return supply::contended;
    }
    self.attempts = 1;  // nobody else counts them here
  } else {
    const supply prepared = prepare(here, self, mark);
    if (prepared == supply::lost) current = nullptr;  // self may be gone
    if (prepared != supply::ready) return prepared;
    if (!self.has_sample) return supply::ready;  // it came to its end on the way
  }
  self.has_sample = false;
  self.stage = lane_stage::attempt;
  const begun state = begin(self, self.index);
  if (state == begun::suspended) {
    if (!mark.finished()) {  // self may be gone
      current = nullptr;
      return supply::ready;
    }
    mark.reopen(&self);
  }
  self.stage = lane_stage::idle;
  if (state != begun::settled) collect(self);
  if (plain_) {
    sample_final(self.slot, self.index, self.room, self.attempts);
  } else if (!end_attempt(self)) {
    current = nullptr;
  }
  return supply::ready;
}

template <class Types>
supply batch_engine<Types>::provide(station& here, lane* current) {
  if (!plain_ && ((current && current->has_sample) || ready_retries_.load() != 0 ||
                  hedge_wanted_.load(std::memory_order_relaxed))) {
    return supply::ready;
  }
  if constexpr (source::indexed) {
    if (!here.range.empty()) return supply::ready;
    if (source_.refill(here.range, station_count_, [&](std::size_t end) { sink_.make_room(end); })) return supply::ready;
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
    self.own.emplace(unexpect, error(reason(self), {}, self.attempts));
    self.has_sample = false;
    end_pair(self);
  } else if (self.has_sample) {
    // Read, but it will not be started; where it had been tried before, its last error stands.
    const errc unstarted = why_halted() == halt::executor ? errc::executor_stopped : errc::not_started;
    if (self.attempts == 0) settle(self.slot, error(unstarted, {}, 0));
    self.has_sample = false;
    sample_final(self.slot, self.index, self.room, self.attempts);
  }
  self.limit_permit.release();
  self.shared_permit.release();
  self.weight_permit.release();
  leave_turnstile(self);
  if (gated_ && why == supply::none) end_waits(false);
}

/// False: a sample sleeps and will come back, or a stream only pauses.
template <class Types>
bool batch_engine<Types>::complete(std::uint64_t live) {
  std::stop_source wake{std::nostopstate};
  {
    const std::lock_guard lock(mutex_);
    if (!halted() && (!retries_.empty() || !source_ended())) return false;
    if (ended_ || live_.load() != live) return false;
    ended_ = true;
    if (!timekeeper_gone_) wake = wake_;
  }
  if (wake.stop_possible()) {
    wake.request_stop();  // *this may be gone: the timekeeper completes it
  } else {
    finish();
  }
  return true;
}

template <class Types>
void batch_engine<Types>::finish() {
  if (options_.observer) observe_end();
  sink_.complete();  // *this may be gone
}

// -- what stands before an attempt --

/// Everything that must be had before an attempt. ready: has_sample tells whether there is one to start; lost: the lane
/// waits, and goes on here when it is resumed; none and contended as for a pump.
template <class Types>
supply batch_engine<Types>::prepare(station& here, lane& self, start_mark& mark) {
  if (hedges_on_) {
    if (self.pair && came_too_late(self)) return supply::ready;
    if (hedge_wanted_.load(std::memory_order_relaxed) && !take_hedge(self) && !self.has_sample) {
      // That was perhaps all it came for: it must not queue for a permit that nothing needs.
      if (const supply more = provide(here, &self); more != supply::ready) return more;
    }
  }
  if (gated_ && self.step != admission_step::done && !self.has_turn && !has_all_permits(self)) {
    if (!turnstile_.enter()) return supply::queued;
    self.has_turn = true;
  }
  const auto read = [&] {
    const claim answer = take_sample(here, self);
    return answer == claim::taken ? supply::ready : answer == claim::elsewhere ? supply::contended : supply::none;
  };
  for (;;) {
    verdict found = verdict::passed;
    switch (self.step) {
      case admission_step::limit:
        if (options_.limit) found = pass(self, self.limit_permit, adaptive_access::semaphore(*options_.limit), 1, mark);
        break;
      case admission_step::shared:
        if (options_.semaphore && !weighs) found = pass(self, self.shared_permit, *options_.semaphore, 1, mark);
        break;
      case admission_step::sample:
        if constexpr (is_awaited<source>) {
          if (!self.has_sample && !take_retry(self)) found = pass_input(self, mark);
        } else if (!self.has_sample) {
          if (const supply got = read(); got != supply::ready) return got;
        }
        if (weighs && found == verdict::passed && !weigh(self)) return supply::ready;
        break;
      case admission_step::weight:
        if (weights_) found = pass(self, self.weight_permit, *weights_, self.weight, mark);
        break;
      case admission_step::weighted_shared:
        if (options_.semaphore && weighs) found = pass(self, self.shared_permit, *options_.semaphore, self.weight, mark);
        break;
      case admission_step::rate:
        if (options_.rate) found = pass_rate(self, mark);
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
        if (halted()) return supply::none;
        if (!std::exchange(self.queue_expired, false)) return supply::none;  // nothing left to wait for
        if (!self.has_sample) {
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

/// The sample comes to its end before its first attempt, or its next one.
template <class Types>
void batch_engine<Types>::refuse_sample(lane& self, error why) {
  settle(self.slot, std::move(why));
  self.has_sample = false;
  self.step = admission_step::limit;
  self.weight_permit.release();
  if (weighs) self.shared_permit.release();
  leave_turnstile(self);
  count_failure();
  sample_final(self.slot, self.index, self.room, self.attempts);
}

/// False: it has no weight, its cost() threw.
template <class Types>
bool batch_engine<Types>::weigh([[maybe_unused]] lane& self) {
  if constexpr (weighs) {
    const auto cost = [&] {
      const std::size_t asked = predict_.cost(std::as_const(source_.get(*self.sample, self.index)));
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
auto batch_engine<Types>::pass(lane& self, permit& into, async_semaphore& gate, std::size_t weight, start_mark& mark)
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
    if (options_.observer) observe_waited(self, lane_stage::permit);
    return verdict::stopped;
  }
  if (!self.permit_wait.start([&] { return gate.acquire(weight, std::move(stop)); }, self.handle())) {
    if (!mark.finished()) return verdict::waits;  // self may be gone
    mark.reopen(&self);
  }
  permit_came(self);
  return std::exchange(self.came_back, verdict::waits);
}

/// The next sample of an asynchronous source.
template <class Types>
auto batch_engine<Types>::pass_input([[maybe_unused]] lane& self, [[maybe_unused]] start_mark& mark) -> verdict {
  if constexpr (is_awaited<source>) {
    if (self.came_back != verdict::waits) return std::exchange(self.came_back, verdict::waits);
    if (source_.exhausted() || !sink_.reserve()) return verdict::stopped;
    self.stage = lane_stage::input;
    if (options_.observer) observe_wait(self, lane_stage::input);
    const auto begin_read = [&] { return self.input_wait.start([&] { return source_.next(); }, self.handle()); };
    bool threw = false;
    const bool there = guarded(begin_read, [&] {
      threw = true;
      no_input(self, std::current_exception());
      return true;
    });
    if (!there) {
      if (!mark.finished()) return verdict::waits;  // self may be gone
      mark.reopen(&self);
    }
    if (!threw) input_came(self);
    return std::exchange(self.came_back, verdict::waits);
  } else {
    return verdict::passed;
  }
}

template <class Types>
void batch_engine<Types>::input_came([[maybe_unused]] lane& self) {
  if constexpr (is_awaited<source>) {
    if (options_.observer) observe_waited(self, lane_stage::input);
    self.stage = lane_stage::idle;
    const auto take = [&](auto&& next) {
      if (!next) {
        source_.end();
        self.came_back = verdict::stopped;
        return;
      }
      self.cell.sample.emplace(*std::forward<decltype(next)>(next));
      self.index = source_.count();
      sink_.place(self);
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
void batch_engine<Types>::no_input([[maybe_unused]] lane& self, [[maybe_unused]] std::exception_ptr thrown) {
  if constexpr (is_awaited<source>) {
    self.stage = lane_stage::idle;
    source_.end();
    self.index = source_.count();
    sink_.place(self);
    settle(self.slot, error(errc::input_failed, std::move(thrown), 0));
    halt_once(halt::input);
    sample_final(self.slot, self.index, self.room, self.attempts);
    self.came_back = verdict::stopped;
  }
}

template <class Types>
auto batch_engine<Types>::pass_rate([[maybe_unused]] lane& self, [[maybe_unused]] start_mark& mark) -> verdict {
  if constexpr (has_timers) {
    if (self.came_back != verdict::waits) return std::exchange(self.came_back, verdict::waits);
    if (options_.rate->try_acquire(ex_, self.weight)) return verdict::passed;
    std::stop_token stop;
    if (!begin_wait(self, lane_stage::rate, stop)) {
      if (options_.observer) observe_waited(self, lane_stage::rate);
      return verdict::stopped;
    }
    if (!self.rate_wait.start([&] { return options_.rate->acquire(ex_, self.weight, std::move(stop)); }, self.handle())) {
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
bool batch_engine<Types>::begin_wait(lane& self, lane_stage stage, std::stop_token& stop) {
  if (options_.observer) observe_wait(self, stage);
  std::unique_lock lock(mutex_);
  // Under the lock: whoever halts or ends the waiting afterwards stops this very token.
  if (halted()) return false;
  if constexpr (!source::indexed) {
    if (!self.has_sample && source_.exhausted() && ready_retries_.load() == 0) return false;
  }
  stop = end_waits_.get_token();
  self.stage = stage;
  someone_waits_.store(true, std::memory_order_relaxed);
  waiter_has_sample_ = self.has_sample;
  if (options_.queue_timeout == no_timeout) return true;
  queue_deadline_ = after(options_.queue_timeout);
  const bool wake = dormant_;
  lock.unlock();
  if (wake) wake_timekeeper();
  return true;
}

template <class Types>
void batch_engine<Types>::end_wait(lane& self) {
  if (options_.observer) observe_waited(self, self.stage);
  self.stage = lane_stage::idle;
  const std::lock_guard lock(mutex_);
  someone_waits_.store(false, std::memory_order_relaxed);
  queue_deadline_ = no_timeout;
  self.queue_expired = std::exchange(queue_expired_, false);
}

template <class Types>
void batch_engine<Types>::permit_came(lane& self) {
  end_wait(self);
  self.permit_wait.resume([&](auto outcome) {
    if (outcome) {
      permit_for(self) = std::move(*outcome);
      self.came_back = verdict::passed;
    } else {
      self.came_back =
          outcome.error().code == errc::cost_exceeds_capacity ? verdict::too_heavy : verdict::stopped;
    }
  });
}

template <class Types>
void batch_engine<Types>::rate_came([[maybe_unused]] lane& self) {
  if constexpr (has_timers) {
    end_wait(self);
    self.rate_wait.resume([&](bool granted) { self.came_back = granted ? verdict::passed : verdict::stopped; });
  }
}

template <class Types>
permit& batch_engine<Types>::permit_for(lane& self) noexcept {
  switch (self.step) {
    case admission_step::limit: return self.limit_permit;
    case admission_step::weight: return self.weight_permit;
    default: return self.shared_permit;
  }
}

template <class Types>
bool batch_engine<Types>::has_all_permits(const lane& self) const noexcept {
  return !each_anew_ && (!options_.limit || self.limit_permit) && (!options_.semaphore || self.shared_permit);
}

template <class Types>
void batch_engine<Types>::leave_turnstile(lane& self) {
  // self is alive, so the one that is started is never the last: no check is due.
  if (std::exchange(self.has_turn, false) && turnstile_.leave() && !halted()) this->start_another();
}

/// No sample is left: nobody needs to wait for a permit; or none may start any more, also none that was read.
template <class Types>
void batch_engine<Types>::end_waits(bool also_with_sample) {
  std::stop_source waits{std::nostopstate};
  {
    const std::lock_guard lock(mutex_);
    if (!someone_waits_.load(std::memory_order_relaxed) || (waiter_has_sample_ && !also_with_sample)) return;
    waits = end_waits_;
    guarded([&] { end_waits_ = std::stop_source(); }, [] {});
  }
  waits.request_stop();
}

/// Between two samples: a permit goes to whoever waits for one, unless that is only ourselves, and where the limit was
/// lowered. What each sample must have anew is given back in any case; and with the limit, what is had after it: two batches
/// that have both would wait for each other, if one could keep its permit while it waits for the limit.
template <class Types>
void batch_engine<Types>::give_way(lane& self) {
  self.limit_permit.release();
  self.weight_permit.release();
  if (!self.shared_permit) return;
  const std::size_t ours = someone_waits_.load(std::memory_order_relaxed) ? 1 : 0;
  if (weighs || options_.limit || options_.semaphore->waiting() > ours || semaphore_access::core(*options_.semaphore).overdrawn()) {
    self.shared_permit.release();
  }
}

template <class Types>
claim batch_engine<Types>::take_sample(station& here, lane& self) {
  if (!plain_ && take_retry(self)) return claim::taken;
  if constexpr (is_awaited<source>) {
    return claim::exhausted;  // read by pass_input()
  } else if constexpr (source::indexed) {
    if (here.range.empty()) return claim::elsewhere;  // what was ready somebody else has taken: look again
    self.index = here.range.begin++;
    self.slot = sink_.made_slot(self.index);
  } else {
    const auto place = [&](std::size_t index) {
      self.index = index;
      return sink_.place(self);
    };
    const auto no_sample = [&] {
      unreadable(self);
      sample_final(self.slot, self.index, self.room, self.attempts);
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

/// A sample whose time to be tried again has come.
template <class Types>
bool batch_engine<Types>::take_retry(lane& self) {
  while (ready_retries_.load() != 0) {
    std::unique_ptr<retry_entry> entry;
    {
      const std::lock_guard lock(mutex_);
      entry = retries_.pop_ready();
    }
    if (!entry) return false;
    ready_retries_.fetch_sub(1);
    self.index = entry->index;
    self.slot = self.target = entry->slot;
    self.room = entry->room;
    self.attempts = entry->attempts;
    std::destroy_at(&self.cell);
    const auto move = [&] {
      std::construct_at(&self.cell, std::move(entry->cell));
      return true;
    };
    const auto without = [&] {
      std::construct_at(&self.cell);
      return false;
    };
    self.has_sample = guarded(move, without);
    if (self.has_sample) return true;
    count_failure();  // its last error stands
    sample_final(self.slot, self.index, self.room, self.attempts);
  }
  return false;
}

// -- one attempt --

/// Calls predict for self.index. What it comes to goes to self.target.
template <class Types>
[[gnu::always_inline]] inline auto batch_engine<Types>::begin(lane& self, std::size_t index) -> begun {
  bool readable = false;
  const auto call = [&]() -> typename traits::raw {
    auto&& sample = static_cast<typename traits::argument>(source_.get(*self.sample, index));
    readable = true;
    if (!plain_) [[unlikely]] before_attempt(self);
    if constexpr (traits::takes_token) {
      return std::invoke(predict_, static_cast<typename traits::argument>(sample), self.stop.get_token());
    } else {
      return std::invoke(predict_, static_cast<typename traits::argument>(sample));
    }
  };
  const auto attempted = [&]() -> begun {
    if constexpr (traits::is_awaitable) {
      return self.work.start(call, self.handle()) ? begun::ready : begun::suspended;
    } else if constexpr (std::is_void_v<typename traits::raw>) {
      call();
      store(self);
      return begun::settled;
    } else {
      store(self, call());
      return begun::settled;
    }
  };
  return guarded(attempted, [&]() -> begun {
    if (readable) {
      failed(self);
    } else {
      unreadable(self);
    }
    return begun::settled;
  });
}

template <class Types>
void batch_engine<Types>::before_attempt(lane& self) {
  ++self.attempts;
  if (self.attempts == 1) samples_started_.fetch_add(1, std::memory_order_relaxed);
  if (watched_) watch(self);
  if (options_.observer) observe_attempt(self);
}

/// Predict's awaitable is ready: writes what it comes to.
template <class Types>
[[gnu::always_inline]] inline void batch_engine<Types>::collect(lane& self) {
  if constexpr (traits::is_awaitable) {
    guarded([&] { self.work.resume([&](auto&&... outcome) { store(self, std::forward<decltype(outcome)>(outcome)...); }); },
            [&] { failed(self); });
  }
}

/// A run of samples where no option asks for anything: until the station's claim is used up, or somebody wants something.
///
/// This is the loop that decides what a sample costs; it touches nothing that is shared, and little else.
template <class Types>
supply batch_engine<Types>::process_plainly(station& here, lane*& current, start_mark& mark) {
  lane& self = *current;
  index_range range = here.range;  // nobody else touches it while the station is ours
  self.attempts = 1;
  self.stage = lane_stage::attempt;
  do {
    const std::size_t index = range.begin++;
    self.index = index;
    self.slot = self.target = sink_.made_slot(index);
    const begun state = begin(self, index);
    if (state == begun::suspended) {
      if (!mark.finished()) {  // self may be gone
        here.range = range;
        current = nullptr;
        return supply::ready;
      }
      mark.reopen(&self);
    }
    if (state != begun::settled) collect(self);
    sink_.settled(self.slot, index, self.room);
  } while (!range.empty() && !here.marked() && !halted());
  self.stage = lane_stage::idle;
  here.range = range;
  return supply::ready;
}

/// Predict's awaitable has come to its end. False: the lane waits for the other attempt of its sample; self may be gone.
template <class Types>
bool batch_engine<Types>::conclude(lane& self) {
  self.stage = lane_stage::idle;
  collect(self);
  if (!plain_) return end_attempt(self);
  sample_final(self.slot, self.index, self.room, self.attempts);
  return true;
}

/// Inside the handler of what predict threw.
template <class Types>
void batch_engine<Types>::failed(lane& self) {
  if (watched_) unwatch(self);
  settle(self.target, error(reason(self), std::current_exception(), self.attempts));
}

/// Inside the handler of what the input threw where this sample should have been.
template <class Types>
void batch_engine<Types>::unreadable(lane& self) {
  settle(self.slot, error(errc::input_failed, std::current_exception(), 0));
  halt_once(halt::input);
}

/// Writes what predict came to. Whatever throws here is the sample's exception.
template <class Types>
template <class... Value>
void batch_engine<Types>::store(lane& self, Value&&... outcome) {
  if (watched_) [[unlikely]] unwatch(self);
  result& slot = *self.target;
  if constexpr (std::is_void_v<value>) {
    slot.emplace();
  } else if constexpr (is_expected_v<value>) {
    rewrite(slot, std::forward<Value>(outcome)...);
    if (!slot.has_value()) {
      if constexpr (std::is_same_v<error_type, error>) {
        slot.error().attempts = self.attempts;
        if (const errc why = reason(self); why != errc::exception) slot.error().code = why;
      } else {
        if (const errc why = reason(self); why != errc::exception) settle(&slot, error(why, {}, self.attempts));
      }
    }
  } else if constexpr (std::is_nothrow_constructible_v<value, Value...>) {
    slot.emplace(std::forward<Value>(outcome)...);
  } else {
    rewrite(slot, std::in_place, std::forward<Value>(outcome)...);
  }
}

/// Writes an error. If the user's own error type throws while it is made from ours, the slot stays as it was.
template <class Types>
void batch_engine<Types>::settle(result* into, error why) {
  guarded([&] { rewrite(*into, unexpect, std::move(why)); }, [] {});
}

/// What a failure is called: after a stop was asked for, that is the reason of the stop.
template <class Types>
errc batch_engine<Types>::reason(const lane& self) const noexcept {
  if (self.timed_out) return errc::timed_out;
  switch (why_halted()) {
    case halt::user:
    case halt::failures:
    case halt::closed: return errc::cancelled;
    case halt::deadline: return errc::deadline_exceeded;
    case halt::none:
    case halt::input:
    case halt::executor: break;
  }
  return errc::exception;
}

/// The attempt's outcome is in self.target. False: the lane was lost.
template <class Types>
bool batch_engine<Types>::end_attempt(lane& self) {
  if (watched_) {
    if (options_.observer && self.observed) observe_attempt_end(self);
    if (self.in_flight_at_start != 0) report_to_limit(self);
    if (self.pair) return end_pair(self);
  }
  give_way(self);
  end_sample(self, self.cell);
  return true;
}

/// The sample's outcome is in self.slot: final, or a reason to try again.
template <class Types>
void batch_engine<Types>::end_sample(lane& self, cell_type& cell) {
  if (!self.slot->has_value()) {
    if constexpr (repeats) {
      if (retries_on_ && retry(self, cell)) return;
    }
    count_failure();
  }
  sample_final(self.slot, self.index, self.room, self.attempts);
}

/// Every failure but a cancellation is a drop: whether the server was overloaded or broken, it should get fewer calls.
template <class Types>
void batch_engine<Types>::report_to_limit(lane& self) {
  const std::size_t in_flight = std::exchange(self.in_flight_at_start, 0);
  if (self.target->has_value()) {
    options_.limit->succeeded(now_of(ex_) - self.started, in_flight);
  } else if (self.timed_out || !halted()) {
    options_.limit->dropped();
  } else {
    options_.limit->ignored();
  }
}

template <class Types>
void batch_engine<Types>::count_failure() {
  if (options_.max_failures == unlimited || halted()) return;
  if (failures_.fetch_add(1, std::memory_order_relaxed) + 1 >= options_.max_failures) request_stop(halt::failures);
}

/// The outcome in the slot will not change any more.
template <class Types>
void batch_engine<Types>::sample_final(result* slot, std::size_t index, void* room, std::uint32_t attempts) noexcept {
  if (options_.observer) {
    finished_.fetch_add(1, std::memory_order_relaxed);
    sample_event event;
    event.batch = number_;
    event.index = index;
    event.attempts = attempts;
    event.failure = failure_in(*slot);
    event.at = now_of(ex_);
    tell(&batch_observer::sample_finished, event);
  }
  sink_.settled(slot, index, room);
}

// -- telling the observer --

/// An error of the user's own counts as errc::exception.
template <class Types>
errc batch_engine<Types>::failure_in(const result& outcome) noexcept {
  if (outcome.has_value()) return errc{};
  if constexpr (std::is_same_v<error_type, error>) {
    return outcome.error().code;
  } else {
    return errc::exception;
  }
}

template <class Types>
std::size_t batch_engine<Types>::limit_now() const noexcept {
  std::size_t limit = options_.max_concurrency;
  if (options_.limit) limit = std::min(limit, options_.limit->limit());
  if (options_.semaphore && !weighs) limit = std::min(limit, options_.semaphore->limit());
  return limit;
}

template <class Types>
void batch_engine<Types>::observe_start() {
  number_ = next_batch_number();
  began_ = now_of(ex_);
  batch_info info;
  info.batch = number_;
  if constexpr (requires { source_.size_hint(); }) info.samples = source_.size_hint().value_or(unlimited);
  info.limit = limit_now();
  info.at = began_;
  tell(&batch_observer::batch_started, info);
}

template <class Types>
void batch_engine<Types>::observe_end() {
  batch_summary summary;
  summary.batch = number_;
  summary.finished = finished_.load(std::memory_order_relaxed);
  if constexpr (requires { source_.size_hint(); }) {
    const std::size_t all = source_.size_hint().value_or(summary.finished);
    summary.not_started = all > summary.finished ? all - summary.finished : 0;
  }
  switch (why_halted()) {
    case halt::none: break;
    case halt::user:
    case halt::failures: summary.stopped = errc::cancelled; break;
    case halt::closed: summary.stopped = errc::closed; break;
    case halt::deadline: summary.stopped = errc::deadline_exceeded; break;
    case halt::input: summary.stopped = errc::input_failed; break;
    case halt::executor: summary.stopped = errc::executor_stopped; break;
  }
  summary.hook_failures = hook_failures_.load(std::memory_order_relaxed);
  summary.at = now_of(ex_);
  summary.elapsed = summary.at - began_;
  tell(&batch_observer::batch_ended, summary);
}

template <class Types>
void batch_engine<Types>::observe_wait(lane& self, lane_stage stage) {
  self.wait_began = now_of(ex_);
  wait_event event;
  event.batch = number_;
  event.lane = &self;
  if (self.has_sample) event.index = self.index;
  event.what = waits_for(stage);
  event.in_flight = in_flight_.load(std::memory_order_relaxed);
  event.limit = limit_now();
  event.at = self.wait_began;
  tell(&batch_observer::wait_started, event);
}

template <class Types>
void batch_engine<Types>::observe_waited(lane& self, lane_stage stage) {
  wait_event event;
  event.batch = number_;
  event.lane = &self;
  if (self.has_sample) event.index = self.index;
  event.what = waits_for(stage);
  event.in_flight = in_flight_.load(std::memory_order_relaxed);
  event.limit = limit_now();
  event.at = now_of(ex_);
  event.waited = event.at - self.wait_began;
  self.waited_for[static_cast<std::size_t>(event.what)] += event.waited;
  tell(&batch_observer::wait_ended, event);
}

template <class Types>
void batch_engine<Types>::observe_attempt(lane& self) {
  self.observed = true;
  attempt_event event;
  event.batch = number_;
  event.lane = &self;
  event.index = self.index;
  event.attempt = self.attempts;
  event.hedge = self.sample != &self.cell;
  event.in_flight = self.in_flight_then = in_flight_.fetch_add(1, std::memory_order_relaxed) + 1;
  event.limit = limit_now();
  event.at = self.started;
  event.waited_for_input = self.waited_for[0];
  event.waited_for_permits = self.waited_for[1];
  event.waited_for_rate = self.waited_for[2];
  tell(&batch_observer::attempt_started, event);
}

template <class Types>
void batch_engine<Types>::observe_attempt_end(lane& self) {
  self.observed = false;
  attempt_event event;
  event.batch = number_;
  event.lane = &self;
  event.index = self.index;
  event.attempt = self.attempts;
  event.hedge = self.sample != &self.cell;
  event.late = self.timed_out;
  event.failure = failure_in(*self.target);
  in_flight_.fetch_sub(1, std::memory_order_relaxed);
  event.in_flight = self.in_flight_then;
  event.waited_for_input = std::exchange(self.waited_for[0], std::chrono::nanoseconds::zero());
  event.waited_for_permits = std::exchange(self.waited_for[1], std::chrono::nanoseconds::zero());
  event.waited_for_rate = std::exchange(self.waited_for[2], std::chrono::nanoseconds::zero());
  event.limit = limit_now();
  event.at = now_of(ex_);
  event.ran = event.at - self.started;
  tell(&batch_observer::attempt_ended, event);
}

// -- again --

/// True: the sample sleeps and comes back; until then its last error stands in its slot.
template <class Types>
bool batch_engine<Types>::retry(lane& self, cell_type& cell) {
  const retry_policy& policy = options_.retry;
  if (halted() || self.attempts >= policy.max_attempts || !worth_retrying(self)) return false;
  const double made = static_cast<double>(retries_made_.fetch_add(1, std::memory_order_relaxed) + 1);
  const auto give_up = [&] {
    retries_made_.fetch_sub(1, std::memory_order_relaxed);
    return false;
  };
  if (made > policy.budget * static_cast<double>(samples_started_.load(std::memory_order_relaxed))) return give_up();

  const std::chrono::nanoseconds delay = has_timers ? backoff(self) : std::chrono::nanoseconds::zero();
  const bool at_once = delay <= std::chrono::nanoseconds::zero();
  // An entry that need not sleep is due at the beginning of time.
  const std::chrono::nanoseconds due = at_once ? std::chrono::nanoseconds::min() : after(delay);
  const auto make = [&] {
    return std::make_unique<retry_entry>(retry_entry{due, 0, nullptr, self.index, self.slot, self.room, self.attempts, std::move(cell)});
  };
  std::unique_ptr<retry_entry> entry = guarded(make, [] { return std::unique_ptr<retry_entry>(); });
  if (!entry) return give_up();
  if (options_.observer) {
    // Before anybody can take it up again.
    tell(&batch_observer::sample_retried, retry_event{number_, self.index, self.attempts, failure_in(*self.slot),
                                                      now_of(ex_), at_once ? std::chrono::nanoseconds::zero() : delay});
  }
  bool is_next = false;
  {
    const std::lock_guard lock(mutex_);
    is_next = guarded([&] { return retries_.push(entry); }, [] { return false; });
    if (!entry && at_once) ready_retries_.fetch_add(retries_.wake(due));
  }
  if (entry) return give_up();
  if (is_next && !at_once) wake_timekeeper();
  return true;
}

template <class Types>
bool batch_engine<Types>::worth_retrying(const lane& self) const {
  if (!options_.retry.retry_if) return true;
  if constexpr (std::is_same_v<error_type, error>) {
    return options_.retry.retry_if(self.slot->error());
  } else {
    return options_.retry.retry_if(error(self.timed_out ? errc::timed_out : errc::exception, {}, self.attempts));
  }
}

template <class Types>
std::chrono::nanoseconds batch_engine<Types>::backoff(const lane& self) const {
  const retry_policy& policy = options_.retry;
  double length = static_cast<double>(policy.initial_backoff.count()) * std::pow(policy.multiplier, self.attempts - 1);
  length = std::min(length, static_cast<double>(policy.max_backoff.count()));
  if (policy.jitter) length *= unit_interval(mix(seed_ ^ mix(self.index * 0x100 + self.attempts)));
  const std::chrono::nanoseconds own(static_cast<std::int64_t>(length));
  return std::max(own, asked_delay(self.slot->error()));
}

/// Lets `twin`, a lane without a sample, make a second attempt of the sample that has been in flight longest, if it is due
/// and all it needs is to be had at once. False: the lane is as it was.
template <class Types>
bool batch_engine<Types>::double_oldest(lane& twin) {
  lane* slow = nullptr;
  std::chrono::nanoseconds began{};
  std::size_t weight = 1;
  {
    const std::chrono::nanoseconds now = now_of(ex_);
    const std::lock_guard lock(mutex_);
    slow = oldest_due_for_hedge(now);
    if (!slow) return false;
    began = slow->started;
    weight = slow->weight;
  }
  bool equipped = true;
  const auto take = [&](permit& into, async_semaphore& gate, std::size_t n) {
    if (into || !equipped) return;
    if (auto taken = gate.try_acquire(n)) {
      into = std::move(*taken);
    } else {
      equipped = false;
    }
  };
  if (options_.limit) take(twin.limit_permit, adaptive_access::semaphore(*options_.limit), 1);
  if (weights_) take(twin.weight_permit, *weights_, weight);
  if (options_.semaphore) take(twin.shared_permit, *options_.semaphore, weighs ? weight : 1);
  std::unique_ptr<hedge_pair<lane>> pair;
  if (equipped) guarded([&] { pair = std::make_unique<hedge_pair<lane>>(); }, [] {});
  // Its token must be a fresh one before the other attempt can win, and stop it.
  if (pair && twin.stop_used && hands_out_tokens_) guarded([&] { twin.renew_stop(); }, [&] { pair.reset(); });
  if constexpr (has_timers) equipped = pair && (!options_.rate || options_.rate->try_acquire(ex_, weight));

  const std::lock_guard lock(mutex_);
  // It may have ended in the meantime, or be in flight again with another sample.
  if (!equipped || halted() || unhedged_.first() != static_cast<list_link<hedge_tag>*>(slow) || slow->started != began) {
    twin.weight_permit.release();  // its next sample may weigh more
    if (weighs) twin.shared_permit.release();
    return false;
  }
  unhedged_.erase(*unhedged_.first());
  ++hedges_made_;
  pair->runners[0] = slow;
  pair->runners[1] = &twin;
  twin.index = slow->index;
  twin.slot = slow->slot;
  twin.room = slow->room;
  twin.sample = slow->sample;
  twin.weight = weight;
  twin.attempts = slow->attempts;
  twin.has_sample = true;
  twin.step = admission_step::done;
  slow->pair = twin.pair = pair.release();
  return true;
}

/// Under the lock. Null if the oldest is not due, or none may be doubled any more.
template <class Types>
auto batch_engine<Types>::oldest_due_for_hedge(std::chrono::nanoseconds now) -> lane* {
  while (auto* const oldest = unhedged_.first()) {
    lane& slow = *static_cast<lane*>(oldest);
    if (halted() || later(slow.started, hedge_delay()) > now) return nullptr;
    const double allowed = options_.hedge.max_extra * static_cast<double>(samples_started_.load(std::memory_order_relaxed));
    if (static_cast<double>(hedges_made_ + 1) <= allowed) return &slow;
    unhedged_.erase(*oldest);
  }
  return nullptr;
}

/// The timekeeper's part: a lane for each attempt that is due to be doubled; at the cap, the next lane that is free takes
/// it, ahead of new samples. Called and left with the lock held.
template <class Types>
void batch_engine<Types>::hedge_what_is_due(std::unique_lock<std::mutex>& lock, std::chrono::nanoseconds now) {
  while (oldest_due_for_hedge(now)) {
    hedge_wanted_.store(true, std::memory_order_relaxed);
    lock.unlock();
    lane* const twin = this->new_lane();
    if (twin && !double_oldest(*twin)) hedge_wanted_.store(false, std::memory_order_relaxed);  // no permit: not this time
    // With a sample of its own now, or as just another lane.
    if (twin && !execute_on(ex_, twin->handle())) {
      refused();
      this->pump(*twin);
    }
    lock.lock();
    if (!twin) return;
    if (!hedge_wanted_.load(std::memory_order_relaxed)) {
      if (auto* const oldest = unhedged_.first()) unhedged_.erase(*oldest);
    }
    hedge_wanted_.store(false, std::memory_order_relaxed);
  }
}

/// A lane that looks for work takes over an attempt that waits to be doubled.
template <class Types>
bool batch_engine<Types>::take_hedge(lane& self) {
  if (!hedge_wanted_.load(std::memory_order_relaxed) || self.has_sample || self.has_turn) return false;
  hedge_wanted_.store(false, std::memory_order_relaxed);
  const bool taken = double_oldest(self);
  wake_timekeeper();  // it looks who is due next
  return taken;
}

template <class Types>
std::chrono::nanoseconds batch_engine<Types>::hedge_delay() const noexcept {
  if (options_.hedge.quantile <= 0 || latencies_.count() < enough_latencies) return options_.hedge.delay;
  return std::chrono::nanoseconds(latencies_.quantile(options_.hedge.quantile));
}

/// True: the other attempt has come to a value before this one began, which is therefore not made.
template <class Types>
bool batch_engine<Types>::came_too_late(lane& twin) {
  {
    const std::lock_guard lock(mutex_);
    if (!twin.pair->won) return false;
  }
  twin.own.emplace(unexpect, error(errc::not_started, {}, 0));
  twin.has_sample = false;
  twin.step = admission_step::limit;
  end_pair(twin);
  return true;
}

/// The end of one of two attempts: the first value wins, the last one to leave ends the sample. False: the lane whose
/// sample the other one still uses waits for it.
template <class Types>
bool batch_engine<Types>::end_pair(lane& self) {
  hedge_pair<lane>& pair = *self.pair;
  const bool has_value = self.own->has_value();
  std::stop_source loser{std::nostopstate};
  bool writes = false;
  {
    const std::lock_guard lock(mutex_);
    lane* const other = pair.other(&self);
    pair.runners[pair.runners[0] == &self ? 0 : 1] = nullptr;
    pair.attempts = std::max(pair.attempts, self.attempts);
    writes = !pair.won && (has_value || !other);
    if (writes && has_value) {
      pair.won = true;
      if (other && hands_out_tokens_) {
        other->stop_used = true;
        loser = other->stop;
      }
    }
  }
  if (writes) guarded([&] { rewrite(*self.slot, std::move(*self.own)); }, 
            [&] { settle(self.slot, error(errc::exception, std::current_exception(), self.attempts)); });
  self.own.reset();
  self.target = self.slot;
  give_way(self);
  loser.request_stop();

  lane* owner = nullptr;
  const bool owns = self.sample == &self.cell;
  if (owns && !source::indexed) self.shared_permit.release();
  {
    const std::lock_guard lock(mutex_);
    if (--pair.inside != 0) {
      self.pair = nullptr;
      if (!owns || source::indexed) {
        self.sample = &self.cell;
        return true;
      }
      self.stage = lane_stage::twin;
      pair.owner_waits = &self;
      return false;  // self may be gone
    }
    owner = pair.owner_waits;
    self.attempts = pair.attempts;
  }
  if constexpr (std::is_same_v<error_type, error>) {
    if (!self.slot->has_value()) self.slot->error().attempts = self.attempts;
  }
  delete std::exchange(self.pair, nullptr);
  self.sample = &self.cell;
  end_sample(self, owner ? owner->cell : self.cell);
  if (owner && !execute_on(ex_, owner->handle())) {
    refused();
    this->pump(*owner);
  }
  return true;
}

// -- stopping and time --

/// No sample starts any more. True: this call made it so.
template <class Types>
bool batch_engine<Types>::halt_once(halt why) noexcept {
  halt expected = halt::none;
  if (!halt_.compare_exchange_strong(expected, why)) return false;
  if (gated_) end_waits(true);
  return true;
}

/// The same, and what is in flight is asked to stop. Runs the stop callbacks of predicts.
template <class Types>
void batch_engine<Types>::request_stop(halt why) {
  std::stop_source attempts = stop_;  // *this may be gone while its callbacks run
  if (!halt_once(why)) return;
  if (retries_on_) wake_timekeeper();
  attempts.request_stop();
}

template <class Types>
void batch_engine<Types>::watch(lane& self) {
  if (!self.pair && self.stop_used && hands_out_tokens_) self.renew_stop();
  self.timed_out = false;
  self.started = now_of(ex_);
  if (options_.limit) self.in_flight_at_start = options_.limit->started();
  if (options_.timeout == no_timeout && !hedges_on_) return;
  bool wake = false;
  {
    const std::lock_guard lock(mutex_);
    if (options_.timeout != no_timeout) with_timeout_.push_back(self);
    if (hedges_on_ && !self.pair) unhedged_.push_back(self);
    wake = dormant_;
  }
  if (wake) [[unlikely]] wake_timekeeper();
}

/// Nobody finds the lane any more; what its attempt comes to goes to self.target.
template <class Types>
void batch_engine<Types>::unwatch(lane& self) {
  if (options_.timeout == no_timeout && !hedges_on_) return;
  bool delay_is_known = false;
  {
    const std::lock_guard lock(mutex_);
    list_link<timeout_tag>& timeout = self;
    list_link<hedge_tag>& hedgeable = self;
    if (timeout.linked()) with_timeout_.erase(timeout);
    if (hedgeable.linked()) unhedged_.erase(hedgeable);
    if (options_.hedge.quantile > 0 && !self.own) {
      guarded([&] { latencies_.record((now_of(ex_) - self.started).count()); }, [] {});
      delay_is_known = latencies_.count() == enough_latencies;
    }
  }
  if (delay_is_known) wake_timekeeper();
  if (self.pair && !self.own) self.target = &self.own.emplace(unexpect, error(errc::not_started, {}, 0));
}

/// Something is due before what it sleeps for.
template <class Types>
void batch_engine<Types>::wake_timekeeper() {
  std::stop_source sleep{std::nostopstate};
  {
    const std::lock_guard lock(mutex_);
    if (timekeeper_gone_ || ended_) return;
    dormant_ = looked_in_vain_ = false;
    sleep = wake_;
    guarded([&] { wake_ = std::stop_source(); }, [] {});
  }
  sleep.request_stop();
}

/// Does what is due. How long to sleep then; zero or less: the batch has ended.
template <class Types>
std::chrono::nanoseconds batch_engine<Types>::expire() {
  const std::chrono::nanoseconds now = now_of(ex_);
  std::size_t wanted = 0;
  retry_queue<retry_entry> dropped;
  std::unique_lock lock(mutex_);
  if (deadline_ <= now) {
    deadline_ = no_timeout;
    lock.unlock();
    request_stop(halt::deadline);
    lock.lock();
  }
  while (auto* const oldest = with_timeout_.first()) {
    lane& late = *static_cast<lane*>(oldest);
    if (later(late.started, options_.timeout) > now) break;
    with_timeout_.erase(*oldest);
    late.timed_out = true;
    if (hands_out_tokens_) {
      late.stop_used = true;
      std::stop_source stop = late.stop;
      lock.unlock();
      stop.request_stop();
      lock.lock();
    }
  }
  if (queue_deadline_ <= now) {
    queue_deadline_ = no_timeout;
    queue_expired_ = true;
    std::stop_source waits = end_waits_;  // under the same lock, for it is this wait that has expired and not the next one
    guarded([&] { end_waits_ = std::stop_source(); }, [] {});
    lock.unlock();
    waits.request_stop();
    lock.lock();
  }
  if (hedges_on_) hedge_what_is_due(lock, now);
  if (halted()) {
    if (!retries_.empty()) wanted = 1;  // whoever left last left the end to us
    dropped.swap(retries_);
    ready_retries_.store(0);
  } else {
    wanted = retries_.wake(now);
    ready_retries_.fetch_add(wanted);
  }
  if (wanted != 0) {
    lock.unlock();
    dropped.each([&](const retry_entry& each) { sample_final(each.slot, each.index, each.room, each.attempts); });
    for (lane* another = nullptr; wanted != 0 && (another = this->new_lane()) != nullptr; --wanted) {
      if (execute_on(ex_, another->handle())) continue;
      refused();
      this->pump(*another);
    }
    lock.lock();
  }
  if (ended_) return std::chrono::nanoseconds::zero();
  sleep_token_ = wake_.get_token();
  const std::chrono::nanoseconds next = next_event(now);
  return next == no_timeout ? no_timeout : std::max(next - now, std::chrono::nanoseconds(1));
}

/// Under the lock. Whatever begins later is due no earlier than this, or wakes the timekeeper.
///
/// While attempts come and go, nobody needs to wake it: none that begins later can be due before a full delay from now.
/// But once it has looked in vain it goes dormant until it is woken: a batch that hangs must not look alive to a simulation.
template <class Types>
std::chrono::nanoseconds batch_engine<Types>::next_event(std::chrono::nanoseconds now) {
  std::chrono::nanoseconds next = std::min({deadline_, queue_deadline_, retries_.next_due(no_timeout)});
  std::chrono::nanoseconds from_now = no_timeout;
  bool waits = queue_deadline_ != no_timeout;
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
  if (options_.timeout != no_timeout) consider(options_.timeout, with_timeout_.first());
  if (options_.queue_timeout != no_timeout) look_after(options_.queue_timeout);
  if (hedges_on_ && !halted() && !hedge_wanted_.load(std::memory_order_relaxed)) consider(hedge_delay(), unhedged_.first());
  const bool in_vain_again = !waits && looked_in_vain_;
  looked_in_vain_ = !waits;
  dormant_ = in_vain_again || told;
  return in_vain_again ? next : std::min(next, from_now);
}

template <class Types>
void batch_engine<Types>::timekeeper_ended() {
  {
    const std::lock_guard lock(mutex_);
    timekeeper_ = nullptr;
    timekeeper_gone_ = true;
    if (!ended_) return;  // its timers are gone before the batch is
  }
  finish();
}

}  // namespace cobatch::detail
