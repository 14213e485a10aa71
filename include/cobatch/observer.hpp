#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <limits>
#include <type_traits>

#include <cobatch/detail/atomic.hpp>
#include <cobatch/detail/config.hpp>
#include <cobatch/error.hpp>

namespace cobatch::inline COBATCH_ABI {

/// A batch begins: the first thing that is told of it.
struct batch_info {
  std::uint64_t batch = 0;                                        ///< its number, unique in this process
  std::size_t samples = std::numeric_limits<std::size_t>::max();  ///< how many there are; max(): not known beforehand
  std::size_t limit = std::numeric_limits<std::size_t>::max();    ///< how many may be in flight; max(): no cap
  std::chrono::nanoseconds at{};                                  ///< on the executor's clock, as every `at`
  std::size_t window = 0;  ///< of an ordered stream: how many may run or wait for their turn; 0: none, or not told
};

/// What a lane (a place for one sample in flight) can wait for.
enum class wait_for : std::uint8_t {
  input,    ///< the next sample, from a source that is asynchronous or read one by one
  permits,  ///< of a semaphore, a cap on weights, or an adaptive limit
  rate,     ///< the rate limiter
};

/// A lane begins to wait, or has waited.
struct wait_event {
  static constexpr std::size_t no_sample = std::numeric_limits<std::size_t>::max();

  std::uint64_t batch = 0;
  const void* lane = nullptr;     ///< which; a key only, unique among the lanes of all batches at one time
  std::size_t index = no_sample;  ///< of the sample, if it was already read
  wait_for what = wait_for::input;
  std::size_t in_flight = 0;
  std::size_t limit = std::numeric_limits<std::size_t>::max();
  std::chrono::nanoseconds at{};
  std::chrono::nanoseconds waited{};  ///< zero where it begins
};

/// An attempt, one call of predict for one sample, starts or has ended.
struct attempt_event {
  std::uint64_t batch = 0;
  const void* lane = nullptr;
  std::size_t index = 0;      ///< of the sample in the input
  std::uint32_t attempt = 1;  ///< 1 for the first one of its sample
  bool hedge = false;         ///< it doubles one that takes long
  bool late = false;          ///< it ended after its timeout had passed (with a value, that counts nevertheless)
  errc failure{};             ///< why it has no value; errc{}: it has one, or has not ended
  std::size_t in_flight = 0;  ///< samples in flight when it started, this one included
  std::size_t limit = std::numeric_limits<std::size_t>::max();  ///< how many may be, just now; max(): no cap
  std::chrono::nanoseconds at{};
  std::chrono::nanoseconds ran{};               ///< since it started; zero where it starts
  std::chrono::nanoseconds waited_for_input{};  ///< these three: before it started, by its lane, since its last attempt
  std::chrono::nanoseconds waited_for_permits{};
  std::chrono::nanoseconds waited_for_rate{};

  bool succeeded() const noexcept { return failure == errc{}; }
};

/// A sample will be tried again.
struct retry_event {
  std::uint64_t batch = 0;
  std::size_t index = 0;
  std::uint32_t attempts = 1;  ///< made so far
  errc failure{};              ///< why the last one has no value
  std::chrono::nanoseconds at{};
  std::chrono::nanoseconds delay{};  ///< how long it sleeps before it queues again
};

/// A sample's outcome is final, or has been taken from a stream.
struct sample_event {
  std::uint64_t batch = 0;
  std::size_t index = 0;
  std::uint32_t attempts = 1;  ///< made in all; 0: it came to its end before the first one, or it is taken
  errc failure{};              ///< why it has no value; errc{}: it has one
  std::chrono::nanoseconds at{};
  std::chrono::nanoseconds
      waited_for_turn{};  ///< where it is taken: final, but an earlier one of an ordered stream was not
  std::chrono::nanoseconds waited_for_consumer{};  ///< where it is taken: since it could have been

  bool succeeded() const noexcept { return failure == errc{}; }
};

/// A batch has ended: the last thing that is told of it, but for results that are still taken from a stream.
struct batch_summary {
  std::uint64_t batch = 0;
  std::size_t finished = 0;         ///< samples of which sample_finished() told
  std::size_t not_started = 0;      ///< samples known to exist and never started
  errc stopped{};                   ///< why it took no more samples; errc{}: there were no more
  std::uint64_t hook_failures = 0;  ///< exceptions that left hooks and were swallowed
  std::chrono::nanoseconds at{};
  std::chrono::nanoseconds elapsed{};  ///< since it began
};

/// Sees what a batch or stream does: derive from it, override what you need, and give its address to
/// batch_options::observer. One observer may serve any number of batches.
///
/// Of every sample: attempt_started() and attempt_ended() for each attempt, sample_retried() between two of them, then
/// sample_finished() once; in a stream sample_taken() at last. A sample that comes to its end before its first attempt
/// has sample_finished() alone, one that is never started has none. wait_started() and wait_ended() tell of a lane that
/// suspends before an attempt.
///
/// Resumes: hooks are called on the executor's threads, inside the batch, under no lock. They must not block: the
/// sample, and others, wait for them. None is called after the await has ended.
/// Lifetime: must outlive the batches that it observes.
/// Thread safety: hooks are called concurrently where the executor has several threads, also for the same batch; those
/// of one sample one after another, except where it is hedged.
/// Errors: an exception from a hook is swallowed and counted, see batch_summary::hook_failures; the batch is not
/// harmed.
///
/// In a header, declare hooks that are defined further down `inline` inside the class: else every file that includes it
/// has the whole class compiled, used or not.
class batch_observer {
 public:
  batch_observer() = default;
  batch_observer(const batch_observer&) = default;
  batch_observer& operator=(const batch_observer&) = default;
  virtual ~batch_observer() = default;

  virtual void batch_started(const batch_info&) {}
  virtual void wait_started(const wait_event&) {}
  virtual void wait_ended(const wait_event&) {}
  virtual void attempt_started(const attempt_event&) {}
  virtual void attempt_ended(const attempt_event&) {}
  virtual void sample_retried(const retry_event&) {}
  virtual void sample_finished(const sample_event&) {}
  virtual void sample_taken(const sample_event&) {}
  virtual void batch_ended(const batch_summary&) {}
};

static_assert(std::is_trivially_copyable_v<batch_info> && std::is_trivially_copyable_v<wait_event> &&
              std::is_trivially_copyable_v<attempt_event> && std::is_trivially_copyable_v<retry_event> &&
              std::is_trivially_copyable_v<sample_event> && std::is_trivially_copyable_v<batch_summary>);

namespace detail {

/// `(observer->*hook)(event)`; an exception is swallowed and counted. The counter orders nothing.
template <class Event>
inline void notify(batch_observer* observer, detail::atomic<std::uint64_t>& failures,
                   void (batch_observer::*hook)(const Event&), const Event& event) noexcept {
  guarded([&] { (observer->*hook)(event); }, [&] { failures.fetch_add(1, std::memory_order_relaxed); });
}

/// For batch_info::batch. Only uniqueness matters: orders nothing.
inline std::uint64_t next_batch_number() noexcept {
  static constinit detail::atomic<std::uint64_t> last{0};
  return last.fetch_add(1, std::memory_order_relaxed) + 1;
}

}  // namespace detail

/// Several observers as one: `observers all(metrics, bar); ... {.observer = &all}`. They are told in this order.
///
/// Lifetime: refers to them.
/// Errors: where one throws, the others are told all the same; the first exception is passed on.
/// Allocates: nothing.
template <std::size_t Count>
class observers final : public batch_observer {
 public:
  template <class... Observers>
    requires(sizeof...(Observers) == Count) && (std::is_convertible_v<Observers*, batch_observer*> && ...)
  explicit observers(Observers&... each) noexcept : each_{static_cast<batch_observer*>(&each)...} {}
  observers(const observers&) = delete;
  observers& operator=(const observers&) = delete;

  void batch_started(const batch_info& event) override { tell(&batch_observer::batch_started, event); }
  void wait_started(const wait_event& event) override { tell(&batch_observer::wait_started, event); }
  void wait_ended(const wait_event& event) override { tell(&batch_observer::wait_ended, event); }
  void attempt_started(const attempt_event& event) override { tell(&batch_observer::attempt_started, event); }
  void attempt_ended(const attempt_event& event) override { tell(&batch_observer::attempt_ended, event); }
  void sample_retried(const retry_event& event) override { tell(&batch_observer::sample_retried, event); }
  void sample_finished(const sample_event& event) override { tell(&batch_observer::sample_finished, event); }
  void sample_taken(const sample_event& event) override { tell(&batch_observer::sample_taken, event); }
  void batch_ended(const batch_summary& event) override { tell(&batch_observer::batch_ended, event); }

 private:
  template <class Event>
  void tell(void (batch_observer::*hook)(const Event&), const Event& event) {
    std::exception_ptr first;
    for (batch_observer* const each : each_) {
      detail::guarded([&] { (each->*hook)(event); },
                      [&] {
                        if (!first) first = std::current_exception();
                      });
    }
    if (first) std::rethrow_exception(first);
  }

  std::array<batch_observer*, Count> each_;
};

template <class... Observers>
observers(Observers&...) -> observers<sizeof...(Observers)>;

}  // namespace cobatch
