#pragma once

#include <cstdio>
#include <cstdlib>
#include <new>
#include <type_traits>
#include <utility>

#include <cobatch/detail/abi.hpp>

#if !defined(__cpp_impl_coroutine) || __cplusplus < 202002L
#error "cobatch needs C++20 with coroutines: compile with -std=c++20 or newer (GCC 12+, Clang 16+)"
#endif

#if COBATCH_EXCEPTIONS
#include <exception>
#endif

// GCC 12 copies a temporary lambda with non-trivial captures bit by bit inside a co_await expression and destroys it
// twice. Where that can happen, a callable that comes as an rvalue gives a warning at compile time.
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 13 && !defined(COBATCH_NO_TEMPORARY_PREDICT_WARNING)
#define COBATCH_WARNS_OF_TEMPORARY_PREDICT 1
#else
#define COBATCH_WARNS_OF_TEMPORARY_PREDICT 0
#endif

// GCC warns of a zero as a null pointer in code of its own, at the end of each coroutine: around those of the library.
#if defined(__GNUC__) && !defined(__clang__)
#define COBATCH_COROUTINES_BEGIN \
  _Pragma("GCC diagnostic push") _Pragma("GCC diagnostic ignored \"-Wzero-as-null-pointer-constant\"")
#define COBATCH_COROUTINES_END _Pragma("GCC diagnostic pop")
#else
#define COBATCH_COROUTINES_BEGIN
#define COBATCH_COROUTINES_END
#endif

namespace cobatch::inline COBATCH_ABI::detail {

/// Ends the program with a message: what a violated precondition, or a throw without exceptions, comes to.
[[noreturn]] inline void fail(const char* message) noexcept {
  std::fprintf(stderr, "cobatch: %s\n", message);
  std::abort();
}

/// `throw Exception(message)`; without exceptions, fail(message).
template <class Exception>
[[noreturn]] inline void throw_or_fail(const char* message) {
#if COBATCH_EXCEPTIONS
  throw Exception(message);
#else
  fail(message);
#endif
}

/// `throw std::bad_alloc()`; without exceptions, fail().
[[noreturn]] inline void throw_bad_alloc() {
#if COBATCH_EXCEPTIONS
  throw std::bad_alloc();
#else
  fail("out of memory");
#endif
}

/// `body()`, and `on_exception()` inside the handler of whatever it throws. Without exceptions just `body()`.
template <class Body, class OnException>
inline decltype(auto) guarded(Body&& body, [[maybe_unused]] OnException&& on_exception) {
#if COBATCH_EXCEPTIONS
  try {
    return std::forward<Body>(body)();
  } catch (...) {
    return std::forward<OnException>(on_exception)();
  }
#else
  return std::forward<Body>(body)();
#endif
}

/// A callable that comes as an rvalue and that GCC 12 would destroy twice if it were a temporary in a co_await
/// expression.
template <class Callable>
inline constexpr bool risky_temporary = COBATCH_WARNS_OF_TEMPORARY_PREDICT != 0 && !std::is_reference_v<Callable> &&
                                        !std::is_trivially_copyable_v<Callable>;

}  // namespace cobatch::detail
