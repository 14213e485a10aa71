#include <cobatch/expected.hpp>

#include <functional>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>

#include "expected_types.hpp"
#include "support/catch.hpp"

using cobatch::expected;
using cobatch::unexpect;
using cobatch::unexpected;
using namespace expected_types;

namespace {

enum class category { lvalue, const_lvalue, rvalue, const_rvalue };

// Called with an X, answers how it was passed: as the value of an expected, as an error, or as a transformed
// value.
template <class X>
struct asked {
  constexpr category operator()(X&) const { return category::lvalue; }
  constexpr category operator()(const X&) const { return category::const_lvalue; }
  constexpr category operator()(X&&) const { return category::rvalue; }
  constexpr category operator()(const X&&) const { return category::const_rvalue; }
};

template <class T, class E, class X>
struct answering_value : asked<X> {
  template <class Arg>
  constexpr expected<T, E> operator()(Arg&& arg) const {
    return expected<T, E>(std::in_place, asked<X>::operator()(std::forward<Arg>(arg)));
  }
};

template <class T, class E, class X>
struct answering_error : asked<X> {
  template <class Arg>
  constexpr expected<T, E> operator()(Arg&& arg) const {
    return expected<T, E>(unexpect, asked<X>::operator()(std::forward<Arg>(arg)));
  }
};

// The function itself is called as it was passed.
struct counts_calls {
  constexpr int operator()(int) & { return 1; }
  constexpr int operator()(int) const& { return 2; }
  constexpr int operator()(int) && { return 3; }
  constexpr int operator()(int) const&& { return 4; }
};

// ---- and_then ----

constexpr bool and_then_passes_the_value() {
  using X = expected<int, nontrivial>;
  const answering_value<category, nontrivial, int> f;
  X e(1);
  const X c(1);
  return *e.and_then(f) == category::lvalue && *c.and_then(f) == category::const_lvalue &&
         *std::move(e).and_then(f) == category::rvalue && *std::move(c).and_then(f) == category::const_rvalue;
}

constexpr bool and_then_passes_errors_on() {
  using X = expected<int, nontrivial>;
  bool called = false;
  const auto f = [&](auto&&) {
    called = true;
    return expected<long, nontrivial>(1);
  };
  X e(unexpect, 5);
  const X c(unexpect, 6);
  bool ok = e.and_then(f).error().number() == 5 && c.and_then(f).error().number() == 6 &&
            std::move(c).and_then(f).error().number() == 6 && e.error().number() == 5;
  ok = ok && std::move(e).and_then(f).error().number() == 5 && e.error().number() == -1;
  return ok && !called;
}

constexpr bool and_then_works_on_void() {
  using X = expected<void, nontrivial>;
  int calls = 0;
  const auto f = [&] { return expected<int, nontrivial>(++calls); };
  X e;
  const X c;
  bool ok = *e.and_then(f) == 1 && *c.and_then(f) == 2 && *std::move(e).and_then(f) == 3 &&
            *std::move(c).and_then(f) == 4;
  X bad(unexpect, 5);
  const X bad_c(unexpect, 6);
  ok = ok && bad.and_then(f).error().number() == 5 && bad_c.and_then(f).error().number() == 6 &&
       std::move(bad_c).and_then(f).error().number() == 6 && std::move(bad).and_then(f).error().number() == 5;
  return ok && calls == 4 && bad.error().number() == -1;
}

constexpr bool and_then_may_end_in_void() {
  const auto f = [](int n) { return n > 0 ? expected<void, int>() : expected<void, int>(unexpect, n); };
  return expected<int, int>(1).and_then(f).has_value() && expected<int, int>(-1).and_then(f).error() == -1 &&
         expected<int, int>(unexpect, 3).and_then(f).error() == 3;
}

TEST_CASE("expected: and_then calls the function with the value alone, in its value category", "[expected]") {
  static_assert(and_then_passes_the_value());
  static_assert(and_then_passes_errors_on());
  static_assert(and_then_works_on_void());
  static_assert(and_then_may_end_in_void());
  CHECK(and_then_passes_the_value());
  CHECK(and_then_passes_errors_on());
  CHECK(and_then_works_on_void());
  CHECK(and_then_may_end_in_void());
}

TEST_CASE("expected: and_then accepts a function that returns a reference or a const expected",
          "[expected]") {
  expected<int, int> kept(7);
  auto by_reference = [&](int) -> expected<int, int>& { return kept; };
  auto by_const = [](int n) -> const expected<int, int> { return n + 1; };
  static_assert(std::is_same_v<decltype(kept.and_then(by_reference)), expected<int, int>>);
  static_assert(std::is_same_v<decltype(kept.and_then(by_const)), expected<int, int>>);
  CHECK((expected<int, int>(1).and_then(by_reference) == 7));
  CHECK((expected<int, int>(1).and_then(by_const) == 2));
}

// ---- or_else ----

constexpr bool or_else_passes_the_error() {
  using X = expected<nontrivial, int>;
  const answering_error<nontrivial, category, int> f;
  X e(unexpect, 1);
  const X c(unexpect, 1);
  return e.or_else(f).error() == category::lvalue && c.or_else(f).error() == category::const_lvalue &&
         std::move(e).or_else(f).error() == category::rvalue &&
         std::move(c).or_else(f).error() == category::const_rvalue;
}

constexpr bool or_else_passes_values_on() {
  using X = expected<nontrivial, int>;
  bool called = false;
  const auto f = [&](auto&&) {
    called = true;
    return expected<nontrivial, long>(1);
  };
  X e(5);
  const X c(6);
  bool ok = e.or_else(f)->number() == 5 && c.or_else(f)->number() == 6 &&
            std::move(c).or_else(f)->number() == 6 && e->number() == 5;
  ok = ok && std::move(e).or_else(f)->number() == 5 && e->number() == -1;
  return ok && !called;
}

constexpr bool or_else_works_on_void() {
  using X = expected<void, int>;
  const answering_error<void, category, int> f;
  X e(unexpect, 1);
  const X c(unexpect, 1);
  bool ok = e.or_else(f).error() == category::lvalue && c.or_else(f).error() == category::const_lvalue &&
            std::move(e).or_else(f).error() == category::rvalue &&
            std::move(c).or_else(f).error() == category::const_rvalue;
  X good;
  const X good_c;
  ok = ok && good.or_else(f).has_value() && good_c.or_else(f).has_value() &&
       std::move(good).or_else(f).has_value() && std::move(good_c).or_else(f).has_value();
  return ok && e.or_else([](int) { return expected<void, int>(); }).has_value();
}

TEST_CASE("expected: or_else calls the function with the error alone, in its value category", "[expected]") {
  static_assert(or_else_passes_the_error());
  static_assert(or_else_passes_values_on());
  static_assert(or_else_works_on_void());
  CHECK(or_else_passes_the_error());
  CHECK(or_else_passes_values_on());
  CHECK(or_else_works_on_void());
}

// ---- transform ----

constexpr bool transform_passes_the_value() {
  using X = expected<int, nontrivial>;
  const asked<int> f;
  X e(1);
  const X c(1);
  return *e.transform(f) == category::lvalue && *c.transform(f) == category::const_lvalue &&
         *std::move(e).transform(f) == category::rvalue &&
         *std::move(c).transform(f) == category::const_rvalue;
}

constexpr bool transform_passes_errors_on() {
  using X = expected<int, nontrivial>;
  bool called = false;
  const auto f = [&](auto&& n) {
    called = true;
    return static_cast<long>(n);
  };
  X e(unexpect, 5);
  const X c(unexpect, 6);
  bool ok = e.transform(f).error().number() == 5 && c.transform(f).error().number() == 6 &&
            std::move(c).transform(f).error().number() == 6 && e.error().number() == 5;
  ok = ok && std::move(e).transform(f).error().number() == 5 && e.error().number() == -1;
  return ok && !called;
}

constexpr bool transform_to_and_from_void() {
  int calls = 0;
  const auto to_void = [&](int n) { calls += n; };
  const auto from_void = [&] { return ++calls; };
  const auto neither = [&] { ++calls; };
  expected<int, int> e(10);
  expected<void, int> v;
  bool ok =
      e.transform(to_void).has_value() && *v.transform(from_void) == 11 && v.transform(neither).has_value();
  ok = ok && *std::as_const(v).transform(from_void) == 13 && *std::move(v).transform(from_void) == 14 &&
       *std::move(std::as_const(v)).transform(from_void) == 15;
  v = unexpected(3);
  ok = ok && v.transform(from_void).error() == 3 && std::as_const(v).transform(neither).error() == 3 &&
       std::move(v).transform(from_void).error() == 3 &&
       std::move(std::as_const(v)).transform(neither).error() == 3;
  return ok && calls == 15;
}

constexpr bool transform_needs_no_move() {
  const auto make = [](int n) { return immovable(n); };
  const auto e = expected<int, int>(4).transform(make);
  const auto v = expected<void, int>().transform([] { return immovable(5); });
  const auto w = expected<int, int>(unexpect, 6).transform_error(make);
  const auto x = expected<void, int>(unexpect, 7).transform_error(make);
  return e->number() == 4 && v->number() == 5 && w.error().number() == 6 && x.error().number() == 7;
}

TEST_CASE("expected: transform wraps what the function makes of the value", "[expected]") {
  static_assert(transform_passes_the_value());
  static_assert(transform_passes_errors_on());
  static_assert(transform_to_and_from_void());
  CHECK(transform_passes_the_value());
  CHECK(transform_passes_errors_on());
  CHECK(transform_to_and_from_void());
  static_assert(
      std::is_same_v<decltype(expected<int, int>().transform([](int) -> const nontrivial { return 1; })),
                     expected<nontrivial, int>>);
  static_assert(std::is_same_v<decltype(expected<int, int>().transform([](int) {})), expected<void, int>>);
}

TEST_CASE("expected: the result of a transform is made in place, so it may be immovable", "[expected]") {
  static_assert(transform_needs_no_move());
  CHECK(transform_needs_no_move());
}

// ---- transform_error ----

constexpr bool transform_error_passes_the_error() {
  using X = expected<nontrivial, int>;
  const asked<int> f;
  X e(unexpect, 1);
  const X c(unexpect, 1);
  return e.transform_error(f).error() == category::lvalue &&
         c.transform_error(f).error() == category::const_lvalue &&
         std::move(e).transform_error(f).error() == category::rvalue &&
         std::move(c).transform_error(f).error() == category::const_rvalue;
}

constexpr bool transform_error_passes_values_on() {
  using X = expected<nontrivial, int>;
  bool called = false;
  const auto f = [&](auto&& n) {
    called = true;
    return static_cast<long>(n);
  };
  X e(5);
  const X c(6);
  bool ok = e.transform_error(f)->number() == 5 && c.transform_error(f)->number() == 6 &&
            std::move(c).transform_error(f)->number() == 6 && e->number() == 5;
  ok = ok && std::move(e).transform_error(f)->number() == 5 && e->number() == -1;
  return ok && !called;
}

constexpr bool transform_error_works_on_void() {
  using X = expected<void, int>;
  const asked<int> f;
  X e(unexpect, 1);
  const X c(unexpect, 1);
  bool ok = e.transform_error(f).error() == category::lvalue &&
            c.transform_error(f).error() == category::const_lvalue &&
            std::move(e).transform_error(f).error() == category::rvalue &&
            std::move(c).transform_error(f).error() == category::const_rvalue;
  X good;
  const X good_c;
  return ok && good.transform_error(f).has_value() && good_c.transform_error(f).has_value() &&
         std::move(good).transform_error(f).has_value() && std::move(good_c).transform_error(f).has_value();
}

TEST_CASE("expected: transform_error wraps what the function makes of the error", "[expected]") {
  static_assert(transform_error_passes_the_error());
  static_assert(transform_error_passes_values_on());
  static_assert(transform_error_works_on_void());
  CHECK(transform_error_passes_the_error());
  CHECK(transform_error_passes_values_on());
  CHECK(transform_error_works_on_void());
  static_assert(std::is_same_v<decltype(expected<int, int>().transform_error(
                                   [](int) -> const nontrivial { return 1; })),
                               expected<int, nontrivial>>);
}

// ---- What all of them share ----

constexpr bool forwards_the_function() {
  expected<int, int> e(1);
  counts_calls f;
  const counts_calls c;
  bool ok = *e.transform(f) == 1 && *e.transform(c) == 2 && *e.transform(std::move(f)) == 3 &&
            *e.transform(std::move(c)) == 4;
  e = unexpected(1);
  return ok && e.transform_error(f).error() == 1 && e.transform_error(c).error() == 2 &&
         e.transform_error(std::move(f)).error() == 3 && e.transform_error(std::move(c)).error() == 4;
}

TEST_CASE("expected: the function is called in its own value category", "[expected]") {
  static_assert(forwards_the_function());
  CHECK(forwards_the_function());
}

struct owner {
  int n = 0;
  expected<int, int> kept = 7;
  constexpr explicit owner(int number) : n(number) {}
  constexpr int doubled() const { return 2 * n; }
  constexpr expected<int, int> checked() const { return n; }
};

struct heir : owner {
  using owner::owner;
};

constexpr int tripled(int n) {
  return 3 * n;
}

// A member that is an object is passed on as a reference: fit for and_then, which copies it, but not for
// transform.
constexpr bool calls_members() {
  owner o(4);
  bool ok = *expected<owner, int>(o).and_then(&owner::kept) == 7;
  ok = ok && *expected<owner*, int>(&o).and_then(&owner::kept) == 7;
  ok = ok && *expected<heir, int>(heir(4)).and_then(&owner::kept) == 7;
  ok = ok && *expected<std::reference_wrapper<owner>, int>(std::ref(o)).and_then(&owner::kept) == 7;
  ok = ok && *expected<owner, int>(o).and_then(&owner::checked) == 4;
  ok = ok && *expected<owner, int>(o).transform(&owner::doubled) == 8;
  ok = ok && *expected<const owner*, int>(&o).transform(&owner::doubled) == 8;
  ok = ok && *expected<heir, int>(heir(4)).transform(&owner::doubled) == 8;
  ok = ok && *expected<std::reference_wrapper<owner>, int>(std::ref(o)).transform(&owner::doubled) == 8;
  ok = ok && *expected<int, int>(4).transform(tripled) == 12 &&
       *expected<int, int>(4).transform(&tripled) == 12;
  return ok && expected<int, owner>(unexpect, 4).transform_error(&owner::doubled).error() == 8;
}

TEST_CASE("expected: a pointer to a member or to a function is a function too", "[expected]") {
  static_assert(calls_members());
  CHECK(calls_members());
  expected<std::unique_ptr<owner>, int> e(std::make_unique<owner>(5));
  CHECK(*e.transform(&owner::doubled) == 10);
  CHECK(*e.and_then(&owner::kept) == 7);
  CHECK(*e.transform(std::mem_fn(&owner::doubled)) == 10);
}

TEST_CASE("expected: operations chain over move-only values", "[expected]") {
  const auto parse = [](std::string text) -> expected<std::unique_ptr<int>, std::string> {
    if (text.empty()) return unexpected("empty");
    return std::make_unique<int>(static_cast<int>(text.size()));
  };
  const auto run = [&](std::string text) {
    return expected<std::string, std::string>(std::move(text))
        .and_then(parse)
        .transform([](std::unique_ptr<int> p) { return *p; })
        .transform_error([](std::string why) { return why.size(); })
        .or_else([](std::size_t n) -> expected<int, int> {
          if (n == 5) return -1;
          return unexpected(0);
        });
  };
  CHECK(run("abc") == 3);
  CHECK(run("") == -1);
}

TEST_CASE("expected: a function that throws lets the expected be", "[expected]") {
  expected<int, int> e(1);
  const auto throws = [](int) -> expected<int, int> { throw failure{}; };
  CHECK_THROWS_AS(e.and_then(throws), failure);
  CHECK_THROWS_AS(e.transform(throws), failure);
  CHECK(e == 1);
}

// ---- Constraints ----

struct to_self {
  template <class... Args>
  expected<int, move_only> operator()(Args&&...) const {
    return 1;
  }
};
struct to_moved {
  template <class Arg>
  expected<move_only, int> operator()(Arg&&) const {
    return unexpected(1);
  }
};
struct to_void {
  template <class Arg>
  expected<void, int> operator()(Arg&&) const {
    return {};
  }
};

template <class X, class F>
concept has_and_then = requires(X&& x, F f) { std::forward<X>(x).and_then(f); };
template <class X, class F>
concept has_transform = requires(X&& x, F f) { std::forward<X>(x).transform(f); };
template <class X, class F>
concept has_or_else = requires(X&& x, F f) { std::forward<X>(x).or_else(f); };
template <class X, class F>
concept has_transform_error = requires(X&& x, F f) { std::forward<X>(x).transform_error(f); };

static_assert(!has_and_then<expected<int, move_only>&, to_self>);
static_assert(!has_and_then<const expected<int, move_only>&, to_self>);
static_assert(has_and_then<expected<int, move_only>, to_self>);
static_assert(!has_and_then<const expected<int, move_only>, to_self>);
static_assert(!has_and_then<expected<void, move_only>&, to_self>);
static_assert(has_and_then<expected<void, move_only>, to_self>);
static_assert(!has_transform<expected<int, move_only>&, to_self>);
static_assert(has_transform<expected<int, move_only>, to_self>);
static_assert(!has_transform<const expected<void, move_only>&, to_self>);
static_assert(has_transform<expected<void, move_only>, to_self>);

static_assert(!has_or_else<expected<move_only, int>&, to_moved>);
static_assert(has_or_else<expected<move_only, int>, to_moved>);
static_assert(!has_or_else<const expected<move_only, int>, to_moved>);
static_assert(!has_transform_error<expected<move_only, int>&, to_moved>);
static_assert(has_transform_error<expected<move_only, int>, to_moved>);

static_assert(has_or_else<expected<void, move_only>&, to_void>);
static_assert(has_transform_error<const expected<void, move_only>&, asked<move_only>>);

}  // namespace
