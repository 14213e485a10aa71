#pragma once

#include <algorithm>
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
#include <cobatch/detail/atomic.hpp>
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

/// What a batch is made of. What its parts do is in batch_way.hpp, batch_attempt.hpp and batch_end.hpp; batch.hpp has all of
/// it, README.md in this folder the picture.

namespace cobatch::inline COBATCH_ABI::detail {

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
///     window()                       of a stream that gives its results in input order; else 0
///     complete()                     all is over; *this may be gone after it
template <class Types>
class batch_engine : public batch_crew<Types> {
  using names = batch_types<Types>;
  using crew = batch_crew<Types>;
  using executor_type = typename names::executor;
  using sink_type = typename names::sink;
  using error_type = typename names::error_type;
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
  enum class begun : unsigned char { suspended, ready, settled };

  /// What it knows of predict, whose type only these functions know.
  struct predict_calls {
    bool takes_token;
    bool repeats;           // not where it takes its samples away: it cannot be called a second time with the same one
    std::size_t work_size;  // what it returns is awaited in so many bytes
    step (*drive_plainly)(batch_engine&, loop&, lane&, worker*);
    begun (*begin)(batch_engine&, lane&, start_mark&);
    void (*collect)(batch_engine&, lane&);
    void (*abandon)(lane&) noexcept;
    std::size_t (*cost)(batch_engine&, lane&);
  };

  template <class Predict>
  batch_engine(executor_type& ex, source& samples, Predict& predict, sink_type& sink, const batch_options& options,
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
    if constexpr (!source::indexed) here.pace.read_one_by_one();
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
  begun begin(lane& self, start_mark& mark) { return calls_.begin(*this, self, mark); }
  void collect(lane& self) { calls_.collect(*this, self); }
  const predict_calls& calls() const noexcept { return calls_; }
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
  template <class Predict>
  step drive_plainly(loop& here, lane& self, worker* driver);
  void finished_plainly(loop& here, lane& self, worker* driver);
  bool needs_turn(const lane& self) const noexcept {
    return needs_.gates && !(!needs_.gates_anew && (!options_.semaphore || self.shared_permit));
  }
  bool anything_to_start(const worker* here);
  bool waits_for_input(const worker* here);
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
  bool worth_another(const lane& self);
  bool try_again(lane& self);
  void sample_final(lane& self);
  using handful = typename sink_type::handful;
  void settled(handful& done, const sample_type& sample);
  void note_end(lane& self) noexcept;
  void measure(lane& self) noexcept;
  template <class Predict>
  static constexpr predict_calls calls_of();
  template <class Predict>
  static auto& work_of(lane& self) noexcept;
  template <class Predict, bool Plain>
  begun begin_with(lane& self, start_mark& mark);
  template <class Predict, bool Plain>
  void collect_with(lane& self);
  template <class PredictValue, bool Plain, class... Value>
  void store(lane& self, Value&&... outcome);
  template <bool Plain>
  void failed(lane& self);
  template <bool Plain>
  void fail(lane& self, error why);
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
  void* const predict_;
  const predict_calls calls_;
  source& source_;
  sink_type& sink_;
  const batch_options options_;
  const batch_needs<Types> needs_;

  // Each set once, by whoever halts the batch; the first is read before each sample. They order nothing but themselves.
  // `why_`: no sample starts any more. `asked_`: and what is in flight was asked to stop; never `input` or `executor`.
  atomic<halt> why_{halt::none}, asked_{halt::none};
  // Counts, ordering nothing.
  atomic<std::size_t> failures_{0}, samples_started_{0}, retries_made_{0};

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
  atomic<bool> cheap_{false};           // a hint for the consumer of a stream; written by who looks at the clock
  atomic<bool> owes_worker_{false};     // a hint: somebody asked to read while samples were cheap
  atomic<bool> input_counted_{false};   // a stream whose input has not ended is a holder
  std::stop_source attempts_stop_{std::nostopstate}, reading_stop_{std::nostopstate};
  std::stop_token attempts_token_;

  struct on_user_stop {
    batch_engine* self;
    void operator()() const noexcept { self->request_stop(halt::user); }
  };
  std::stop_token user_stop_;
  std::optional<std::stop_callback<on_user_stop>> user_link_;
};

}  // namespace cobatch::detail
