#include <cobatch/batch_predict.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include <cobatch/error.hpp>
#include <cobatch/expected.hpp>
#include <cobatch/rate_limiter.hpp>
#include <cobatch/semaphore.hpp>
#include <cobatch/simulation.hpp>
#include <cobatch/task.hpp>

#include "support/catch.hpp"
#include "support/generated.hpp"
#include "support/lifetimes.hpp"
#include "support/outline.hpp"
#include "support/script.hpp"

using cobatch::async_semaphore;
using cobatch::batch_options;
using cobatch::batch_predict;
using cobatch::errc;
using cobatch::error;
using cobatch::expected;
using cobatch::simulation;
using cobatch::task;
using cobatch::weighted;
using namespace std::chrono_literals;

using times = std::vector<std::chrono::milliseconds>;

namespace {

/// A script whose samples weigh something; remembers the most that was ever in flight.
class weighing {
 public:
  weighing(simulation& sim, std::function<act(int, int)> plan, std::function<std::size_t(int)> cost)
      : cost_(std::move(cost)), script_(sim, std::move(plan)) {}

  task<int> operator()(int sample, std::stop_token token) {
    struct load {
      std::size_t& total;
      std::size_t weight;
      ~load() { total -= weight; }
    };
    const std::size_t weight = std::max<std::size_t>(cost_(sample), 1);
    const load mine{in_flight_ += weight, weight};
    most_ = std::max(most_, in_flight_);
    co_return co_await script_(sample, token);
  }

  std::size_t cost(int sample) const { return cost_(sample); }
  std::size_t most() const { return most_; }
  const script& log() const { return script_; }

 private:
  std::function<std::size_t(int)> cost_;
  script script_;
  std::size_t in_flight_ = 0;
  std::size_t most_ = 0;
};

struct cost_of {
  weighing* from;
  std::size_t operator()(int sample) const { return from->cost(sample); }
};

auto playing(simulation& sim, weighing& predict, const std::vector<int>& samples, batch_options options = {}) {
  return batch_predict(sim, samples, weighted(std::ref(predict), cost_of{&predict}), options);
}

script_outcomes play(simulation& sim, weighing& predict, const std::vector<int>& samples, batch_options options = {}) {
  return sim.run(playing(sim, predict, samples, options));
}

auto always(act todo) {
  return [todo](int, int) { return todo; };
}
std::size_t as_it_says(int sample) {
  return static_cast<std::size_t>(sample);
}

}  // namespace

TEST_CASE("weights: the sum in flight stays within max_weight, and comes close to it") {
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    simulation sim(seed);
    weighing predict(
        sim, [](int sample, int) { return value_after((1 + sample * 7919 % 13) * 1ms); },
        [](int sample) { return 1 + static_cast<std::size_t>(sample) * 31 % 5; });
    const auto results = play(sim, predict, samples_below(100), {.max_weight = 10});
    CHECK(values_in(results) == 100);
    CHECK(predict.most() <= 10);
    CHECK(predict.most() >= 9);
  }
}

TEST_CASE("weights: samples start in order of the input, a light one does not overtake a heavy one") {
  simulation sim;
  weighing predict(sim, always(value_after(10ms)), as_it_says);
  const auto results = play(sim, predict, {3, 4, 9, 1, 1, 2}, {.max_weight = 10});
  CHECK(values_in(results) == 6);
  CHECK(predict.log().order() == std::vector<int>{3, 4, 9, 1, 1, 2});
  CHECK(predict.log().began(9) == times{10ms});  // behind 3 and 4
  CHECK(predict.log().began(1) == times{10ms, 20ms});
  CHECK(predict.log().began(2) == times{20ms});
}

TEST_CASE("weights: both caps hold, that on the number and that on the sum") {
  simulation sim;
  weighing predict(sim, always(value_after(10ms)), as_it_says);
  const auto results = play(sim, predict, {1, 1, 1, 1, 5, 5, 1, 1}, {.max_concurrency = 3, .max_weight = 6});
  CHECK(values_in(results) == 8);
  CHECK(predict.log().flight().most() == 3);
  CHECK(predict.most() == 6);
}

TEST_CASE("weights: a sample that weighs more than the cap could never run: that one fails, the others go on") {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    simulation sim(seed);
    weighing predict(sim, always(value_after(10ms)), as_it_says);
    const auto results = play(sim, predict, {3, 11, 4, 1000, 10}, {.max_weight = 10});
    CHECK(outline(results) == "301 cost_exceeds_capacity 401 cost_exceeds_capacity 1001");
    CHECK(results[1].error().attempts == 0);
    CHECK(results[1].error().exception == nullptr);
    CHECK(predict.log().calls_of(11) == 0);
  }
}

TEST_CASE("weights: what is too heavy counts as a failure, and is not tried again") {
  simulation sim;
  weighing predict(sim, always(value_after(10ms)), as_it_says);
  const auto results = play(sim, predict, {3, 11, 4, 5},
                            {.max_concurrency = 1, .max_weight = 10, .max_failures = 1, .retry = {.max_attempts = 3}});
  CHECK(outline(results) == "301 cost_exceeds_capacity not_started not_started");
}

TEST_CASE("weights: a sample whose cost throws fails with that exception, the others go on") {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    simulation sim(seed);
    async_semaphore semaphore(4);
    weighing predict(sim, always(value_after(10ms)), [](int sample) -> std::size_t {
      if (sample == 2) throw std::runtime_error("no tokenizer");
      return 2;
    });
    const auto results =
        play(sim, predict, samples_below(5), {.semaphore = &semaphore, .max_weight = 10, .retry = {.max_attempts = 3}});
    CHECK(outline(results) == "1 101 exception 301 401");
    CHECK_THROWS_WITH(std::rethrow_exception(results[2].error().exception), "no tokenizer");
    CHECK(results[2].error().attempts == 0);
    CHECK(semaphore.available() == 4);
  }
}

TEST_CASE("weights: a cost of 0 counts as 1") {
  simulation sim;
  weighing predict(sim, always(value_after(10ms)), [](int) { return std::size_t{0}; });
  const auto results = play(sim, predict, samples_below(10), {.max_weight = 2});
  CHECK(values_in(results) == 10);
  CHECK(predict.log().flight().most() == 2);
  CHECK(elapsed(sim) == 50ms);
}

TEST_CASE("weights: without a cap on the sum, weighted() changes nothing") {
  simulation sim;
  weighing predict(sim, always(value_after(10ms)), as_it_says);
  CHECK(values_in(play(sim, predict, samples_below(100))) == 100);
  CHECK(elapsed(sim) == 10ms);
}

TEST_CASE("weights: max_weight without weighted() is a cap on the number") {
  simulation sim;
  script predict(sim, always(value_after(10ms)));
  CHECK(values_in(play(sim, predict, samples_below(10), {.max_weight = 2})) == 10);
  CHECK(predict.flight().most() == 2);
}

TEST_CASE("weights: they are taken from the shared semaphore as well") {
  for (std::uint64_t seed = 0; seed < 30; ++seed) {
    simulation sim(seed);
    async_semaphore semaphore(8);
    weighing first(sim, always(value_after(10ms)), [](int sample) { return 1 + static_cast<std::size_t>(sample) % 4; });
    weighing second(sim, always(value_after(7ms)), [](int) { return std::size_t{3}; });
    std::size_t least_free = 8;
    run_together(sim, {[&]() -> task<void> {
                         const auto results =
                             co_await playing(sim, first, samples_below(40), {.semaphore = &semaphore});
                         CHECK(values_in(results) == 40);
                       },
                       [&]() -> task<void> {
                         const auto results = co_await playing(sim, second, samples_below(20),
                                                               {.semaphore = &semaphore, .max_weight = 6});
                         CHECK(values_in(results) == 20);
                       },
                       [&]() -> task<void> {
                         for (int i = 0; i < 40; ++i) {
                           least_free = std::min(least_free, semaphore.available());
                           co_await sim.schedule_after(1ms);
                         }
                       }});
    CHECK(first.most() <= 8);
    CHECK(second.most() <= 6);
    CHECK(semaphore.available() == 8);
    CHECK(semaphore.waiting() == 0);
  }
}

TEST_CASE(
    "weights: a sample that weighs more than the shared semaphore's limit fails, and holds nothing of its own cap") {
  simulation sim;
  async_semaphore semaphore(5);
  weighing predict(sim, always(value_after(10ms)), as_it_says);
  const auto results = play(sim, predict, {3, 6, 5, 7, 1}, {.semaphore = &semaphore, .max_weight = 7});
  CHECK(outline(results) == "301 cost_exceeds_capacity 501 cost_exceeds_capacity 101");
  CHECK(semaphore.available() == 5);
}

TEST_CASE("weights: a retried sample gives its weight back during the backoff, and takes it again") {
  simulation sim;
  async_semaphore semaphore(10);
  weighing predict(
      sim, [](int, int number) { return number == 1 ? fails_after(10ms) : value_after(10ms); }, as_it_says);
  const std::vector<int> samples{9, 8};
  run_together(sim, {[&]() -> task<void> {
                       const auto results = co_await playing(
                           sim, predict, samples,
                           {.semaphore = &semaphore, .max_weight = 9, .retry = {.max_attempts = 2, .jitter = false}});
                       CHECK(outline(results) == "902 802");
                     },
                     [&]() -> task<void> {
                       co_await sim.schedule_after(50ms);
                       CHECK(semaphore.available() == 10);
                     }});
  CHECK(predict.log().began(9) == times{0ms, 110ms});
  CHECK(predict.log().began(8) == times{10ms, 120ms});
  CHECK(semaphore.available() == 10);
}

TEST_CASE("weights: a second attempt weighs as much as the first") {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    simulation sim(seed);
    async_semaphore semaphore(10);
    const auto plan = [](int, int number) { return value_after(number == 1 ? 200ms : 1ms); };
    weighing fits(sim, plan, [](int) { return std::size_t{5}; });
    CHECK(outline(play(sim, fits, {7},
                       {.semaphore = &semaphore, .max_weight = 10, .hedge = {.delay = 50ms, .max_extra = 1}})) ==
          "702");
    CHECK(fits.most() == 10);
    weighing does_not(sim, plan, [](int) { return std::size_t{6}; });
    CHECK(outline(play(sim, does_not, {7}, {.semaphore = &semaphore, .hedge = {.delay = 50ms, .max_extra = 1}})) ==
          "701");
    CHECK(semaphore.available() == 10);
  }
}

TEST_CASE("weights: a lane that could not double a light sample takes all that a heavy one weighs") {
  // Room for the weight of a second attempt of sample 0, but not in the semaphore; then samples that weigh more come.
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    simulation sim(seed);
    async_semaphore semaphore(10);
    weighing predict(
        sim, [](int sample, int number) { return value_after(sample == 0 && number == 1 ? 300ms : 80ms); },
        [](int sample) { return std::size_t{sample < 2 ? 1u : 8u}; });
    run_together(sim, {[&]() -> task<void> {
                         const auto results = co_await playing(sim, predict, samples_below(6),
                                                               {.max_concurrency = 2,
                                                                .semaphore = &semaphore,
                                                                .max_weight = 9,
                                                                .hedge = {.delay = 50ms, .max_extra = 1}});
                         CHECK(values_in(results) == 6);
                       },
                       [&]() -> task<void> {
                         co_await sim.schedule_after(60ms);
                         {
                           const auto most = co_await semaphore.acquire(8);
                           co_await sim.schedule_after(100ms);
                         }
                       }});
    CHECK(predict.most() <= 9);
    CHECK(semaphore.available() == 10);
  }
}

TEST_CASE("weights: a stop while a heavy sample waits for its weight leaves it not started") {
  simulation sim;
  weighing predict(sim, always(value_after(50ms)), as_it_says);
  const auto results = play(sim, predict, {6, 5, 1}, {.deadline = 20ms, .max_weight = 10});
  CHECK(outline(results) == "deadline_exceeded not_started not_started");
  CHECK(elapsed(sim) == 20ms);
}

TEST_CASE("weights: samples of a single-pass range are weighed once they are there, and read no earlier than that") {
  simulation sim;
  census samples;
  std::size_t in_flight = 0, most = 0;
  const auto weight = [](const tracked& sample) { return static_cast<std::size_t>(sample.number()); };
  const auto predict = [&](const tracked& sample) -> task<int> {
    const int number = sample.number();
    in_flight += static_cast<std::size_t>(number);
    most = std::max(most, in_flight);
    co_await sim.schedule_after(10ms);
    in_flight -= static_cast<std::size_t>(number);
    co_return number;
  };
  auto range = generated([&, i = 1]() mutable { return i <= 9 ? std::optional(tracked(samples, i++)) : std::nullopt; });
  const auto results = sim.run(batch_predict(sim, std::move(range), weighted(predict, weight), {.max_weight = 9}));
  CHECK(outline(results) == "1 2 3 4 5 6 7 8 9");
  CHECK(most == 9);
  CHECK(samples.most <= 6);  // three in flight, one that waits, and the generator keeps what it has moved from
  CHECK(samples.alive == 0);
}

TEST_CASE("weights: a rate limiter takes a sample's cost in tokens") {
  simulation sim;
  cobatch::rate_limiter rate(100, 4);
  weighing predict(sim, always(value_after(0ms)), as_it_says);
  CHECK(values_in(play(sim, predict, {4, 2, 3, 1}, {.rate = &rate})) == 4);
  CHECK(predict.log().began(4) == times{0ms});
  CHECK(predict.log().began(2) == times{20ms});
  CHECK(predict.log().began(3) == times{50ms});
  CHECK(predict.log().began(1) == times{60ms});
}

TEST_CASE("weights: a max_weight of 0 is refused") {
  simulation sim;
  weighing predict(sim, always(value_after(0ms)), as_it_says);
  CHECK_THROWS_AS(playing(sim, predict, {1}, {.max_weight = 0}), std::invalid_argument);
}
