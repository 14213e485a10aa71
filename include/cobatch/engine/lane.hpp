#pragma once

#include <array>
#include <chrono>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <stop_token>
#include <type_traits>
#include <utility>

#include <cobatch/detail/atomic.hpp>
#include <cobatch/detail/config.hpp>
#include <cobatch/detail/frame_pool.hpp>
#include <cobatch/detail/start_mark.hpp>
#include <cobatch/engine/pace.hpp>
#include <cobatch/engine/types.hpp>
#include <cobatch/error.hpp>
#include <cobatch/semaphore.hpp>

/// What runs a batch: lanes, each one sample in flight, and workers, each a loop on a thread of the executor.

namespace cobatch::inline COBATCH_ABI::detail {

/// A coroutine that passes every resumption on to `Engine::resumed(Self&)`, from inside an await_suspend: there it
/// counts as suspended, so that it may be handed over again at once, and on any thread.
///
/// A resumption that is nested in the very call that handed it over, under a start_mark, ends there: the caller sees
/// the mark finished and goes on itself, on a flat stack. Self derives from it and is the promise.
template <class Self>
class relayed : public pooled_frame {
 public:
  struct coroutine {
    using promise_type = Self;
    Self* made;
  };

  coroutine get_return_object() noexcept { return {static_cast<Self*>(this)}; }
  std::suspend_always initial_suspend() const noexcept { return {}; }
  std::suspend_always final_suspend() const noexcept { return {}; }
  void return_void() const noexcept {}
  void unhandled_exception() const noexcept { fail("an exception left the batch engine"); }

  std::coroutine_handle<Self> handle() noexcept {
    return std::coroutine_handle<Self>::from_promise(static_cast<Self&>(*this));
  }

  start_mark* mark = nullptr;  // of who last handed it over, or drove it

 protected:
  struct pass_on {
    bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<Self> self) const noexcept {
      Self& here = self.promise();
      if (here.mark && start_mark::finish(here.mark, &here)) return;
      here.engine.resumed(here);
    }
    void await_resume() const noexcept {}
  };

  COBATCH_COROUTINES_BEGIN
  template <class Engine>
  static coroutine relay(Engine&) {
    for (;;) co_await pass_on();
  }
  COBATCH_COROUTINES_END
};

/// One sample, wherever it is: in a lane, or asleep until its next attempt.
template <class Types>
struct sample_state {
  using result = typename batch_types<Types>::result;
  using item_type = typename batch_types<Types>::source::template item_for<result>::item;

  std::size_t index = 0;
  result* slot = nullptr;     // where its outcome goes
  item_type* item = nullptr;  // what was read, where it does not lie in the caller's range
  std::uint32_t attempts = 0;
};

template <class Types>
class batch_engine;
template <class Types>
class batch_worker;
template <class Types>
class batch_loop;
template <class Types>
struct hedge_pair;

/// What one sample in flight needs. The frame is one piece of memory; it is used again for the next sample, and lives
/// until the batch ends.
template <class Types>
class batch_lane : public relayed<batch_lane<Types>> {
  using names = batch_types<Types>;
  using engine_type = batch_engine<Types>;

 public:
  using result = typename names::result;
  /// What the lane's handle waits for.
  enum class stage : std::uint8_t { idle, attempt, wait };
  /// What a sample's way says to the loop that drives it.
  enum class step : std::uint8_t {
    lost,       ///< nothing: it waits, and will be resumed
    finished,   ///< a sample has come to its end
    none,       ///< there is no sample
    elsewhere,  ///< there may be one, for which somebody will start a worker
    queued,     ///< somebody else is asking for permits
    full,       ///< there is no lane for it
  };
  /// The coroutine that takes samples their way, where there is more to it than a call of predict.
  class way {
   public:
    class promise_type : public pooled_frame {
     public:
      way get_return_object() noexcept { return {std::coroutine_handle<promise_type>::from_promise(*this)}; }
      std::suspend_always initial_suspend() const noexcept { return {}; }
      std::suspend_always final_suspend() const noexcept { return {}; }
      void return_void() const noexcept {}
      void unhandled_exception() const noexcept { fail("an exception left the batch engine"); }
    };
    std::coroutine_handle<> handle;
  };

  /// Null where there is no memory.
  static batch_lane* make(engine_type& engine, bool has_way, const std::stop_token* stops) {
    batch_lane* made = nullptr;
    const auto all = [&] {
      made = batch_lane::relay(engine).made;
      if (const std::size_t size = engine.calls().work_size) made->work = frame_pool::allocate(size);
      if (has_way) made->way_ = engine_type::one_sample_after_another(engine, *made).handle;
      if (stops) made->renew_stop(*stops);
      return made;
    };
    return guarded(all, [&]() -> batch_lane* {
      if (made) made->destroy();
      return nullptr;
    });
  }

  explicit batch_lane(engine_type& owner) noexcept : engine(owner) {}

  void destroy() noexcept {
    end_way();
    if (work) frame_pool::deallocate(work, engine.calls().work_size);
    this->handle().destroy();
  }
  /// Ends what it waits for, where it will not be resumed.
  void end_way() noexcept {
    if (way_) std::exchange(way_, nullptr).destroy();
  }

  /// Where the batch is given up because its executor was deserted: what it waits with goes.
  void abandon() noexcept {
    if (at == stage::attempt) engine.calls().abandon(*this);
    at = stage::idle;
  }

  /// Drives its way until that says something; `lost` where it waits instead, and then *this may be gone.
  step drive() {
    step said = step::lost;
    said_ = &said;
    in_way = true;
    way_.resume();
    return said;
  }
  /// `co_await lane.says(step)` in its way.
  auto says(step what) noexcept {
    struct awaiter {
      bool await_ready() const noexcept { return false; }
      void await_suspend(std::coroutine_handle<>) const noexcept {
        lane->in_way = false;
        *lane->said_ = what;
      }
      void await_resume() const noexcept {}
      batch_lane* lane;
      step what;
    };
    return awaiter{this, what};
  }

  /// Gives the next attempts a stop token that nobody has stopped, unless the batch has.
  void renew_stop(const std::stop_token& batch) {
    link.reset();
    stop = new_stop_source();
    link.emplace(batch, on_stop{this});
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

  struct nothing {};

  engine_type& engine;
  batch_loop<Types>* loop = nullptr;      // that drives it,
  batch_worker<Types>* worker = nullptr;  // and whose that is, if it is a worker's
  batch_lane* next = nullptr;       // in whichever list it is: free, or late
  batch_lane* next_made = nullptr;  // in that of all
  sample_state<Types> sample;
  result* target = nullptr;  // where the attempt writes: sample.slot, or own
  stage at = stage::idle;
  bool timed_out = false;
  bool stop_used = false;  // its stop token was stopped for an attempt that is over; see `since`
  bool follows = false;    // nothing but our own code has run since `ended`
  bool has_turn = false;   // it may ask for permits
  bool has_sample = false; // it was read, and waits for what else it needs
  bool end_known = false;  // `ended` was noted before it came home
  std::size_t finished = 0; // samples, that the observer's count does not know yet
  [[no_unique_address]] typename names::sink::handful done{};  // outcomes, while no worker drives it
  bool in_way = false;     // its way has not said how the sample ended
  bool is_twin = false;    // its attempt doubles another lane's
  bool waited = false;     // its attempt was suspended
  bool observed = false;   // the observer knows of the attempt
  bool comes_home = false;  // it is on its way to the executor
  void* work = nullptr;    // room for what predict returned, where that is to be awaited

  // Only for what the options ask for.
  std::size_t weight = 1;
  permit limit_permit, shared_permit, weight_permit;
  std::size_t kept_on = 0;                           // samples for which shared_permit was kept though others wait,
  std::chrono::nanoseconds kept_since = no_timeout;  // and since when
  std::chrono::nanoseconds started{}, ended{};       // of the last attempt
  std::size_t limit_in_flight = 0;                   // what the adaptive limit was told when it started
  std::size_t in_flight_then = 0;                    // the observer, likewise
  std::chrono::nanoseconds wait_began{};
  std::array<std::chrono::nanoseconds, 3> waited_for{};  // by wait_for, since the last attempt
  hedge_pair<Types>* pair = nullptr;                     // under the lock of the hedges
  std::optional<result> own;                             // of one of two attempts
  // Where the user's error type is not ours: ours, if that is what the last attempt came to.
  [[no_unique_address]] typename std::conditional_t<std::is_same_v<typename names::error_type, error>,
                                                    std::type_identity<nothing>,
                                                    std::type_identity<std::optional<error>>>::type cause;
  std::stop_source stop{std::nostopstate};
  std::optional<std::stop_callback<on_stop>> link;

  // When the attempt in flight began, for the timekeeper: nanoseconds times 4, and the two flags.
  //
  //     idle ───> since         the lane, when the attempt begins (release: what the timekeeper reads is there)
  //     since ──> idle          the lane, when it ends: exchange
  //     since ──> looked_at     the timekeeper, under the lock of attempt_watch, by compare-exchange
  //     looked_at ──> since     the timekeeper, perhaps with a flag more, before it unlocks
  //     looked_at ──> idle      the lane, when the attempt ends; it then waits for that lock
  static constexpr std::int64_t idle = INT64_MIN, looked_at = INT64_MIN + 1;
  static constexpr std::int64_t stopped = 1, doubled = 2;
  atomic<std::int64_t> since{idle};

 private:
  std::coroutine_handle<> way_;
  step* said_ = nullptr;
};

/// A loop on a thread of the executor that claims samples and starts lanes with them. At most as many as the executor
/// has threads; the frames live until the batch ends.
template <class Types>
class batch_worker : public relayed<batch_worker<Types>> {
  using engine_type = batch_engine<Types>;
  using result = typename batch_types<Types>::result;

 public:
  static batch_worker* make(engine_type& engine) {
    return guarded([&] { return batch_worker::relay(engine).made; }, []() -> batch_worker* { return nullptr; });
  }
  explicit batch_worker(engine_type& owner) noexcept : engine(owner) {}

  engine_type& engine;
  batch_worker* next = nullptr;       // in the list of those that rest
  batch_worker* next_made = nullptr;  // in that of all
  batch_worker* next_launched = nullptr;  // of who launched it
  typename batch_types<Types>::source::template item_for<result>::portion portion{};  // claimed and not yet started
  batch_lane<Types>* in_hand = nullptr;  // while it waits for its next turn
  loop_pace pace;                        // of its last loop
};

}  // namespace cobatch::detail
