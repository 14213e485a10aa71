#include <cobatch/expected.hpp>

#include <cstring>
#include <exception>
#include <initializer_list>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "expected_types.hpp"
#include "support/catch.hpp"

using cobatch::bad_expected_access;
using cobatch::unexpect_t;
using cobatch::unexpected;
using namespace expected_types;

namespace {

// ---- unexpected ----

static_assert(std::is_same_v<decltype(unexpected(1)), unexpected<int>>);
static_assert(std::is_same_v<decltype(unexpected("text")), unexpected<const char*>>);
static_assert(std::is_same_v<decltype(unexpected(unexpected(1))), unexpected<int>>);

static_assert(!std::is_default_constructible_v<unexpected<int>>);
static_assert(std::is_constructible_v<unexpected<int>, long> &&
              !std::is_convertible_v<long, unexpected<int>>);
static_assert(!std::is_constructible_v<unexpected<int>, std::string>);
static_assert(std::is_constructible_v<unexpected<std::string>, std::in_place_t, int, char>);
static_assert(!std::is_constructible_v<unexpected<int>, std::in_place_t, std::string>);
static_assert(std::is_trivially_copyable_v<unexpected<int>>);
static_assert(!std::is_copy_constructible_v<unexpected<move_only>>);
static_assert(std::is_nothrow_move_constructible_v<unexpected<move_only>>);
static_assert(!std::is_move_constructible_v<unexpected<immovable>>);
static_assert(std::is_swappable_v<unexpected<int>> && std::is_nothrow_swappable_v<unexpected<int>>);
static_assert(std::is_swappable_v<unexpected<risky_error>> &&
              !std::is_nothrow_swappable_v<unexpected<risky_error>>);
static_assert(!std::is_swappable_v<unexpected<immovable>>);
static_assert(std::is_same_v<decltype(std::declval<unexpected<int>&>().error()), int&>);
static_assert(std::is_same_v<decltype(std::declval<const unexpected<int>&>().error()), const int&>);
static_assert(std::is_same_v<decltype(std::declval<unexpected<int>>().error()), int&&>);
static_assert(std::is_same_v<decltype(std::declval<const unexpected<int>>().error()), const int&&>);
static_assert(noexcept(std::declval<unexpected<risky_error>&>().error()));

template <class X>
void take_list_initialised(X);
template <class X>
concept made_by_empty_braces = requires { take_list_initialised<X>({}); };
static_assert(!made_by_empty_braces<unexpect_t>);
static_assert(std::is_trivially_copyable_v<unexpect_t> && std::is_empty_v<unexpect_t>);

constexpr bool carries_an_error() {
  unexpected<nontrivial> e(1);
  const unexpected<nontrivial> copy(e);
  bool ok = copy == e && copy.error().number() == 1;
  const nontrivial taken = std::move(e).error();
  ok = ok && taken.number() == 1 && e.error().number() == -1;
  e = copy;
  unexpected<nontrivial> f(std::in_place, 2);
  ok = ok && e != f && e == unexpected<nontrivial>(1);
  e.swap(f);
  ok = ok && e.error().number() == 2 && f.error().number() == 1;
  swap(e, f);
  ok = ok && e.error().number() == 1 && std::move(copy).error().number() == 1;
  e = std::move(f);
  const unexpected<immovable> stays(std::in_place, 3);
  ok = ok && stays.error().number() == 3;
  return ok && e.error().number() == 2 && unexpected(1) == unexpected(1) && unexpected(1) != unexpected(2);
}

#if !COBATCH_USE_STD_EXPECTED
// libc++ 19's cannot be compared across types.
static_assert(unexpected(1) == unexpected(1L) && unexpected(1) != unexpected(2L));
#endif

TEST_CASE("unexpected: carries its error through copies, moves and swaps", "[expected]") {
  static_assert(carries_an_error());
  CHECK(carries_an_error());
  const unexpected<std::vector<int>> list(std::in_place, {1, 2, 3});
  CHECK(list.error() == std::vector<int>{1, 2, 3});
  const unexpected<std::string> braces({'a', 'b'});
  CHECK(braces.error() == "ab");
}

// ---- bad_expected_access ----

static_assert(std::is_base_of_v<std::exception, bad_expected_access<void>>);
static_assert(std::is_base_of_v<bad_expected_access<void>, bad_expected_access<int>>);
static_assert(!std::is_default_constructible_v<bad_expected_access<void>>);
static_assert(!std::is_default_constructible_v<bad_expected_access<int>>);
static_assert(std::is_constructible_v<bad_expected_access<int>, int>);
static_assert(!std::is_convertible_v<int, bad_expected_access<int>>);
static_assert(std::is_nothrow_copy_constructible_v<bad_expected_access<int>>);
static_assert(std::is_nothrow_copy_assignable_v<bad_expected_access<int>>);
static_assert(std::is_same_v<decltype(std::declval<bad_expected_access<int>&>().error()), int&>);
static_assert(std::is_same_v<decltype(std::declval<const bad_expected_access<int>&>().error()), const int&>);
static_assert(std::is_same_v<decltype(std::declval<bad_expected_access<int>>().error()), int&&>);
static_assert(std::is_same_v<decltype(std::declval<const bad_expected_access<int>>().error()), const int&&>);

struct open_bad_access : bad_expected_access<void> {};
static_assert(std::is_nothrow_default_constructible_v<open_bad_access>);
static_assert(std::is_nothrow_copy_constructible_v<open_bad_access>);
static_assert(std::is_nothrow_move_constructible_v<open_bad_access>);
static_assert(std::is_nothrow_copy_assignable_v<open_bad_access>);
static_assert(std::is_nothrow_move_assignable_v<open_bad_access>);

TEST_CASE("bad_expected_access: says what happened and holds the error", "[expected]") {
  bad_expected_access<nontrivial> bad(nontrivial(3));
  CHECK(bad.error().number() == 3);
  CHECK(std::as_const(bad).error().number() == 3);
  CHECK(std::strlen(bad.what()) > 0);
  CHECK(std::strlen(open_bad_access().what()) > 0);
  const std::exception& base = bad;
  CHECK(std::strlen(base.what()) > 0);
  const nontrivial taken = std::move(bad).error();
  CHECK(taken.number() == 3);
  CHECK(bad.error().number() == -1);
}

}  // namespace
