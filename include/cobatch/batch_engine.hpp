#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <stop_token>
#include <type_traits>
#include <utility>
#include <vector>

#include <cobatch/batch_options.hpp>
#include <cobatch/detail/attempt.hpp>
#include <cobatch/detail/config.hpp>
#include <cobatch/detail/current_executor.hpp>
#include <cobatch/detail/frame_pool.hpp>
#include <cobatch/detail/intrusive_list.hpp>
#include <cobatch/detail/predict_traits.hpp>
#include <cobatch/detail/pump_core.hpp>
#include <cobatch/detail/results.hpp>
#include <cobatch/detail/source.hpp>
#include <cobatch/detail/start_mark.hpp>
#include <cobatch/detail/station.hpp>
#include <cobatch/detail/timekeeper.hpp>
#include <cobatch/error.hpp>
#include <cobatch/executor.hpp>
#include <cobatch/expected.hpp>
#include <cobatch/semaphore.hpp>

/// The machinery under batch_predict(); nothing here is for users to spell. How lanes and pumps share the work is told in
/// detail/pump_core.hpp; here is what is done with one sample: its permit, its attempt, its outcome, and what stops it.

namespace cobatch::detail {

/// Whether T is an expected of any kind.
template <class T>
inline constexpr bool is_expected = false;
template <class T, class E>
inline constexpr bool is_expected<expected<T, E>> = true;

/// The slot of a sample whose predict comes to Value.
template <class Value>
struct slot_of {
  using type = expected<Value, error>;
};
template <class T, class E>
struct slot_of<expected<T, E>> {
  using type = expected<T, E>;
};

struct watched_tag {};

/// Why a batch takes no more samples.
enum class halt : std::uint8_t {
  none,
  user,      ///< the user's stop token
  failures,  ///< max_failures
  deadline,
  input,     ///< the input threw
  executor,  ///< the executor refused a handle
};

template <class Engine>
class batch_lane;

template <class Executor, class View, class Predict>
class batch_engine : public pump_core<batch_engine<Executor, View, Predict>, batch_lane<batch_engine<Executor, View, Predict>>> {
  using lane = batch_lane<batch_engine>;
  using core = pump_core<batch_engine, lane>;
  using source = std::conditional_t<indexable<View>, indexed_source<View>, pulled_source<View>>;
  using traits = predict_traits<Predict, typename source::reference>;
  using value = typename traits::value;

 public:
  using result = typename slot_of<value>::type;
  using error_type = typename result::error_type;

  static_assert(std::is_constructible_v<error_type, error>,
                "cobatch: the error type E2 of an expected<U, E2> that predict returns must be constructible from "
                "cobatch::error, which is what a sample gets that was stopped, or whose predict threw");

  batch_engine(Executor& ex, View&& samples, Predict& predict, const batch_options& options, std::stop_token stop)
      : core(options.max_concurrency),
        ex_(ex),
        predict_(predict),
        source_(std::move(samples)),
        results_(results_for(source_.size_hint())),
        options_(options),
        timed_(options.timeout != no_timeout || options.deadline != no_timeout),
        gated_(options.semaphore != nullptr),
        hands_out_tokens_(traits::takes_token && (timed_ || options.max_failures != unlimited || stop.stop_possible())),
        user_stop_(std::move(stop)) {}

  ~batch_engine() {
    user_link_.reset();
    if (timekeeper_) timekeeper_.destroy();
  }

  /// Starts everything; true: `continuation` will be resumed on the executor, or already was. False: all is done.
  bool start(std::coroutine_handle<> continuation);

  /// The outcomes, once.
  std::vector<result> take();

 private:
  friend core;
  friend lane;
  friend lane_base<lane>;
  friend timekeeper<batch_engine>;

  struct make_unstarted {
    void operator()(std::vector<result>& slots) const {
      slots.emplace_back(unexpect, error(errc::not_started, {}, 0));
    }
    // Where anything will do until the outcome is there, a value of nothing but bits is the cheapest.
    static constexpr bool any_will_do = std::is_same_v<error_type, error> && std::is_trivially_copyable_v<value> &&
                                        std::is_trivially_default_constructible_v<value>;
    void operator()(std::vector<result>& slots, std::size_t size) const { slots.resize(size); }
  };
  struct make_failed {
    void operator()(std::vector<result>& slots) const {
      slots.emplace_back(unexpect, error(errc::exception, std::current_exception()));
    }
  };
  static constexpr bool counted = std::ranges::sized_range<View>;
  using results = std::conditional_t<counted, counted_results<result, make_unstarted>,
                                     growing_results<result, make_unstarted, make_failed>>;
  // Only our own error type is made under a lock.
  static constexpr bool grows_under_lock = std::is_same_v<error_type, error>;
  static constexpr bool has_timers = timed_executor<Executor>;

  struct on_user_stop {
    batch_engine* self;
    void operator()() const noexcept { self->request_stop(halt::user); }
  };

  static results results_for(std::optional<std::size_t> size) {
    if constexpr (counted) {
      return results(*size);
    } else {
      return results();
    }
  }

  // -- for pump_core --
  executor_ref loop() noexcept { return ref(ex_); }
  bool halted() const noexcept { return halt_.load(std::memory_order_relaxed) != halt::none; }
  supply provide(station& here);
  supply process(station& here, lane*& current, start_mark& mark);
  bool share(station& here);
  void part_with(lane& self) noexcept { self.permit.release(); }
  void refused() noexcept { halt_once(halt::executor); }
  bool complete(std::uint64_t live);
  void resumed(lane& self);

  // -- permits --
  enum class admission : unsigned char { passed, waiting, refused };
  admission admit(lane& self, start_mark& mark);
  bool finish_admission(lane& self);
  void give_way(lane& self);
  void end_admission() noexcept;

  // -- one attempt --
  enum class begun : unsigned char { suspended, ready, settled };
  claim take_sample(station& here, lane& self);
  begun begin(lane& self);
  void conclude(lane& self);
  void end_attempt(lane& self);
  template <class... Value>
  void store(lane& self, Value&&... value);
  void settle_exception(lane& self);
  void settle(lane& self, error why);
  void count_failure();
  errc reason(const lane& self) const noexcept;

  // -- stopping and time --
  void finish();
  bool halt_once(halt why) noexcept;
  void request_stop(halt why);
  std::chrono::nanoseconds after(std::chrono::nanoseconds delay) noexcept;
  void watch(lane& self);
  void unwatch(lane& self);
  std::chrono::nanoseconds expire();
  auto sleep(std::chrono::nanoseconds pause) { return ex_.schedule_after(pause, wake_timekeeper_.get_token()); }
  bool woken() const noexcept { return wake_timekeeper_.stop_requested(); }
  void timekeeper_ended();

  using core::mutex_, core::live_, core::stations_, core::station_count_, core::cap_;

  Executor& ex_;
  Predict& predict_;
  source source_;
  results results_;
  const batch_options options_;
  const bool timed_;
  const bool gated_;
  const bool hands_out_tokens_;

  std::coroutine_handle<> continuation_;
  start_mark* start_mark_ = nullptr;

  // Set once, by whoever halts the batch; read before each sample. Orders nothing but itself.
  std::atomic<halt> halt_{halt::none};
  std::atomic<std::size_t> failures_{0};  // a count, ordering nothing
  // Taken (acquire) and left (release) by the one lane that may wait in options_.semaphore.
  std::atomic<bool> admitting_{false};
  std::atomic<bool> admission_waits_{false};  // a hint for give_way()

  // Guarded by mutex_.
  intrusive_list<watched_tag> watched_;             // the lanes whose attempt has a timeout, the oldest first
  std::chrono::nanoseconds deadline_ = no_timeout;  // the timekeeper's
  bool ended_ = false;                              // the timekeeper is to end, and then to finish the batch
  bool timekeeper_gone_ = true;

  std::coroutine_handle<> timekeeper_;
  std::stop_source wake_timekeeper_{std::nostopstate};
  std::stop_source end_admission_{std::nostopstate};
  std::stop_source stop_{std::nostopstate};
  std::stop_token user_stop_;
  std::optional<std::stop_callback<on_user_stop>> user_link_;
  std::exception_ptr fatal_;  // no memory for results
};

// ---- Implementation ----

/// One sample in flight; the promise of its own coroutine, so that it is one piece of memory.
template <class Engine>
class batch_lane : public lane_base<batch_lane<Engine>>, public list_link<watched_tag> {
  using traits = typename Engine::traits;

 public:
  using typename lane_base<batch_lane>::coroutine;

  /// Null where there is no memory.
  static batch_lane* make(Engine& engine) {
    return guarded(
        [&] {
          batch_lane* const made = body(engine).made;
          if (engine.hands_out_tokens_) made->renew_stop();
          return made;
        },
        []() -> batch_lane* { return nullptr; });
  }

  explicit batch_lane(Engine& owner) noexcept : engine(owner) {}

  /// Destroys a lane that is suspended for good.
  void abandon() noexcept {
    if constexpr (traits::is_awaitable) {
      if (stage == running) work.abandon();
    }
    if (stage == admitted) admission.abandon();
    this->handle().destroy();
  }

  /// Gives the next attempts a stop token that nobody has stopped, unless the batch has.
  void renew_stop() {
    link.reset();
    stop = std::stop_source();
    link.emplace(engine.stop_.get_token(), on_stop{this});
  }

  /// So that a stop of the batch reaches the attempt.
  struct on_stop {
    batch_lane* self;
    void operator()() const noexcept {
      const std::stop_source attempts = self->stop;  // the lane may end inside the call
      attempts.request_stop();
    }
  };

  struct no_work {};
  using attempt_type = typename std::conditional_t<traits::is_awaitable, std::type_identity<attempt<typename traits::raw>>,
                                                   std::type_identity<no_work>>::type;
  using admission_type = attempt<decltype(std::declval<async_semaphore&>().acquire(1, std::stop_token()))>;

  Engine& engine;
  enum : unsigned char { idle, running, admitted } stage = idle;  // what its handle waits for
  bool timed_out = false;                                         // guarded by the engine's mutex_ while watched
  typename Engine::result* slot = nullptr;
  std::size_t index = 0;
  [[no_unique_address]] typename Engine::source::cell cell;
  [[no_unique_address]] attempt_type work;
  cobatch::permit permit;
  admission_type admission;
  std::chrono::nanoseconds due{};
  std::stop_source stop{std::nostopstate};
  std::optional<std::stop_callback<on_stop>> link;

 private:
  static coroutine body(Engine&) {
    for (;;) co_await typename lane_base<batch_lane>::pass_on();
  }
};

template <class Executor, class View, class Predict>
bool batch_engine<Executor, View, Predict>::start(std::coroutine_handle<> continuation) {
  continuation_ = continuation;
  std::size_t pumps = std::min(concurrency_of(ex_), cap_);
  if (const std::optional<std::size_t> size = source_.size_hint()) pumps = std::min(pumps, *size);
  this->open_stations(std::min(concurrency_of(ex_), cap_));
  if constexpr (counted && !grows_under_lock) results_.grow_all();
  if (hands_out_tokens_) stop_ = std::stop_source();
  if (gated_) end_admission_ = std::stop_source();

  // From here on nothing throws.
  lane* first = nullptr;
  for (std::size_t i = 0; i < std::max<std::size_t>(pumps, 1); ++i) {
    lane* const made = this->new_lane();
    if (!made && !first) fail("no memory for a single lane");
    if (!made) break;
    made->next_parked = first;
    first = made;
  }
  start_mark mark(this);
  start_mark_ = &mark;
  if (user_stop_.stop_possible()) user_link_.emplace(std::move(user_stop_), on_user_stop{this});
  if constexpr (has_timers) {
    if (timed_) {
      wake_timekeeper_ = std::stop_source();
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
  return !mark.finished();
}

template <class Executor, class View, class Predict>
auto batch_engine<Executor, View, Predict>::take() -> std::vector<result> {
  if (fatal_) std::rethrow_exception(fatal_);
  if constexpr (counted) {
    const std::size_t handed_out = source_.handed_out();
    results_.grow_all();
    const errc why = halt_.load(std::memory_order_relaxed) == halt::executor ? errc::executor_stopped : errc::not_started;
    const auto never_started = [&](index_range range) {
      for (; !range.empty(); ++range.begin) *results_.slot(range.begin) = result(unexpect, error(why, {}, 0));
    };
    never_started({std::min(handed_out, results_.size()), results_.size()});
    if constexpr (source::indexed) {
      source_.each_returned(never_started);
      for (std::size_t i = 0; i < station_count_; ++i) never_started(stations_[i].range);
    }
  }
  return results_.take();
}

/// The lane's handle was resumed: the executor lets it start or come back, or what it waited for has happened.
template <class Executor, class View, class Predict>
void batch_engine<Executor, View, Predict>::resumed(lane& self) {
  if (self.stage == lane::running) {
    conclude(self);
    if (!runs_here(ex_)) {
      if (execute_on(ex_, self.handle())) return;  // *this may be gone
      refused();
    }
  } else if (self.stage == lane::admitted) {
    // On the executor: that is where a semaphore resumes who waited there. Somebody must queue for the next permit.
    if (finish_admission(self) && station_count_ > 1) this->start_another();  // self is alive: never the last one
  }
  this->pump(self);
}

/// One sample, from its permit to its outcome, or to where it suspends: then `current` is null.
template <class Executor, class View, class Predict>
auto batch_engine<Executor, View, Predict>::process(station& here, lane*& current, start_mark& mark) -> supply {
  lane& self = *current;
  if (gated_) [[unlikely]] {
    switch (admit(self, mark)) {
      case admission::passed: break;
      case admission::waiting: current = nullptr; return supply::none;
      case admission::refused: return supply::none;
    }
  }
  switch (take_sample(here, self)) {
    case claim::taken: break;
    case claim::exhausted: return supply::none;
    case claim::elsewhere: return supply::contended;
  }
  const begun state = begin(self);
  if (state == begun::settled) {
    end_attempt(self);
    return supply::ready;
  }
  if (state == begun::suspended) {
    if (!mark.finished()) {  // self may be gone
      current = nullptr;
      return supply::ready;
    }
    mark.reopen(&self);
  }
  conclude(self);
  return supply::ready;
}

/// Sees to it that the station has a claim, if there is anything left to claim.
template <class Executor, class View, class Predict>
auto batch_engine<Executor, View, Predict>::provide(station& here) -> supply {
  if constexpr (source::indexed) {
    if (!here.range.empty()) return supply::ready;
    const auto grow = [&](std::size_t end) {
      if constexpr (grows_under_lock) results_.grow(end);
    };
    if (source_.refill(here.range, station_count_, grow)) return supply::ready;
    return this->steal(here);
  } else {
    return source_.exhausted() ? supply::none : supply::ready;
  }
}

template <class Executor, class View, class Predict>
claim batch_engine<Executor, View, Predict>::take_sample(station& here, lane& self) {
  if constexpr (source::indexed) {
    self.index = here.range.begin++;
    self.slot = results_.slot(self.index);
    return claim::taken;
  } else {
    const auto place = [&](std::size_t index) {
      return guarded(
          [&] {
            if (!results_.grow(index + 1)) return false;
            self.index = index;
            self.slot = results_.slot(index);
            return true;
          },
          [&] {
            fatal_ = std::current_exception();
            return false;
          });
    };
    const auto failed = [&] {
      settle(self, error(errc::input_failed, std::current_exception(), 0));
      halt_once(halt::input);
    };
    const claim answer = source_.pull(self.cell, place, failed);
    if (answer == claim::exhausted && gated_) end_admission();
    return answer;
  }
}

template <class Executor, class View, class Predict>
bool batch_engine<Executor, View, Predict>::share(station& here) {
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

template <class Executor, class View, class Predict>
bool batch_engine<Executor, View, Predict>::complete(std::uint64_t) {
  if (has_timers && timed_) {
    std::stop_source wake = wake_timekeeper_;
    bool gone = false;
    {
      const std::lock_guard lock(mutex_);
      ended_ = true;
      gone = timekeeper_gone_;
    }
    if (!gone) {
      wake.request_stop();  // *this may be gone
      return true;
    }
  }
  finish();
  return true;
}

template <class Executor, class View, class Predict>
void batch_engine<Executor, View, Predict>::timekeeper_ended() {
  {
    const std::lock_guard lock(mutex_);
    timekeeper_ = nullptr;
    timekeeper_gone_ = true;
    if (!ended_) return;  // its timers are gone before the batch is
  }
  finish();
}

template <class Executor, class View, class Predict>
void batch_engine<Executor, View, Predict>::finish() {
  if (start_mark::finish(start_mark_, this)) return;  // still inside start()
  continuation_.resume();
}

// -- permits --

/// A permit of the shared semaphore for a lane that has none.
///
/// Only one lane of a batch waits in the semaphore at a time, so that a batch whose own cap is large keeps no crowd
/// there. The others end; the one that waited sees to it that another one takes its place.
template <class Executor, class View, class Predict>
auto batch_engine<Executor, View, Predict>::admit(lane& self, start_mark& mark) -> admission {
  if (self.permit) return admission::passed;
  if (auto taken = options_.semaphore->try_acquire()) {
    self.permit = std::move(*taken);
    return admission::passed;
  }
  if (admitting_.exchange(true, std::memory_order_acquire)) return admission::refused;
  admission_waits_.store(true, std::memory_order_relaxed);
  self.stage = lane::admitted;
  const bool settled = self.admission.start(
      [&] { return options_.semaphore->acquire(1, end_admission_.get_token()); }, self.handle());
  if (!settled) {
    if (!mark.finished()) return admission::waiting;  // self may be gone
    mark.reopen(&self);
  }
  return finish_admission(self) ? admission::passed : admission::refused;
}

/// True: the lane has its permit.
template <class Executor, class View, class Predict>
bool batch_engine<Executor, View, Predict>::finish_admission(lane& self) {
  self.stage = lane::idle;
  self.admission.resume([&](auto outcome) {
    if (outcome) self.permit = std::move(*outcome);
  });
  admission_waits_.store(false, std::memory_order_relaxed);
  admitting_.store(false, std::memory_order_release);
  return static_cast<bool>(self.permit);
}

/// Between two samples: the permit goes to whoever waits for one, unless that is only ourselves.
template <class Executor, class View, class Predict>
void batch_engine<Executor, View, Predict>::give_way(lane& self) {
  const std::size_t ours = admission_waits_.load(std::memory_order_relaxed) ? 1 : 0;
  if (options_.semaphore->waiting() > ours) self.permit.release();
}

/// No sample is left, or none may start any more: nobody needs to wait for a permit.
template <class Executor, class View, class Predict>
void batch_engine<Executor, View, Predict>::end_admission() noexcept {
  std::stop_source waits = end_admission_;  // *this may be gone while it is asked
  waits.request_stop();
}

// -- one attempt --

template <class Executor, class View, class Predict>
auto batch_engine<Executor, View, Predict>::begin(lane& self) -> begun {
  if (timed_) watch(self);
  const auto call = [&]() -> typename traits::raw {
    auto&& sample = static_cast<typename traits::argument>(source_.get(self.cell, self.index));
    if constexpr (traits::takes_token) {
      return std::invoke(predict_, static_cast<typename traits::argument>(sample), self.stop.get_token());
    } else {
      return std::invoke(predict_, static_cast<typename traits::argument>(sample));
    }
  };
  const auto attempted = [&]() -> begun {
    if constexpr (traits::is_awaitable) {
      self.stage = lane::running;
      return self.work.start(call, self.handle()) ? begun::ready : begun::suspended;
    } else {
      if constexpr (std::is_void_v<typename traits::raw>) {
        call();
        store(self);
      } else {
        store(self, call());
      }
      return begun::settled;
    }
  };
  const auto threw = [&]() -> begun {
    settle_exception(self);
    return begun::settled;
  };
  return guarded(attempted, threw);
}

/// Predict's awaitable has come to its end.
template <class Executor, class View, class Predict>
[[gnu::always_inline]] inline void batch_engine<Executor, View, Predict>::conclude(lane& self) {
  if constexpr (traits::is_awaitable) {
    self.stage = lane::idle;
    guarded([&] { self.work.resume([&](auto&&... outcome) { store(self, std::forward<decltype(outcome)>(outcome)...); }); },
            [&] { settle_exception(self); });
    end_attempt(self);
  }
}

template <class Executor, class View, class Predict>
void batch_engine<Executor, View, Predict>::end_attempt(lane& self) {
  self.stage = lane::idle;
  if (timed_) [[unlikely]] unwatch(self);
  if (gated_) [[unlikely]] give_way(self);
}

/// Writes what predict came to. Whatever throws here is the sample's exception.
template <class Executor, class View, class Predict>
template <class... Value>
void batch_engine<Executor, View, Predict>::store(lane& self, Value&&... outcome) {
  result& slot = *self.slot;
  if constexpr (std::is_void_v<value>) {
    slot.emplace();
  } else if constexpr (is_expected<value>) {
    slot = result(std::forward<Value>(outcome)...);
    if (!slot.has_value()) {
      if (const errc why = reason(self); why != errc::exception) {
        settle(self, error(why));
      } else {
        count_failure();
      }
    }
  } else if constexpr (std::is_nothrow_constructible_v<value, Value...>) {
    slot.emplace(std::forward<Value>(outcome)...);
  } else {
    slot = result(std::in_place, std::forward<Value>(outcome)...);
  }
}

template <class Executor, class View, class Predict>
void batch_engine<Executor, View, Predict>::settle_exception(lane& self) {
  settle(self, error(reason(self), std::current_exception()));
}

/// Writes an error. If the user's own error type throws while it is made from ours, the slot stays "not started".
template <class Executor, class View, class Predict>
void batch_engine<Executor, View, Predict>::settle(lane& self, error why) {
  guarded([&] { *self.slot = result(unexpect, std::move(why)); }, [] {});
  count_failure();
}

template <class Executor, class View, class Predict>
void batch_engine<Executor, View, Predict>::count_failure() {
  if (options_.max_failures == unlimited || halted()) return;
  if (failures_.fetch_add(1, std::memory_order_relaxed) + 1 >= options_.max_failures) request_stop(halt::failures);
}

/// What a failure is called: after a stop was asked for, that is the reason of the stop.
template <class Executor, class View, class Predict>
errc batch_engine<Executor, View, Predict>::reason(const lane& self) const noexcept {
  if (timed_) {
    const std::lock_guard lock(mutex_);
    if (self.timed_out) return errc::timed_out;
  }
  switch (halt_.load(std::memory_order_relaxed)) {
    case halt::user:
    case halt::failures: return errc::cancelled;
    case halt::deadline: return errc::deadline_exceeded;
    case halt::none:
    case halt::input:
    case halt::executor: break;
  }
  return errc::exception;
}

// -- stopping and time --

/// No sample starts any more. True: this call made it so.
template <class Executor, class View, class Predict>
bool batch_engine<Executor, View, Predict>::halt_once(halt why) noexcept {
  halt expected = halt::none;
  if (!halt_.compare_exchange_strong(expected, why, std::memory_order_relaxed)) return false;
  if (gated_) end_admission();
  return true;
}

/// The same, and what is in flight is asked to stop. Runs the stop callbacks of predicts.
template <class Executor, class View, class Predict>
void batch_engine<Executor, View, Predict>::request_stop(halt why) {
  std::stop_source attempts = stop_;  // *this may be gone while its callbacks run
  if (halt_once(why)) attempts.request_stop();
}

template <class Executor, class View, class Predict>
std::chrono::nanoseconds batch_engine<Executor, View, Predict>::after(std::chrono::nanoseconds delay) noexcept {
  const std::chrono::nanoseconds now = now_of(ex_);
  return delay > no_timeout - now ? no_timeout : now + delay;
}

template <class Executor, class View, class Predict>
void batch_engine<Executor, View, Predict>::watch(lane& self) {
  if (options_.timeout == no_timeout) return;
  if (self.timed_out) {
    self.timed_out = false;
    if (hands_out_tokens_) self.renew_stop();
  }
  self.due = after(options_.timeout);
  const std::lock_guard lock(mutex_);
  watched_.push_back(self);
}

template <class Executor, class View, class Predict>
void batch_engine<Executor, View, Predict>::unwatch(lane& self) {
  if (options_.timeout == no_timeout) return;
  const std::lock_guard lock(mutex_);
  list_link<watched_tag>& link = self;
  if (link.linked()) watched_.erase(link);
}

/// Asks every attempt that has had its time to stop. How long to sleep then; zero or less: the batch has ended.
template <class Executor, class View, class Predict>
std::chrono::nanoseconds batch_engine<Executor, View, Predict>::expire() {
  const std::chrono::nanoseconds now = now_of(ex_);
  std::unique_lock lock(mutex_);
  if (deadline_ <= now) {
    deadline_ = no_timeout;
    lock.unlock();
    request_stop(halt::deadline);
    lock.lock();
  }
  std::chrono::nanoseconds next = options_.timeout == no_timeout ? no_timeout : after(options_.timeout);
  while (auto* const oldest = watched_.first()) {
    lane& late = *static_cast<lane*>(oldest);
    if (late.due > now) {
      next = late.due;
      break;
    }
    watched_.erase(late);
    late.timed_out = true;
    if (hands_out_tokens_) {
      std::stop_source stop = late.stop;
      lock.unlock();
      stop.request_stop();
      lock.lock();
    }
  }
  next = std::min(next, deadline_);
  if (ended_) return std::chrono::nanoseconds::zero();
  return next == no_timeout ? no_timeout : next - now;
}

}  // namespace cobatch::detail
