// What is told of a missing value; in a unit of its own, with an assertion of its own.
#include <string>

namespace {

std::string failed;

void check(bool holds, const char* condition) {
  if (!holds) failed = condition;
}

}  // namespace

#define COBATCH_ASSERT(condition) (__builtin_is_constant_evaluated() ? void() : check((condition), #condition))
#include <cobatch/expected.hpp>

#include "support/catch.hpp"

#if !COBATCH_USE_STD_EXPECTED

namespace {

template <class Access>
std::string told(Access access) {
  failed.clear();
  access();
  return failed;
}

constexpr cobatch::expected<int, int> constant(4);
static_assert(*constant == 4);

}  // namespace

TEST_CASE("expected: reaching for a value that is not there fails an assertion that says so") {
  using outcome = cobatch::expected<int, int>;
  outcome bad(cobatch::unexpect, 3);
  const std::string of_value = "has_value_ && \"* of an expected that holds an error\"";
  CHECK(told([&] { (void)*bad; }) == of_value);
  CHECK(told([&] { (void)*std::as_const(bad); }) == of_value);
  CHECK(told([&] { (void)*std::move(bad); }) == of_value);
  CHECK(told([&] { (void)*std::move(std::as_const(bad)); }) == of_value);
  CHECK(told([&] { (void)bad.operator->(); }) == "has_value_ && \"-> of an expected that holds an error\"");
  CHECK(told([&] { (void)std::as_const(bad).operator->(); }) != "");
  CHECK(told([&] { *cobatch::expected<void, int>(cobatch::unexpect, 1); }) == of_value);
  CHECK(told([&] { (void)bad.error(); }).empty());
}

TEST_CASE("expected: reaching for an error that is not there fails an assertion that says so") {
  cobatch::expected<int, int> good(1);
  cobatch::expected<void, int> done;
  const std::string of_error = "!has_value_ && \"error() of an expected that holds a value\"";
  CHECK(told([&] { (void)good.error(); }) == of_error);
  CHECK(told([&] { (void)std::as_const(good).error(); }) == of_error);
  CHECK(told([&] { (void)std::move(good).error(); }) == of_error);
  CHECK(told([&] { (void)std::move(std::as_const(good)).error(); }) == of_error);
  CHECK(told([&] { (void)done.error(); }) == of_error);
  CHECK(told([&] { (void)std::move(done).error(); }) == of_error);
  CHECK(told([&] { (void)*good, *done; }).empty());
}

TEST_CASE("expected: what checks for itself fails no assertion") {
  const cobatch::expected<int, int> bad(cobatch::unexpect, 3), good(1);
  CHECK(told([&] {
          (void)(bad == good);
          (void)(bad == bad);
          (void)(bad == 3);
          (void)bad.value_or(1);
          (void)good.error_or(1);
          (void)good.transform([](int x) { return x; });
          (void)bad.or_else([](int) { return cobatch::expected<int, int>(2); });
          (void)bad.transform_error([](int x) { return x; });
        }).empty());
}

#endif
