#include <cobatch/expected.hpp>

#include <initializer_list>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>

#include "expected_types.hpp"
#include "support/catch.hpp"

using cobatch::bad_expected_access;
using cobatch::expected;
using cobatch::unexpect;
using cobatch::unexpected;
using namespace expected_types;

namespace {

struct listed {
  int sum = 0;
  constexpr listed(std::initializer_list<int> list, int extra = 0) noexcept : sum(extra) {
    for (int n : list) sum += n;
  }
};

// ---- Construction ----

template <class Void>
constexpr bool constructs() {
  expected<Void, int> made;
  expected<Void, int> in_place(std::in_place);
  expected<Void, int> error(unexpect, 2);
  expected<Void, int> from_unexpected = unexpected(3);
  const unexpected<int> kept(4);
  expected<Void, int> from_lvalue = kept;
  expected<Void, immovable> stays(unexpect, 5);
  expected<Void, listed> list(unexpect, {1, 2}, 3);
  return made.has_value() && in_place.has_value() && error.error() == 2 && from_unexpected.error() == 3 &&
         from_lvalue.error() == 4 && stays.error().number() == 5 && list.error().sum == 6;
}

template <class E>
constexpr bool copies_and_moves() {
  const expected<void, E> success;
  const expected<void, E> error(unexpect, E(2));
  expected<void, E> success_copy(success);
  expected<void, E> error_copy(error);
  expected<void, E> success_moved(std::move(success_copy));
  expected<void, E> error_moved(std::move(error_copy));
  return success_moved.has_value() && error_moved.error() == E(2) && error.error() == E(2) &&
         !error_copy.has_value();
}

constexpr bool converts() {
  const expected<void, int> success;
  const expected<void, int> error(unexpect, 2);
  expected<void, nontrivial> from_success = success;
  expected<const void, nontrivial> from_error = error;
  expected<void, nontrivial> moved_success = expected<const void, int>();
  expected<void, nontrivial> moved_error = expected<void, int>(unexpect, 4);
  return from_success.has_value() && from_error.error().number() == 2 && moved_success.has_value() &&
         moved_error.error().number() == 4;
}

constexpr bool moves_move_only() {
  expected<void, move_only> error(unexpect, 2);
  expected<void, move_only> moved(std::move(error));
  return moved.error().number() == 2 && error.error().number() == -1;
}

TEST_CASE("expected void: every constructor makes what it says, in constant expressions too", "[expected]") {
  static_assert(constructs<void>());
  static_assert(constructs<const void>());
  static_assert(constructs<const volatile void>());
  static_assert(copies_and_moves<int>());
  static_assert(copies_and_moves<nontrivial>());
  static_assert(converts());
  static_assert(moves_move_only());
  CHECK(constructs<void>());
  CHECK(copies_and_moves<int>());
  CHECK(copies_and_moves<nontrivial>());
  CHECK(copies_and_moves<risky_error>());
  CHECK(converts());
  CHECK(moves_move_only());
  CHECK(risky_error::alive == 0);
}

TEST_CASE("expected void: a constructor that throws leaves nothing behind", "[expected]") {
  {
    const expected<void, risky_error> error(unexpect, 1);
    const int failures = fail_at_each_point(
        [&](int n) { return fails_at(n, [&] { expected<void, risky_error> copy(error); }); });
    CHECK(failures == 1);
    CHECK(risky_error::alive == 1);
  }
  CHECK(risky_error::alive == 0);
}

// ---- Assignment ----

template <class E>
constexpr bool assigns() {
  using X = expected<void, E>;
  const X success;
  const X error(unexpect, E(2));
  X e;
  e = success;
  bool ok = e.has_value();
  e = error;
  ok = ok && e.error() == E(2);
  e = unexpected(E(3));
  ok = ok && e.error() == E(3);
  e = error;
  ok = ok && e.error() == E(2);
  e = success;
  ok = ok && e.has_value();
  e = X(unexpect, E(4));
  ok = ok && e.error() == E(4);
  e = X(unexpect, E(5));
  ok = ok && e.error() == E(5);
  e = X();
  ok = ok && e.has_value();
  const unexpected<E> kept(E(6));
  e = kept;
  ok = ok && e.error() == E(6);
  e = kept;
  ok = ok && e.error() == E(6);
  e.emplace();
  ok = ok && e.has_value();
  e.emplace();
  e = unexpected(E(7));
  return ok && e.error() == E(7) && &(e = kept) == &e && &(e = success) == &e &&
         &(e = unexpected(E(8))) == &e;
}

constexpr bool assigns_move_only() {
  using X = expected<void, move_only>;
  X e;
  e = X(unexpect, 1);
  bool ok = e.error().number() == 1;
  e = unexpected(move_only(2));
  ok = ok && e.error().number() == 2;
  e = X();
  return ok && e.has_value();
}

TEST_CASE("expected void: assignment and emplace put the new content in place of the old", "[expected]") {
  static_assert(assigns<int>());
  static_assert(assigns<nontrivial>());
  static_assert(assigns_move_only());
  CHECK(assigns<int>());
  CHECK(assigns<nontrivial>());
  CHECK(assigns<safe_error>());
  CHECK(assigns<risky_error>());
  CHECK(assigns_move_only());
  CHECK(safe_error::alive == 0);
  CHECK(risky_error::alive == 0);
}

template <class Assign>
int check_failed_assignment(Assign assign) {
  int failures = 0;
  for (bool success : {true, false}) {
    failures += fail_at_each_point([&](int n) {
      using X = expected<void, risky_error>;
      X e = success ? X() : X(unexpect, 1);
      const bool failed = fails_at(n, [&] { assign(e); });
      const int number = e.has_value() ? 0 : e.error().number();
      CHECK((number == (success ? 0 : 1)) == failed);
      CHECK(risky_error::alive == (e.has_value() ? 0 : 1));
      return failed;
    });
    CHECK(risky_error::alive == 0);
  }
  return failures;
}

TEST_CASE("expected void: an assignment that throws keeps the old content", "[expected]") {
  using X = expected<void, risky_error>;
  CHECK(check_failed_assignment([](X& e) { e = unexpected<int>(2); }) >= 2);
  CHECK(check_failed_assignment([](X& e) { e = X(unexpect, 2); }) >= 4);
  CHECK(check_failed_assignment([](X& e) {
          const X error(unexpect, 2);
          e = error;
        }) >= 4);
}

// ---- Swap ----

template <class E>
constexpr bool swaps() {
  using X = expected<void, E>;
  X a;
  X b;
  a.swap(b);
  bool ok = a.has_value() && b.has_value();
  X c(unexpect, 1);
  a.swap(c);
  ok = ok && a.error().number() == 1 && c.has_value();
  a.swap(c);
  ok = ok && a.has_value() && c.error().number() == 1;
  X d(unexpect, 2);
  swap(c, d);
  ok = ok && c.error().number() == 2 && d.error().number() == 1;
  using std::swap;
  swap(d, a);
  return ok && d.has_value() && a.error().number() == 1;
}

TEST_CASE("expected void: swap exchanges any two states", "[expected]") {
  static_assert(swaps<nontrivial>());
  static_assert(swaps<move_only>());
  CHECK(swaps<nontrivial>());
  CHECK(swaps<risky_error>());
  CHECK(risky_error::alive == 0);
}

TEST_CASE("expected void: a swap of different kinds that throws changes neither", "[expected]") {
  for (bool success_first : {true, false}) {
    const int failures = fail_at_each_point([&](int n) {
      expected<void, risky_error> success;
      expected<void, risky_error> error(unexpect, 1);
      const bool failed = fails_at(n, [&] { success_first ? success.swap(error) : error.swap(success); });
      CHECK(success.has_value() == failed);
      CHECK(error.has_value() != failed);
      CHECK((failed ? error : success).error().number() == 1);
      CHECK(risky_error::alive == 1);
      return failed;
    });
    CHECK(failures == 1);
  }
  CHECK(risky_error::alive == 0);
}

// ---- Observers ----

constexpr bool observes() {
  expected<void, nontrivial> success;
  success.value();
  *success;
  std::move(success).value();
  std::as_const(success).value();
  expected<void, nontrivial> error(unexpect, 1);
  const auto& c = error;
  bool ok = success.has_value() && static_cast<bool>(success) && !error && error.error().number() == 1 &&
            c.error().number() == 1 && std::move(c).error().number() == 1;
  ok = ok && success.error_or(9).number() == 9 && error.error_or(9).number() == 1;
  ok =
      ok && success.error_or({}).number() == 0 && c.error_or({}).number() == 1 && c.error_or(9).number() == 1;
  ok = ok && std::move(error).error_or(9).number() == 1 && error.error().number() == -1;
  const nontrivial taken = std::move(error).error();
  return ok && taken.number() == -1;
}

TEST_CASE("expected void: the observers reach the error in the caller's value category", "[expected]") {
  static_assert(observes());
  static_assert(std::is_void_v<decltype(*expected<void, int>())>);
  static_assert(std::is_void_v<decltype(expected<void, int>().value())>);
  CHECK(observes());
}

TEST_CASE("expected void: value() without success throws the error", "[expected]") {
  expected<void, nontrivial> e(unexpect, 5);
  try {
    e.value();
    FAIL("value() returned");
  } catch (const bad_expected_access<nontrivial>& bad) {
    CHECK(bad.error().number() == 5);
  }
  CHECK(e.error().number() == 5);
  try {
    std::move(e).value();
    FAIL("value() returned");
  } catch (const bad_expected_access<nontrivial>& bad) {
    CHECK(bad.error().number() == 5);
  }
  CHECK(e.error().number() == -1);
}

// ---- Comparison ----

constexpr bool compares() {
  const expected<void, int> success;
  const expected<void, int> one(unexpect, 1);
  const expected<void, int> two(unexpect, 2);
  bool ok = success == success && one == one && one != two && success != one && one != success;
  ok = ok && success == expected<const void, long>() && one == expected<void, long>(unexpect, 1);
  return ok && one == unexpected(1) && unexpected(1L) == one && one != unexpected(2) &&
         success != unexpected(1);
}

TEST_CASE("expected void: comparison looks at the kind and then at the error", "[expected]") {
  static_assert(compares());
  CHECK(compares());
}

TEST_CASE("expected void: an error that owns memory is released", "[expected]") {
  expected<void, std::unique_ptr<int>> e(unexpect, std::make_unique<int>(1));
  expected<void, std::unique_ptr<int>> f;
  e.swap(f);
  REQUIRE_FALSE(f.has_value());
  CHECK(*f.error() == 1);
  f.emplace();
  CHECK(f.has_value());
}

}  // namespace
