#pragma once

#include <array>
#include <chrono>
#include <stop_token>
#include <type_traits>
#include <utility>

#include <cobatch/batch_options.hpp>
#include <cobatch/batch_predict.hpp>
#include <cobatch/detail/call_with_token.hpp>
#include <cobatch/detail/config.hpp>
#include <cobatch/detail/stop_token.hpp>
#include <cobatch/executor.hpp>
#include <cobatch/option_types.hpp>
#include <cobatch/task.hpp>

namespace cobatch::inline COBATCH_ABI {

namespace detail {

template <class Call>
concept callable_in_time =
    std::is_invocable_v<std::decay_t<Call>&, std::stop_token> || std::is_invocable_v<std::decay_t<Call>&>;

/// A predict of the one sample that with_timeout() has.
template <class Call>
class call_as_predict {
 public:
  explicit call_as_predict(Call& call) noexcept : call_(&call) {}
  decltype(auto) operator()(char, const std::stop_token& stop) const { return detail::call_with_token(*call_, stop); }

 private:
  Call* call_;
};

template <class Executor, class Call>
using timed_outcome =
    typename decltype(batch_predict(std::declval<Executor&>(), std::declval<const std::array<char, 1>&>(),
                                    std::declval<call_as_predict<Call>&>(), batch_options()))::result;

COBATCH_COROUTINES_BEGIN
template <class Executor, class Call>
task<timed_outcome<Executor, Call>> call_in_time(Executor& ex, time_span time, Call call) {
  const std::array<char, 1> one{};
  call_as_predict<Call> predict(call);
  const batch_options options{.timeout = time};
  auto running = batch_predict(ex, one, predict, options);
  auto outcomes = co_await running;
  co_return std::move(outcomes.front());
}
COBATCH_COROUTINES_END

}  // namespace detail

/// `co_await with_timeout(ex, 2s, call)`: awaits what `call(stop_token)`, or `call()`, gives, and after that time asks it to
/// stop. The outcome is that of a sample of a batch: a value however late it comes; otherwise errc::timed_out, or what was
/// thrown before, in an expected<T, E>.
///
/// Resumes: call starts on `ex`, and who awaits goes on there.
/// Stops: cooperatively. It returns only when what was called has ended.
/// Lifetime: `call` is kept until the await has ended; ex must outlive it.
/// Allocates: what a batch of one sample does.
template <timed_executor Executor, detail::callable_in_time Call>
  requires(!detail::risky_temporary<Call>)
auto with_timeout(Executor& ex, time_span time, Call&& call)
    -> task<detail::timed_outcome<Executor, std::decay_t<Call>>> {
  return detail::call_in_time<Executor, std::decay_t<Call>>(ex, time, std::forward<Call>(call));
}

#if COBATCH_WARNS_OF_TEMPORARY_PREDICT
/// The same, with a warning: see detail::risky_temporary.
template <timed_executor Executor, detail::callable_in_time Call>
  requires(detail::risky_temporary<Call>)
[[deprecated(
    "cobatch: GCC 12 destroys a temporary function with such captures twice inside a co_await expression: name it before "
    "co_await, or define COBATCH_NO_TEMPORARY_PREDICT_WARNING if it is named")]]
auto with_timeout(Executor& ex, time_span time, Call&& call)
    -> task<detail::timed_outcome<Executor, std::decay_t<Call>>> {
  return detail::call_in_time<Executor, std::decay_t<Call>>(ex, time, std::forward<Call>(call));
}
#endif

/// Refused in words: what is awaited must be made by a function, so that it can be told to stop.
template <timed_executor Executor, class Work>
  requires(!detail::callable_in_time<Work>)
void with_timeout(Executor&, time_span, Work&&) {
  static_assert(detail::callable_in_time<Work>,
                "cobatch: with_timeout() takes a function that makes what is awaited: "
                "with_timeout(ex, 2s, [&](std::stop_token stop) { return f(stop); })");
}

}  // namespace cobatch
