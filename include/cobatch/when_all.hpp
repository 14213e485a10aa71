#pragma once

#include <array>
#include <cstddef>
#include <exception>
#include <functional>
#include <optional>
#include <stop_token>
#include <tuple>
#include <type_traits>
#include <utility>

#include <cobatch/callback.hpp>
#include <cobatch/detail/atomic.hpp>
#include <cobatch/detail/awaitable.hpp>
#include <cobatch/detail/caught.hpp>
#include <cobatch/detail/config.hpp>
#include <cobatch/detail/frame_pool.hpp>
#include <cobatch/detail/stop_token.hpp>
#include <cobatch/engine/types.hpp>
#include <cobatch/error.hpp>
#include <cobatch/expected.hpp>
#include <cobatch/task.hpp>

namespace cobatch::inline COBATCH_ABI {

namespace detail {

/// The outcome of an awaitable, as that of a sample: an expected<U, E2> as it is, any other V as expected<V, error>.
template <class Awaitable>
using awaited_outcome = typename slot_of<std::remove_cvref_t<await_result<Awaitable>>>::type;

/// Counts those that have not ended, and one for who starts them; the last one calls back.
class countdown {
 public:
  explicit countdown(std::size_t count) noexcept : left_(count + 1) {}
  /// Before the first start.
  void tells(callback<void> done) noexcept { done_ = std::move(done); }
  void one_ended() noexcept {
    // acq_rel: the last one has seen what all others wrote.
    if (left_.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
    const callback<void> done = std::move(done_);
    done();  // *this may be gone
  }

 private:
  atomic<std::size_t> left_;
  callback<void> done_;
};

/// One of several that are awaited at once. It starts at once and belongs to nobody.
struct one_of_several {
  struct promise_type : pooled_frame {
    one_of_several get_return_object() const noexcept { return {}; }
    std::suspend_never initial_suspend() const noexcept { return {}; }
    std::suspend_never final_suspend() const noexcept { return {}; }
    void return_void() const noexcept {}
    void unhandled_exception() const noexcept { fail("an exception left when_all()"); }
  };
};

COBATCH_COROUTINES_BEGIN
/// Awaits what `make()` gives, writes it to `into`, calls `ended()`; what both refer to may be gone then.
template <class Outcome, class Make, class Ended>
one_of_several await_into(Make make, std::optional<Outcome>& into, Ended ended) {
  auto came = co_await caught<Make>(make);
  const auto keep = [&] {
    if (!came) {
      into.emplace(unexpect, error(errc::exception, std::move(came).error()));
    } else if constexpr (std::is_void_v<typename decltype(came)::value_type>) {
      into.emplace();
    } else if constexpr (std::is_same_v<typename decltype(came)::value_type, Outcome>) {
      into.emplace(*std::move(came));
    } else {
      into.emplace(std::in_place, *std::move(came));
    }
  };
  guarded(keep, [&] { into.emplace(unexpect, error(errc::exception, std::current_exception())); });
  ended();
}

template <class... Awaitable, std::size_t... I>
task<std::tuple<awaited_outcome<Awaitable>...>> await_all(std::index_sequence<I...>, Awaitable... all) {
  std::tuple<std::optional<awaited_outcome<Awaitable>>...> outcomes;
  countdown left(sizeof...(Awaitable));
  const auto start = [&](callback<void> done) {
    left.tells(std::move(done));
    const auto ended = [&left] { left.one_ended(); };
    const auto start_one = [&](auto& each, auto& into) {
      const auto make = [&each]() -> auto&& { return static_cast<std::remove_reference_t<decltype(each)>&&>(each); };
      // Without memory for its frame it has not begun.
      guarded([&] { detail::await_into(make, into, ended); },
              [&] {
                into.emplace(unexpect, error(errc::exception, std::current_exception()));
                left.one_ended();
              });
    };
    (start_one(all, std::get<I>(outcomes)), ...);
    left.one_ended();
  };
  (void)co_await from_callback<void>(start);
  co_return std::tuple<awaited_outcome<Awaitable>...>(*std::move(std::get<I>(outcomes))...);
}
COBATCH_COROUTINES_END

}  // namespace detail

/// `co_await when_all(a, b, ...)` awaits all of them at once and gives a tuple of their outcomes, in their order: an
/// expected<U, E2> as it is, any other result V as expected<V, error>, what was thrown as errc::exception.
///
/// One that fails stops no other: for many of the same kind, and limits, use batch_predict().
/// Resumes: they start one after the other on the thread that awaits, each up to where it first suspends; who awaits goes
/// on on the executor on which it suspended.
/// Lifetime: they are moved in. Nothing of them is alive when the await returns.
/// Errors: std::bad_alloc where there is no memory to begin.
/// Allocates: one frame each, and two more, from a per-thread pool.
template <detail::awaitable... Awaitable>
  requires(sizeof...(Awaitable) > 0 && (std::move_constructible<std::remove_cvref_t<Awaitable>> && ...))
task<std::tuple<detail::awaited_outcome<std::remove_cvref_t<Awaitable>>...>> when_all(Awaitable&&... all) {
  return detail::await_all<std::remove_cvref_t<Awaitable>...>(std::index_sequence_for<Awaitable...>(),
                                                             std::forward<Awaitable>(all)...);
}

/// What when_any() gives: which one it was, from 0, and its outcome.
template <class Outcome>
class first_outcome {
 public:
  first_outcome(std::size_t number, Outcome outcome) : index(number), result(std::move(outcome)) {}

  std::size_t index;
  Outcome result;  ///< an expected<T, E>
};

namespace detail {

template <class Call>
decltype(auto) call_with(Call& call, [[maybe_unused]] const std::stop_token& stop) {
  if constexpr (std::is_invocable_v<Call&, std::stop_token>) {
    return std::invoke(call, stop);
  } else {
    return std::invoke(call);
  }
}
template <class Call>
using called = decltype(detail::call_with(std::declval<Call&>(), std::stop_token()));

COBATCH_COROUTINES_BEGIN
template <class Outcome, std::size_t... I, class... Call>
task<first_outcome<Outcome>> await_any(std::index_sequence<I...>, Call... calls) {
  constexpr std::size_t none = sizeof...(Call);
  std::array<std::optional<Outcome>, sizeof...(Call)> outcomes;
  countdown left(sizeof...(Call));
  atomic<std::size_t> first{none};  // the first one with a value
  std::stop_source stop;
  const auto start = [&](callback<void> done) {
    left.tells(std::move(done));
    const auto start_one = [&](auto& call, std::size_t number) {
      const auto make = [&call, &stop]() -> decltype(auto) { return detail::call_with(call, stop.get_token()); };
      const auto ended = [&outcomes, &first, &stop, &left, number] {
        std::size_t expected_none = none;
        if (outcomes[number]->has_value() && first.compare_exchange_strong(expected_none, number)) stop.request_stop();
        left.one_ended();
      };
      guarded([&] { detail::await_into(make, outcomes[number], ended); },
              [&] {
                outcomes[number].emplace(unexpect, error(errc::exception, std::current_exception()));
                left.one_ended();
              });
    };
    (start_one(calls, I), ...);
    left.one_ended();
  };
  (void)co_await from_callback<void>(start);
  const std::size_t won = first.load();
  const std::size_t chosen = won == none ? none - 1 : won;
  co_return first_outcome<Outcome>(chosen, *std::move(outcomes[chosen]));
}
COBATCH_COROUTINES_END

template <class... Call>
using outcome_of_first = awaited_outcome<called<std::tuple_element_t<0, std::tuple<Call...>>>>;

}  // namespace detail

/// `co_await when_any(calls...)`: each is called as `call(stop_token)`, or `call()`, and awaited, all at once. The first
/// value in time is the outcome; the others are asked to stop, and awaited all the same. Where none comes to a value, it is
/// the outcome of the last of them.
///
/// All must come to outcomes of one type. Those not started when there is a value find their token stopped.
/// Resumes, Lifetime, Errors, Allocates: as when_all(). Calls are kept until the await has ended.
template <class... Call>
  requires(sizeof...(Call) > 0 && (detail::awaitable<detail::called<std::decay_t<Call>>> && ...))
auto when_any(Call&&... calls) {
  using outcome = detail::outcome_of_first<std::decay_t<Call>...>;
  static_assert((std::is_same_v<outcome, detail::awaited_outcome<detail::called<std::decay_t<Call>>>> && ...),
                "cobatch: when_any(): all must come to the same type of outcome");
  return detail::await_any<outcome>(std::index_sequence_for<Call...>(), std::decay_t<Call>(std::forward<Call>(calls))...);
}

}  // namespace cobatch
