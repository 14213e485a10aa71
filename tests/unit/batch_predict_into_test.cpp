#include <cobatch/batch_predict_into.hpp>

#include <array>
#include <chrono>
#include <cstddef>
#include <ranges>
#include <span>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include <cobatch/error.hpp>
#include <cobatch/expected.hpp>
#include <cobatch/simulation.hpp>
#include <cobatch/sync_wait.hpp>
#include <cobatch/task.hpp>
#include <cobatch/thread_pool.hpp>

#include "support/catch.hpp"

using cobatch::batch_counts;
using cobatch::batch_predict_into;
using cobatch::errc;
using cobatch::error;
using cobatch::expected;
using cobatch::simulation;
using cobatch::task;
using namespace std::chrono_literals;

namespace {

bool adds_up(const batch_counts& counts, std::size_t samples) {
  return counts.succeeded + counts.failed + counts.not_started == samples;
}

}  // namespace

TEST_CASE("batch_predict_into: outcomes go where the caller says, and are counted") {
  simulation sim;
  const std::vector<int> samples{0, 1, 2, 3, 4};
  std::vector<expected<int, error>> outcomes(5, expected<int, error>(77));
  const auto predict = [&](int x) -> task<int> {
    co_await sim.schedule_after(std::chrono::milliseconds(10 - x));
    if (x == 3) throw std::runtime_error("three");
    co_return x * 2;
  };
  const batch_counts counts = sim.run(batch_predict_into(sim, samples, outcomes, predict));
  CHECK(counts.succeeded == 4);
  CHECK(counts.failed == 1);
  CHECK(counts.not_started == 0);
  CHECK_FALSE(counts.all_succeeded());
  for (std::size_t i = 0; i < 5; ++i) {
    if (i == 3) {
      REQUIRE_FALSE(outcomes[i]);
      CHECK(outcomes[i].error().code == errc::exception);
    } else {
      CHECK(outcomes[i] == static_cast<int>(2 * i));
    }
  }
}

TEST_CASE("batch_predict_into: what was not started says so, whatever the element held before") {
  simulation sim;
  std::stop_source stop;
  const auto run = [&](auto&& samples) {
    std::vector<expected<int, error>> outcomes(100, expected<int, error>(77));
    int calls = 0;
    const auto predict = [&](int x) -> task<int> {
      if (++calls == 10) stop.request_stop();
      co_return x;
    };
    stop = std::stop_source();
    const batch_counts counts =
        sim.run(batch_predict_into(sim, samples, outcomes, predict, {.max_concurrency = 1, .stop = stop}));
    CHECK(counts.succeeded == 10);
    CHECK(counts.failed == 0);
    CHECK(counts.not_started == 90);
    for (std::size_t i = 0; i < 100; ++i) {
      INFO(i);
      if (i < 10) {
        CHECK(outcomes[i] == static_cast<int>(i));
      } else {
        REQUIRE_FALSE(outcomes[i]);
        CHECK(outcomes[i].error().code == errc::not_started);
      }
    }
  };
  std::vector<int> stored(100);
  for (std::size_t i = 0; i < 100; ++i) stored[i] = static_cast<int>(i);
  run(stored);
  run(std::views::iota(0, 100));
}

TEST_CASE("batch_predict_into: sizes that differ are refused in words") {
  simulation sim;
  const std::vector<int> samples{0, 1, 2};
  std::vector<expected<int, error>> outcomes(2, expected<int, error>(0));
  const auto predict = [](int x) { return x; };
  CHECK_THROWS_WITH((void)batch_predict_into(sim, samples, outcomes, predict),
                    Catch::Matchers::Contains("one outcome for each sample"));
}

TEST_CASE("batch_predict_into: spans, arrays and empty inputs") {
  simulation sim;
  std::array<expected<int, error>, 3> array{expected<int, error>(0), expected<int, error>(0), expected<int, error>(0)};
  const auto predict = [](int x) { return x + 1; };
  const std::vector<int> samples{1, 2, 3};
  CHECK(sim.run(batch_predict_into(sim, samples, array, predict)).all_succeeded());
  CHECK(array[2] == 4);
  std::span<expected<int, error>> two(array.data(), 2);
  CHECK(sim.run(batch_predict_into(sim, std::span(samples).first(2), two, predict)).succeeded == 2);
  std::vector<expected<int, error>> none;
  const std::vector<int> nothing;
  CHECK(sim.run(batch_predict_into(sim, nothing, none, predict)).succeeded == 0);
}

TEST_CASE("batch_predict_into: results that cannot be assigned, or throw while they are moved") {
  struct awkward {
    explicit awkward(int x) : number(x) {}
    awkward(awkward&& other) : number(other.number) {
      if (number == 2) throw std::runtime_error("moved");
    }
    const int number;
  };
  simulation sim;
  const std::vector<int> samples{0, 1, 2, 3};
  std::vector<expected<awkward, error>> outcomes;
  outcomes.reserve(4);
  for (int i = 0; i < 4; ++i) outcomes.emplace_back(std::in_place, 9);
  const batch_counts counts = sim.run(batch_predict_into(sim, samples, outcomes, [](int x) { return awkward(x); }));
  CHECK(counts.succeeded == 3);
  CHECK(counts.failed == 1);
  CHECK(outcomes[3]->number == 3);
  REQUIRE_FALSE(outcomes[2]);
  CHECK(outcomes[2].error().code == errc::exception);
}

TEST_CASE("batch_predict_into: on several threads every outcome is written once") {
  cobatch::thread_pool pool(4);
  std::vector<int> samples(20'000);
  for (std::size_t i = 0; i < samples.size(); ++i) samples[i] = static_cast<int>(i);
  std::vector<expected<int, error>> outcomes(samples.size(), expected<int, error>(-1));
  for (int round = 0; round < 5; ++round) {
    const auto predict = [&](int x) -> task<int> {
      if (x % 7 == 0) co_await pool.schedule();
      if (x % 1000 == 999) throw std::runtime_error("no");
      co_return x + round;
    };
    const batch_counts counts =
        cobatch::sync_wait(batch_predict_into(pool, samples, outcomes, predict, {.max_concurrency = 16}));
    CHECK(counts.failed == 20);
    CHECK(adds_up(counts, samples.size()));
    for (std::size_t i = 0; i < samples.size(); ++i) {
      if (i % 1000 == 999 ? outcomes[i].has_value() : outcomes[i] != static_cast<int>(i) + round) FAIL(i);
    }
  }
}
