#pragma once

#include <chrono>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <stop_token>
#include <type_traits>
#include <utility>

#include <cobatch/batch_types.hpp>
#include <cobatch/detail/attempt.hpp>
#include <cobatch/detail/config.hpp>
#include <cobatch/detail/intrusive_list.hpp>
#include <cobatch/detail/pump_core.hpp>
#include <cobatch/detail/source.hpp>
#include <cobatch/rate_limiter.hpp>
#include <cobatch/semaphore.hpp>

namespace cobatch::detail {

template <class Types>
class batch_engine;

/// The lists by which time finds a lane.
struct timeout_tag {};
struct hedge_tag {};

/// What a lane's handle waits for.
enum class lane_stage : std::uint8_t { idle, input, permit, rate, attempt, twin };

/// What stands between a lane and its next attempt, in this order. A weighted sample is read before its permits are
/// sought, for it tells how many; any other sample is read when the permits are there.
enum class admission_step : std::uint8_t { limit, shared, sample, weight, weighted_shared, rate, done };

/// What became of one step. Kept in a lane, `waits` means that nothing came back yet.
enum class verdict : std::uint8_t { waits, passed, stopped, too_heavy };

/// Two attempts of the same sample, guarded by the engine's mutex.
template <class Lane>
struct hedge_pair {
  Lane* runners[2];              // the first attempt and the second; null once it has ended
  Lane* owner_waits = nullptr;   // the first one, where it has ended but the second still uses its sample
  std::uint8_t inside = 2;       // who has not ended or still writes
  bool won = false;              // a value is there
  std::uint32_t attempts = 0;    // calls of predict, as far as they have ended

  Lane* other(const Lane* self) const noexcept { return runners[0] == self ? runners[1] : runners[0]; }
};

/// One sample in flight; the promise of its own coroutine, so that it is one piece of memory.
template <class Types>
class batch_lane : public lane_base<batch_lane<Types>>,
                   public list_link<timeout_tag>,
                   public list_link<hedge_tag> {
  using names = batch_types<Types>;
  using engine_type = batch_engine<Types>;
  using result = typename names::result;
  using cell_type = typename names::cell;

 public:
  using typename lane_base<batch_lane>::coroutine;

  /// Null where there is no memory.
  static batch_lane* make(engine_type& engine) {
    batch_lane* made = nullptr;
    const auto make = [&] {
      made = body(engine).made;
      if (engine.needs_.tokens) made->renew_stop();
      return made;
    };
    return guarded(make, [&]() -> batch_lane* {
      if (made) made->handle().destroy();
      return nullptr;
    });
  }

  explicit batch_lane(engine_type& owner) noexcept : engine(owner) {}

  bool queues() const noexcept {
    return stage == lane_stage::permit || stage == lane_stage::rate || stage == lane_stage::input;
  }

  /// Its attempt uses the sample of another lane, or that of a lane that waits for it.
  bool is_twin() const noexcept { return sample != &cell; }

  /// Destroys a lane that is suspended for good.
  void abandon() noexcept {
    if (pair && --pair->inside == 0) delete pair;
    if constexpr (names::traits::is_awaitable) {
      if (stage == lane_stage::attempt) work.abandon();
    }
    if constexpr (is_awaited<typename names::source>) {
      if (stage == lane_stage::input) input_wait.abandon();
    }
    if (stage == lane_stage::permit) permit_wait.abandon();
    if constexpr (names::has_timers) {
      if (stage == lane_stage::rate) rate_wait.abandon();
    }
    this->handle().destroy();
  }

  /// Gives the next attempts a stop token that nobody has stopped, unless the batch has.
  void renew_stop() {
    link.reset();
    stop = std::stop_source();
    link.emplace(engine.halting_.token(), on_stop{this});
    stop_used = false;
  }

  /// So that a stop of the batch reaches the attempt.
  struct on_stop {
    batch_lane* self;
    void operator()() const noexcept {
      std::stop_source source = self->stop;  // the lane may end inside the call
      source.request_stop();
    }
  };

  struct none {};
  using work_type = typename std::conditional_t<names::traits::is_awaitable,
                                                std::type_identity<attempt<typename names::traits::raw>>,
                                                std::type_identity<none>>::type;
  using permit_wait_type = attempt<decltype(std::declval<async_semaphore&>().acquire(1, std::stop_token()))>;

  engine_type& engine;
  lane_stage stage = lane_stage::idle;
  admission_step step = admission_step::limit;
  verdict came_back = verdict::waits;  // of the step it waited at
  bool queue_expired = false;          // queue_timeout is why the wait was stopped
  bool has_turn = false;        // it holds the turnstile,
  bool has_input_turn = false;  // and that of the input
  bool has_sample = false;  // read, or come back for another attempt, and not yet started
  bool timed_out = false;   // these two are guarded by the engine's mutex while others may find the lane
  bool stop_used = false;   // its stop token was stopped for an attempt that is over
  std::uint32_t attempts = 0;
  std::size_t index = 0;
  result* slot = nullptr;
  void* room = nullptr;  // the sink's, with the slot
  result* target = nullptr;  // where the attempt writes: slot, or own
  cell_type cell;
  cell_type* sample = &cell;  // or the cell of the lane whose attempt this one doubles
  [[no_unique_address]] work_type work;

  // Only for what the options ask for.
  std::size_t weight = 1;
  permit limit_permit, shared_permit, weight_permit;
  std::size_t kept_on = 0;              // samples for which shared_permit was kept though others wait for it,
  std::chrono::nanoseconds kept_since = no_timeout;  // and since when; see must_hand_over()
  permit_wait_type permit_wait;
  [[no_unique_address]] typename names::rate_wait rate_wait;
  [[no_unique_address]] typename names::input_wait input_wait;
  std::chrono::nanoseconds started{}, ended{};  // of the last attempt
  bool follows = false;  // nothing but our own code runs between its end and the next one's start
  std::size_t in_flight_at_start = 0;
  hedge_pair<batch_lane>* pair = nullptr;  // guarded by the engine's mutex
  std::optional<result> own;
  std::size_t in_flight_then = 0;             // when the attempt started
  bool observed = false;                      // the observer knows of the attempt
  std::size_t finished = 0;                   // samples that have come to their end in this lane
  std::chrono::nanoseconds wait_began{};
  std::chrono::nanoseconds waited_for[3]{};  // by wait_for, since the last attempt
  std::stop_source stop{std::nostopstate};
  std::optional<std::stop_callback<on_stop>> link;

 private:
  static coroutine body(engine_type&) {
    for (;;) co_await typename lane_base<batch_lane>::pass_on();
  }
};

}  // namespace cobatch::detail
