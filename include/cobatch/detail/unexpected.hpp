#pragma once

#include <exception>
#include <initializer_list>
#include <type_traits>
#include <utility>

#include <cobatch/detail/config.hpp>

// The words around expected. In namespace cobatch, not detail: expected.hpp is where users get them from.
namespace cobatch::inline COBATCH_ABI {

template <class E>
class unexpected;

namespace detail {

// Of the comparison and of what comes of it: implicitly a bool, as an explicit conversion may be deleted (LWG 4366).
template <class T, class U>
concept nothrow_equal = requires(const T& x, const U& y) {
  { x == y } noexcept;
  requires std::is_nothrow_convertible_v<decltype(x == y), bool>;
};

template <class T>
inline constexpr bool is_unexpected_v = false;
template <class E>
inline constexpr bool is_unexpected_v<unexpected<E>> = true;

template <class E>
inline constexpr bool valid_error_type = std::is_object_v<E> && !std::is_array_v<E> &&
                                         std::is_same_v<E, std::remove_cv_t<E>> && !is_unexpected_v<E>;

}  // namespace detail

/// The type of `unexpect`.
struct unexpect_t {
  explicit unexpect_t() = default;
};

/// As a constructor's first argument: make the error from the arguments that follow.
inline constexpr unexpect_t unexpect{};

/// An error on its way into an expected: `return unexpected(e);`.
template <class E>
class unexpected {
  static_assert(
      detail::valid_error_type<E>,
      "unexpected<E>: E must be an object type without const or volatile, no array and no unexpected");

public:
  constexpr unexpected(const unexpected&) = default;
  constexpr unexpected(unexpected&&) = default;

  /// Makes the error from one value.
  template <class Err = E>
    requires(!std::is_same_v<std::remove_cvref_t<Err>, unexpected> &&
             !std::is_same_v<std::remove_cvref_t<Err>, std::in_place_t> && std::is_constructible_v<E, Err>)
  constexpr explicit unexpected(Err&& e) noexcept(std::is_nothrow_constructible_v<E, Err>)
      : error_(std::forward<Err>(e)) {}

  /// Makes the error in place from any arguments.
  template <class... Args>
    requires(std::is_constructible_v<E, Args...>)
  constexpr explicit unexpected(std::in_place_t,
                                Args&&... args) noexcept(std::is_nothrow_constructible_v<E, Args...>)
      : error_(std::forward<Args>(args)...) {}

  /// Makes the error in place from a braced list and any arguments.
  template <class U, class... Args>
    requires(std::is_constructible_v<E, std::initializer_list<U>&, Args...>)
  constexpr explicit unexpected(std::in_place_t, std::initializer_list<U> list, Args&&... args) noexcept(
      std::is_nothrow_constructible_v<E, std::initializer_list<U>&, Args...>)
      : error_(list, std::forward<Args>(args)...) {}

  constexpr unexpected& operator=(const unexpected&) = default;
  constexpr unexpected& operator=(unexpected&&) = default;

  /// The error.
  constexpr E& error() & noexcept { return error_; }
  constexpr const E& error() const& noexcept { return error_; }
  constexpr E&& error() && noexcept { return std::move(error_); }
  constexpr const E&& error() const&& noexcept { return std::move(error_); }

  /// Exchanges the errors.
  constexpr void swap(unexpected& other) noexcept(std::is_nothrow_swappable_v<E>) {
    static_assert(std::is_swappable_v<E>, "unexpected<E>::swap: E must be swappable");
    using std::swap;
    swap(error_, other.error_);
  }

  friend constexpr void swap(unexpected& x, unexpected& y) noexcept(noexcept(x.swap(y)))
    requires(std::is_swappable_v<E>)
  {
    x.swap(y);
  }

  /// Whether the errors are equal.
  template <class E2>
  friend constexpr bool operator==(const unexpected& x, const unexpected<E2>& y) noexcept(
      detail::nothrow_equal<E, E2>) {
    return x.error_ == y.error();
  }

private:
  E error_;
};

template <class E>
unexpected(E) -> unexpected<E>;

template <class E>
class bad_expected_access;

/// What value() throws, whatever the error's type: catch this one to catch them all.
template <>
class bad_expected_access<void> : public std::exception {
public:
  [[nodiscard]] const char* what() const noexcept override {
    return "bad access to an expected that holds an error";
  }

protected:
  bad_expected_access() noexcept = default;
  bad_expected_access(const bad_expected_access&) noexcept = default;
  bad_expected_access(bad_expected_access&&) noexcept = default;
  bad_expected_access& operator=(const bad_expected_access&) noexcept = default;
  bad_expected_access& operator=(bad_expected_access&&) noexcept = default;
  ~bad_expected_access() override = default;
};

/// What value() throws when there is an error; carries that error.
template <class E>
class bad_expected_access : public bad_expected_access<void> {
public:
  /// Takes the error.
  explicit bad_expected_access(E e) noexcept(std::is_nothrow_move_constructible_v<E>)
      : error_(std::move(e)) {}

  [[nodiscard]] const char* what() const noexcept override { return bad_expected_access<void>::what(); }

  /// The error.
  E& error() & noexcept { return error_; }
  const E& error() const& noexcept { return error_; }
  E&& error() && noexcept { return std::move(error_); }
  const E&& error() const&& noexcept { return std::move(error_); }

private:
  E error_;
};

namespace detail {

// One cold function per error type keeps the throw out of every value().
template <class E, class Source>
[[noreturn]] void throw_bad_expected_access([[maybe_unused]] Source&& error) {
#if COBATCH_EXCEPTIONS
  throw bad_expected_access<E>(std::forward<Source>(error));
#else
  fail("bad_expected_access: value() of an expected that holds an error");
#endif
}

}  // namespace detail
}  // namespace cobatch
