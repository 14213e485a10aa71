#include <cobatch/expected.hpp>

#include <any>
#include <initializer_list>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "expected_types.hpp"
#include "support/catch.hpp"

using cobatch::expected;
using cobatch::unexpect;
using cobatch::unexpect_t;
using cobatch::unexpected;
using namespace expected_types;

namespace {

// ---- Member types ----

static_assert(std::is_same_v<expected<int, char>::value_type, int>);
static_assert(std::is_same_v<expected<int, char>::error_type, char>);
static_assert(std::is_same_v<expected<int, char>::unexpected_type, unexpected<char>>);
static_assert(std::is_same_v<expected<int, char>::rebind<long>, expected<long, char>>);
static_assert(std::is_same_v<expected<const void, char>::value_type, const void>);
static_assert(std::is_same_v<expected<void, char>::error_type, char>);
static_assert(std::is_same_v<expected<void, char>::unexpected_type, unexpected<char>>);
static_assert(std::is_same_v<expected<void, char>::rebind<long>, expected<long, char>>);

// ---- Triviality: everything is trivial where the parts are ----

template <class X>
constexpr bool all_trivial =
    std::is_trivially_copyable_v<X> && std::is_trivially_destructible_v<X> &&
    std::is_trivially_copy_constructible_v<X> && std::is_trivially_move_constructible_v<X>;

template <class X>
constexpr bool none_trivial =
    !std::is_trivially_copyable_v<X> && !std::is_trivially_destructible_v<X> &&
    !std::is_trivially_copy_constructible_v<X> && !std::is_trivially_move_constructible_v<X> &&
    !std::is_trivially_copy_assignable_v<X> && !std::is_trivially_move_assignable_v<X>;

struct trivial_pair {
  int a;
  double b;
};

// Each lacks triviality in one operation only; the destructor stays trivial.
struct own_copy {
  own_copy() = default;
  own_copy(const own_copy&) noexcept {}
  own_copy(own_copy&&) = default;
  own_copy& operator=(const own_copy&) = default;
  own_copy& operator=(own_copy&&) = default;
};
struct own_move {
  own_move() = default;
  own_move(const own_move&) = default;
  own_move(own_move&&) noexcept {}
  own_move& operator=(const own_move&) = default;
  own_move& operator=(own_move&&) = default;
};
struct own_copy_assignment {
  own_copy_assignment() = default;
  own_copy_assignment(const own_copy_assignment&) = default;
  own_copy_assignment(own_copy_assignment&&) = default;
  own_copy_assignment& operator=(const own_copy_assignment&) noexcept { return *this; }
  own_copy_assignment& operator=(own_copy_assignment&&) = default;
};
struct own_destructor {
  own_destructor() = default;
  own_destructor(const own_destructor&) = default;
  own_destructor& operator=(const own_destructor&) = default;
  ~own_destructor() {}
};

static_assert(none_trivial<expected<std::string, int>>);
static_assert(none_trivial<expected<int, std::string>>);
static_assert(none_trivial<expected<void, std::string>>);
static_assert(std::is_trivially_destructible_v<expected<trivial_pair, int>>);
static_assert(std::is_trivially_destructible_v<expected<own_copy, own_move>>);
static_assert(!std::is_trivially_destructible_v<expected<own_destructor, int>>);
static_assert(!std::is_trivially_destructible_v<expected<int, own_destructor>>);
static_assert(!std::is_trivially_destructible_v<expected<void, own_destructor>>);
static_assert(!std::is_trivially_copy_constructible_v<expected<own_copy, int>>);
static_assert(!std::is_trivially_copy_constructible_v<expected<int, own_copy>>);
static_assert(!std::is_trivially_copy_constructible_v<expected<void, own_copy>>);
static_assert(std::is_trivially_move_constructible_v<expected<own_copy, int>>);
static_assert(std::is_trivially_move_constructible_v<expected<void, own_copy>>);
static_assert(std::is_trivially_copy_constructible_v<expected<own_move, int>>);
static_assert(std::is_trivially_copy_constructible_v<expected<void, own_move>>);
static_assert(!std::is_trivially_move_constructible_v<expected<own_move, int>>);
static_assert(!std::is_trivially_move_constructible_v<expected<int, own_move>>);
static_assert(!std::is_trivially_move_constructible_v<expected<void, own_move>>);

#if !COBATCH_USE_STD_EXPECTED
// Before C++26 the standard's is never trivially assignable.
static_assert(all_trivial<expected<int, int>>);
static_assert(all_trivial<expected<trivial_pair, char>>);
static_assert(all_trivial<expected<void, int>>);
static_assert(std::is_trivially_copy_assignable_v<expected<int, char>>);
static_assert(std::is_trivially_move_assignable_v<expected<int, char>>);
static_assert(std::is_trivially_copy_assignable_v<expected<void, char>>);
static_assert(!std::is_trivially_copy_assignable_v<expected<own_copy, int>>);
static_assert(std::is_trivially_move_assignable_v<expected<own_copy, int>>);
static_assert(!std::is_trivially_copy_assignable_v<expected<int, own_copy_assignment>>);
static_assert(std::is_trivially_move_assignable_v<expected<int, own_copy_assignment>>);
static_assert(!std::is_trivially_copy_assignable_v<expected<void, own_copy_assignment>>);
static_assert(!std::is_trivially_move_assignable_v<expected<own_destructor, int>>);
static_assert(sizeof(expected<void, char>) == 2);
#endif
static_assert(sizeof(expected<int, int>) == 2 * sizeof(int));

// ---- Which special members there are ----

// One that loses a value or an error is never made: neither can move without a risk.
using risky = expected<risky_value, risky_error>;
static_assert(std::is_copy_constructible_v<risky> && std::is_move_constructible_v<risky>);
static_assert(!std::is_copy_assignable_v<risky> && !std::is_move_assignable_v<risky>);
static_assert(!std::is_swappable_v<risky>);
static_assert(!std::is_assignable_v<risky&, int> && !std::is_assignable_v<risky&, unexpected<int>>);
static_assert(std::is_copy_assignable_v<expected<risky_value, safe_error>>);
static_assert(std::is_copy_assignable_v<expected<safe_value, risky_error>>);
static_assert(std::is_copy_assignable_v<expected<void, risky_error>>);
static_assert(std::is_swappable_v<expected<void, risky_error>>);

template <class X>
constexpr bool only_movable = !std::is_copy_constructible_v<X> && !std::is_copy_assignable_v<X> &&
                              std::is_nothrow_move_constructible_v<X> &&
                              std::is_nothrow_move_assignable_v<X> && std::is_nothrow_swappable_v<X>;
static_assert(only_movable<expected<move_only, int>>);
static_assert(only_movable<expected<int, move_only>>);
static_assert(only_movable<expected<move_only, move_only>>);
static_assert(only_movable<expected<void, move_only>>);

template <class X>
constexpr bool stays =
    !std::is_copy_constructible_v<X> && !std::is_copy_assignable_v<X> && !std::is_move_constructible_v<X> &&
    !std::is_move_assignable_v<X> && !std::is_swappable_v<X>;
static_assert(stays<expected<immovable, int>>);
static_assert(stays<expected<int, immovable>>);
static_assert(stays<expected<void, immovable>>);

using with_const = expected<const int, int>;
static_assert(std::is_copy_constructible_v<with_const> && std::is_move_constructible_v<with_const>);
static_assert(!std::is_copy_assignable_v<with_const> && !std::is_move_assignable_v<with_const>);
static_assert(!std::is_assignable_v<with_const&, int> && std::is_assignable_v<with_const&, unexpected<int>>);
static_assert(!std::is_swappable_v<with_const>);

struct no_default {
  explicit no_default(int);
};
static_assert(std::is_default_constructible_v<expected<int, no_default>>);
static_assert(std::is_default_constructible_v<expected<void, no_default>>);
static_assert(!std::is_default_constructible_v<expected<no_default, int>>);

// ---- noexcept ----

using safe = expected<safe_value, safe_error>;
static_assert(std::is_nothrow_move_constructible_v<safe> && std::is_nothrow_move_assignable_v<safe>);
static_assert(std::is_nothrow_swappable_v<safe> &&
              noexcept(std::declval<safe&>().swap(std::declval<safe&>())));
static_assert(!std::is_nothrow_copy_constructible_v<safe> && !std::is_nothrow_copy_assignable_v<safe>);
using risky_one = expected<risky_value, safe_error>;
static_assert(!std::is_nothrow_move_constructible_v<risky_one> &&
              !std::is_nothrow_move_assignable_v<risky_one>);
static_assert(std::is_swappable_v<risky_one> && !std::is_nothrow_swappable_v<risky_one>);
static_assert(!std::is_nothrow_move_constructible_v<expected<void, risky_error>>);
static_assert(!std::is_nothrow_move_assignable_v<expected<void, risky_error>>);
static_assert(!std::is_nothrow_swappable_v<expected<void, risky_error>>);
static_assert(std::is_nothrow_move_assignable_v<expected<void, safe_error>>);
static_assert(std::is_nothrow_swappable_v<expected<void, safe_error>>);
static_assert(std::is_nothrow_default_constructible_v<expected<void, std::string>>);
static_assert(std::is_nothrow_destructible_v<risky>);
static_assert(noexcept(std::declval<risky&>().has_value()) && noexcept(std::declval<risky&>().error()));
static_assert(noexcept(*std::declval<risky&>()) && noexcept(std::declval<risky&>().operator->()));
#if !COBATCH_USE_STD_EXPECTED
static_assert(std::is_nothrow_default_constructible_v<expected<int, std::string>>);
static_assert(!std::is_nothrow_default_constructible_v<expected<nontrivial, int>>);
static_assert(std::is_nothrow_constructible_v<expected<int, int>, int>);
static_assert(std::is_nothrow_constructible_v<expected<int, int>, unexpected<int>>);
static_assert(std::is_nothrow_assignable_v<expected<int, int>&, int>);
static_assert(!std::is_nothrow_constructible_v<expected<safe_value, int>, int>);
#endif

// ---- Value categories ----

using X = expected<int, long>;
static_assert(std::is_same_v<decltype(*std::declval<X&>()), int&>);
static_assert(std::is_same_v<decltype(*std::declval<const X&>()), const int&>);
static_assert(std::is_same_v<decltype(*std::declval<X>()), int&&>);
static_assert(std::is_same_v<decltype(*std::declval<const X>()), const int&&>);
static_assert(std::is_same_v<decltype(std::declval<X&>().value()), int&>);
static_assert(std::is_same_v<decltype(std::declval<const X&>().value()), const int&>);
static_assert(std::is_same_v<decltype(std::declval<X>().value()), int&&>);
static_assert(std::is_same_v<decltype(std::declval<const X>().value()), const int&&>);
static_assert(std::is_same_v<decltype(std::declval<X&>().error()), long&>);
static_assert(std::is_same_v<decltype(std::declval<const X&>().error()), const long&>);
static_assert(std::is_same_v<decltype(std::declval<X>().error()), long&&>);
static_assert(std::is_same_v<decltype(std::declval<const X>().error()), const long&&>);
static_assert(std::is_same_v<decltype(std::declval<X&>().operator->()), int*>);
static_assert(std::is_same_v<decltype(std::declval<const X&>().operator->()), const int*>);
static_assert(std::is_same_v<decltype(*std::declval<with_const&>()), const int&>);
static_assert(std::is_same_v<decltype(*std::declval<with_const>()), const int&&>);
static_assert(std::is_same_v<decltype(std::declval<with_const&>().operator->()), const int*>);
static_assert(std::is_same_v<decltype(std::declval<X&>().value_or(1)), int>);
static_assert(std::is_same_v<decltype(std::declval<X&>().error_or(1)), long>);
static_assert(std::is_same_v<decltype(std::declval<expected<void, long>&>().error()), long&>);
static_assert(std::is_same_v<decltype(std::declval<const expected<void, long>>().error()), const long&&>);

// ---- Conversions and their explicitness ----

struct from_int {
  explicit from_int(int);
};
struct to_int {
  explicit operator int() const;
};

template <class To, class From>
constexpr bool implicit = std::is_convertible_v<From, To>;
template <class To, class From>
constexpr bool only_explicit = std::is_constructible_v<To, From> && !std::is_convertible_v<From, To>;
template <class To, class From>
constexpr bool impossible = !std::is_constructible_v<To, From>;

static_assert(implicit<expected<int, int>, int> && implicit<expected<std::string, int>, const char*>);
static_assert(only_explicit<expected<from_int, int>, int>);
static_assert(only_explicit<expected<int, int>, to_int>);
static_assert(impossible<expected<int, int>, std::string>);
static_assert(impossible<expected<void, int>, int>);

static_assert(implicit<expected<int, int>, unexpected<int>> &&
              implicit<expected<int, int>, const unexpected<int>&>);
static_assert(implicit<expected<int, int>, unexpected<long>>);
static_assert(only_explicit<expected<int, from_int>, unexpected<int>>);
static_assert(only_explicit<expected<int, from_int>, const unexpected<int>&>);
static_assert(impossible<expected<int, int>, unexpected<std::string>>);
static_assert(implicit<expected<void, int>, unexpected<short>>);
static_assert(only_explicit<expected<void, from_int>, unexpected<int>>);
static_assert(impossible<expected<void, int>, unexpected<std::string>>);
static_assert(impossible<expected<int, move_only>, const unexpected<move_only>&>);
static_assert(implicit<expected<int, move_only>, unexpected<move_only>>);

static_assert(implicit<expected<long, long>, expected<int, int>>);
static_assert(implicit<expected<long, long>, const expected<int, int>&>);
static_assert(only_explicit<expected<from_int, int>, expected<int, int>>);
static_assert(only_explicit<expected<int, from_int>, const expected<int, int>&>);
static_assert(impossible<expected<int, int>, expected<std::string, int>>);
static_assert(impossible<expected<int, int>, expected<int, std::string>>);
static_assert(impossible<expected<int, int>, expected<void, int>>);
static_assert(impossible<expected<void, int>, expected<int, int>>);
static_assert(implicit<expected<void, long>, expected<void, int>>);
static_assert(implicit<expected<void, long>, expected<const void, int>>);
static_assert(only_explicit<expected<void, from_int>, expected<void, int>>);
static_assert(impossible<expected<void, int>, expected<void, std::string>>);
static_assert(implicit<expected<move_only, int>, expected<move_only, short>>);
static_assert(impossible<expected<move_only, int>, const expected<move_only, short>&>);

// bool could be made from any expected by an explicit test; that must not count.
static_assert(implicit<expected<bool, int>, expected<bool, short>>);
static_assert(impossible<expected<bool, int>, expected<bool, std::string>>);
static_assert(impossible<expected<bool, int>, expected<void, int>>);
static_assert(impossible<expected<bool, int>, expected<std::string, int>>);
static_assert(impossible<expected<const bool, int>, expected<bool, std::string>>);
static_assert(!std::is_assignable_v<expected<bool, int>&, expected<bool, std::string>>);
static_assert(std::is_assignable_v<expected<bool, int>&, bool>);

// What takes everything takes an expected whole, as a value or, from an unexpected, as an error.
static_assert(implicit<expected<std::any, int>, expected<int, int>>);
static_assert(implicit<expected<std::any, int>, std::any>);
static_assert(std::is_copy_constructible_v<expected<std::any, std::any>>);
static_assert(implicit<expected<int, std::any>, unexpected<int>>);

// The tags are never values.
static_assert(std::is_constructible_v<expected<std::any, int>, std::in_place_t>);
static_assert(!std::is_convertible_v<std::in_place_t, expected<std::any, int>>);
#if !COBATCH_USE_STD_EXPECTED
static_assert(!std::is_convertible_v<unexpect_t, expected<std::any, int>>);
#endif

static_assert(std::is_constructible_v<expected<std::string, int>, std::in_place_t, int, char>);
static_assert(!std::is_convertible_v<std::in_place_t, expected<int, int>>);
static_assert(!std::is_constructible_v<expected<int, int>, std::in_place_t, std::string>);
static_assert(
    std::is_constructible_v<expected<std::vector<int>, int>, std::in_place_t, std::initializer_list<int>>);
static_assert(!std::is_constructible_v<expected<int, int>, std::in_place_t, std::initializer_list<int>>);
static_assert(std::is_constructible_v<expected<int, std::string>, unexpect_t, int, char>);
static_assert(!std::is_constructible_v<expected<int, int>, unexpect_t, std::string>);
static_assert(
    std::is_constructible_v<expected<void, std::vector<int>>, unexpect_t, std::initializer_list<int>>);
static_assert(!std::is_constructible_v<expected<void, int>, std::in_place_t, int>);
static_assert(std::is_nothrow_constructible_v<expected<void, std::string>, std::in_place_t>);

static_assert(std::is_assignable_v<expected<long, int>&, int>);
static_assert(!std::is_assignable_v<expected<from_int, int>&, int>);
static_assert(!std::is_assignable_v<expected<int, int>&, std::string>);
static_assert(!std::is_assignable_v<expected<int, from_int>&, unexpected<int>>);
static_assert(std::is_assignable_v<expected<int, long>&, unexpected<int>>);
static_assert(!std::is_assignable_v<expected<void, from_int>&, unexpected<int>>);
static_assert(!std::is_assignable_v<expected<void, int>&, unexpected<std::string>>);
static_assert(!std::is_convertible_v<expected<int, int>, bool> &&
              std::is_constructible_v<bool, expected<int, int>>);

template <class Target, class... Args>
concept has_emplace = requires(Target& x, Args... args) { x.emplace(args...); };
static_assert(has_emplace<expected<int, int>, int> && has_emplace<expected<int, int>>);
static_assert(!has_emplace<expected<safe_value, int>, int>);
static_assert(!has_emplace<expected<std::string, int>, const char*>);
static_assert(has_emplace<expected<std::string, int>>);
static_assert(has_emplace<expected<void, int>> && !has_emplace<expected<void, int>, int>);

template <class Left, class Right>
concept comparable = requires(const Left& x, const Right& y) { x == y; };
static_assert(comparable<expected<int, int>, expected<long, long>>);
static_assert(comparable<expected<void, int>, expected<const void, long>>);
static_assert(!comparable<expected<void, int>, int>);
#if !COBATCH_USE_STD_EXPECTED
static_assert(!comparable<expected<int, int>, expected<void, int>>);
#endif

// ---- The trait of our own, the same for both implementations ----

static_assert(cobatch::detail::is_expected_v<expected<int, int>> &&
              cobatch::detail::is_expected_v<expected<void, int>>);
static_assert(!cobatch::detail::is_expected_v<int> && !cobatch::detail::is_expected_v<unexpected<int>>);

TEST_CASE("expected: a value type made from any expected keeps the value apart from the error",
          "[expected]") {
  const expected<std::any, int> whole(expected<int, int>(unexpect, 1));
  REQUIRE(whole.has_value());
  CHECK(std::any_cast<expected<int, int>>(*whole) == unexpected(1));
  const expected<int, std::any> error(unexpected(std::string("why")));
  REQUIRE_FALSE(error.has_value());
  CHECK(std::any_cast<std::string>(error.error()) == "why");
}

TEST_CASE("expected: a volatile value is read and written through", "[expected]") {
  expected<volatile int, int> e(1);
  CHECK(*e == 1);
  *e = 2;
  const expected<volatile int, int> copy(e);
  CHECK(*copy == 2);
}

}  // namespace

// ---- Comparisons and fallbacks are noexcept as far as the operands are ----

namespace {

/// `==` and conversions that may throw, or not.
template <bool Quiet>
struct loud {
  loud() = default;
  constexpr loud(int) noexcept(Quiet) {}  // NOLINT(google-explicit-constructor)
  constexpr loud(const loud&) noexcept(Quiet) {}
  constexpr loud(loud&&) noexcept(Quiet) {}
  friend constexpr bool operator==(const loud&, const loud&) noexcept(Quiet) { return true; }
};

/// What a comparison may come to: a bool if asked implicitly, and only then (LWG 4366).
struct implicit_bool {
  bool value;
  constexpr operator bool() const noexcept { return value; }  // NOLINT(google-explicit-constructor)
  template <class B>
    requires std::is_same_v<B, bool>
  explicit operator B() const& = delete;
};
struct odd {
  int n;
  friend constexpr implicit_bool operator==(const odd& x, const odd& y) noexcept { return {x.n == y.n}; }
};

template <class T, class E>
constexpr bool equal_is_noexcept =
    noexcept(std::declval<const cobatch::expected<T, E>&>() == std::declval<const cobatch::expected<T, E>&>());
template <class T, class E>
constexpr bool value_or_is_noexcept = noexcept(std::declval<const cobatch::expected<T, E>&>().value_or(1));
template <class T, class E>
constexpr bool moved_value_or_is_noexcept = noexcept(std::declval<cobatch::expected<T, E>>().value_or(1));
template <class T, class E>
constexpr bool error_or_is_noexcept = noexcept(std::declval<const cobatch::expected<T, E>&>().error_or(1)) &&
                                      noexcept(std::declval<cobatch::expected<T, E>>().error_or(1));

#if !COBATCH_USE_STD_EXPECTED
static_assert(equal_is_noexcept<loud<true>, loud<true>>);
static_assert(!equal_is_noexcept<loud<false>, loud<true>> && !equal_is_noexcept<loud<true>, loud<false>>);
static_assert(equal_is_noexcept<void, loud<true>> && !equal_is_noexcept<void, loud<false>>);
static_assert(noexcept(std::declval<const cobatch::expected<int, int>&>() == 1));
static_assert(!noexcept(std::declval<const cobatch::expected<loud<false>, int>&>() == loud<false>()));
static_assert(noexcept(std::declval<const cobatch::expected<int, int>&>() == cobatch::unexpected(1)));
static_assert(noexcept(cobatch::unexpected(1) == cobatch::unexpected(1)));
static_assert(value_or_is_noexcept<loud<true>, int> && !value_or_is_noexcept<loud<false>, int>);
static_assert(moved_value_or_is_noexcept<loud<true>, int> && !moved_value_or_is_noexcept<loud<false>, int>);
static_assert(error_or_is_noexcept<int, loud<true>> && !error_or_is_noexcept<int, loud<false>>);
static_assert(error_or_is_noexcept<void, loud<true>> && !error_or_is_noexcept<void, loud<false>>);

constexpr cobatch::expected<odd, odd> three(odd{3}), other_three(cobatch::unexpect, odd{3});
static_assert(three == three && three == odd{3} && !(three == odd{4}) && !(three == other_three));
static_assert(other_three == cobatch::unexpected(odd{3}) && !(other_three == cobatch::unexpected(odd{4})));
static_assert(cobatch::unexpected(odd{3}) == cobatch::unexpected(odd{3}));
static_assert(cobatch::expected<void, odd>() == cobatch::expected<void, odd>());
static_assert(*three == odd{3} && three->n == 3 && other_three.error() == odd{3}, "checked also in constants");
#endif

}  // namespace
