#pragma once

#include <initializer_list>
#include <memory>
#include <type_traits>
#include <utility>

#include <cobatch/detail/abi.hpp>
#include <cobatch/detail/assert.hpp>
#include <cobatch/detail/expected_content.hpp>
#include <cobatch/detail/expected_monadic.hpp>
#include <cobatch/detail/invoke.hpp>
#include <cobatch/detail/unexpected.hpp>

namespace cobatch::inline COBATCH_ABI {

/// Success without a value, or an error of type E: the form of expected for functions that otherwise return
/// nothing.
///
/// Lifetime, thread safety, errors, allocation: as of expected<T, E>.
template <class T, class E>
  requires(std::is_void_v<T>)
class expected<T, E> {
  static_assert(
      detail::valid_error_type<E>,
      "expected<void, E>: E must be an object type without const or volatile, no array and no unexpected");

public:
  using value_type = T;
  using error_type = E;
  using unexpected_type = unexpected<E>;

  /// The same with another value type.
  template <class U>
  using rebind = expected<U, error_type>;

  /// Success.
  constexpr expected() noexcept : nothing_(), has_value_(true) {}

  expected(const expected&) = delete;
  constexpr expected(const expected&)
    requires(detail::all_copy_constructible<E> && detail::all_trivially_copy_constructible<E>)
  = default;
  constexpr expected(const expected& other) noexcept(detail::all_nothrow_copy_constructible<E>)
    requires(detail::all_copy_constructible<E> && !detail::all_trivially_copy_constructible<E>)
      : nothing_(), has_value_(other.has_value_) {
    if (!has_value_) std::construct_at(std::addressof(error_), other.error_);
  }

  constexpr expected(expected&&)
    requires(detail::all_move_constructible<E> && detail::all_trivially_move_constructible<E>)
  = default;
  constexpr expected(expected&& other) noexcept(detail::all_nothrow_move_constructible<E>)
    requires(detail::all_move_constructible<E> && !detail::all_trivially_move_constructible<E>)
      : nothing_(), has_value_(other.has_value_) {
    if (!has_value_) std::construct_at(std::addressof(error_), std::move(other.error_));
  }

  /// Converts the error of another expected without a value.
  template <class U, class G>
    requires detail::converts_error<T, E, U, G, const G&>
  constexpr explicit(!std::is_convertible_v<const G&, E>)
      expected(const expected<U, G>& other) noexcept(std::is_nothrow_constructible_v<E, const G&>)
      : nothing_(), has_value_(other.has_value()) {
    if (!has_value_) std::construct_at(std::addressof(error_), other.error());
  }
  template <class U, class G>
    requires detail::converts_error<T, E, U, G, G>
  constexpr explicit(!std::is_convertible_v<G, E>)
      expected(expected<U, G>&& other) noexcept(std::is_nothrow_constructible_v<E, G>)
      : nothing_(), has_value_(other.has_value()) {
    if (!has_value_) std::construct_at(std::addressof(error_), std::move(other).error());
  }

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

  /// Success, spelt like that of the other expecteds.
  constexpr explicit expected(std::in_place_t) noexcept : nothing_(), has_value_(true) {}

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
    requires(detail::all_trivially_destructible<E>)
  = default;
  constexpr ~expected() { end_error(); }

  /// Takes over success or the error; if making the error throws, success is kept.
  expected& operator=(const expected&) = delete;
  constexpr expected& operator=(const expected&)
    requires(detail::all_copy_assignable<E> && detail::all_trivially_copy_assignable<E>)
  = default;
  constexpr expected& operator=(const expected& other) noexcept(detail::all_nothrow_copy_assignable<E>)
    requires(detail::all_copy_assignable<E> && !detail::all_trivially_copy_assignable<E>)
  {
    if (other.has_value_) {
      emplace();
    } else {
      assign_error(other.error_);
    }
    return *this;
  }

  constexpr expected& operator=(expected&&)
    requires(detail::all_move_assignable<E> && detail::all_trivially_move_assignable<E>)
  = default;
  constexpr expected& operator=(expected&& other) noexcept(detail::all_nothrow_move_assignable<E>)
    requires(detail::all_move_assignable<E> && !detail::all_trivially_move_assignable<E>)
  {
    if (other.has_value_) {
      emplace();
    } else {
      assign_error(std::move(other.error_));
    }
    return *this;
  }

  template <class G>
    requires(std::is_constructible_v<E, const G&> && std::is_assignable_v<E&, const G&>)
  constexpr expected& operator=(const unexpected<G>& e) noexcept(
      std::is_nothrow_constructible_v<E, const G&> && std::is_nothrow_assignable_v<E&, const G&>) {
    assign_error(e.error());
    return *this;
  }
  template <class G>
    requires(std::is_constructible_v<E, G> && std::is_assignable_v<E&, G>)
  constexpr expected& operator=(unexpected<G>&& e) noexcept(std::is_nothrow_constructible_v<E, G> &&
                                                            std::is_nothrow_assignable_v<E&, G>) {
    assign_error(std::move(e).error());
    return *this;
  }

  /// Makes it a success.
  constexpr void emplace() noexcept {
    end_error();
    has_value_ = true;
  }

  /// Exchanges contents; if moving an error throws, both keep what they had.
  constexpr void swap(expected& other) noexcept(detail::all_nothrow_move_constructible<E> &&
                                                std::is_nothrow_swappable_v<E>)
    requires(std::is_swappable_v<E> && detail::all_move_constructible<E>)
  {
    using std::swap;
    if (has_value_ && !other.has_value_) {
      take_error(other);
    } else if (!has_value_ && other.has_value_) {
      other.take_error(*this);
    } else if (!has_value_) {
      swap(error_, other.error_);
    }
  }

  friend constexpr void swap(expected& x, expected& y) noexcept(noexcept(x.swap(y)))
    requires requires { x.swap(y); }
  {
    x.swap(y);
  }

  /// Whether it is a success.
  [[nodiscard]] constexpr bool has_value() const noexcept { return has_value_; }
  [[nodiscard]] constexpr explicit operator bool() const noexcept { return has_value_; }

  /// Nothing; for code that is generic in T.
  COBATCH_ASSERTS constexpr void operator*() const noexcept {
    COBATCH_ASSERT(has_value_ && "* of an expected that holds an error");
  }

  /// Returns if it is a success.
  ///
  /// Errors: throws bad_expected_access<E> with the error otherwise.
  constexpr void value() const& {
    static_assert(std::is_copy_constructible_v<E>,
                  "expected::value() throws a copy of the error: it must be copyable");
    if (!has_value_) detail::throw_bad_expected_access<E>(error_);
  }
  constexpr void value() && {
    static_assert(std::is_copy_constructible_v<E> && std::is_move_constructible_v<E>,
                  "expected::value() throws the error: it must be copyable and movable");
    if (!has_value_) detail::throw_bad_expected_access<E>(std::move(error_));
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

  /// What f, called without arguments, returns: an expected with the same error type; an error is passed on.
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

  /// What f makes of the error, itself an expected without a value; success is passed on.
  template <class F>
  constexpr auto or_else(F&& f) & {
    return detail::expected_monadic::or_else(*this, std::forward<F>(f));
  }
  template <class F>
  constexpr auto or_else(F&& f) const& {
    return detail::expected_monadic::or_else(*this, std::forward<F>(f));
  }
  template <class F>
  constexpr auto or_else(F&& f) && {
    return detail::expected_monadic::or_else(std::move(*this), std::forward<F>(f));
  }
  template <class F>
  constexpr auto or_else(F&& f) const&& {
    return detail::expected_monadic::or_else(std::move(*this), std::forward<F>(f));
  }

  /// An expected of what f, called without arguments, returns, which may be void; an error is passed on.
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

  /// An expected whose error is what f makes of the error; success is passed on.
  template <class F>
  constexpr auto transform_error(F&& f) & {
    return detail::expected_monadic::transform_error(*this, std::forward<F>(f));
  }
  template <class F>
  constexpr auto transform_error(F&& f) const& {
    return detail::expected_monadic::transform_error(*this, std::forward<F>(f));
  }
  template <class F>
  constexpr auto transform_error(F&& f) && {
    return detail::expected_monadic::transform_error(std::move(*this), std::forward<F>(f));
  }
  template <class F>
  constexpr auto transform_error(F&& f) const&& {
    return detail::expected_monadic::transform_error(std::move(*this), std::forward<F>(f));
  }

  /// Equal if both are a success or both hold equal errors.
  template <class T2, class E2>
    requires(std::is_void_v<T2>)
  friend constexpr bool operator==(const expected& x, const expected<T2, E2>& y) noexcept(
      detail::nothrow_equal<E, E2>) {
    if (x.has_value() != y.has_value()) return false;
    if (x.has_value()) return true;
    return x.error() == y.error();
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
  constexpr explicit expected(detail::error_from_call_t, F&& f, Args&&... args)
      : error_(detail::invoke(std::forward<F>(f), std::forward<Args>(args)...)), has_value_(false) {}

  constexpr void end_error() noexcept {
    if (!has_value_) std::destroy_at(std::addressof(error_));
  }

  template <class G>
  constexpr void assign_error(G&& e) {
    if (has_value_) {
      std::construct_at(std::addressof(error_), std::forward<G>(e));
      has_value_ = false;
    } else {
      error_ = std::forward<G>(e);
    }
  }

  constexpr void take_error(expected& other) {
    std::construct_at(std::addressof(error_), std::move(other.error_));
    std::destroy_at(std::addressof(other.error_));
    has_value_ = false;
    other.has_value_ = true;
  }

  union {
    detail::no_content nothing_;
    E error_;
  };
  bool has_value_;
};

}  // namespace cobatch
