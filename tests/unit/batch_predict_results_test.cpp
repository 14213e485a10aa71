#include <cobatch/batch_predict.hpp>

#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <ranges>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <cobatch/error.hpp>
#include <cobatch/expected.hpp>
#include <cobatch/simulation.hpp>
#include <cobatch/task.hpp>

#include "support/catch.hpp"
#include "support/fail_at.hpp"
#include "support/generated.hpp"
#include "support/lifetimes.hpp"
#include "support/outline.hpp"

using cobatch::batch_predict;
using cobatch::errc;
using cobatch::error;
using cobatch::expected;
using cobatch::simulation;
using cobatch::task;
using cobatch::unexpected;
using namespace std::chrono_literals;

namespace {

const std::vector<int> three{0, 1, 2};

template <class Predict>
using outcome_of =
    typename decltype(batch_predict(std::declval<simulation&>(), three, std::declval<Predict&>()))::result;

template <class T>
constexpr auto returns = [](int) -> T { throw std::logic_error("only its type matters"); };

template <class T, class Outcome>
constexpr bool comes_to = std::is_same_v<outcome_of<decltype(returns<T>)>, Outcome>;

static_assert(comes_to<int, expected<int, error>>);
static_assert(comes_to<const int, expected<int, error>>);
static_assert(comes_to<int&, expected<int, error>>);
static_assert(comes_to<void, expected<void, error>>);
static_assert(comes_to<task<void>, expected<void, error>>);
static_assert(comes_to<task<int>, expected<int, error>>);
static_assert(comes_to<task<int&>, expected<int, error>>);
static_assert(comes_to<task<std::unique_ptr<int>>, expected<std::unique_ptr<int>, error>>);
static_assert(comes_to<expected<int, error>, expected<int, error>>);
static_assert(comes_to<task<expected<std::string, error>>, expected<std::string, error>>);

/// A user's error, made from ours.
struct user_error {
  explicit user_error(std::string what) : text(std::move(what)) {}
  explicit(false) user_error(const error& why) : text(name_of(why.code)) {}
  std::string text;
};
static_assert(comes_to<expected<int, user_error>, expected<int, user_error>>);
static_assert(comes_to<task<expected<void, user_error>>, expected<void, user_error>>);

struct not_assignable {
  explicit not_assignable(int x) : number(x) {}
  not_assignable(not_assignable&&) = default;
  not_assignable& operator=(not_assignable&&) = delete;
  const int number;
};

struct not_assignable_throwing {
  explicit not_assignable_throwing(int x) : number(x) {}
  not_assignable_throwing(not_assignable_throwing&& other) noexcept(false) : number(other.number) {}
  const int number;
};

/// Every copy and every move may fail.
struct fragile {
  explicit fragile(int x) : number(x) {}
  fragile(const fragile& other) : number(other.number) { may_fail(); }
  fragile& operator=(const fragile& other) {
    may_fail();
    number = other.number;
    return *this;
  }
  int number;
};

}  // namespace

TEST_CASE("batch_predict: a result may be move-only, without default constructor, or without assignment") {
  simulation sim;
  const auto predict_all = [&](auto make) {
    auto later = sim.run(batch_predict(sim, three, [&](int x) -> task<decltype(make(x))> {
      co_await sim.schedule_after((3 - x) * 1ms);
      co_return make(x);
    }));
    auto pulled = sim.run(batch_predict(sim, numbers_below(3), make));
    REQUIRE(values_in(later) == 3);
    REQUIRE(values_in(pulled) == 3);
    return later;
  };
  CHECK(**predict_all([](int x) { return std::make_unique<int>(x); })[2] == 2);
  CHECK(predict_all([](int x) { return not_assignable(x); })[2]->number == 2);
  CHECK(predict_all([](int x) { return not_assignable_throwing(x); })[2]->number == 2);
}

TEST_CASE("batch_predict: an expected may hold what cannot be assigned") {
  simulation sim;
  const auto results = sim.run(batch_predict(sim, three, [](int x) -> task<expected<not_assignable, user_error>> {
    if (x == 1) co_return unexpected(user_error("one"));
    co_return expected<not_assignable, user_error>(std::in_place, x);
  }));
  CHECK(results[0]->number == 0);
  CHECK(results[1].error().text == "one");
  CHECK(results[2]->number == 2);
}

TEST_CASE("batch_predict: a result that is a reference is copied") {
  simulation sim;
  std::vector<std::string> words{"a", "b", "c"};
  const auto plain = sim.run(batch_predict(sim, words, [](std::string& word) -> std::string& { return word; }));
  const auto later =
      sim.run(batch_predict(sim, words, [](std::string& word) -> task<std::string&> { co_return word; }));
  CHECK(outline(plain) == "a b c");
  CHECK(outline(later) == "a b c");
  CHECK(words == std::vector<std::string>{"a", "b", "c"});
}

TEST_CASE("batch_predict: a result is moved, never copied") {
  simulation sim;
  census results;
  {
    const auto plain = sim.run(batch_predict(sim, three, [&](int x) { return tracked(results, x); }));
    const auto later = sim.run(batch_predict(sim, three, [&](int x) -> task<tracked> {
      co_await sim.schedule_after(1ms);
      co_return tracked(results, x);
    }));
    CHECK(results.copies == 0);
    CHECK(results.alive == 6);
    CHECK(plain[2]->number() == 2);
    CHECK(later[2]->number() == 2);
  }
  CHECK(results.alive == 0);
}

TEST_CASE("batch_predict: an expected of the user's own error type passes through") {
  simulation sim;
  const auto predict = [](int x) -> expected<std::string, user_error> {
    if (x == 1) return unexpected(user_error("one is not liked"));
    if (x == 2) throw std::runtime_error("two");
    return "zero";
  };
  const auto check = [](const std::vector<expected<std::string, user_error>>& results) {
    CHECK(results.at(0) == "zero");
    CHECK(results.at(1).error().text == "one is not liked");
    CHECK(results.at(2).error().text == "exception");
  };
  check(sim.run(batch_predict(sim, numbers_below(3), predict)));
  check(sim.run(batch_predict(sim, three, [&](int x) -> task<expected<std::string, user_error>> {
    co_await sim.schedule_after(1ms);
    co_return predict(x);
  })));
}

TEST_CASE("batch_predict: an expected of void passes through") {
  simulation sim;
  const auto results = sim.run(batch_predict(sim, three, [&](int x) -> task<expected<void, error>> {
    co_await sim.schedule_after(1ms);
    if (x == 1) co_return unexpected(error(errc::queue_full));
    co_return expected<void, error>();
  }));
  CHECK(outline(results) == "value queue_full value");
}

TEST_CASE("batch_predict: the exception of a predict is kept, and the others go on") {
  simulation sim;
  const std::function<int(int)> one_throws = [](int x) {
    if (x == 1) throw std::runtime_error("sample one");
    return x;
  };
  const auto check = [](const std::vector<expected<int, error>>& results) {
    CHECK(outline(results) == "0 exception 2");
    CHECK_THROWS_WITH(std::rethrow_exception(results.at(1).error().exception), "sample one");
    CHECK(results.at(1).error().attempts == 1);
  };
  std::function<task<int>(int)> predict;
  SECTION("no coroutine") {
    check(sim.run(batch_predict(sim, three, one_throws)));
  }
  SECTION("before its first suspension") {
    predict = [&](int x) -> task<int> { co_return one_throws(x); };
    check(sim.run(batch_predict(sim, three, predict)));
  }
  SECTION("later") {
    predict = [&](int x) -> task<int> {
      co_await sim.schedule_after(x * 1ms);
      co_return one_throws(x);
    };
    check(sim.run(batch_predict(sim, three, predict)));
  }
  SECTION("before there is a coroutine") {
    const auto coroutine = [](int x) -> task<int> { co_return x; };
    predict = [&](int x) {
      one_throws(x);
      return coroutine(x);
    };
    check(sim.run(batch_predict(sim, three, predict)));
  }
  SECTION("what is thrown is no std::exception") {
    const std::function<int(int)> throws_a_number = [](int x) { return x == 1 ? throw 42 : x; };
    const auto results = sim.run(batch_predict(sim, three, throws_a_number));
    CHECK(outline(results) == "0 exception 2");
    CHECK_THROWS_AS(std::rethrow_exception(results.at(1).error().exception), int);
  }
  SECTION("all of them") {
    const std::function<int(int)> all_throw = returns<int>;
    CHECK(outline(sim.run(batch_predict(sim, three, all_throw))) == "exception exception exception");
  }
}

TEST_CASE("batch_predict: a result whose copying or moving throws is that sample's exception") {
  const std::vector<fragile> models{fragile(0), fragile(1), fragile(2)};
  const auto model = [&](int x) -> const fragile& { return models[static_cast<std::size_t>(x)]; };
  const auto check = [](const std::vector<expected<fragile, error>>& results, bool failed) {
    REQUIRE(results.size() == 3);
    CHECK(values_in(results) == (failed ? 2 : 3));
    for (std::size_t i = 0; i < 3; ++i) {
      if (results[i]) {
        CHECK(results[i]->number == static_cast<int>(i));
      } else {
        CHECK(results[i].error().code == errc::exception);
        CHECK_THROWS_AS(std::rethrow_exception(results[i].error().exception), injected_failure);
      }
    }
  };
  const auto run = [](auto&& samples, auto predict) {
    simulation sim;
    return sim.run(batch_predict(sim, samples, predict));
  };
  SECTION("of a plain reference") {
    CHECK(fail_at_each_point([&] { return run(three, model); }, check) >= 3);
  }
  SECTION("of a task") {
    CHECK(fail_at_each_point([&] { return run(three, [&](int x) -> task<fragile> { co_return model(x); }); }, check) >=
          6);
  }
  SECTION("of an expected") {
    CHECK(fail_at_each_point(
              [&] { return run(three, [&](int x) -> task<expected<fragile, error>> { co_return model(x); }); },
              check) >= 6);
  }
  SECTION("into the vector, where the length of the input is not known") {
    CHECK(fail_at_each_point(
              [&] { return run(std::views::iota(0) | std::views::take_while([](int x) { return x < 3; }), model); },
              check) >= 6);
  }
}

TEST_CASE(
    "batch_predict: a user's error type that cannot be made leaves the sample not started, and nothing "
    "else") {
  struct failing_error {
    failing_error(const error& why) : code(why.code) { may_fail(); }
    failing_error(const failing_error&) = default;
    errc code;
  };
  const auto run = [](auto&& samples) {
    return [&]() -> std::vector<expected<int, failing_error>> {
      simulation sim;
      try {
        return sim.run(batch_predict(sim, samples, [](int x) -> task<expected<int, failing_error>> {
          if (x == 1) throw std::runtime_error("one");
          co_return x;
        }));
      } catch (const injected_failure&) {
        return {};  // nothing can be said without that type
      }
    };
  };
  const auto check = [](const std::vector<expected<int, failing_error>>& results, bool failed) {
    if (results.empty()) return;
    REQUIRE(results.size() == 3);
    CHECK(results[0].value() == 0);
    CHECK(results[1].error().code == (failed ? errc::not_started : errc::exception));
    CHECK(results[2].value() == 2);
  };
  CHECK(fail_at_each_point(run(three), check) == 4);
  CHECK(fail_at_each_point(run(std::views::iota(0, 3) | std::views::filter([](int) { return true; })), check) == 4);
}
