#include <cobatch/batch_predict.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <iterator>
#include <new>
#include <optional>
#include <ranges>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <vector>

#include <cobatch/error.hpp>
#include <cobatch/expected.hpp>
#include <cobatch/semaphore.hpp>
#include <cobatch/simulation.hpp>
#include <cobatch/task.hpp>

#include "support/allocations.hpp"
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

const std::vector<int> six{0, 1, 2, 3, 4, 5};

/// 0, 1, ... size - 1 from iterators of which every operation may fail; Category tells what kind they are.
template <class Category>
class fallible_numbers {
 public:
  explicit fallible_numbers(int size) : size_(size) {}

  class iterator {
   public:
    using iterator_category = Category;
    using iterator_concept = Category;
    using value_type = int;
    using difference_type = std::ptrdiff_t;

    iterator() = default;
    explicit iterator(int number) : number_(number) {}
    int operator*() const {
      may_fail();
      return number_;
    }
    iterator& operator++() {
      may_fail();
      ++number_;
      return *this;
    }
    iterator operator++(int) {
      iterator old = *this;
      ++*this;
      return old;
    }
    bool operator==(const iterator& other) const {
      may_fail();
      return number_ == other.number_;
    }

   private:
    int number_ = 0;
  };

  iterator begin() const {
    may_fail();
    return iterator(0);
  }
  iterator end() const { return iterator(size_); }

 protected:
  int size_;
};

class sized_fallible_numbers : public fallible_numbers<std::forward_iterator_tag> {
 public:
  using fallible_numbers::fallible_numbers;
  std::size_t size() const noexcept { return static_cast<std::size_t>(size_); }
};

}  // namespace

TEST_CASE("batch_predict: fail fast stops reading, stops what is in flight, awaits it, and keeps every outcome") {
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    simulation sim(seed);
    census frames;
    int started = 0;
    const auto results =
        sim.run(batch_predict(sim, six,
                              [&](int x, std::stop_token token) -> task<int> {
                                const life frame(frames);
                                ++started;
                                co_await sim.schedule_after(x * 10ms, token);
                                if (x == 1) throw std::runtime_error("one");
                                if (x == 2)
                                  co_await sim.schedule_after(1s);  // slow to stop, and has a value all the same
                                if (x == 3) throw std::runtime_error("stopped");
                                co_return x;
                              },
                              {.max_concurrency = 3, .max_failures = 1}));
    CHECK(outline(results) == "0 exception 2 cancelled not_started not_started");
    CHECK(started == 4);
    CHECK(frames.alive == 0);
    CHECK(sim.now().time_since_epoch() == 1010ms);
  }
}

TEST_CASE("batch_predict: fail fast ends an endless input") {
  simulation sim;
  const auto throw_at = [](int last) {
    return [last](int x) {
      if (x == last) throw std::runtime_error("last");
      return x;
    };
  };
  const auto plain = sim.run(batch_predict(sim, std::views::iota(0), throw_at(1000), {.max_failures = 1}));
  CHECK(plain.size() == 1001);
  CHECK(values_in(plain) == 1000);
  const auto later = sim.run(batch_predict(sim, std::views::iota(0),
                                           [&](int x) -> task<int> {
                                             co_await sim.schedule_after(1ms);
                                             co_return throw_at(1000)(x);
                                           },
                                           {.max_concurrency = 10, .max_failures = 1}));
  CHECK(later.size() <= 1011);
  CHECK(count_of(later, errc::exception) == 1);
}

TEST_CASE("batch_predict: an error budget is spent before the batch stops") {
  simulation sim;
  const auto odd_fails = [](int x) -> expected<int, error> {
    if (x % 2 == 1) return unexpected(error(errc::queue_full));
    return x;
  };
  const auto run = [&](std::size_t budget) {
    return outline(sim.run(batch_predict(sim, six, odd_fails, {.max_failures = budget})));
  };
  CHECK(run(1) == "0 queue_full not_started not_started not_started not_started");
  CHECK(run(2) == "0 queue_full 2 queue_full not_started not_started");
  CHECK(run(3) == "0 queue_full 2 queue_full 4 queue_full");
  CHECK(run(4) == "0 queue_full 2 queue_full 4 queue_full");
}

TEST_CASE("batch_predict: what the user cancelled does not count as a failure") {
  // The predict fails because it was stopped; had that counted, the other would be told of fail fast and not of the stop.
  simulation sim;
  std::stop_source stop;
  const auto results = sim.run(batch_predict(sim, six,
                                             [&](int x, std::stop_token token) -> task<expected<int, error>> {
                                               if (x == 0) {
                                                 co_await sim.schedule_after(1ms);
                                                 stop.request_stop();
                                                 co_return x;
                                               }
                                               co_await sim.schedule_after(1s, token);
                                               co_return unexpected(error(errc::exception));
                                             },
                                             {.max_concurrency = 3, .stop = stop, .max_failures = 2}));
  CHECK(outline(results) == "0 cancelled cancelled not_started not_started not_started");
}

TEST_CASE("batch_predict: max_concurrency 0 and max_failures 0 are refused in words") {
  simulation sim;
  const auto same = [](int x) { return x; };
  CHECK_THROWS_AS(batch_predict(sim, six, same, {.max_concurrency = 0}), std::invalid_argument);
  CHECK_THROWS_AS(batch_predict(sim, six, same, {.max_failures = 0}), std::invalid_argument);
  CHECK_THROWS_WITH(batch_predict(sim, six, same, {.max_concurrency = 0}),
                    Catch::Matchers::Contains("max_concurrency"));
}

TEST_CASE("batch_predict: an input that throws ends the reading, and nothing that was computed is lost") {
  simulation sim;
  const auto throws_at_three = [](int x) {
    if (x == 3) throw std::runtime_error("unreadable");
    return x;
  };
  const auto predict = [&](int x) -> task<int> {
    co_await sim.schedule_after((5 - x) * 1ms);
    co_return x;
  };
  const auto check_failed = [](const auto& results) {
    REQUIRE(results.size() > 3);
    REQUIRE(!results[3]);
    CHECK_THROWS_WITH(std::rethrow_exception(results[3].error().exception), "unreadable");
  };
  SECTION("of known length") {
    const auto results = sim.run(batch_predict(sim, six | std::views::transform(throws_at_three), predict));
    CHECK(outline(results) == "0 1 2 input_failed not_started not_started");
    check_failed(results);
  }
  SECTION("of unknown length") {
    const auto results =
        sim.run(batch_predict(sim, numbers_below(6) | std::views::transform(throws_at_three), predict));
    CHECK(outline(results) == "0 1 2 input_failed");
    check_failed(results);
  }
  SECTION("while an element is referred to") {
    const auto refer = [](const int& x) -> const int& {
      if (x == 3) throw std::runtime_error("unreadable");
      return x;
    };
    const auto results = sim.run(batch_predict(sim, six | std::views::transform(refer), predict));
    CHECK(outline(results) == "0 1 2 input_failed not_started not_started");
    check_failed(results);
  }
  SECTION("while what is in flight listens to its token") {
    const auto results = sim.run(batch_predict(sim, six | std::views::transform(throws_at_three),
                                               [&](int x, std::stop_token token) -> task<int> {
                                                 if (!co_await sim.schedule_after(1ms, token)) throw x;
                                                 co_return x;
                                               }));
    CHECK(outline(results) == "0 1 2 input_failed not_started not_started");
  }
}

TEST_CASE("batch_predict: an iterator may throw from each of its operations") {
  const auto check = [](const std::vector<expected<int, error>>& results, bool failed, bool sized) {
    if (!failed || sized) REQUIRE(results.size() == 3);
    REQUIRE(results.size() <= 4);  // to find the end may fail as well
    bool readable = true;
    for (std::size_t i = 0; i < results.size(); ++i) {
      if (readable && !results[i]) {
        readable = false;
        CHECK(results[i].error().code == errc::input_failed);
        CHECK_THROWS_AS(std::rethrow_exception(results[i].error().exception), injected_failure);
      } else if (readable) {
        CHECK(*results[i] == static_cast<int>(i));
      } else {
        CHECK(outline(results[i]) == "not_started");
      }
    }
  };
  const auto run = [](auto samples) {
    return [samples] {
      simulation sim;
      return sim.run(batch_predict(sim, samples, [&](int x) -> task<int> {
        co_await sim.schedule_after(1ms);
        co_return x;
      }));
    };
  };
  CHECK(fail_at_each_point(run(fallible_numbers<std::input_iterator_tag>(3)),
                           [&](auto results, bool failed) { check(results, failed, false); }) == 11);
  CHECK(fail_at_each_point(run(fallible_numbers<std::forward_iterator_tag>(3)),
                           [&](auto results, bool failed) { check(results, failed, false); }) >= 11);
  CHECK(fail_at_each_point(run(sized_fallible_numbers(3)),
                           [&](auto results, bool failed) { check(results, failed, true); }) >= 10);
}

TEST_CASE("batch_predict: a sample that cannot be copied out of a single-pass input is its failure to be read") {
  struct fragile {
    int number;
    explicit fragile(int x) : number(x) {}
    fragile(const fragile& other) : number(other.number) { may_fail(); }
  };
  CHECK(fail_at_each_point(
            [] {
              simulation sim;
              return sim.run(batch_predict(sim,
                                           numbers_below(3) | std::views::transform([](int x) { return fragile(x); }),
                                           [](const fragile& sample) { return sample.number; }));
            },
            [](const std::vector<expected<int, error>>& results, bool failed) {
              REQUIRE(!results.empty());
              const bool all_read = results.back().has_value();
              CHECK(all_read == !failed);
              if (failed) CHECK(results.back().error().code == errc::input_failed);
            }) == 3);
}

TEST_CASE(
    "batch_predict: whichever allocation fails, the batch throws bad_alloc or has full outcomes, and leaks nothing") {
  // Warm-up apart, every allocation on the way of one batch fails in turn: of the batch, its frames, its tokens, its
  // results, and the frames of the predicts.
  census frames;
  cobatch::async_semaphore semaphore(2);
  std::stop_source stop;
  const auto check = [&](const std::optional<std::vector<expected<int, error>>>& results, bool failed) {
    CHECK(frames.alive == 0);
    CHECK(semaphore.available() == 2);
    CHECK(semaphore.waiting() == 0);
    if (!results) {
      CHECK(failed);
      return;
    }
    for (const auto& each : *results) {
      if (!each) {
        CHECK(failed);
        if (each.error().code == errc::exception) {
          CHECK_THROWS_AS(std::rethrow_exception(each.error().exception), std::bad_alloc);
        }
      }
    }
    if (!failed) CHECK(values_in(*results) == 6);
  };
  const auto run = [&](auto samples, const cobatch::batch_options& options) {
    return [&, samples, options]() -> std::optional<std::vector<expected<int, error>>> {
      simulation sim;
      const auto predict = [&](int x, std::stop_token token) -> task<int> {
        const life frame(frames);
        co_await sim.schedule_after(x * 1ms, token);
        co_return x;
      };
      try {
        return sim.run(batch_predict(sim, samples, predict, options));
      } catch (const std::bad_alloc&) {
        return std::nullopt;
      }
    };
  };
  const auto unsized = std::views::iota(0) | std::views::take_while([](int x) { return x < 6; });
  const auto lazy = std::views::iota(0, 6);
  CHECK(fail_each_allocation(run(std::views::all(six), {}), check) > 0);
  CHECK(fail_each_allocation(run(unsized, {}), check) > 0);
  CHECK(fail_each_allocation(run(lazy, {.max_concurrency = 2}), check) > 0);
  CHECK(fail_each_allocation(run(std::views::all(six), {.semaphore = &semaphore}), check) > 0);
  CHECK(fail_each_allocation(run(unsized, {.stop = stop, .max_failures = 3}), check) > 0);
  CHECK(fail_each_allocation(run(std::views::all(six), {.timeout = 2ms}), check) > 0);
  CHECK(fail_each_allocation(run(lazy, {.max_concurrency = 2,
                                        .semaphore = &semaphore,
                                        .stop = stop,
                                        .timeout = 2ms,
                                        .deadline = 1s,
                                        .max_failures = 7}),
                             check) > 0);
}
