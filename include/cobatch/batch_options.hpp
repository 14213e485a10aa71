#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <stdexcept>
#include <type_traits>
#include <utility>

#include <cobatch/detail/config.hpp>
#include <cobatch/option_types.hpp>

namespace cobatch::inline COBATCH_ABI {

class async_semaphore;
class batch_observer;
class adaptive_limit;
class rate_limiter;
struct error;

/// "No budget", for retry_policy::budget.
inline constexpr double unlimited_budget = std::numeric_limits<double>::infinity();

/// Which failures are worth another attempt: made implicitly from a function, or a lambda without captures, that
/// returns bool and takes `const error&`, or what predict's own error type is, `const E2&`.
///
/// Errors: a batch whose error type it does not take is refused with std::invalid_argument.
class retry_condition {
 public:
  constexpr retry_condition() noexcept = default;
  constexpr retry_condition(std::nullptr_t) noexcept {}
  constexpr retry_condition(bool (*function)(const error&)) noexcept : on_error_(function) {}
  template <class Error>
  constexpr retry_condition(bool (*function)(Error)) noexcept {
    using asked = std::remove_cvref_t<Error>;
    static_assert(std::is_convertible_v<const asked&, Error>,
                  "cobatch: retry_if must take its error by const&, or by value");
    if (!function) return;
    function_ = reinterpret_cast<erased>(function);
    call_ = [](erased erased_function, const void* why) {
      return reinterpret_cast<bool (*)(Error)>(erased_function)(*static_cast<const asked*>(why));
    };
    type_ = &type_tag<asked>;
  }
  template <class Condition>
    requires(!std::is_same_v<std::remove_cvref_t<Condition>, retry_condition> &&
             !std::is_pointer_v<std::decay_t<Condition>> && !std::is_null_pointer_v<Condition>)
  constexpr retry_condition(const Condition& condition) noexcept {
    constexpr bool fits = requires { retry_condition(+condition); };
    constexpr bool any_error = std::is_convertible_v<const Condition&, bool (*)(const error&)>;  // a generic lambda
    static_assert(fits || any_error,
                  "cobatch: retry_if must be a function, or a lambda without captures, that takes `const "
                  "cobatch::error&`, or predict's own error type, and returns bool");
    if constexpr (fits) {
      *this = retry_condition(+condition);
    } else if constexpr (any_error) {
      on_error_ = condition;
    }
  }

  constexpr explicit operator bool() const noexcept { return on_error_ || call_; }
  friend constexpr bool operator==(const retry_condition& condition, std::nullptr_t) noexcept { return !condition; }
  /// Whether it can be asked about such an error.
  template <class Error>
  constexpr bool takes() const noexcept {
    if (std::is_same_v<Error, error> && on_error_) return true;
    return type_ == &type_tag<Error>;
  }
  /// Requires: takes<Error>().
  template <class Error>
  bool operator()(const Error& why) const {
    if constexpr (std::is_same_v<Error, error>) {
      if (on_error_) return on_error_(why);
    }
    return call_(function_, &why);
  }

 private:
  using erased = void (*)();
  template <class>
  static inline char type_tag = 0;

  bool (*on_error_)(const error&) = nullptr;
  bool (*call_)(erased, const void*) = nullptr;
  erased function_ = nullptr;
  const char* type_ = nullptr;
};

/// When and how often a failed sample is tried again.
///
/// Before attempt k + 1 it sleeps for a time uniform in [0, b] with b = min(max_backoff, initial_backoff *
/// multiplier^(k-1)) ("full jitter", Brooker, "Exponential Backoff And Jitter", 2015), for b itself without jitter.
/// While it sleeps it holds no permit; then it goes before the samples that have not started. One that could not start
/// before the batch's deadline, or ever, is not waited for. A stream's item that comes as an error from another stream
/// is not tried again. An error may carry its own delay: an exception of type retry_later, or
/// a member `std::chrono::nanoseconds retry_after() const` of the user's error type. With jitter the backoff is added on
/// top of it; without, the longer of the two counts.
struct retry_policy {
  std::uint32_t max_attempts = 1;  ///< tried again while predict was called less often for it; 1: never
  time_span initial_backoff = std::chrono::milliseconds(100);
  time_span max_backoff = std::chrono::seconds(10);
  double multiplier = 2.0;
  bool jitter = true;
  double budget = unlimited_budget;  ///< extra attempts, as a share of the samples started so far
  /// Null: every failure but cancellation; an error type of the user's with a member `bool retryable() const` decides.
  retry_condition retry_if = nullptr;
  std::uint64_t seed = 0;  ///< of the jitter; 0: chosen at random
};

/// When a sample that takes long is sent a second time ("The Tail at Scale", Dean and Barroso, 2013).
///
/// After `delay`, or after the batch's own running quantile of the time an attempt takes, a second attempt of the same
/// sample starts if a permit is to be had at once. The first value wins, the other attempt is asked to stop and waited
/// for.
struct hedge_policy {
  time_span delay = no_timeout;  ///< a fixed time
  double quantile = 0;           ///< or a quantile, such as 0.95; used once 20 attempts have ended
  double max_extra = 0.05;       ///< second attempts, as a share of the samples started so far
};

/// Thrown by a predict whose server said when to come back; see retry_policy.
class retry_later : public std::runtime_error {
 public:
  explicit retry_later(std::chrono::nanoseconds delay, const char* message = "try again later")
      : std::runtime_error(message), delay_(delay) {}
  std::chrono::nanoseconds retry_after() const noexcept { return delay_; }

 private:
  std::chrono::nanoseconds delay_;
};

/// What weighted() returns: a predict that knows what a sample costs.
template <class Predict, class Cost>
class weighted_predict {
 public:
  weighted_predict(Predict predict, Cost each) : predict_(std::move(predict)), cost_(std::move(each)) {}

  template <class... Arguments>
    requires std::is_invocable_v<Predict&, Arguments...>
  decltype(auto) operator()(Arguments&&... arguments) {
    return std::invoke(predict_, std::forward<Arguments>(arguments)...);
  }
  template <class Sample>
  std::size_t cost(const Sample& sample) {
    return static_cast<std::size_t>(std::invoke(cost_, sample));
  }
  template <class Sample>
  std::size_t key(const Sample& sample)
    requires requires(Predict& inner) { inner.key(sample); }
  {
    return predict_.key(sample);
  }

 private:
  Predict predict_;
  Cost cost_;
};

/// `weighted(predict, cost)`: a predict whose samples weigh `cost(sample)` (tokens, bytes, GPU memory) instead of 1,
/// for batch_options::max_weight, for batch_options::semaphore and for batch_options::rate. A cost of 0 counts as 1.
template <class Predict, class Cost>
weighted_predict<std::decay_t<Predict>, std::decay_t<Cost>> weighted(Predict&& predict, Cost&& cost) {
  return {std::forward<Predict>(predict), std::forward<Cost>(cost)};
}

/// What a batch may use, wait for and put up with. Every default means "off", and what is off costs nothing.
///
/// A trivially copyable aggregate for designated initialisers: `{.max_concurrency = 64, .timeout = 2s}`.
struct batch_options {
  std::size_t max_concurrency = unlimited;         ///< samples in flight; 0 is an error
  option_ref<async_semaphore> semaphore = nullptr; ///< a cap shared with other batches; both caps hold
  option_ref<adaptive_limit> limit = nullptr;      ///< a cap that moves by itself, perhaps shared
  stop_ref stop = {};                              ///< stops the batch from outside
  time_span timeout = no_timeout;                  ///< one attempt, from the call of predict
  time_span deadline = no_timeout;                 ///< the whole batch, from its co_await
  time_span queue_timeout = no_timeout;            ///< a sample's wait for its permits and the rate
  std::size_t max_weight = unlimited;              ///< the sum of weights in flight, see weighted()
  std::size_t max_failures = unlimited;            ///< stop once so many samples have failed; 1: fail fast
  retry_policy retry = {};                         ///< what to try again, and when
  hedge_policy hedge = {};                         ///< what to send twice, and when
  option_ref<rate_limiter> rate = nullptr;         ///< attempts per second, perhaps shared
  option_ref<batch_observer> observer = nullptr;   ///< is told of all that happens
};

static_assert(std::is_trivially_copyable_v<batch_options>, "GCC 12 breaks any other aggregate inside co_await");

}  // namespace cobatch
