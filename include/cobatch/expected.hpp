#pragma once

#include <cobatch/detail/config.hpp>

// COBATCH_USE_STD_EXPECTED (detail/abi.hpp) says whose the names below are.
#if COBATCH_USE_STD_EXPECTED

#include <expected>

namespace cobatch::inline COBATCH_ABI {

using std::bad_expected_access;
using std::expected;
using std::unexpect;
using std::unexpect_t;
using std::unexpected;

namespace detail {

template <class T>
inline constexpr bool is_expected_v = false;
template <class T, class E>
inline constexpr bool is_expected_v<expected<T, E>> = true;

}  // namespace detail
}  // namespace cobatch

#else

#include <initializer_list>
#include <memory>
#include <type_traits>
#include <utility>

#include <cobatch/detail/assert.hpp>
#include <cobatch/detail/expected_content.hpp>
#include <cobatch/detail/expected_monadic.hpp>
#include <cobatch/detail/expected_void.hpp>
#include <cobatch/detail/invoke.hpp>
#include <cobatch/detail/unexpected.hpp>

// A long header, as C++20 has no deduced this: most members come once for each of up to four value
// categories.
namespace cobatch::inline COBATCH_ABI {

/// A value of type T, or the error of type E that says why there is none: C++23's std::expected in C++20.
///
/// T may be void, const, or neither copyable nor movable; copying, moving, assigning and swapping exist as
/// far as T and E have them, are trivial where theirs are, and noexcept where theirs are. Unlike in C++23
/// (but like in C++26) assignment too is trivial where it can be, so that an expected of trivially copyable
/// types is trivially copyable.
///
/// Lifetime: the value or the error lives inside the object.
/// Thread safety: that of an int.
/// Errors: value() throws bad_expected_access<E> if there is no value. Assignments and swap that throw leave
/// each object with a value or an error, the old one if the kinds differed. `*e` and `e->` without a value,
/// and error() without an error, are undefined; they fail an assertion where NDEBUG is not defined, see
/// detail/assert.hpp.
/// Allocates: nothing.
/// Example:
/// ```
/// expected<int, std::string> half(int n) {
///   if (n % 2 != 0) return unexpected("odd");
///   return n / 2;
/// }
/// ```
template <class T, class E>
class expected {
  static_assert(
      detail::valid_value_type<T>,
      "expected<T, E>: T must be void or an object type, no array, in_place_t, unexpect_t or unexpected");
  static_assert(
      detail::valid_error_type<E>,
      "expected<T, E>: E must be an object type without const or volatile, no array and no unexpected");

public:
  using value_type = T;
  using error_type = E;
  using unexpected_type = unexpected<E>;

  /// The same with another value type.
  template <class U>
  using rebind = expected<U, error_type>;

  /// Holds a value-initialised T.
  constexpr expected() noexcept(std::is_nothrow_default_constructible_v<T>)
    requires(std::is_default_constructible_v<T>)
      : value_(), has_value_(true) {}

  expected(const expected&) = delete;
  constexpr expected(const expected&)
    requires(detail::all_copy_constructible<T, E> && detail::all_trivially_copy_constructible<T, E>)
  = default;
  constexpr expected(const expected& other) noexcept(detail::all_nothrow_copy_constructible<T, E>)
    requires(detail::all_copy_constructible<T, E> && !detail::all_trivially_copy_constructible<T, E>)
      : nothing_(), has_value_(other.has_value_) {
    if (has_value_) {
      std::construct_at(std::addressof(value_), other.value_);
    } else {
      std::construct_at(std::addressof(error_), other.error_);
    }
  }

  constexpr expected(expected&&)
    requires(detail::all_move_constructible<T, E> && detail::all_trivially_move_constructible<T, E>)
  = default;
  constexpr expected(expected&& other) noexcept(detail::all_nothrow_move_constructible<T, E>)
    requires(detail::all_move_constructible<T, E> && !detail::all_trivially_move_constructible<T, E>)
      : nothing_(), has_value_(other.has_value_) {
    if (has_value_) {
      std::construct_at(std::addressof(value_), std::move(other).operator*());
    } else {
      std::construct_at(std::addressof(error_), std::move(other.error_));
    }
  }

  /// Converts the value or the error of another expected.
  template <class U, class G>
    requires detail::converts_alternatives<T, E, U, G, const U&, const G&>
  constexpr explicit(!std::is_convertible_v<const U&, T> || !std::is_convertible_v<const G&, E>)
      expected(const expected<U, G>& other) noexcept(std::is_nothrow_constructible_v<T, const U&> &&
                                                     std::is_nothrow_constructible_v<E, const G&>)
      : nothing_(), has_value_(other.has_value()) {
    if (has_value_) {
      std::construct_at(std::addressof(value_), other.operator*());
    } else {
      std::construct_at(std::addressof(error_), other.error());
    }
  }
  template <class U, class G>
    requires detail::converts_alternatives<T, E, U, G, U, G>
  constexpr explicit(!std::is_convertible_v<U, T> || !std::is_convertible_v<G, E>)
      expected(expected<U, G>&& other) noexcept(std::is_nothrow_constructible_v<T, U> &&
                                                std::is_nothrow_constructible_v<E, G>)
      : nothing_(), has_value_(other.has_value()) {
    if (has_value_) {
      std::construct_at(std::addressof(value_), std::move(other).operator*());
    } else {
      std::construct_at(std::addressof(error_), std::move(other).error());
    }
  }

  /// Holds the value.
  template <class U = std::remove_cv_t<T>>
    requires(!std::is_same_v<std::remove_cvref_t<U>, std::in_place_t> &&
             !std::is_same_v<std::remove_cvref_t<U>, unexpect_t> &&
             !std::is_same_v<std::remove_cvref_t<U>, expected> &&
             !detail::is_unexpected_v<std::remove_cvref_t<U>> && std::is_constructible_v<T, U> &&
             (!std::is_same_v<std::remove_cv_t<T>, bool> || !detail::is_expected_v<std::remove_cvref_t<U>>))
  constexpr explicit(!std::is_convertible_v<U, T>)
      expected(U&& v) noexcept(std::is_nothrow_constructible_v<T, U>)
      : value_(std::forward<U>(v)), has_value_(true) {}

  /// Holds the error.
  template <class G>
    requires(std::is_constructible_v<E, const G&>)
  constexpr explicit(!std::is_convertible_v<const G&, E>)
      expected(const unexpected<G>& e) noexcept(std::is_nothrow_constructible_v<E, const G&>)
      : error_(e.error()), has_value_(false) {}
  template <class G>
    requires(std::is_constructible_v<E, G>)
  constexpr explicit(!std::is_convertible_v<G, E>)
      expected(unexpected<G>&& e) noexcept(std::is_nothrow_constructible_v<E, G>)
      : error_(std::move(e).error()), has_value_(false) {}

  /// Makes the value in place from any arguments.
  template <class... Args>
    requires(std::is_constructible_v<T, Args...>)
  constexpr explicit expected(std::in_place_t,
                              Args&&... args) noexcept(std::is_nothrow_constructible_v<T, Args...>)
      : value_(std::forward<Args>(args)...), has_value_(true) {}
  template <class U, class... Args>
    requires(std::is_constructible_v<T, std::initializer_list<U>&, Args...>)
  constexpr explicit expected(std::in_place_t, std::initializer_list<U> list, Args&&... args) noexcept(
      std::is_nothrow_constructible_v<T, std::initializer_list<U>&, Args...>)
      : value_(list, std::forward<Args>(args)...), has_value_(true) {}

  /// Makes the error in place from any arguments.
  template <class... Args>
    requires(std::is_constructible_v<E, Args...>)
  constexpr explicit expected(unexpect_t,
                              Args&&... args) noexcept(std::is_nothrow_constructible_v<E, Args...>)
      : error_(std::forward<Args>(args)...), has_value_(false) {}
  template <class U, class... Args>
    requires(std::is_constructible_v<E, std::initializer_list<U>&, Args...>)
  constexpr explicit expected(unexpect_t, std::initializer_list<U> list, Args&&... args) noexcept(
      std::is_nothrow_constructible_v<E, std::initializer_list<U>&, Args...>)
      : error_(list, std::forward<Args>(args)...), has_value_(false) {}

  constexpr ~expected()
    requires(detail::all_trivially_destructible<T, E>)
  = default;
  constexpr ~expected() { end_content(); }

  /// Takes over the value or the error; if making the new one throws, the old one of the other kind is kept.
  expected& operator=(const expected&) = delete;
  constexpr expected& operator=(const expected&)
    requires(detail::all_copy_assignable<T, E> && detail::exchangeable<T, E> &&
             detail::all_trivially_copy_assignable<T, E>)
  = default;
  constexpr expected& operator=(const expected& other) noexcept(detail::all_nothrow_copy_assignable<T, E>)
    requires(detail::all_copy_assignable<T, E> && detail::exchangeable<T, E> &&
             !detail::all_trivially_copy_assignable<T, E>)
  {
    if (other.has_value_) {
      assign_value(other.value_);
    } else {
      assign_error(other.error_);
    }
    return *this;
  }

  constexpr expected& operator=(expected&&)
    requires(detail::all_move_assignable<T, E> && detail::exchangeable<T, E> &&
             detail::all_trivially_move_assignable<T, E>)
  = default;
  constexpr expected& operator=(expected&& other) noexcept(detail::all_nothrow_move_assignable<T, E>)
    requires(detail::all_move_assignable<T, E> && detail::exchangeable<T, E> &&
             !detail::all_trivially_move_assignable<T, E>)
  {
    if (other.has_value_) {
      assign_value(std::move(other.value_));
    } else {
      assign_error(std::move(other.error_));
    }
    return *this;
  }

  template <class U = std::remove_cv_t<T>>
    requires(!std::is_same_v<expected, std::remove_cvref_t<U>> &&
             !detail::is_unexpected_v<std::remove_cvref_t<U>> && std::is_constructible_v<T, U> &&
             std::is_assignable_v<T&, U> &&
             (std::is_nothrow_constructible_v<T, U> || detail::exchangeable<T, E>))
  constexpr expected& operator=(U&& v) noexcept(std::is_nothrow_constructible_v<T, U> &&
                                                std::is_nothrow_assignable_v<T&, U>) {
    assign_value(std::forward<U>(v));
    return *this;
  }

  template <class G>
    requires(std::is_constructible_v<E, const G&> && std::is_assignable_v<E&, const G&> &&
             (std::is_nothrow_constructible_v<E, const G&> || detail::exchangeable<T, E>))
  constexpr expected& operator=(const unexpected<G>& e) noexcept(
      std::is_nothrow_constructible_v<E, const G&> && std::is_nothrow_assignable_v<E&, const G&>) {
    assign_error(e.error());
    return *this;
  }
  template <class G>
    requires(std::is_constructible_v<E, G> && std::is_assignable_v<E&, G> &&
             (std::is_nothrow_constructible_v<E, G> || detail::exchangeable<T, E>))
  constexpr expected& operator=(unexpected<G>&& e) noexcept(std::is_nothrow_constructible_v<E, G> &&
                                                            std::is_nothrow_assignable_v<E&, G>) {
    assign_error(std::move(e).error());
    return *this;
  }

  /// Replaces whatever is held by a value made in place; only for a T that can be made so without throwing.
  template <class... Args>
    requires(std::is_nothrow_constructible_v<T, Args...>)
  constexpr T& emplace(Args&&... args) noexcept {
    end_content();
    std::construct_at(std::addressof(value_), std::forward<Args>(args)...);
    has_value_ = true;
    return value_;
  }
  template <class U, class... Args>
    requires(std::is_nothrow_constructible_v<T, std::initializer_list<U>&, Args...>)
  constexpr T& emplace(std::initializer_list<U> list, Args&&... args) noexcept {
    end_content();
    std::construct_at(std::addressof(value_), list, std::forward<Args>(args)...);
    has_value_ = true;
    return value_;
  }

  /// Exchanges contents; if that throws, both keep what they had (except where two values' or errors' own
  /// swap throws).
  constexpr void swap(expected& other) noexcept(detail::all_nothrow_move_constructible<T, E> &&
                                                std::is_nothrow_swappable_v<T> &&
                                                std::is_nothrow_swappable_v<E>)
    requires(std::is_swappable_v<T> && std::is_swappable_v<E> && detail::all_move_constructible<T, E> &&
             detail::exchangeable<T, E>)
  {
    using std::swap;
    if (has_value_ && other.has_value_) {
      swap(value_, other.value_);
    } else if (has_value_) {
      swap_value_for_error(other);
    } else if (other.has_value_) {
      other.swap_value_for_error(*this);
    } else {
      swap(error_, other.error_);
    }
  }

  friend constexpr void swap(expected& x, expected& y) noexcept(noexcept(x.swap(y)))
    requires requires { x.swap(y); }
  {
    x.swap(y);
  }

  /// Whether there is a value.
  [[nodiscard]] constexpr bool has_value() const noexcept { return has_value_; }
  [[nodiscard]] constexpr explicit operator bool() const noexcept { return has_value_; }

  /// The value, which must be there: COBATCH_ASSERT sees to it.
  COBATCH_ASSERTS constexpr const T* operator->() const noexcept {
    COBATCH_ASSERT(has_value_ && "-> of an expected that holds an error");
    return std::addressof(value_);
  }
  COBATCH_ASSERTS constexpr T* operator->() noexcept {
    COBATCH_ASSERT(has_value_ && "-> of an expected that holds an error");
    return std::addressof(value_);
  }
  COBATCH_ASSERTS constexpr const T& operator*() const& noexcept {
    COBATCH_ASSERT(has_value_ && "* of an expected that holds an error");
    return value_;
  }
  COBATCH_ASSERTS constexpr T& operator*() & noexcept {
    COBATCH_ASSERT(has_value_ && "* of an expected that holds an error");
    return value_;
  }
  COBATCH_ASSERTS constexpr const T&& operator*() const&& noexcept {
    COBATCH_ASSERT(has_value_ && "* of an expected that holds an error");
    return std::move(value_);
  }
  COBATCH_ASSERTS constexpr T&& operator*() && noexcept {
    COBATCH_ASSERT(has_value_ && "* of an expected that holds an error");
    return std::move(value_);
  }

  /// The value.
  ///
  /// Errors: throws bad_expected_access<E> with the error if there is none.
  constexpr const T& value() const& {
    expected::require_value(*this);
    return value_;
  }
  constexpr T& value() & {
    expected::require_value(std::as_const(*this));
    return value_;
  }
  constexpr const T&& value() const&& {
    expected::require_value(std::move(*this));
    return std::move(value_);
  }
  constexpr T&& value() && {
    expected::require_value(std::move(*this));
    return std::move(value_);
  }

  /// The error, which must be there: COBATCH_ASSERT sees to it.
  COBATCH_ASSERTS constexpr const E& error() const& noexcept {
    COBATCH_ASSERT(!has_value_ && "error() of an expected that holds a value");
    return error_;
  }
  COBATCH_ASSERTS constexpr E& error() & noexcept {
    COBATCH_ASSERT(!has_value_ && "error() of an expected that holds a value");
    return error_;
  }
  COBATCH_ASSERTS constexpr const E&& error() const&& noexcept {
    COBATCH_ASSERT(!has_value_ && "error() of an expected that holds a value");
    return std::move(error_);
  }
  COBATCH_ASSERTS constexpr E&& error() && noexcept {
    COBATCH_ASSERT(!has_value_ && "error() of an expected that holds a value");
    return std::move(error_);
  }

  /// The value, or the fallback converted to T.
  template <class U = std::remove_cv_t<T>>
  [[nodiscard]] constexpr std::remove_cv_t<T> value_or(U&& fallback) const& noexcept(
      std::is_nothrow_copy_constructible_v<T> && std::is_nothrow_constructible_v<std::remove_cv_t<T>, U>) {
    static_assert(std::is_copy_constructible_v<T> && std::is_convertible_v<U, T>,
                  "expected::value_or copies the value and converts the fallback to T");
    if (has_value_) return value_;
    return static_cast<std::remove_cv_t<T>>(std::forward<U>(fallback));
  }
  template <class U = std::remove_cv_t<T>>
  [[nodiscard]] constexpr std::remove_cv_t<T> value_or(U&& fallback) && noexcept(
      std::is_nothrow_move_constructible_v<T> && std::is_nothrow_constructible_v<std::remove_cv_t<T>, U>) {
    static_assert(std::is_move_constructible_v<T> && std::is_convertible_v<U, T>,
                  "expected::value_or moves the value and converts the fallback to T");
    if (has_value_) return std::move(value_);
    return static_cast<std::remove_cv_t<T>>(std::forward<U>(fallback));
  }

  /// The error, or the fallback converted to E.
  template <class G = E>
  [[nodiscard]] constexpr E error_or(G&& fallback) const& noexcept(std::is_nothrow_copy_constructible_v<E> &&
                                                                    std::is_nothrow_constructible_v<E, G>) {
    static_assert(std::is_copy_constructible_v<E> && std::is_convertible_v<G, E>,
                  "expected::error_or copies the error and converts the fallback to E");
    if (!has_value_) return error_;
    return static_cast<E>(std::forward<G>(fallback));
  }
  template <class G = E>
  [[nodiscard]] constexpr E error_or(G&& fallback) && noexcept(std::is_nothrow_move_constructible_v<E> &&
                                                                    std::is_nothrow_constructible_v<E, G>) {
    static_assert(std::is_move_constructible_v<E> && std::is_convertible_v<G, E>,
                  "expected::error_or moves the error and converts the fallback to E");
    if (!has_value_) return std::move(error_);
    return static_cast<E>(std::forward<G>(fallback));
  }

  /// What f makes of the value, itself an expected with the same error type; an error is passed on.
  template <class F>
      constexpr auto and_then(F&& f) &
      requires(std::is_constructible_v<E, E&>) {
        return detail::expected_monadic::and_then(*this, std::forward<F>(f));
      } template <class F>
      constexpr auto and_then(F&& f) const&
        requires(std::is_constructible_v<E, const E&>)
  {
    return detail::expected_monadic::and_then(*this, std::forward<F>(f));
  }
  template <class F>
      constexpr auto and_then(F&& f) &&
      requires(std::is_constructible_v<E, E>) {
        return detail::expected_monadic::and_then(std::move(*this), std::forward<F>(f));
      } template <class F>
      constexpr auto and_then(F&& f) const&&
        requires(std::is_constructible_v<E, const E>)
  {
    return detail::expected_monadic::and_then(std::move(*this), std::forward<F>(f));
  }

  /// What f makes of the error, itself an expected with the same value type; a value is passed on.
  template <class F>
      constexpr auto or_else(F&& f) &
      requires(std::is_constructible_v<T, T&>) {
        return detail::expected_monadic::or_else(*this, std::forward<F>(f));
      } template <class F>
      constexpr auto or_else(F&& f) const&
        requires(std::is_constructible_v<T, const T&>)
  {
    return detail::expected_monadic::or_else(*this, std::forward<F>(f));
  }
  template <class F>
      constexpr auto or_else(F&& f) &&
      requires(std::is_constructible_v<T, T>) {
        return detail::expected_monadic::or_else(std::move(*this), std::forward<F>(f));
      } template <class F>
      constexpr auto or_else(F&& f) const&&
        requires(std::is_constructible_v<T, const T>)
  {
    return detail::expected_monadic::or_else(std::move(*this), std::forward<F>(f));
  }

  /// An expected of what f makes of the value, which may be void; an error is passed on.
  template <class F>
      constexpr auto transform(F&& f) &
      requires(std::is_constructible_v<E, E&>) {
        return detail::expected_monadic::transform(*this, std::forward<F>(f));
      } template <class F>
      constexpr auto transform(F&& f) const&
        requires(std::is_constructible_v<E, const E&>)
  {
    return detail::expected_monadic::transform(*this, std::forward<F>(f));
  }
  template <class F>
      constexpr auto transform(F&& f) &&
      requires(std::is_constructible_v<E, E>) {
        return detail::expected_monadic::transform(std::move(*this), std::forward<F>(f));
      } template <class F>
      constexpr auto transform(F&& f) const&&
        requires(std::is_constructible_v<E, const E>)
  {
    return detail::expected_monadic::transform(std::move(*this), std::forward<F>(f));
  }

  /// An expected whose error is what f makes of the error; a value is passed on.
  template <class F>
      constexpr auto transform_error(F&& f) &
      requires(std::is_constructible_v<T, T&>) {
        return detail::expected_monadic::transform_error(*this, std::forward<F>(f));
      } template <class F>
      constexpr auto transform_error(F&& f) const&
        requires(std::is_constructible_v<T, const T&>)
  {
    return detail::expected_monadic::transform_error(*this, std::forward<F>(f));
  }
  template <class F>
      constexpr auto transform_error(F&& f) &&
      requires(std::is_constructible_v<T, T>) {
        return detail::expected_monadic::transform_error(std::move(*this), std::forward<F>(f));
      } template <class F>
      constexpr auto transform_error(F&& f) const&&
        requires(std::is_constructible_v<T, const T>)
  {
    return detail::expected_monadic::transform_error(std::move(*this), std::forward<F>(f));
  }

  /// Equal if both hold equal values or both hold equal errors.
  template <class T2, class E2>
    requires(!std::is_void_v<T2>)
  friend constexpr bool operator==(const expected& x, const expected<T2, E2>& y) noexcept(
      detail::nothrow_equal<T, T2> && detail::nothrow_equal<E, E2>) {
    if (x.has_value() != y.has_value()) return false;
    if (x.has_value()) return *x == *y;
    return x.error() == y.error();
  }
  /// Equal if there is a value and it equals v.
  template <class T2>
    requires(!detail::is_expected_v<T2>)
  friend constexpr bool operator==(const expected& x, const T2& v) noexcept(detail::nothrow_equal<T, T2>) {
    if (!x.has_value()) return false;
    return *x == v;
  }
  /// Equal if there is an error and it equals e's.
  template <class E2>
  friend constexpr bool operator==(const expected& x, const unexpected<E2>& e) noexcept(
      detail::nothrow_equal<E, E2>) {
    if (x.has_value()) return false;
    return x.error() == e.error();
  }

private:
  friend detail::expected_monadic;

  // ---- Implementation ----

  template <class F, class... Args>
  constexpr explicit expected(detail::value_from_call_t, F&& f, Args&&... args)
      : value_(detail::invoke(std::forward<F>(f), std::forward<Args>(args)...)), has_value_(true) {}
  template <class F, class... Args>
  constexpr explicit expected(detail::error_from_call_t, F&& f, Args&&... args)
      : error_(detail::invoke(std::forward<F>(f), std::forward<Args>(args)...)), has_value_(false) {}

  template <class Self>
  static constexpr void require_value(Self&& self) {
    static_assert(std::is_copy_constructible_v<E> &&
                      std::is_constructible_v<E, decltype(std::forward<Self>(self).error())>,
                  "expected::value() throws a copy of the error: it must be copyable");
    if (!self.has_value_) detail::throw_bad_expected_access<E>(std::forward<Self>(self).error());
  }

  constexpr void end_content() noexcept {
    if (has_value_) {
      std::destroy_at(std::addressof(value_));
    } else {
      std::destroy_at(std::addressof(error_));
    }
  }

  template <class U>
  constexpr void assign_value(U&& v) {
    if (has_value_) {
      value_ = std::forward<U>(v);
    } else {
      detail::replace(value_, error_, std::forward<U>(v));
      has_value_ = true;
    }
  }

  template <class G>
  constexpr void assign_error(G&& e) {
    if (has_value_) {
      detail::replace(error_, value_, std::forward<G>(e));
      has_value_ = false;
    } else {
      error_ = std::forward<G>(e);
    }
  }

  // What cannot move without throwing moves last, while the other, set aside, can still go back.
  constexpr void swap_value_for_error(expected& other) {
    if constexpr (std::is_nothrow_move_constructible_v<E>) {
      detail::moved_aside<E> aside(other.error_);
      std::construct_at(std::addressof(other.value_), std::move(value_));
      std::destroy_at(std::addressof(value_));
      std::construct_at(std::addressof(error_), aside.release());
    } else {
      detail::moved_aside<storage> aside(value_);
      std::construct_at(std::addressof(error_), std::move(other.error_));
      std::destroy_at(std::addressof(other.error_));
      std::construct_at(std::addressof(other.value_), aside.release());
    }
    has_value_ = false;
    other.has_value_ = true;
  }

  // Without const, so that a const T too can be begun and ended in a constant expression.
  using storage = std::remove_cv_t<T>;

  union {
    detail::no_content nothing_;
    storage value_;
    E error_;
  };
  bool has_value_;
};

}  // namespace cobatch

#endif
