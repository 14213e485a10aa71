#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <optional>
#include <span>
#include <stop_token>
#include <type_traits>
#include <utility>

#include <cobatch/adaptive_limit.hpp>
#include <cobatch/batch_options.hpp>
#include <cobatch/detail/config.hpp>
#include <cobatch/detail/current_executor.hpp>
#include <cobatch/detail/results.hpp>
#include <cobatch/engine/alarm.hpp>
#include <cobatch/engine/crew.hpp>
#include <cobatch/engine/gates.hpp>
#include <cobatch/engine/hedges.hpp>
#include <cobatch/engine/input.hpp>
#include <cobatch/engine/lane.hpp>
#include <cobatch/engine/permits.hpp>
#include <cobatch/engine/reader.hpp>
#include <cobatch/engine/report.hpp>
#include <cobatch/engine/retries.hpp>
#include <cobatch/engine/shelves.hpp>
#include <cobatch/engine/timekeeper.hpp>
#include <cobatch/engine/types.hpp>
#include <cobatch/error.hpp>
#include <cobatch/executor.hpp>
#include <cobatch/expected.hpp>
#include <cobatch/observer.hpp>

/// What is under batch_predict() and predict_stream(); README.md in this folder has the picture.

namespace cobatch::detail {

/// Types has `executor`, `source`, `predict` and `sink`: where outcomes go. The sink has
///
///     make_room(index_range)         for an indexed source: slots up to the end of that range, perhaps on several threads
///     made_slot(index)               the slot of a sample for which room was made
///     Item* reserve()                otherwise, one reader at a time: an item for one more sample; null: not just now
///     unreserve(Item&)               it is not needed
///     bool place(Item&)              sets its slot; false: no more samples
///     bool can_go_on()               after reserve() gave null: there may be room later
///     drops_unstarted(index)         a sample that was read and will not be started need not be told of
///     settled(handful&, sample)      the outcome in the slot is final; any thread
///     hand_over(handful&)            and may be given away
///     bool room_came()               since reserve() gave null
///     complete()                     all is over; *this may be gone after it
template <class Types>
class batch_engine : public batch_crew<Types> {
  using names = batch_types<Types>;
  using crew = batch_crew<Types>;
  using executor_type = typename names::executor;
  using predict_type = typename names::predict;
  using sink_type = typename names::sink;
  using error_type = typename names::error_type;
  using traits = typename names::traits;
  using time = std::chrono::nanoseconds;

 public:
  using source = typename names::source;
  using result = typename names::result;
  using loop = batch_loop<Types>;
  using lane = batch_lane<Types>;
  using worker = batch_worker<Types>;
  using step = typename lane::step;
  using stage = typename lane::stage;
  using sample_type = sample_state<Types>;
  using portion = typename crew::portion;
  using item_type = typename source::template item_for<result>::item;

  batch_engine(executor_type& ex, source& samples, predict_type& predict, sink_type& sink, const batch_options& options,
               std::stop_token stop);
  ~batch_engine();

  /// Alone, where the batch is given up, its executor being deserted: lets go of whatever is left. Nothing goes on.
  void abandon() noexcept;

  /// At most `workers` of them, or fewer if the executor or the cap allow no more. *this may be gone after it.
  void start(std::size_t workers);

  /// Asks for the end: nothing starts any more, what is in flight is asked to stop.
  void request_stop(halt why);
  halt why_halted() const noexcept { return why_.load(std::memory_order_relaxed); }
  bool halted() const noexcept { return why_halted() != halt::none; }

  /// Alone: `visit(range)` for what was claimed and never started.
  template <class Visit>
  void each_unstarted(Visit&& visit) {
    visit(index_range{source_.handed_out(), unlimited});
    this->each_rest(visit);
    shelves_.each(visit);
  }

  /// For a stream: there is room again, or it is to end; and what its observer is told.
  void wake() { this->start_worker_from_outside(); }
  /// Samples take so little that to wait for them costs more.
  bool is_cheap() const noexcept { return cheap_.load(std::memory_order_relaxed); }
  /// The same as wake() inside this call, if it is on the executor; false: it is not.
  bool work_here() {
    if (needs_.gates || !at_home()) return false;
    this->work_from_outside();
    return true;
  }
  batch_report<Types>& report() noexcept { return report_; }

  // -- for the crew --
  executor_ref executor() noexcept { return ref(ex_); }
  bool at_home() noexcept { return runs_here(ex_); }
  /// Whether it may begin inside its await. Not where others may wait for the permits that it takes.
  bool begins_inside() noexcept { return at_home() && !needs_.gates; }
  bool execute(std::coroutine_handle<> handle) noexcept { return execute_on(ex_, handle); }
  bool execute_many([[maybe_unused]] std::span<const std::coroutine_handle<>> handles) noexcept {
    if constexpr (requires { static_cast<bool>(ex_.execute_all(handles)); }) {
      return static_cast<bool>(ex_.execute_all(handles));
    }
    return false;
  }
  bool take_back([[maybe_unused]] std::coroutine_handle<> handle) noexcept {
    if constexpr (requires { static_cast<bool>(ex_.take_back(handle)); }) {
      return static_cast<bool>(ex_.take_back(handle));
    }
    return false;
  }
  void refused() noexcept { halt_once(halt::executor); }
  lane* make_lane() { return lane::make(*this, !needs_.plain || needs_.gates, needs_.tokens ? &attempts_stop() : nullptr); }
  step before_a_lane(loop& here, worker& self);
  step drive(loop& here, lane& self, worker* driver);
  void happened(lane& self);
  void part_with(lane& self);
  void before_a_turn(lane& self);
  time now() noexcept { return now_of(ex_); }
  void look(loop& here);
  void hand_over(loop& here);
  /// A sample of a worker's has suspended.
  void lost_one(loop& here) {
    if constexpr (Types::can_pause) {
      hand_over(here);
      if (cheap_.load(std::memory_order_relaxed)) cheap_.store(false, std::memory_order_relaxed);
    }
  }
  void give_up(loop& here, portion& left);
  bool last_look(loop& here, step why);
  void over();

  // -- a sample's way; for lanes and gates --
  static typename lane::way one_sample_after_another(batch_engine& engine, lane& self);
  enum class begun : unsigned char { suspended, ready, settled };
  template <bool Plain>
  begun begin(lane& self, start_mark& mark);
  template <bool Plain>
  void collect(lane& self);
  bool begin_wait(lane& self, wait_for what, std::stop_token& stop);
  bool end_wait(lane& self, wait_for what);
  executor_type& loop_executor() noexcept { return ex_; }
  void wait_failed() noexcept { refused(); }

  // -- for the reader of an asynchronous source --
  std::stop_token reading_stop() const noexcept { return reading_stop_.get_token(); }
  time input_wait_began(const void* reader);
  time input_wait_ended(const void* reader, time began);
  void unreadable(item_type& item);
  sink_type& sink() noexcept { return sink_; }
  source& input() noexcept { return source_; }
  head_count& counted() noexcept { return this->head; }

  // -- for the timekeeper --
  time expire();
  auto sleep(time pause) { return ex_.schedule_after(pause, alarm_.sleep_token()); }
  bool woken() const noexcept { return alarm_.sleep_token().stop_requested(); }
  void timekeeper_ended();

 private:
  using crew::head;

  // Whether no sample needs to be made, or weighed, between the end of one attempt and the start of the next in a lane.
  static constexpr bool samples_are_there =
      source::indexed && std::is_lvalue_reference_v<typename source::reference> && !names::weighs;
  static constexpr time shortest_look = std::chrono::milliseconds(1);

  const std::stop_token& attempts_stop() noexcept { return attempts_token_; }
  double samples_started() const noexcept {
    return static_cast<double>(samples_started_.load(std::memory_order_relaxed));
  }

  // -- halting --
  void halt_once(halt why) noexcept;
  void count_failure();

  // -- the next sample --
  step next_sample(loop& here, lane& self, worker* driver);
  bool refill(loop& here, worker& self);
  step pull(loop& here, portion& to, std::size_t most);
  index_range claim_indices(std::size_t most);
  bool work_visible();

  // -- the pieces of a sample's way --
  step drive_plainly(loop& here, lane& self, worker* driver);
  void finished_plainly(loop& here, lane& self, worker* driver);
  bool needs_turn(const lane& self) const noexcept {
    return needs_.gates && !(!needs_.gates_anew && (!options_.semaphore || self.shared_permit));
  }
  bool anything_to_start(const worker* here);
  bool weigh(lane& self);
  void leave_turn(lane& self);
  void refuse(lane& self, entry why);
  bool may_begin(lane& self);
  void before_attempt(lane& self);
  void watch(lane& self);
  void attempt_ended(lane& self);
  bool end_pair(lane& self);
  void give_way(lane& self);
  void hand_over_permit(lane& self);
  bool take_hedge(lane& self);
  bool double_oldest(lane& twin);
  bool try_again(lane& self);
  void sample_final(lane& self);
  using handful = typename sink_type::handful;
  void settled(handful& done, const sample_type& sample);
  void note_end(lane& self) noexcept;
  void measure(lane& self) noexcept;
  template <bool Plain, class... Value>
  void store(lane& self, Value&&... outcome);
  template <bool Plain>
  void failed(lane& self);
  errc reason(bool timed_out) const noexcept;
  void make_own(lane& self, error why);
  std::size_t idle_threads() noexcept {
    if constexpr (requires { static_cast<std::size_t>(ex_.idle()); }) return ex_.idle();
    return 0;
  }

  // -- time --
  void give_up_sleepers(bool counted);
  void start_due_hedges(time now);
  time next_event(time now, time next_timeout);
  void finish();

  executor_type& ex_;
  predict_type& predict_;
  source& source_;
  sink_type& sink_;
  const batch_options options_;
  const batch_needs<Types> needs_;

  // Each set once, by whoever halts the batch; the first is read before each sample. They order nothing but themselves.
  // `why_`: no sample starts any more. `asked_`: and what is in flight was asked to stop; never `input` or `executor`.
  std::atomic<halt> why_{halt::none}, asked_{halt::none};
  // Counts, ordering nothing.
  std::atomic<std::size_t> failures_{0}, samples_started_{0}, retries_made_{0};

  shelves shelves_;
  input_reader<batch_engine, source> reader_;
  turn_taking asking_;  // for permits: so a batch keeps at most one waiter in a shared semaphore
  one_wait wait_;
  permit_share share_;
  std::optional<async_semaphore> weights_;
  retry_queue<sample_type> retries_;
  backoff_policy backoff_;
  attempt_watch<Types> watch_;
  batch_report<Types> report_;
  batch_alarm alarm_;
  std::coroutine_handle<> timekeeper_;
  time deadline_ = no_timeout;
  bool abandoned_ = false;
  bool looked_in_vain_ = false;              // the timekeeper's: it found nothing to wait for when it last looked
  std::atomic<bool> cheap_{false};           // a hint for the consumer of a stream; written by who looks at the clock
  std::atomic<bool> input_counted_{false};   // a stream whose input has not ended is a holder
  std::stop_source attempts_stop_{std::nostopstate}, reading_stop_{std::nostopstate};
  std::stop_token attempts_token_;

  struct on_user_stop {
    batch_engine* self;
    void operator()() const noexcept { self->request_stop(halt::user); }
  };
  std::stop_token user_stop_;
  std::optional<std::stop_callback<on_user_stop>> user_link_;
};

// ---- Implementation ----

template <class Types>
batch_engine<Types>::batch_engine(executor_type& ex, source& samples, predict_type& predict, sink_type& sink,
                                  const batch_options& options, std::stop_token stop)
    : crew(names::weighs ? options.max_concurrency : std::min(options.max_concurrency, options.max_weight)),
      ex_(ex),
      predict_(predict),
      source_(samples),
      sink_(sink),
      options_(options),
      needs_(options, stop.stop_possible()),
      shelves_(source::indexed ? std::min<std::size_t>({concurrency_of(ex), options.max_concurrency,
                                                        samples.size_hint().value_or(unlimited), 64})
                               : 1),
      reader_(*this),
      share_(options_, source::indexed ? samples.size_hint() : std::nullopt),
      backoff_(options_.retry),
      watch_(options_),
      report_(ex, options_, head),
      user_stop_(std::move(stop)) {
  if (names::weighs && options.max_weight != unlimited) weights_.emplace(options.max_weight);
}

template <class Types>
batch_engine<Types>::~batch_engine() {
  abandon();
  if (timekeeper_) timekeeper_.destroy();
}

template <class Types>
void batch_engine<Types>::abandon() noexcept {
  user_link_.reset();
  if (head.nobody() || std::exchange(abandoned_, true)) return;
  // Those that wait for permits go before those that have some and give them back.
  this->each_lane([](lane& each) {
    if (each.at == stage::wait) each.end_way();
  });
  this->each_lane([](lane& each) {
    each.abandon();
    each.end_way();
    each.pair = nullptr;
    each.limit_permit.release();
    each.shared_permit.release();
    each.weight_permit.release();
  });
  reader_.abandon(sink_);
  if constexpr (!source::indexed) {
    // One that two attempts share is given back once.
    portion all;
    const auto collect = [&](item_type* item) {
      if (item && std::exchange(item->slot, nullptr)) all.push(*item);
    };
    this->each_lane([&](lane& each) { collect(each.sample.item); });
    retries_.drain([&](const sample_type& each) { collect(each.item); });
    this->each_rest([&](portion& rest) {
      while (!rest.empty()) collect(&rest.pop());
    });
    reader_.take(all);
    while (!all.empty()) sink_.unreserve(all.pop());
  }
}

template <class Types>
void batch_engine<Types>::start(std::size_t workers) {
  constexpr std::size_t most = 1024;
  const std::size_t room = names::weighs ? options_.max_concurrency : std::min(options_.max_concurrency, options_.max_weight);
  workers = std::clamp<std::size_t>(std::min({workers, concurrency_of(ex_), room, most}), 1, most);
  if (needs_.tokens) {
    attempts_stop_ = std::stop_source();
    attempts_token_ = attempts_stop_.get_token();
  }
  if constexpr (source::awaited) reading_stop_ = std::stop_source();
  if (needs_.gates) wait_.make();
  reader_.prepare();
  if constexpr (names::has_timers) {
    if (needs_.clock) {
      alarm_.make();
      timekeeper_ = timekeeper<batch_engine>::of(*this).handle();
    }
  }
  this->prepare(workers);
  if (options_.observer) report_.started(source_.size_hint());
  // From here on nothing throws.
  if (Types::can_pause) {
    head.add_holder();
    input_counted_.store(true);
  }
  if (user_stop_.stop_possible()) user_link_.emplace(user_stop_, on_user_stop{this});
  if constexpr (names::has_timers) {
    if (needs_.clock) {
      if (options_.deadline != no_timeout) deadline_ = later(now_of(ex_), options_.deadline);
      alarm_.expect_timekeeper(true);
      if (!execute(timekeeper_)) {
        std::exchange(timekeeper_, nullptr).destroy();
        alarm_.expect_timekeeper(false);
        refused();
      }
    }
  }
  if constexpr (requires { static_cast<std::size_t>(ex_.idle()); }) {
    // One for a thread that idles later, if it does before we are done here.
    workers = std::min(workers, 1 + std::max<std::size_t>(idle_threads(), 1));
  }
  this->begin_work(workers);
}

// ---- Halting ----

/// No sample starts any more. By who is counted.
template <class Types>
void batch_engine<Types>::halt_once(halt why) noexcept {
  halt expected = halt::none;
  if (!why_.compare_exchange_strong(expected, why)) return;
  std::stop_source waits = needs_.gates ? wait_.take(true) : std::stop_source(std::nostopstate);
  std::stop_source reading = reading_stop_;
  if (needs_.clock) alarm_.wake();  // what sleeps will not be tried again
  waits.request_stop();
  reading.request_stop();
}

/// The same, and what is in flight is asked to stop. Runs the stop callbacks of predicts.
template <class Types>
void batch_engine<Types>::request_stop(halt why) {
  halt unasked = halt::none;
  if (!asked_.compare_exchange_strong(unasked, why)) return;
  halt expected = halt::none;
  const bool first = why_.compare_exchange_strong(expected, why);
  // Whoever is resumed by one of these may end the batch: *this is not touched any more.
  std::stop_source attempts = attempts_stop_;
  std::stop_source reading = reading_stop_;
  std::stop_source sleep = needs_.clock ? alarm_.take() : std::stop_source(std::nostopstate);
  std::stop_source waits = first && needs_.gates ? wait_.take(true) : std::stop_source(std::nostopstate);
  sleep.request_stop();
  waits.request_stop();
  reading.request_stop();
  attempts.request_stop();
}

template <class Types>
void batch_engine<Types>::count_failure() {
  const std::size_t most = options_.max_failures;
  if (most == unlimited || asked_.load(std::memory_order_relaxed) != halt::none) return;
  if (failures_.fetch_add(1, std::memory_order_relaxed) + 1 >= most) request_stop(halt::failures);
}

/// What a failure is called: after a stop was asked for, that is the reason of the stop.
template <class Types>
errc batch_engine<Types>::reason(bool timed_out) const noexcept {
  if (timed_out) return errc::timed_out;
  switch (const halt asked = asked_.load(std::memory_order_relaxed)) {
    case halt::none: return errc::exception;
    case halt::closed: return errc::cancelled;
    default: return meaning(asked);
  }
}

// ---- The next sample ----

template <class Types>
index_range batch_engine<Types>::claim_indices(std::size_t most) {
  index_range got;
  if constexpr (source::indexed) {
    if (this->take_rest([&](portion& rest) {
          got = {rest.begin, rest.begin + std::min(most, rest.size())};
          rest.begin = got.end;
        })) {
      return got;
    }
    got = source_.claim_range(most, this->most_workers());
    if (!got.empty()) sink_.make_room(got);
  }
  return got;
}

template <class Types>
bool batch_engine<Types>::refill(loop& here, worker& self) {
  if constexpr (source::indexed) {
    self.portion = claim_indices(here.pace.claim());
    if (self.portion.empty() && !shelves_.steal(self.portion)) return false;
    return true;
  } else {
    return this->take_rest([&](portion& rest) { self.portion = std::exchange(rest, portion{}); });
  }
}

template <class Types>
auto batch_engine<Types>::pull([[maybe_unused]] loop& here, [[maybe_unused]] portion& to,
                               [[maybe_unused]] std::size_t most) -> step {
  claim answer = claim::exhausted;
  if constexpr (source::awaited) {
    answer = reader_.pull(to);
  } else if constexpr (!source::indexed) {
    if (source_.exhausted()) return step::none;
    constexpr int patience = 20;  // a turn of reading mostly takes less than starting another worker
    if (!source_.turn().enter(patience)) return step::elsewhere;
    const time asked = options_.observer ? now_of(ex_) : time::zero();
    answer = source_.pull(to, most, sink_, [&](item_type& item) { unreadable(item); });
    if (options_.observer && !to.empty()) to.first().waited = now_of(ex_) - asked;
    if (source_.turn().leave()) {
      // Not for samples that cost less than another worker.
      if (here.pace.cheap()) {
        here.owes_worker = true;
      } else if (!source_.exhausted()) {
        this->start_worker();
      }
    }
  }
  switch (answer) {
    case claim::taken: return step::finished;
    case claim::elsewhere: return step::elsewhere;
    default: return step::none;
  }
}

/// finished: there is one in self.sample.
template <class Types>
auto batch_engine<Types>::next_sample(loop& here, lane& self, worker* driver) -> step {
  self.is_twin = false;
  if (needs_.retries && retries_.take(self.sample)) {
    head.drop_spare_holder();
    self.target = self.sample.slot;
    return step::finished;
  }
  if constexpr (source::indexed) {
    std::size_t index = 0;
    if (driver) {
      if (driver->portion.empty() && !refill(here, *driver)) return step::none;
      index = driver->portion.begin++;
    } else if (!shelves_.take(index, this_thread_number(), [&](std::size_t most) { return claim_indices(most); },
                              [&] { return now_of(ex_); })) {
      return step::none;
    }
    self.sample = {index, sink_.made_slot(index), nullptr, 0};
  } else {
    portion one;
    portion& from = driver ? driver->portion : one;
    if (from.empty()) {
      if (driver) {
        refill(here, *driver);
      } else {
        this->take_rest([&](portion& rest) { one.push(rest.pop()); });
      }
    }
    if (from.empty()) {
      constexpr std::size_t most_ahead = 64;
      std::size_t most = driver ? here.pace.claim() : 1;
      if (!Types::can_pause) most = std::clamp<std::size_t>(most_ahead / this->most_workers(), 1, most);
      if (const step found = pull(here, from, most); found != step::finished) return found;
    }
    item_type& item = from.pop();
    self.sample = {item.index, item.slot, &item, 0};
    self.waited_for[static_cast<std::size_t>(wait_for::input)] += item.waited;
  }
  self.target = self.sample.slot;
  return step::finished;
}

/// Whether a worker that has no lane needs one.
template <class Types>
auto batch_engine<Types>::before_a_lane(loop& here, worker& self) -> step {
  if (halted()) return step::none;
  if (needs_.hedges && watch_.wanted()) return step::finished;
  if (needs_.gates && asking_.is_taken()) return anything_to_start(&self) ? step::queued : step::none;
  if (needs_.retries && retries_.any_ready()) return step::finished;
  if (!self.portion.empty() || refill(here, self)) return step::finished;
  if constexpr (!source::indexed) {
    if (reader_.any() || !source_.exhausted()) return step::finished;
  }
  return step::none;
}

template <class Types>
bool batch_engine<Types>::work_visible() {
  if (needs_.retries && retries_.any_ready()) return true;
  if (this->any_rest()) return true;
  if constexpr (source::indexed) {
    return !source_.exhausted() || shelves_.any();
  } else {
    return reader_.any() || sink_.room_came();
  }
}

/// Before somebody who was counted goes; true: not yet. See head_count.
template <class Types>
bool batch_engine<Types>::last_look(loop& here, step why) {
  bool again = false;
  if (halted()) {
    if (needs_.retries) give_up_sleepers(true);
    if constexpr (!source::indexed) {
      portion left;
      while (this->take_rest([&](portion& rest) { left = std::exchange(rest, portion{}); })) give_up(here, left);
      if constexpr (source::awaited) {
        if (reader_.take(left)) give_up(here, left);
      }
    }
  } else if (why == step::queued) {
    again = !asking_.ask();
  } else if (why == step::elsewhere) {
    if constexpr (!source::indexed) again = !source_.turn().ask();
  } else {
    again = work_visible();
    // Whoever waits for a permit without a sample need not wait any more.
    if (!again && why == step::none && needs_.gates) wait_.take(false).request_stop();
  }
  if (Types::can_pause && (halted() || source_.exhausted()) && input_counted_.exchange(false)) head.drop_spare_holder();
  return again;
}

/// Samples that were read and will not be started.
template <class Types>
void batch_engine<Types>::give_up([[maybe_unused]] loop& here, [[maybe_unused]] portion& left) {
  if constexpr (!source::indexed) {
    const errc why = why_halted() == halt::executor ? errc::executor_stopped : errc::not_started;
    while (!left.empty()) {
      item_type& item = left.pop();
      const sample_type sample{item.index, item.slot, &item, 0};
      settle(sample.slot, error(why, {}, 0));
      if (sink_.drops_unstarted(sample.index)) {
        sink_.unreserve(item);
        continue;
      }
      if (options_.observer) {
        ++here.finished;
        report_.finished(sample, now_of(ex_));
      }
      sink_.settled(here.done, sample);
    }
    hand_over(here);
  }
}

// ---- A sample's way ----

/// One sample in a lane, or more where they do not suspend.
template <class Types>
auto batch_engine<Types>::drive(loop& here, lane& self, worker* driver) -> step {
  // Its permit may have been handed over since the attempt began.
  if (needs_.plain && !self.in_way && (self.at == stage::attempt || !needs_turn(self))) [[likely]] {
    return drive_plainly(here, self, driver);
  }
  self.loop = &here;
  self.worker = driver;
  here.mark.reopen(&self);
  self.mark = &here.mark;
  const step said = self.drive();  // lost: self may be gone
  if (said == step::finished) {
    if (here.pace.tick()) look(here);
  }
  return said;
}

/// Where nothing happens to a sample but its predict. This is the loop that decides what a sample costs; it touches
/// nothing that is shared, and little else.
template <class Types>
auto batch_engine<Types>::drive_plainly(loop& here, lane& self, worker* driver) -> step {
  if (self.at == stage::attempt) {
    self.at = stage::idle;
    collect<true>(self);
    self.waited = true;
    finished_plainly(here, self, driver);
    if (here.pace.tick()) look(here);
    return step::finished;
  }
  if (halted()) return step::none;
  self.waited = false;
  self.mark = &here.mark;
  do {
    if constexpr (source::indexed) {
      if (driver && !driver->portion.empty()) [[likely]] {
        self.sample.index = driver->portion.begin++;
        self.sample.slot = self.target = sink_.made_slot(self.sample.index);
      } else if (const step found = next_sample(here, self, driver); found != step::finished) {
        return found;
      }
    } else {
      if (const step found = next_sample(here, self, driver); found != step::finished) return found;
    }
    self.sample.attempts = 1;
    here.mark.reopen(&self);
    self.at = stage::attempt;
    const begun state = begin<true>(self, here.mark);
    if (state == begun::suspended && !here.mark.finished()) return step::lost;  // self may be gone
    self.at = stage::idle;
    if (state != begun::settled) collect<true>(self);
    finished_plainly(here, self, driver);
    if (here.pace.tick()) {
      look(here);
      break;
    }
  } while (!halted() && !(this->is_hungry() && here.pace.sharing_due()) && !here.late && !needs_turn(self));
  return step::finished;
}

template <class Types>
[[gnu::always_inline]] inline void batch_engine<Types>::finished_plainly(loop& here, lane& self, worker* driver) {
  settled(driver ? here.done : self.done, self.sample);
  self.sample.item = nullptr;
  if (needs_.gates && share_.is_over(self, self.waited, wait_.under_way(), ex_)) hand_over_permit(self);
}

/// The whole way of one sample after another, from top to bottom.
template <class Types>
typename batch_lane<Types>::way batch_engine<Types>::one_sample_after_another(batch_engine& e, lane& self) {
  const batch_options& options = e.options_;
  for (;;) {
    // -- What it must have before it starts: permits, itself, more permits, the rate. --
    if (!self.is_twin) {
      if (e.halted()) {
        co_await self.says(step::none);
        continue;
      }
      if (e.needs_.hedges && e.watch_.wanted()) e.take_hedge(self);
    }
    if (!self.is_twin) {
      if (e.needs_turn(self)) {
        if (!e.anything_to_start(self.worker)) {
          co_await self.says(step::none);
          continue;
        }
        if (!e.asking_.enter()) {
          co_await self.says(step::queued);
          continue;
        }
        self.has_turn = true;
      }
      entry came = entry::passed;
      step found = step::none;
      bool has_sample = false;
      if (options.limit) {
        semaphore_gate<batch_engine, lane> gate(e, self, adaptive_access::semaphore(*options.limit), 1,
                                                self.limit_permit);
        came = co_await gate;
      }
      if (came == entry::passed && options.semaphore && !names::weighs) {
        semaphore_gate<batch_engine, lane> gate(e, self, *options.semaphore, 1, self.shared_permit);
        came = co_await gate;
      }
      if (came == entry::passed || (came == entry::expired && !source::awaited)) {
        found = e.next_sample(*self.loop, self, self.worker);
        has_sample = found == step::finished;
      }
      if (!has_sample) {
        e.leave_turn(self);
        if (came == entry::expired && !e.halted()) continue;  // no sample has waited
        co_await self.says(found);
        continue;
      }
      if (names::weighs && came == entry::passed && !e.weigh(self)) {
        co_await self.says(step::finished);
        continue;
      }
      self.has_sample = true;
      if (came == entry::passed && e.weights_) {
        semaphore_gate<batch_engine, lane> gate(e, self, *e.weights_, self.weight, self.weight_permit);
        came = co_await gate;
      }
      if (came == entry::passed && options.semaphore && names::weighs) {
        semaphore_gate<batch_engine, lane> gate(e, self, *options.semaphore, self.weight, self.shared_permit);
        came = co_await gate;
      }
      if constexpr (names::has_timers) {
        if (came == entry::passed && options.rate) {
          rate_gate<batch_engine, lane, executor_type> gate(e, self, *options.rate, self.weight, e.ex_);
          came = co_await gate;
        }
      }
      self.has_sample = false;
      e.leave_turn(self);
      if (came != entry::passed) {
        e.refuse(self, came);
        co_await self.says(step::finished);
        continue;
      }
    }

    // -- The attempt. --
    if (e.may_begin(self)) {
      predict_call<batch_engine, lane> attempt(e, self);
      co_await attempt;
      e.attempt_ended(self);
    }
    if (self.pair) {
      if (!e.end_pair(self)) {
        co_await self.says(step::finished);  // the other one ends the sample
        continue;
      }
    } else {
      e.give_way(self);
    }

    // -- Again, after a while; or its outcome is final. --
    if (!e.try_again(self)) e.sample_final(self);
    co_await self.says(step::finished);
  }
}

/// Whether there is a sample that could be started in the loop of this worker, or of none.
template <class Types>
bool batch_engine<Types>::anything_to_start(const worker* here) {
  if (needs_.retries && retries_.any_ready()) return true;
  if (here && !here->portion.empty()) return true;
  if (this->any_rest()) return true;
  if constexpr (source::indexed) {
    return !source_.exhausted() || shelves_.any();
  } else {
    return reader_.any() || !source_.exhausted();
  }
}

/// False: it has no weight, its cost() threw.
template <class Types>
bool batch_engine<Types>::weigh([[maybe_unused]] lane& self) {
  if constexpr (names::weighs) {
    const auto cost = [&] {
      const std::size_t asked = predict_.cost(std::as_const(source_.get(self.sample.item, self.sample.index)));
      self.weight = std::max<std::size_t>(asked, 1);
      return true;
    };
    return guarded(cost, [&] {
      settle(self.sample.slot, error(errc::exception, std::current_exception(), self.sample.attempts));
      leave_turn(self);
      note_end(self);
      count_failure();
      sample_final(self);
      return false;
    });
  } else {
    return true;
  }
}

/// The sample comes to its end before its attempt.
template <class Types>
void batch_engine<Types>::refuse(lane& self, entry why) {
  sample_type& sample = self.sample;
  self.weight_permit.release();
  if (names::weighs) self.shared_permit.release();
  note_end(self);
  if (why == entry::stopped) {
    // Where it had been tried before, its last error stands.
    const errc unstarted = why_halted() == halt::executor ? errc::executor_stopped : errc::not_started;
    if (sample.attempts == 0) {
      settle(sample.slot, error(unstarted, {}, 0));
      if (sink_.drops_unstarted(sample.index)) {
        if constexpr (!source::indexed) sink_.unreserve(*std::exchange(sample.item, nullptr));
        return;
      }
    }
  } else {
    const errc code = why == entry::expired ? errc::queue_timed_out : errc::cost_exceeds_capacity;
    settle(sample.slot, error(code, {}, sample.attempts));
    count_failure();
  }
  sample_final(self);
}

template <class Types>
void batch_engine<Types>::leave_turn(lane& self) {
  // self is counted, so whoever is started is never the last.
  if (std::exchange(self.has_turn, false) && asking_.leave() && !halted()) this->start_worker();
}

/// False: a second attempt of a sample that will not be made.
template <class Types>
bool batch_engine<Types>::may_begin(lane& self) {
  if (!self.is_twin) return true;
  if (halted()) {
    make_own(self, error(reason(false), {}, self.sample.attempts));
  } else if (watch_.lost_already(self)) {
    make_own(self, error(errc::not_started, {}, 0));
  } else {
    return true;
  }
  note_end(self);
  return false;
}

/// Calls predict for self.sample. What it comes to goes to self.target. Plain, here and below: nothing is to be counted
/// or watched.
template <class Types>
template <bool Plain>
[[gnu::always_inline]] inline auto batch_engine<Types>::begin(lane& self, start_mark& mark) -> begun {
  bool readable = false;
  const auto call = [&]() -> typename traits::raw {
    auto&& sample = static_cast<typename traits::argument>(source_.get(self.sample.item, self.sample.index));
    readable = true;
    if (!Plain) before_attempt(self);
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
      settle(self.sample.slot, error(errc::input_failed, std::current_exception(), 0));
      note_end(self);
      halt_once(halt::input);
    }
    return begun::settled;
  });
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
  if (self.target) {
    settle(self.target, error(reason(self.timed_out), std::current_exception(), self.sample.attempts));
  }
}

/// Writes what predict came to. Whatever throws here is the sample's exception.
template <class Types>
template <bool Plain, class... Value>
void batch_engine<Types>::store(lane& self, Value&&... outcome) {
  if (!Plain) {
    measure(self);
    if (!self.target) return;
  }
  result& slot = *self.target;
  if constexpr (is_expected_v<typename names::value>) {
    rewrite(slot, std::forward<Value>(outcome)...);
    if (!slot.has_value()) {
      const errc why = reason(self.timed_out);
      if constexpr (std::is_same_v<error_type, error>) {
        slot.error().attempts = self.sample.attempts;
        if (why != errc::exception) slot.error().code = why;
      } else {
        if (why != errc::exception) settle(&slot, error(why, {}, self.sample.attempts));
      }
    }
  } else {
    rewrite_value<typename names::value>(slot, std::forward<Value>(outcome)...);
  }
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
  if (self.finished != 0) report_.add_finished(std::exchange(self.finished, 0));
  sink_.hand_over(self.done);
  if (!needs_.gates) return;
  self.limit_permit.release();
  self.weight_permit.release();
  hand_over_permit(self);
}

template <class Types>
void batch_engine<Types>::before_a_turn(lane& self) {
  if (self.shared_permit && share_.asked_for(wait_.under_way())) hand_over_permit(self);
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
  if (!names::repeats || !needs_.retries || halted() || sample.attempts >= policy.max_attempts) return final_failure();
  time delay = time::zero();
  const bool wanted = guarded(
      [&] {
        if (policy.retry_if) {
          if constexpr (std::is_same_v<error_type, error>) {
            if (!policy.retry_if(sample.slot->error())) return false;
          } else {
            if (!policy.retry_if(error(self.timed_out ? errc::timed_out : errc::exception, {}, sample.attempts))) {
              return false;
            }
          }
        }
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
  if (!at_once && due >= deadline_ && deadline_ != no_timeout) return final_failure();
  const double made = static_cast<double>(retries_made_.fetch_add(1, std::memory_order_relaxed) + 1);
  const auto give_up = [&] {
    retries_made_.fetch_sub(1, std::memory_order_relaxed);
    return final_failure();
  };
  if (policy.budget != unlimited_budget && made > policy.budget * samples_started()) return give_up();
  // Before anybody can take it up again.
  if (options_.observer) report_.retried(sample, self.ended, std::max(delay, time::zero()));
  head.add_holder();
  switch (retries_.push(sample, due, at_once)) {
    case retry_queue<sample_type>::pushed::no_memory: head.drop_spare_holder(); return give_up();
    case retry_queue<sample_type>::pushed::is_next: alarm_.wake(); break;
    default: break;
  }
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
  const bool waits = wait_.begin(stop, self.has_sample,
                                 times ? later(now_of(ex_), options_.queue_timeout) : no_timeout, [&] {
                                   return halted() || (!self.has_sample && !anything_to_start(self.worker));
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

// ---- Time ----

template <class Types>
void batch_engine<Types>::look(loop& here) {
  const time now = now_of(ex_);
  here.pace.look(now);
  if constexpr (Types::can_pause) {
    hand_over(here);
    if (cheap_.load(std::memory_order_relaxed) != here.pace.cheap()) {
      cheap_.store(here.pace.cheap(), std::memory_order_relaxed);
    }
  }
  if (deadline_ <= now && deadline_ != no_timeout && !halted()) request_stop(halt::deadline);
  if (this->most_workers() == 1 || source_.exhausted() || halted()) return;
  if (!source::indexed && here.pace.cheap()) return;
  if (std::exchange(here.owes_worker, false) || idle_threads() != 0) this->start_worker();
}

template <class Types>
void batch_engine<Types>::hand_over(loop& here) {
  if (here.finished != 0) report_.add_finished(std::exchange(here.finished, 0));
  sink_.hand_over(here.done);
}

/// Does what is due. How long to sleep then; zero or less: the batch has ended.
template <class Types>
auto batch_engine<Types>::expire() -> time {
  // First, so that whoever begins something from here on is either seen or sees it.
  alarm_.go_dormant();
  const time now = now_of(ex_);
  if (deadline_ <= now && deadline_ != no_timeout) request_stop(halt::deadline);
  time next_timeout = no_timeout;
  if (needs_.watches && needs_.timeouts && needs_.tokens) {
    next_timeout = watch_.expire(*this, now, [](std::stop_source& late) { late.request_stop(); });
  }
  if (needs_.gates && wait_.deadline() <= now) wait_.expire(now).request_stop();
  if (needs_.hedges && !halted()) start_due_hedges(now);
  if (needs_.retries) {
    if (halted()) {
      give_up_sleepers(false);
    } else {
      for (std::size_t woken = retries_.wake(now); woken > 0 && head.below_cap(); --woken) {
        this->start_worker_from_outside();
      }
    }
  }
  if (!alarm_.prepare_sleep()) return time::zero();
  const time next = next_event(now, next_timeout);
  return next == no_timeout ? no_timeout : std::max(next - now, time(1));
}

/// Whatever begins later is due no earlier than this, or wakes the timekeeper.
///
/// While attempts come and go, nobody needs to wake it: none that begins later can be due before a full delay from now.
/// But once it has looked in vain it goes dormant until it is woken: a batch that hangs must not look alive to a
/// simulation.
template <class Types>
auto batch_engine<Types>::next_event(time now, time next_timeout) -> time {
  time next = deadline_ > now && why_halted() != halt::deadline ? deadline_ : no_timeout;
  if (needs_.gates) next = std::min(next, wait_.deadline());
  if (needs_.retries) next = std::min(next, retries_.next_due());
  time from_now = no_timeout;
  bool waits = needs_.gates && wait_.deadline() != no_timeout;
  bool told = false;  // of what begins next, as looking after each delay would be too often
  const auto look_after = [&](time delay) {
    if (delay < shortest_look) {
      told = true;
    } else {
      from_now = std::min(from_now, later(now, delay));
    }
  };
  const auto consider = [&](time delay, time due) {
    if (due != no_timeout) {
      next = std::min(next, due);
      waits = true;
    } else {
      look_after(delay);
    }
  };
  if (needs_.watches && needs_.timeouts && needs_.tokens) consider(options_.timeout, next_timeout);
  if (options_.queue_timeout != no_timeout && needs_.gates) look_after(options_.queue_timeout);
  if (needs_.hedges && !halted() && !watch_.wanted()) {
    consider(watch_.hedge_delay(), watch_.next_hedge(*this, now, samples_started()));
  }
  const bool in_vain_again = !waits && looked_in_vain_;
  looked_in_vain_ = !waits;
  if (!in_vain_again && !told) alarm_.stay_awake();
  return in_vain_again ? next : std::min(next, from_now);
}

/// The batch is halted: what sleeps is not tried again, its last error stands.
template <class Types>
void batch_engine<Types>::give_up_sleepers(bool counted) {
  std::size_t given_up = 0;
  typename sink_type::handful done;
  retries_.drain([&](const sample_type& sample) {
    ++given_up;
    if (options_.observer) {
      report_.add_finished(1);
      report_.finished(sample, now_of(ex_));
    }
    sink_.settled(done, sample);
  });
  sink_.hand_over(done);
  bool last = false;
  for (; given_up > 0; --given_up) {
    if (counted) {
      head.drop_spare_holder();
    } else {
      last = head.drop_holder();
    }
  }
  if (last) over();
}

/// A lane for each attempt that is due to be doubled; at the cap, the next lane that is free takes it, ahead of new
/// samples.
template <class Types>
void batch_engine<Types>::start_due_hedges(time now) {
  if (!head.add_holder_unless_over()) return;
  while (watch_.due_weight(*this, now, samples_started()) != 0) {
    watch_.want(true);
    lane* const twin = this->take_lane();
    if (!twin) break;
    watch_.want(false);
    const bool doubled = double_oldest(*twin);
    if (doubled) {
      twin->comes_home = true;
      twin->mark = nullptr;
      if (!execute(twin->handle())) {
        refused();
        this->resumed(*twin);
      }
    } else {
      part_with(*twin);
      this->drop_lane(*twin);
      watch_.leave_oldest(*this);  // no permit: not this one
    }
  }
  if (head.drop_holder()) over();
}

/// A lane that looks for work takes over an attempt that waits to be doubled.
template <class Types>
bool batch_engine<Types>::take_hedge(lane& self) {
  watch_.want(false);
  const bool taken = double_oldest(self);
  alarm_.wake();  // it looks who is due next
  return taken;
}

/// The lane gets the second attempt of the sample that has been in flight longest, if it is due and all it needs is to
/// be had at once.
template <class Types>
bool batch_engine<Types>::double_oldest(lane& twin) {
  const time now = now_of(ex_);
  const std::size_t weight = watch_.due_weight(*this, now, samples_started());
  if (weight == 0 || halted()) return false;
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
  if (options_.semaphore) take(twin.shared_permit, *options_.semaphore, names::weighs ? weight : 1);
  // Its token must be a fresh one before the other attempt can win, and stop it.
  if (equipped && twin.stop_used && needs_.tokens) {
    guarded([&] { twin.renew_stop(attempts_stop()); }, [&] { equipped = false; });
  }
  if constexpr (names::has_timers) {
    equipped = equipped && (!options_.rate || options_.rate->try_acquire(ex_, weight));
  }
  twin.weight = weight;
  if (equipped && !halted() && watch_.double_oldest(*this, twin, now, samples_started())) {
    twin.is_twin = true;
    return true;
  }
  twin.weight_permit.release();  // its next sample may weigh more
  if (names::weighs) twin.shared_permit.release();
  return false;
}

// ---- The end ----

/// Nobody is counted any more.
template <class Types>
void batch_engine<Types>::over() {
  if (needs_.clock) {
    std::stop_source wake = alarm_.end();
    if (!alarm_.one_end()) {
      wake.request_stop();  // *this may be gone
      return;
    }
  }
  finish();
}

/// Its timers may be gone before the batch is: then what sleeps has nobody else to end it.
template <class Types>
void batch_engine<Types>::timekeeper_ended() {
  timekeeper_ = nullptr;
  alarm_.timekeeper_gone();
  if (needs_.retries && halted()) give_up_sleepers(false);
  if (alarm_.one_end()) finish();
}

template <class Types>
void batch_engine<Types>::finish() {
  if (options_.observer) report_.ended(why_halted());
  sink_.complete();  // *this may be gone
}

}  // namespace cobatch::detail
