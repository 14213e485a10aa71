#pragma once

#include <array>
#include <concepts>
#include <coroutine>
#include <cstddef>
#include <exception>
#include <optional>
#include <stop_token>
#include <tuple>
#include <type_traits>
#include <utility>

#include <cobatch/callback.hpp>
#include <cobatch/detail/atomic.hpp>
#include <cobatch/detail/awaitable.hpp>
#include <cobatch/detail/call_with_token.hpp>
#include <cobatch/detail/caught.hpp>
#include <cobatch/detail/config.hpp>
#include <cobatch/detail/countdown.hpp>
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

/// The outcome of one of them, or why there can be none.
template <class Outcome>
class one_outcome {
  static_assert(std::is_constructible_v<typename Outcome::error_type, error>,
                "cobatch: the error type E2 of an expected<U, E2> must be constructible from cobatch::error, which is what "
                "one gets that threw");

 public:
  template <class... Arguments>
  void set(Arguments&&... arguments) noexcept {
    guarded([&] { outcome_.emplace(std::forward<Arguments>(arguments)...); }, [&] { threw(std::current_exception()); });
  }
  void threw(std::exception_ptr why) noexcept {
    guarded([&] { outcome_.emplace(unexpect, error(errc::exception, std::move(why))); },
            [&] { why_ = std::current_exception(); });
  }
  bool has_value() const noexcept { return outcome_ && outcome_->has_value(); }
  Outcome take() {
    if (!outcome_) std::rethrow_exception(std::move(why_));
    return *std::move(outcome_);
  }

 private:
  std::optional<Outcome> outcome_;
  std::exception_ptr why_;
};

/// The coroutine of one of them. Its last act, with all that it has gone, is `ended()`; the frame is its owner's.
template <class Ended>
struct one_of_several {
  struct promise_type : pooled_frame {
    template <class... Others>
    explicit promise_type(Ended& when_ended, Others&...) noexcept : ended(&when_ended) {}

    struct last_word {
      bool await_ready() const noexcept { return false; }
      void await_suspend(std::coroutine_handle<promise_type> self) const noexcept {
        (*self.promise().ended)();  // the frame may be gone
      }
      void await_resume() const noexcept {}
    };

    one_of_several get_return_object() noexcept { return {std::coroutine_handle<promise_type>::from_promise(*this)}; }
    std::suspend_always initial_suspend() const noexcept { return {}; }
    last_word final_suspend() const noexcept { return {}; }
    void return_void() const noexcept {}
    void unhandled_exception() const noexcept { fail("an exception left when_all()"); }

    Ended* ended;
  };

  std::coroutine_handle<> frame;
};

/// The frames of all of them.
template <std::size_t Count>
class frames_of_several {
 public:
  frames_of_several() = default;
  frames_of_several(const frames_of_several&) = delete;
  frames_of_several& operator=(const frames_of_several&) = delete;
  ~frames_of_several() {
    for (const std::coroutine_handle<> each : frames_) {
      if (each) each.destroy();
    }
  }
  /// Starts it; it may end on any thread from then on.
  void start(std::size_t number, std::coroutine_handle<> frame) {
    frames_[number] = frame;
    frame.resume();
  }

 private:
  std::array<std::coroutine_handle<>, Count> frames_{};
};

COBATCH_COROUTINES_BEGIN
/// Awaits what `make()` gives and writes it to `into`.
template <class Ended, class Make, class Outcome>
one_of_several<Ended> await_into([[maybe_unused]] Ended& ended, Make& make, one_outcome<Outcome>& into) {
  auto came = co_await caught<Make>(make);
  using value = typename decltype(came)::value_type;
  if (!came) {
    into.threw(std::move(came).error());
  } else if constexpr (std::is_void_v<value>) {
    into.set();
  } else if constexpr (std::is_same_v<value, Outcome>) {
    into.set(*std::move(came));
  } else {
    into.set(std::in_place, *std::move(came));
  }
}

/// Starts one of them. Without memory for its frame it has not begun, and failed.
template <class Frames, class Ended, class Make, class Outcome>
void start_one(Frames& frames, std::size_t number, Ended& ended, Make& make, one_outcome<Outcome>& into) {
  std::coroutine_handle<> frame;
  guarded([&] { frame = detail::await_into(ended, make, into).frame; },
          [&] {
            into.threw(std::current_exception());
            ended();
          });
  if (frame) frames.start(number, frame);
}

/// A function that gives `each` away.
template <class Awaitable>
auto giving(Awaitable& each) {
  return [&each]() -> Awaitable&& { return std::move(each); };
}

template <class... Awaitable, std::size_t... I>
task<std::tuple<awaited_outcome<Awaitable>...>> await_all(std::index_sequence<I...>, Awaitable... all) {
  std::tuple<one_outcome<awaited_outcome<Awaitable>>...> outcomes;
  countdown<callback<void>> left(sizeof...(Awaitable));
  const auto ended = [&left] { left.one_ended(); };
  const std::tuple makes{detail::giving(all)...};
  frames_of_several<sizeof...(Awaitable)> frames;
  const auto start = [&](callback<void> done) {
    left.tells(std::move(done));
    (detail::start_one(frames, I, ended, std::get<I>(makes), std::get<I>(outcomes)), ...);
    left.one_ended();
  };
  (void)co_await from_callback<void>(start);
  co_return std::tuple<awaited_outcome<Awaitable>...>(std::get<I>(outcomes).take()...);
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
  static_assert((std::is_constructible_v<std::remove_cvref_t<Awaitable>, Awaitable> && ...),
                "cobatch: when_all(): what has a name is moved in: when_all(std::move(a), ...)");
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
using called = decltype(detail::call_with_token(std::declval<Call&>(), std::stop_token()));

COBATCH_COROUTINES_BEGIN
template <class Outcome, std::size_t... I, class... Call>
task<first_outcome<Outcome>> await_any(std::index_sequence<I...>, Call... calls) {
  constexpr std::size_t none = sizeof...(Call);
  std::array<one_outcome<Outcome>, sizeof...(Call)> outcomes;
  countdown<callback<void>> left(sizeof...(Call));
  atomic<std::size_t> first{none};  // the first one with a value
  std::stop_source stop;
  const auto end_of = [&](std::size_t number) {
    return [&outcomes, &first, &stop, &left, number] {
      std::size_t nobody = none;
      if (outcomes[number].has_value() && first.compare_exchange_strong(nobody, number)) stop.request_stop();
      left.one_ended();
    };
  };
  const auto made_by = [&stop](auto& call) {
    return [&call, &stop]() -> decltype(auto) { return detail::call_with_token(call, stop.get_token()); };
  };
  const std::array ends{end_of(I)...};
  const std::tuple makes{made_by(calls)...};
  frames_of_several<sizeof...(Call)> frames;
  const auto start = [&](callback<void> done) {
    left.tells(std::move(done));
    (detail::start_one(frames, I, ends[I], std::get<I>(makes), outcomes[I]), ...);
    left.one_ended();
  };
  (void)co_await from_callback<void>(start);
  const std::size_t won = first.load();
  const std::size_t chosen = won == none ? none - 1 : won;
  co_return first_outcome<Outcome>(chosen, outcomes[chosen].take());
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
  requires(sizeof...(Call) > 0 && (detail::awaitable<detail::called<std::decay_t<Call>>> && ...) &&
           !(detail::risky_temporary<Call> || ...))
auto when_any(Call&&... calls) {
  using outcome = detail::outcome_of_first<std::decay_t<Call>...>;
  static_assert((std::is_same_v<outcome, detail::awaited_outcome<detail::called<std::decay_t<Call>>>> && ...),
                "cobatch: when_any(): all must come to the same type of outcome");
  return detail::await_any<outcome>(std::index_sequence_for<Call...>(), std::decay_t<Call>(std::forward<Call>(calls))...);
}

#if COBATCH_WARNS_OF_TEMPORARY_PREDICT
/// The same, with a warning: see detail::risky_temporary.
template <class... Call>
  requires(sizeof...(Call) > 0 && (detail::awaitable<detail::called<std::decay_t<Call>>> && ...) &&
           (detail::risky_temporary<Call> || ...))
[[deprecated(
    "cobatch: GCC 12 destroys a temporary function with such captures twice inside a co_await expression: name it before "
    "co_await, or define COBATCH_NO_TEMPORARY_PREDICT_WARNING if it is named")]]
auto when_any(Call&&... calls) {
  using outcome = detail::outcome_of_first<std::decay_t<Call>...>;
  static_assert((std::is_same_v<outcome, detail::awaited_outcome<detail::called<std::decay_t<Call>>>> && ...),
                "cobatch: when_any(): all must come to the same type of outcome");
  return detail::await_any<outcome>(std::index_sequence_for<Call...>(), std::decay_t<Call>(std::forward<Call>(calls))...);
}
#endif

}  // namespace cobatch
