#include <cobatch/expected.hpp>

#include <initializer_list>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "expected_types.hpp"
#include "support/catch.hpp"

using cobatch::bad_expected_access;
using cobatch::expected;
using cobatch::unexpect;
using cobatch::unexpected;
using namespace expected_types;

namespace {

// What a list constructor was given.
struct listed {
  int sum = 0;
  constexpr listed(std::initializer_list<int> list, int extra = 0) noexcept : sum(extra) {
    for (int n : list) sum += n;
  }
};

// ---- Construction ----

constexpr bool constructs() {
  expected<int, int> made;
  expected<int, int> value(1);
  expected<int, int> error(unexpect, 2);
  expected<int, int> from_unexpected = unexpected(3);
  const unexpected<int> kept(4);
  expected<int, int> from_lvalue = kept;
  return made.has_value() && *made == 0 && value.has_value() && *value == 1 && !error.has_value() &&
         error.error() == 2 && from_unexpected.error() == 3 && from_lvalue.error() == 4;
}

template <class T, class E>
constexpr bool copies_and_moves() {
  const expected<T, E> value(T(1));
  const expected<T, E> error(unexpect, E(2));
  expected<T, E> value_copy(value);
  expected<T, E> error_copy(error);
  expected<T, E> value_moved(std::move(value_copy));
  expected<T, E> error_moved(std::move(error_copy));
  return *value == T(1) && error.error() == E(2) && *value_moved == T(1) && error_moved.error() == E(2) &&
         value_copy.has_value() && !error_copy.has_value();
}

constexpr bool moves_move_only() {
  expected<move_only, move_only> value(std::in_place, 1);
  expected<move_only, move_only> error(unexpect, 2);
  expected<move_only, move_only> value_moved(std::move(value));
  expected<move_only, move_only> error_moved(std::move(error));
  return value_moved->number() == 1 && error_moved.error().number() == 2 && value->number() == -1 &&
         error.error().number() == -1;
}

constexpr bool constructs_in_place() {
  expected<immovable, immovable> value(std::in_place, 1);
  expected<immovable, immovable> error(unexpect, 2);
  expected<listed, int> list(std::in_place, {1, 2, 3}, 4);
  expected<int, listed> error_list(unexpect, {1, 2}, 3);
  return value->number() == 1 && error.error().number() == 2 && list->sum == 10 &&
         error_list.error().sum == 6;
}

constexpr bool converts() {
  const expected<int, short> value(1);
  const expected<int, short> error(unexpect, short{2});
  expected<long, nontrivial> from_value = value;
  expected<long, nontrivial> from_error = error;
  expected<nontrivial, long> moved_value = expected<int, int>(3);
  expected<nontrivial, long> moved_error = expected<int, int>(unexpect, 4);
  return *from_value == 1 && from_error.error().number() == 2 && moved_value->number() == 3 &&
         moved_error.error() == 4;
}

TEST_CASE("expected: every constructor makes what it says, in constant expressions too", "[expected]") {
  static_assert(constructs());
  static_assert(copies_and_moves<int, int>());
  static_assert(copies_and_moves<nontrivial, int>());
  static_assert(copies_and_moves<int, nontrivial>());
  static_assert(copies_and_moves<nontrivial, nontrivial>());
  static_assert(copies_and_moves<const nontrivial, nontrivial>());
  static_assert(moves_move_only());
  static_assert(constructs_in_place());
  static_assert(converts());
  CHECK(constructs());
  CHECK(copies_and_moves<int, int>());
  CHECK(copies_and_moves<nontrivial, nontrivial>());
  CHECK(moves_move_only());
  CHECK(constructs_in_place());
  CHECK(converts());
}

TEST_CASE("expected: the value of a braced argument is a T", "[expected]") {
  struct point {
    int x = 0;
    int y = 0;
  };
  expected<point, int> e({1, 2});
  CHECK(e->x == 1);
  CHECK(e->y == 2);
  e = {3, 4};
  CHECK(e->x == 3);
  CHECK(e->y == 4);
  expected<std::string, int> s({'a', 'b'});
  CHECK(*s == "ab");
}

TEST_CASE("expected: a converted bool is the other's value and not whether there was one", "[expected]") {
  const expected<bool, int> no(false);
  const expected<bool, long> from_bool(no);
  REQUIRE(from_bool.has_value());
  CHECK_FALSE(*from_bool);
  const expected<const bool, long> from_bool_const(no);
  REQUIRE(from_bool_const.has_value());
  CHECK_FALSE(*from_bool_const);
  const expected<bool, long> from_error(expected<bool, int>(unexpect, 7));
  REQUIRE_FALSE(from_error.has_value());
  CHECK(from_error.error() == 7);
  const expected<bool, int> from_zero(expected<int, int>(0));
  REQUIRE(from_zero.has_value());
  CHECK_FALSE(*from_zero);
}

struct swallows_all {
  bool from_expected = false;
  template <class X>
  constexpr swallows_all(const X&) : from_expected(std::is_same_v<X, expected<int, int>>) {}
};

TEST_CASE("expected: a value type that accepts the whole other expected gets it whole", "[expected]") {
  const expected<int, int> error(unexpect, 1);
  const expected<swallows_all, int> e(error);
  REQUIRE(e.has_value());
  CHECK(e->from_expected);
}

template <class T, class E>
void check_construction_leaks_nothing() {
  const int values = T::alive;
  const int errors = E::alive;
  {
    const expected<T, E> value(1);
    const expected<T, E> error(unexpect, 2);
    int failures =
        fail_at_each_point([&](int n) { return fails_at(n, [&] { expected<T, E> copy(value); }); });
    failures += fail_at_each_point([&](int n) { return fails_at(n, [&] { expected<T, E> copy(error); }); });
    failures += fail_at_each_point([&](int n) { return fails_at(n, [&] { expected<T, E> made(3); }); });
    failures +=
        fail_at_each_point([&](int n) { return fails_at(n, [&] { expected<T, E> made(unexpect, 3); }); });
    CHECK(failures == 4);
    CHECK(T::alive == values + 1);
    CHECK(E::alive == errors + 1);
  }
  CHECK(T::alive == values);
  CHECK(E::alive == errors);
}

TEST_CASE("expected: a constructor that throws leaves nothing behind", "[expected]") {
  check_construction_leaks_nothing<safe_value, safe_error>();
  check_construction_leaks_nothing<risky_value, safe_error>();
  check_construction_leaks_nothing<safe_value, risky_error>();
  check_construction_leaks_nothing<risky_value, risky_error>();
}

// ---- Assignment ----

template <class T, class E>
constexpr bool assigns() {
  const expected<T, E> value(T(1));
  const expected<T, E> error(unexpect, E(2));
  expected<T, E> e(T(3));
  bool ok = true;
  e = value;  // value over value
  ok = ok && *e == T(1);
  e = error;  // error over value
  ok = ok && !e && e.error() == E(2);
  e = unexpected(E(4));  // error over error
  ok = ok && e.error() == E(4);
  e = error;
  ok = ok && e.error() == E(2);
  e = value;  // value over error
  ok = ok && *e == T(1);
  e = expected<T, E>(T(5));
  ok = ok && *e == T(5);
  e = expected<T, E>(unexpect, E(6));
  ok = ok && e.error() == E(6);
  e = expected<T, E>(unexpect, E(7));
  ok = ok && e.error() == E(7);
  e = T(8);
  ok = ok && *e == T(8);
  e = T(9);
  ok = ok && *e == T(9);
  const unexpected<E> kept(E(10));
  e = kept;
  ok = ok && e.error() == E(10);
  e = kept;
  ok = ok && e.error() == E(10);
  auto& self = e;
  e = self;
  ok = ok && e.error() == E(10);
  e = std::move(self);
  return ok && &(e = value) == &e && &(e = kept) == &e && &(e = T(1)) == &e;
}

constexpr bool assigns_move_only() {
  using E = expected<move_only, move_only>;
  E e(std::in_place, 1);
  e = E(unexpect, 2);
  bool ok = e.error().number() == 2;
  e = move_only(3);
  ok = ok && e->number() == 3;
  e = unexpected(move_only(4));
  ok = ok && e.error().number() == 4;
  e = E(std::in_place, 5);
  return ok && e->number() == 5;
}

constexpr bool emplaces() {
  expected<immovable, nontrivial> e(unexpect, 1);
  bool ok = &e.emplace(2) == &*e && e->number() == 2;
  ok = ok && e.emplace(3).number() == 3;
  expected<listed, nontrivial> l(unexpect, 1);
  ok = ok && l.emplace({1, 2}, 3).sum == 6;
  ok = ok && l.emplace({4, 5}).sum == 9;
  expected<const int, nontrivial> c(unexpect, 1);
  ok = ok && c.emplace(4) == 4 && c.emplace(5) == 5;
  return ok && c.has_value();
}

TEST_CASE("expected: assignment and emplace put the new content in place of the old", "[expected]") {
  static_assert(assigns<int, int>());
  static_assert(assigns<nontrivial, int>());
  static_assert(assigns<int, nontrivial>());
  static_assert(assigns<nontrivial, nontrivial>());
  static_assert(assigns_move_only());
  static_assert(emplaces());
  CHECK(assigns<int, int>());
  CHECK(assigns<nontrivial, nontrivial>());
  CHECK(assigns<safe_value, safe_error>());
  CHECK(assigns<risky_value, safe_error>());
  CHECK(assigns<safe_value, risky_error>());
  CHECK(assigns_move_only());
  CHECK(emplaces());
  CHECK(safe_value::alive == 0);
  CHECK(safe_error::alive == 0);
  CHECK(risky_value::alive == 0);
  CHECK(risky_error::alive == 0);
}

// Whether e holds the value 1 (or with `has_value` false, the error 1): what every test of failure starts
// from.
template <class T, class E>
bool is_as_before(const expected<T, E>& e, bool has_value) {
  return e.has_value() == has_value && (has_value ? e->number() : e.error().number()) == 1;
}

template <class X>
X start(bool has_value) {
  return has_value ? X(std::in_place, 1) : X(unexpect, 1);
}

// Assigns to an expected in each state and lets each fallible operation fail in turn: the kind and the
// content stay. Over the same kind that is the doing of the type's own assignment, over the other kind that
// of expected.
template <class T, class E, class Assign>
int check_failed_assignment(Assign assign) {
  int failures = 0;
  for (bool has_value : {true, false}) {
    failures += fail_at_each_point([&](int n) {
      auto e = start<expected<T, E>>(has_value);
      const bool failed = fails_at(n, [&] { assign(e); });
      CHECK(is_as_before(e, has_value) == failed);
      CHECK(T::alive == (e.has_value() ? 1 : 0));
      CHECK(E::alive == (e.has_value() ? 0 : 1));
      return failed;
    });
    CHECK(T::alive == 0);
    CHECK(E::alive == 0);
  }
  return failures;
}

template <class T, class E>
int check_failed_assignments() {
  using X = expected<T, E>;
  int failures = 0;
  failures += check_failed_assignment<T, E>([](X& e) { e = 2; });
  failures += check_failed_assignment<T, E>([](X& e) { e = unexpected<int>(2); });
  failures += check_failed_assignment<T, E>([](X& e) {
    const unexpected<int> u(2);
    e = u;
  });
  failures += check_failed_assignment<T, E>([](X& e) { e = X(std::in_place, 2); });
  failures += check_failed_assignment<T, E>([](X& e) { e = X(unexpect, 2); });
  failures += check_failed_assignment<T, E>([](X& e) {
    const X value(std::in_place, 2);
    e = value;
  });
  failures += check_failed_assignment<T, E>([](X& e) {
    const X error(unexpect, 2);
    e = error;
  });
  failures += check_failed_assignment<T, E>([](X& e) { e = T(2); });
  failures += check_failed_assignment<T, E>([](X& e) { e = unexpected<E>(E(2)); });
  return failures;
}

TEST_CASE("expected: assigning over the other kind keeps the old content when making the new one throws",
          "[expected]") {
  CHECK(check_failed_assignments<safe_value, safe_error>() >= 18);
  CHECK(check_failed_assignments<risky_value, safe_error>() >= 18);
  CHECK(check_failed_assignments<safe_value, risky_error>() >= 18);
}

TEST_CASE("expected: assigning a value over an error keeps the error when the copy throws", "[expected]") {
  const expected<risky_value, safe_error> value(std::in_place, 2);
  expected<risky_value, safe_error> e(unexpect, 1);
  CHECK(fails_at(1, [&] { e = value; }));
  REQUIRE_FALSE(e.has_value());
  CHECK(e.error().number() == 1);
}

TEST_CASE("expected: assigning an error over a value keeps the value when the copy throws", "[expected]") {
  const expected<safe_value, risky_error> error(unexpect, 2);
  expected<safe_value, risky_error> e(std::in_place, 1);
  CHECK(fails_at(1, [&] { e = error; }));
  REQUIRE(e.has_value());
  CHECK(e->number() == 1);
}

// ---- Swap ----

template <class T, class E>
constexpr bool swaps() {
  using X = expected<T, E>;
  bool ok = true;
  X a(std::in_place, 1);
  X b(std::in_place, 2);
  a.swap(b);
  ok = ok && a->number() == 2 && b->number() == 1;
  X c(unexpect, 3);
  a.swap(c);
  ok = ok && a.error().number() == 3 && c->number() == 2;
  a.swap(c);
  ok = ok && a->number() == 2 && c.error().number() == 3;
  X d(unexpect, 4);
  swap(c, d);
  ok = ok && c.error().number() == 4 && d.error().number() == 3;
  using std::swap;
  swap(d, a);
  return ok && d->number() == 2 && a.error().number() == 3;
}

TEST_CASE("expected: swap exchanges any two states", "[expected]") {
  static_assert(swaps<nontrivial, nontrivial>());
  static_assert(swaps<move_only, move_only>());
  CHECK(swaps<nontrivial, nontrivial>());
  CHECK(swaps<move_only, nontrivial>());
  CHECK(swaps<safe_value, safe_error>());
  CHECK(swaps<risky_value, safe_error>());
  CHECK(swaps<safe_value, risky_error>());
  CHECK(safe_value::alive == 0);
  CHECK(safe_error::alive == 0);
}

// Moves fail in turn while two expecteds of different kinds are swapped; either all or nothing has happened
// then.
template <class T, class E>
int check_failed_swap(bool value_first) {
  const int failures = fail_at_each_point([&](int n) {
    expected<T, E> value(std::in_place, 1);
    expected<T, E> error(unexpect, 2);
    const bool failed = fails_at(n, [&] { value_first ? value.swap(error) : error.swap(value); });
    REQUIRE(value.has_value() == failed);
    REQUIRE(error.has_value() != failed);
    CHECK((failed ? value->number() : error->number()) == 1);
    CHECK((failed ? error.error().number() : value.error().number()) == 2);
    CHECK(T::alive == 1);
    CHECK(E::alive == 1);
    return failed;
  });
  CHECK(T::alive == 0);
  CHECK(E::alive == 0);
  return failures;
}

TEST_CASE("expected: a swap of different kinds that throws changes neither", "[expected]") {
  for (bool value_first : {true, false}) {
    CHECK(check_failed_swap<safe_value, safe_error>(value_first) == 0);
    CHECK(check_failed_swap<risky_value, safe_error>(value_first) == 1);
    CHECK(check_failed_swap<safe_value, risky_error>(value_first) == 1);
  }
}

TEST_CASE("expected: a swap of the same kind that throws leaves the kinds as they were", "[expected]") {
  using X = expected<risky_value, safe_error>;
  CHECK(fail_at_each_point([](int n) {
          X a(std::in_place, 1);
          X b(std::in_place, 2);
          const bool failed = fails_at(n, [&] { a.swap(b); });
          CHECK(a.has_value());
          CHECK(b.has_value());
          return failed;
        }) == 3);
  CHECK(risky_value::alive == 0);
}

struct swapped_by_adl {
  int n = 0;
  bool swapped = false;
  friend constexpr void swap(swapped_by_adl& x, swapped_by_adl& y) noexcept {
    std::swap(x.n, y.n);
    x.swapped = y.swapped = true;
  }
};

TEST_CASE("expected: swap uses the types' own swap", "[expected]") {
  expected<swapped_by_adl, swapped_by_adl> a(swapped_by_adl{1, false});
  expected<swapped_by_adl, swapped_by_adl> b(swapped_by_adl{2, false});
  a.swap(b);
  CHECK(a->swapped);
  CHECK(a->n == 2);
  expected<swapped_by_adl, swapped_by_adl> c(unexpect, swapped_by_adl{3, false});
  expected<swapped_by_adl, swapped_by_adl> d(unexpect, swapped_by_adl{4, false});
  swap(c, d);
  CHECK(c.error().swapped);
  CHECK(c.error().n == 4);
}

// ---- Observers ----

constexpr bool observes() {
  expected<nontrivial, int> e(1);
  const auto& c = e;
  bool ok = e.has_value() && static_cast<bool>(e) && e->number() == 1 && c->number() == 1 &&
            (*e).number() == 1 && (*c).number() == 1;
  ok = ok && e.value().number() == 1 && c.value().number() == 1 && std::move(c).value().number() == 1;
  const nontrivial taken = std::move(e).value();
  ok = ok && taken.number() == 1 && e->number() == -1;
  *e = nontrivial(2);
  const nontrivial taken_again = *std::move(e);
  ok = ok && taken_again.number() == 2 && e->number() == -1;
  expected<int, nontrivial> f(unexpect, 3);
  const auto& d = f;
  ok = ok && !f && f.error().number() == 3 && d.error().number() == 3 && std::move(d).error().number() == 3;
  const nontrivial error = std::move(f).error();
  return ok && error.number() == 3 && f.error().number() == -1;
}

constexpr bool falls_back() {
  expected<nontrivial, nontrivial> value(1);
  expected<nontrivial, nontrivial> error(unexpect, 2);
  bool ok = value.value_or(9).number() == 1 && error.value_or(9).number() == 9 &&
            value.error_or(9).number() == 9 && error.error_or(9).number() == 2;
  ok = ok && std::move(value).value_or(9).number() == 1 && value->number() == -1;
  ok = ok && std::move(error).error_or(9).number() == 2 && error.error().number() == -1;
  ok = ok && expected<move_only, int>(unexpect, 1).value_or(move_only(5)).number() == 5;
  ok = ok && expected<int, move_only>(1).error_or(move_only(6)).number() == 6;
  return ok && expected<const int, int>(7).value_or(8) == 7 &&
         expected<const int, int>(unexpect, 7).value_or(8) == 8;
}

#if !COBATCH_USE_STD_EXPECTED
// Not all standard libraries deduce the type of the braces yet.
constexpr bool falls_back_to_braces() {
  const expected<nontrivial, nontrivial> value(1);
  const expected<nontrivial, nontrivial> error(unexpect, 2);
  bool ok = value.value_or({}).number() == 1 && error.value_or({}).number() == 0;
  ok = ok && value.error_or({}).number() == 0 && error.error_or({3}).number() == 2 &&
       value.error_or({3}).number() == 3;
  return ok && expected<nontrivial, nontrivial>(unexpect, 2).value_or({4}).number() == 4;
}

TEST_CASE("expected: a fallback in braces is of the type it stands for", "[expected]") {
  static_assert(falls_back_to_braces());
  CHECK(falls_back_to_braces());
}
#endif

TEST_CASE("expected: the observers reach the content in the caller's value category", "[expected]") {
  static_assert(observes());
  static_assert(falls_back());
  CHECK(observes());
  CHECK(falls_back());
}

struct hides_its_address {
  int n = 0;
  hides_its_address* operator&() const { return nullptr; }
};

TEST_CASE("expected: an overloaded address-of does not mislead the arrow or the construction", "[expected]") {
  expected<hides_its_address, hides_its_address> e(hides_its_address{1});
  CHECK(e->n == 1);
  e = unexpected(hides_its_address{2});
  CHECK(e.error().n == 2);
  e = hides_its_address{3};
  CHECK(std::as_const(e)->n == 3);
}

TEST_CASE("expected: value() without one throws the error, copied or moved like the expected it came from",
          "[expected]") {
  expected<int, nontrivial> e(unexpect, 5);
  const auto& c = e;
  const auto thrown_by = [](auto&& call) {
    try {
      call();
    } catch (const bad_expected_access<nontrivial>& bad) {
      return bad.error().number();
    }
    return -100;
  };
  CHECK(thrown_by([&] { (void)e.value(); }) == 5);
  CHECK(thrown_by([&] { (void)c.value(); }) == 5);
  CHECK(thrown_by([&] { (void)std::move(c).value(); }) == 5);
  CHECK(e.error().number() == 5);
  CHECK(thrown_by([&] { (void)std::move(e).value(); }) == 5);
  CHECK(e.error().number() == -1);
  CHECK_THROWS_AS(e.value(), bad_expected_access<void>);
  CHECK_THROWS_AS(e.value(), std::exception);
}

// ---- Comparison ----

constexpr bool compares() {
  const expected<int, int> one(1);
  const expected<int, int> two(2);
  const expected<int, int> failed_one(unexpect, 1);
  const expected<int, int> failed_two(unexpect, 2);
  bool ok =
      one == one && one != two && failed_one == failed_one && failed_one != failed_two && one != failed_one;
  ok = ok && one == expected<long, long>(1) && failed_two == expected<short, long>(unexpect, 2);
  ok = ok && expected<long, long>(1) == one && expected<long, long>(2) != one;
  ok = ok && one == 1 && 1 == one && one != 2 && 2 != one && failed_one != 1 && 1 != failed_one && one == 1L;
  ok = ok && failed_one == unexpected(1) && unexpected(1) == failed_one && failed_one != unexpected(2);
  ok = ok && one != unexpected(1) && unexpected(1L) == failed_one;
  return ok && expected<nontrivial, int>(3) == nontrivial(3);
}

TEST_CASE("expected: comparison looks at the kind and then at the content", "[expected]") {
  static_assert(compares());
  CHECK(compares());
  CHECK(expected<std::string, int>("abc") == "abc");
}

struct answers_like_bool {
  bool yes = false;
  constexpr operator bool() const { return yes; }
};

struct odd_comparison {
  int n = 0;
  friend constexpr answers_like_bool operator==(const odd_comparison& x, const odd_comparison& y) {
    return {x.n == y.n};
  }
};

TEST_CASE("expected: a comparison that answers with something like bool will do", "[expected]") {
  using X = expected<odd_comparison, odd_comparison>;
  static_assert(X(odd_comparison{1}) == X(odd_comparison{1}));
  static_assert(X(odd_comparison{1}) == odd_comparison{1});
  static_assert(X(unexpect, odd_comparison{1}) == unexpected(odd_comparison{1}));
  CHECK(X(odd_comparison{1}) == X(odd_comparison{1}));
}

// ---- Lifetime ----

TEST_CASE("expected: a vector of them begins and ends each content once", "[expected]") {
  using X = expected<safe_value, safe_error>;
  {
    std::vector<X> results;
    for (int n = 0; n < 100; ++n) {
      if (n % 3 == 0) {
        results.emplace_back(unexpect, n);
      } else {
        results.emplace_back(n);
      }
    }
    CHECK(safe_value::alive == 66);
    CHECK(safe_error::alive == 34);
    results.erase(results.begin(), results.begin() + 50);
    for (X& result : results) result = unexpected<safe_error>(7);
    CHECK(safe_value::alive == 0);
    CHECK(safe_error::alive == 50);
  }
  CHECK(safe_error::alive == 0);
}

TEST_CASE("expected: a value and an error may own memory", "[expected]") {
  using X = expected<std::unique_ptr<int>, std::string>;
  std::vector<X> results;
  results.emplace_back(std::make_unique<int>(1));
  results.push_back(std::move(results.front()));
  CHECK(*results[0] == nullptr);
  CHECK(**results[1] == 1);
  results[0] = unexpected(std::string(100, 'e'));
  results[0].swap(results[1]);
  CHECK(**results[0] == 1);
  CHECK(results[1].error().size() == 100);
}

}  // namespace
