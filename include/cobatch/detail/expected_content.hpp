#pragma once

#include <memory>
#include <type_traits>
#include <utility>

#include <cobatch/detail/abi.hpp>
#include <cobatch/detail/unexpected.hpp>

// What expected<T, E> and expected<void, E> share: their constraints, and the exchange of a value for an
// error.
namespace cobatch::inline COBATCH_ABI {

template <class T, class E>
class expected;

namespace detail {

template <class T>
inline constexpr bool is_expected_v = false;
template <class T, class E>
inline constexpr bool is_expected_v<expected<T, E>> = true;

template <class T>
inline constexpr bool valid_value_type =
    std::is_void_v<T> ||
    (std::is_object_v<T> && !std::is_array_v<T> && !std::is_same_v<std::remove_cv_t<T>, std::in_place_t> &&
     !std::is_same_v<std::remove_cv_t<T>, unexpect_t> && !is_unexpected_v<std::remove_cv_t<T>>);

// Each asks for all that a special member of expected needs from both alternatives; the void form passes E
// alone.
template <class... Ts>
inline constexpr bool all_copy_constructible = (std::is_copy_constructible_v<Ts> && ...);
template <class... Ts>
inline constexpr bool all_move_constructible = (std::is_move_constructible_v<Ts> && ...);
template <class... Ts>
inline constexpr bool all_copy_assignable =
    ((std::is_copy_constructible_v<Ts> && std::is_copy_assignable_v<Ts>) && ...);
template <class... Ts>
inline constexpr bool all_move_assignable =
    ((std::is_move_constructible_v<Ts> && std::is_move_assignable_v<Ts>) && ...);

template <class... Ts>
inline constexpr bool all_trivially_copy_constructible = (std::is_trivially_copy_constructible_v<Ts> && ...);
template <class... Ts>
inline constexpr bool all_trivially_move_constructible = (std::is_trivially_move_constructible_v<Ts> && ...);
template <class... Ts>
inline constexpr bool all_trivially_destructible = (std::is_trivially_destructible_v<Ts> && ...);
template <class... Ts>
inline constexpr bool all_trivially_copy_assignable =
    ((std::is_trivially_copy_constructible_v<Ts> && std::is_trivially_copy_assignable_v<Ts> &&
      std::is_trivially_destructible_v<Ts>) &&
     ...);
template <class... Ts>
inline constexpr bool all_trivially_move_assignable =
    ((std::is_trivially_move_constructible_v<Ts> && std::is_trivially_move_assignable_v<Ts> &&
      std::is_trivially_destructible_v<Ts>) &&
     ...);

template <class... Ts>
inline constexpr bool all_nothrow_copy_constructible = (std::is_nothrow_copy_constructible_v<Ts> && ...);
template <class... Ts>
inline constexpr bool all_nothrow_move_constructible = (std::is_nothrow_move_constructible_v<Ts> && ...);
template <class... Ts>
inline constexpr bool all_nothrow_copy_assignable =
    ((std::is_nothrow_copy_constructible_v<Ts> && std::is_nothrow_copy_assignable_v<Ts>) && ...);
template <class... Ts>
inline constexpr bool all_nothrow_move_assignable =
    ((std::is_nothrow_move_constructible_v<Ts> && std::is_nothrow_move_assignable_v<Ts>) && ...);

// A value and an error can only change places without losing one if at least one of them moves without
// throwing.
template <class T, class E>
inline constexpr bool exchangeable =
    std::is_nothrow_move_constructible_v<T> || std::is_nothrow_move_constructible_v<E>;

template <class X, class W>
inline constexpr bool constructible_from_any_form_of =
    std::is_constructible_v<X, W&> || std::is_constructible_v<X, W> || std::is_constructible_v<X, const W&> ||
    std::is_constructible_v<X, const W>;

template <class X, class W>
inline constexpr bool convertible_from_any_form_of =
    std::is_convertible_v<W&, X> || std::is_convertible_v<W, X> || std::is_convertible_v<const W&, X> ||
    std::is_convertible_v<const W, X>;

// Whether an expected<U, G> is to be taken apart into a new expected<T, E>. Not if T (or the error) could be
// made from the expected as a whole; bool is excused, as an explicit test would otherwise make it so for
// every expected. The same type is the business of copy and move, and asking a std::any whether it could hold
// that would go round in circles.
template <class T, class E, class U, class G, class FromValue, class FromError>
concept converts_alternatives =
    !(std::is_same_v<T, U> && std::is_same_v<E, G>) && std::is_constructible_v<T, FromValue> &&
    std::is_constructible_v<E, FromError> &&
    (std::is_same_v<std::remove_cv_t<T>, bool> || (!constructible_from_any_form_of<T, expected<U, G>> &&
                                                   !convertible_from_any_form_of<T, expected<U, G>>)) &&
    !constructible_from_any_form_of<unexpected<E>, expected<U, G>>;

template <class T, class E, class U, class G, class FromError>
concept converts_error =
    !(std::is_same_v<T, U> && std::is_same_v<E, G>) && std::is_void_v<U> &&
    std::is_constructible_v<E, FromError> && !constructible_from_any_form_of<unexpected<E>, expected<U, G>>;

// Tags of the private constructors that make an alternative from a call's result, without a move in between.
struct value_from_call_t {};
struct error_from_call_t {};

// What both alternatives of a union start from when the constructor's body picks one.
struct no_content {};

// An object moved out of its slot. It returns there on destruction unless release() took it: the roll-back of
// a failed exchange as a destructor, so that it needs no try block and works without exceptions too.
template <class T>
class moved_aside {
public:
  constexpr explicit moved_aside(T& slot) : object_(std::move(slot)), slot_(std::addressof(slot)) {
    std::destroy_at(slot_);
  }
  moved_aside(const moved_aside&) = delete;
  moved_aside& operator=(const moved_aside&) = delete;
  constexpr ~moved_aside() {
    if (slot_ != nullptr) std::construct_at(slot_, std::move(object_));
  }

  constexpr T&& release() noexcept {
    slot_ = nullptr;
    return std::move(object_);
  }

private:
  T object_;
  T* slot_;
};

// Ends `old` and begins `fresh`, its neighbour in a union; if that throws, `old` is still there.
template <class Fresh, class Old, class... Args>
constexpr void replace(Fresh& fresh, Old& old,
                       Args&&... args) noexcept(std::is_nothrow_constructible_v<Fresh, Args...>) {
  if constexpr (std::is_nothrow_constructible_v<Fresh, Args...>) {
    std::destroy_at(std::addressof(old));
    std::construct_at(std::addressof(fresh), std::forward<Args>(args)...);
  } else if constexpr (std::is_nothrow_move_constructible_v<Fresh>) {
    Fresh made(std::forward<Args>(args)...);
    std::destroy_at(std::addressof(old));
    std::construct_at(std::addressof(fresh), std::move(made));
  } else {
    moved_aside<Old> aside(old);
    std::construct_at(std::addressof(fresh), std::forward<Args>(args)...);
    static_cast<void>(aside.release());
  }
}

}  // namespace detail
}  // namespace cobatch
