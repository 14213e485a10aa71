#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <stop_token>
#include <type_traits>
#include <utility>

#include <cobatch/batch_options.hpp>
#include <cobatch/detail/config.hpp>
#include <cobatch/detail/predict_traits.hpp>
#include <cobatch/detail/results.hpp>
#include <cobatch/error.hpp>
#include <cobatch/executor.hpp>
#include <cobatch/expected.hpp>
#include <cobatch/micro_batch_options.hpp>
#include <cobatch/stream_options.hpp>

/// What follows from the types of a batch, and what its options may be.

namespace cobatch::inline COBATCH_ABI::detail {

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

/// In the words of an error; not for none.
constexpr errc meaning(halt why) noexcept {
  switch (why) {
    case halt::deadline: return errc::deadline_exceeded;
    case halt::input: return errc::input_failed;
    case halt::executor: return errc::executor_stopped;
    case halt::closed: return errc::closed;
    case halt::none:
    case halt::user:
    case halt::failures: break;
  }
  return errc::cancelled;
}

/// The slot of a sample whose predict comes to Value.
template <class Value>
struct slot_of {
  using type = expected<Value, error>;
};
template <class T, class E>
struct slot_of<expected<T, E>> {
  using type = expected<T, E>;
};

/// Whether predict comes from weighted(), perhaps inside bucketed(). A user's own member cost() means nothing.
template <class Predict>
inline constexpr bool weighs_samples = false;
template <class Predict, class Cost>
inline constexpr bool weighs_samples<weighted_predict<Predict, Cost>> = true;
template <class PredictMany, class Key>
inline constexpr bool weighs_samples<bucketed_predict<PredictMany, Key>> = weighs_samples<PredictMany>;

/// Whether predict comes from bucketed(), perhaps inside weighted().
template <class Predict>
inline constexpr bool groups_samples = false;
template <class PredictMany, class Key>
inline constexpr bool groups_samples<bucketed_predict<PredictMany, Key>> = true;
template <class Predict, class Cost>
inline constexpr bool groups_samples<weighted_predict<Predict, Cost>> = groups_samples<Predict>;

/// Whether samples are outcomes of another stream.
template <class Sample>
inline constexpr bool is_stream_item = false;
template <class Result>
inline constexpr bool is_stream_item<stream_item<Result>> = true;

/// What a sample of Source comes to.
template <class Source, class Predict>
struct outcome_of {
  static_assert(!groups_samples<Predict>,
                "cobatch: bucketed() says which samples go together into one call of a model: it is for "
                "batch_predict_many() and micro_batcher; a predict that takes one sample has nothing to group");

  using traits = predict_traits<Predict, typename Source::reference, Source::owned>;
  using result = typename slot_of<typename traits::value>::type;

  static_assert(std::is_constructible_v<typename result::error_type, error>,
                "cobatch: the error type E2 of an expected<U, E2> that predict returns must be constructible from "
                "cobatch::error, which is what a sample gets that was stopped, or whose predict threw");
};

/// What the parts of an engine have in common. Types has `executor`, `source`, `result` (what a sample comes to), `sink`,
/// weighs (whether samples have a cost), and can_pause: whether the batch is a stream, whose input may run dry for a
/// while. The type of predict is not among them: all batches of one kind share their code, see predict_calls.
template <class Types>
struct batch_types {
  using executor = typename Types::executor;
  using source = typename Types::source;
  using sink = typename Types::sink;
  using result = typename Types::result;
  using error_type = typename result::error_type;

  static constexpr bool has_timers = timed_executor<executor>;
  static constexpr bool weighs = Types::weighs;
};

/// Which of an engine's parts have work to do: what none of the options asks for costs nothing but a look at this.
template <class Types>
struct batch_needs {
  using names = batch_types<Types>;

  batch_needs(const batch_options& options, bool stoppable, bool takes_token) noexcept
      : retries(options.retry.max_attempts > 1),
        hedges(options.hedge.delay != no_timeout || options.hedge.quantile > 0),
        timeouts(options.timeout != no_timeout),
        tokens(takes_token &&
               (timeouts || hedges || options.deadline != no_timeout || options.max_failures != unlimited ||
                stoppable || Types::can_pause)),
        watches(hedges || (timeouts && tokens)),
        clock(names::has_timers &&
              (watches || options.deadline != no_timeout || options.queue_timeout != no_timeout || retries)),
        latencies(timeouts || hedges || options.limit || options.observer),
        gates(options.semaphore || options.limit || options.rate || (names::weighs && options.max_weight != unlimited)),
        gates_anew(options.rate || options.limit || (names::weighs && gates)),
        counts_starts(hedges || options.retry.budget < unlimited_budget),
        plain(!retries && !hedges && !tokens && !latencies && !gates_anew && options.max_failures == unlimited) {}

  const bool retries, hedges, timeouts;
  const bool tokens;         ///< predict takes a stop token, and somebody may stop it
  const bool watches;        ///< time may find an attempt while it is in flight
  const bool clock;          ///< something may become due
  const bool latencies;      ///< how long attempts take is of use to someone
  const bool gates;          ///< something must be had before an attempt,
  const bool gates_anew;     ///< and more than a permit that is kept from sample to sample
  const bool counts_starts;  ///< a share of the samples started so far is a limit to something
  const bool plain;          ///< nothing happens to a sample but its predict, perhaps under a kept permit
};

/// Out of line: GCC 12 sees an uninitialised temporary in std::stop_source() where that is inlined.
[[gnu::noinline]] inline std::stop_source new_stop_source() {
  std::stop_source made;
  return made;
}

/// Writes an error. If the user's own error type throws while it is made from ours, the slot stays as it was.
template <class Result>
void settle(Result* into, error why) {
  guarded([&] { rewrite(*into, unexpect, std::move(why)); }, [] {});
}

/// What an outcome is to observers; an error of the user's own counts as errc::exception.
template <class Result>
errc failure_in(const Result& outcome) noexcept {
  if (outcome.has_value()) return errc{};
  if constexpr (std::is_same_v<typename Result::error_type, error>) {
    return outcome.error().code;
  } else {
    return errc::exception;
  }
}

/// `from + delay`; no_timeout is never.
constexpr std::chrono::nanoseconds later(std::chrono::nanoseconds from, std::chrono::nanoseconds delay) noexcept {
  return delay > no_timeout - from ? no_timeout : from + delay;
}

/// Throws std::invalid_argument, with what to do, for options that make no sense.
template <class Executor, class Traits>
void check(const batch_options& options) {
  using error_type = typename slot_of<typename Traits::value>::type::error_type;
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
  refuse_if(retry.retry_if && !retry.retry_if.takes<error>() && !retry.retry_if.takes<error_type>(),
            "retry.retry_if takes an error type that is not predict's: let it take that, or cobatch::error");
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

}  // namespace cobatch::detail
