#pragma once

#include <concepts>
#include <coroutine>
#include <type_traits>
#include <utility>

#include <cobatch/detail/abi.hpp>

/// What the language does to the operand of `co_await`, as functions and concepts.

namespace cobatch::inline COBATCH_ABI::detail {

template <class T>
concept await_suspend_result =
    std::is_void_v<T> || std::same_as<T, bool> || std::convertible_to<T, std::coroutine_handle<>>;

template <class T>
concept has_member_co_await = requires(T&& object) { static_cast<T&&>(object).operator co_await(); };

template <class T>
concept has_free_co_await = requires(T&& object) { operator co_await(static_cast<T&&>(object)); };

/// The awaiter of `awaitable`: what its operator co_await returns, else the object itself.
template <class Awaitable>
constexpr decltype(auto) get_awaiter(Awaitable&& awaitable) {
  if constexpr (has_member_co_await<Awaitable>) {
    return static_cast<Awaitable&&>(awaitable).operator co_await();
  } else if constexpr (has_free_co_await<Awaitable>) {
    return operator co_await(static_cast<Awaitable&&>(awaitable));
  } else {
    return static_cast<Awaitable&&>(awaitable);
  }
}

template <class Awaitable>
using awaiter_type = decltype(detail::get_awaiter(std::declval<Awaitable>()));

/// An object with the three awaiter members, for a coroutine whose promise is `Promise`.
template <class Awaiter, class Promise = void>
concept awaiter_for = requires(Awaiter& awaiter, std::coroutine_handle<Promise> handle) {
  { awaiter.await_ready() } -> std::convertible_to<bool>;
  { awaiter.await_suspend(handle) } -> await_suspend_result;
  awaiter.await_resume();
};

/// Anything that a standard coroutine can `co_await`.
template <class T, class Promise = void>
concept awaitable = requires(T&& object) {
  { detail::get_awaiter(static_cast<T&&>(object)) } -> awaiter_for<Promise>;
};

/// What a user may take for awaitable though it is not: a future, or the coroutine of a library that awaits only its own.
template <class T>
concept looks_awaitable =
    !awaitable<T> &&
    (requires(T& object) { object.await_ready(); } || has_member_co_await<T> || has_free_co_await<T> ||
     requires(T& object) {
       object.valid();
       object.wait();
       object.get();
     } || (requires { typename std::coroutine_traits<T>::promise_type; } && !requires(T& object) { object.begin(); } &&
           !requires(T& object) { object.has_value(); }));

/// The type of `co_await std::declval<Awaitable>()`.
template <class Awaitable>
using await_result = decltype(std::declval<std::remove_reference_t<awaiter_type<Awaitable>>&>().await_resume());

}  // namespace cobatch::detail
