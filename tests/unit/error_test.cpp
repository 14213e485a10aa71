#include <cobatch/error.hpp>

#include <cstddef>
#include <exception>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <vector>

#include "support/catch.hpp"

using cobatch::errc;
using cobatch::error;
using cobatch::name_of;

static_assert(name_of(errc::timed_out) == "timed_out" && name_of(errc{}) == "success");
static_assert(!std::is_aggregate_v<error>);
static_assert(std::is_nothrow_copy_constructible_v<error> && std::is_nothrow_move_constructible_v<error>);
static_assert(std::is_convertible_v<errc, error> && std::is_error_code_enum_v<errc>);

TEST_CASE("errc: every reason has a name and a message of its own") {
  std::vector<std::string> seen;
  for (int i = 1; i <= static_cast<int>(errc::closed); ++i) {
    const auto code = static_cast<errc>(i);
    seen.emplace_back(name_of(code));
    seen.push_back(make_error_code(code).message());
  }
  for (std::size_t i = 0; i < seen.size(); ++i) {
    CHECK(seen[i].find("unknown") == std::string::npos);
    for (std::size_t k = 0; k < i; ++k) CHECK(seen[i] != seen[k]);
  }
  CHECK(name_of(static_cast<errc>(255)) == "other");
}

TEST_CASE("errc: is a std::error_code enumeration") {
  const std::error_code code = errc::timed_out;
  CHECK(code == errc::timed_out);
  CHECK(code != errc::cancelled);
  CHECK(code.category() == cobatch::error_category());
  CHECK(std::string_view(code.category().name()) == "cobatch");
  CHECK(code.message() == "timed out");
}

TEST_CASE("error: its message is the reason, what was thrown, and the attempts where there were more than one") {
  CHECK(error(errc::timed_out).message() == "timed out");
  const auto thrown = std::make_exception_ptr(std::runtime_error("no memory on the GPU"));
  CHECK(error(errc::exception, thrown).message() == "predict threw an exception: no memory on the GPU");
  CHECK(error(errc::exception, thrown, 3).message() ==
        "predict threw an exception: no memory on the GPU (after 3 attempts)");
  CHECK(error(errc::exception, std::make_exception_ptr(7)).message() ==
        "predict threw an exception: an exception that is no std::exception");
}

TEST_CASE("error: compares by reason, and as a whole by reason, exception object and attempts") {
  const auto thrown = std::make_exception_ptr(std::runtime_error("same words"));
  const auto another = std::make_exception_ptr(std::runtime_error("same words"));
  const error one(errc::exception, thrown);
  CHECK(one == errc::exception);
  CHECK(one != errc::timed_out);
  CHECK(one == error(errc::exception, thrown));
  CHECK(one != error(errc::exception, another));
  CHECK(one != error(errc::exception, thrown, 2));
  CHECK(one.attempts == 1);
}
