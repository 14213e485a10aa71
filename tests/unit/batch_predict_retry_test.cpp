#include <cobatch/batch_predict.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <limits>
#include <optional>
#include <ranges>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include <cobatch/error.hpp>
#include <cobatch/expected.hpp>
#include <cobatch/semaphore.hpp>
#include <cobatch/simulation.hpp>
#include <cobatch/task.hpp>

#include "support/catch.hpp"
#include "support/generated.hpp"
#include "support/lifetimes.hpp"
#include "support/outline.hpp"
#include "support/script.hpp"
#include "support/started.hpp"
#include "support/step_executor.hpp"

using cobatch::async_semaphore;
using cobatch::batch_predict;
using cobatch::errc;
using cobatch::error;
using cobatch::expected;
using cobatch::retry_policy;
using cobatch::simulation;
using cobatch::task;
using cobatch::unexpected;
using namespace std::chrono_literals;

using times = std::vector<std::chrono::milliseconds>;

namespace {

const std::vector<int> one{7};

act always_fails(int, int) {
  return fails_after(0ms);
}

/// Fails until its call of that number.
auto succeeds_at(int call, std::chrono::nanoseconds takes = 0ms) {
  return [=](int, int number) { return number < call ? fails_after(takes) : value_after(takes); };
}

retry_policy exactly(std::uint32_t attempts, std::chrono::nanoseconds backoff = 100ms) {
  return {.max_attempts = attempts, .initial_backoff = backoff, .jitter = false};
}

}  // namespace

// ---- How often, and when ----

TEST_CASE("retry: a sample that always fails is tried max_attempts times, and its error says so") {
  for (const std::uint32_t attempts : {1u, 2u, 3u, 7u}) {
    simulation sim;
    script predict(sim, always_fails);
    const auto results = play(sim, predict, one, {.retry = exactly(attempts)});
    REQUIRE(outline(results) == "exception");
    CHECK(results[0].error().attempts == attempts);
    CHECK(predict.calls_of(7) == static_cast<int>(attempts));
    CHECK_THROWS_WITH(std::rethrow_exception(results[0].error().exception), "call " + std::to_string(attempts));
  }
}

TEST_CASE("retry: without it, nothing is tried twice") {
  simulation sim;
  script predict(sim, always_fails);
  const auto results = play(sim, predict, samples_below(5));
  CHECK(predict.calls().size() == 5);
  CHECK(results[0].error().attempts == 1);
  CHECK(elapsed(sim) == 0ms);
}

TEST_CASE("retry: without jitter the backoff doubles, from the end of one attempt to the start of the next") {
  simulation sim;
  script predict(sim, [](int, int) { return fails_after(10ms); });
  play(sim, predict, one, {.retry = exactly(5)});
  CHECK(predict.began(7) == times{0ms, 110ms, 320ms, 730ms, 1540ms});
  CHECK(elapsed(sim) == 1550ms);
}

TEST_CASE("retry: max_backoff caps the backoff, multiplier says how it grows") {
  simulation sim;
  script capped(sim, always_fails);
  play(sim, capped, one, {.retry = {.max_attempts = 5, .max_backoff = 250ms, .jitter = false}});
  CHECK(capped.began(7) == times{0ms, 100ms, 300ms, 550ms, 800ms});

  simulation other;
  script tripled(other, always_fails);
  play(other, tripled, one, {.retry = {.max_attempts = 4, .initial_backoff = 10ms, .multiplier = 3, .jitter = false}});
  CHECK(tripled.began(7) == times{0ms, 10ms, 40ms, 130ms});

  simulation third;
  script even(third, always_fails);
  play(third, even, one, {.retry = {.max_attempts = 4, .initial_backoff = 10ms, .multiplier = 1, .jitter = false}});
  CHECK(even.began(7) == times{0ms, 10ms, 20ms, 30ms});
}

TEST_CASE("retry: a backoff that has grown beyond all numbers is max_backoff") {
  simulation sim;
  script predict(sim, always_fails);
  const auto results = play(sim, predict, one, {.retry = {.max_attempts = 400, .multiplier = 1e6, .jitter = false}});
  CHECK(results[0].error().attempts == 400);
  CHECK(predict.began(7).at(2) == 10'100ms);  // 0.1 s, then 10 s each time
  CHECK(elapsed(sim) == 100ms + 398 * 10s);
}

TEST_CASE("retry: with full jitter each backoff is somewhere between nothing and all of it") {
  std::vector<double> shares;
  for (std::uint64_t seed = 1; seed <= 300; ++seed) {
    simulation sim;
    script predict(sim, always_fails);
    play(sim, predict, one, {.retry = {.max_attempts = 6, .initial_backoff = 1s, .max_backoff = 5s, .seed = seed}});
    REQUIRE(predict.calls().size() == 6);
    for (std::size_t k = 1; k < 6; ++k) {
      const double full = std::min(std::pow(2.0, static_cast<double>(k - 1)), 5.0);
      const std::chrono::duration<double> pause = predict.calls()[k].began - predict.calls()[k - 1].began;
      const double share = pause.count() / full;
      CHECK(share >= 0);
      CHECK(share <= 1);
      shares.push_back(share);
    }
  }
  // Uniform: its mean, and as many below a tenth as above nine tenths.
  double sum = 0;
  int low = 0, high = 0;
  for (const double each : shares) {
    sum += each;
    low += each < 0.1;
    high += each > 0.9;
  }
  CHECK(std::abs(sum / 1500 - 0.5) < 0.03);
  CHECK((low > 100 && low < 200));
  CHECK((high > 100 && high < 200));
}

TEST_CASE("retry: the same seed gives the same backoffs, another one gives others, and so does none") {
  const auto starts = [](std::uint64_t seed) {
    simulation sim;
    script predict(sim, always_fails);
    play(sim, predict, samples_below(4), {.retry = {.max_attempts = 4, .seed = seed}});
    std::vector<std::chrono::nanoseconds> began;
    for (const auto& each : predict.calls()) began.push_back(each.began);
    return began;
  };
  CHECK(starts(5) == starts(5));
  CHECK(starts(5) != starts(6));
  CHECK(starts(0) != starts(0));
}

TEST_CASE("retry: samples that failed together do not come back together") {
  simulation sim;
  script predict(sim, always_fails);
  play(sim, predict, samples_below(20), {.retry = {.max_attempts = 2, .initial_backoff = 1s, .seed = 11}});
  std::vector<std::chrono::nanoseconds> second;
  for (const auto& each : predict.calls()) {
    if (each.number == 2) second.push_back(each.began);
  }
  REQUIRE(second.size() == 20);
  CHECK(std::adjacent_find(second.begin(), second.end()) == second.end());
}

TEST_CASE("retry: a value ends it, and nothing tells of the failures before") {
  simulation sim;
  script predict(sim, succeeds_at(3));
  const auto results = play(sim, predict, one, {.retry = exactly(10)});
  CHECK(outline(results) == "703");
  CHECK(predict.calls_of(7) == 3);
  CHECK(elapsed(sim) == 300ms);
}

TEST_CASE("retry: only what failed is tried again") {
  simulation sim;
  script predict(
      sim, [](int sample, int number) { return sample % 3 == 0 && number == 1 ? fails_after(1ms) : value_after(1ms); });
  const auto results = play(sim, predict, samples_below(7), {.max_concurrency = 2, .retry = exactly(3)});
  CHECK(outline(results) == "2 101 201 302 401 501 602");
  CHECK(predict.calls().size() == 10);
}

// ---- Which failures ----

TEST_CASE("retry: retry_if decides, from the error, with the attempts made so far") {
  simulation sim;
  script predict(sim, always_fails);
  // A captureless lambda.
  const auto twice = [](const error& why) { return why.code == errc::exception && why.attempts < 2; };
  const auto results = play(sim, predict, one, {.retry = {.max_attempts = 9, .jitter = false, .retry_if = twice}});
  CHECK(results[0].error().attempts == 2);

  script never(sim, always_fails);
  const auto once =
      play(sim, never, one, {.retry = {.max_attempts = 9, .retry_if = [](const error&) { return false; }}});
  CHECK(once[0].error().attempts == 1);
}

namespace {

/// An error type of the user's, which says for itself whether another attempt is worth it.
struct status {
  explicit status(int c) : code(c) {}
  explicit status(const error& why) : code(-static_cast<int>(why.code)) {}
  bool retryable() const { return code == 503; }
  int code;
};

/// How often predict was called where it gives this status each time, or throws if that is 0.
int calls_of(int code, const retry_policy& policy) {
  simulation sim;
  int calls = 0;
  const auto predict = [&](int sample) -> expected<int, status> {
    ++calls;
    if (sample == 0) throw std::runtime_error("broken");
    return unexpected(status(sample));
  };
  const std::vector<int> samples{code};
  sim.run(batch_predict(sim, samples, predict, {.retry = policy}));
  return calls;
}

bool is_503(const status& why) {
  return why.code == 503;
}

}  // namespace

TEST_CASE("retry: retry_if sees the user's own error") {
  CHECK(calls_of(400, {.max_attempts = 5, .retry_if = [](const status& why) { return why.code == 400; }}) == 5);
  CHECK(calls_of(503, {.max_attempts = 5, .retry_if = [](const status& why) { return why.code == 400; }}) == 1);
  CHECK(calls_of(503, {.max_attempts = 5, .retry_if = &is_503}) == 5);
  CHECK(calls_of(400, {.max_attempts = 5, .retry_if = &is_503}) == 1);
  CHECK(calls_of(400, {.max_attempts = 5, .retry_if = [](status why) { return why.code == 400; }}) == 5);
}

TEST_CASE("retry: without retry_if the user's own error may say whether it is worth another attempt") {
  CHECK(calls_of(400, {.max_attempts = 5}) == 1);
  CHECK(calls_of(503, {.max_attempts = 5}) == 5);
}

TEST_CASE("retry: a retry_if that takes our error is asked where predict threw, not where it gave an error of its own") {
  const auto never = [](const error&) { return false; };
  CHECK(calls_of(0, {.max_attempts = 5, .retry_if = never}) == 1);
  CHECK(calls_of(503, {.max_attempts = 5, .retry_if = never}) == 5);
  CHECK(calls_of(400, {.max_attempts = 5, .retry_if = never}) == 1);  // says its retryable()
  const auto broken = [](const error& why) {
    try {
      std::rethrow_exception(why.exception);
    } catch (const std::runtime_error& what) {
      return std::string(what.what()) == "broken";
    }
  };
  CHECK(calls_of(0, {.max_attempts = 5, .retry_if = broken}) == 5);
}

TEST_CASE("retry: retry_if may be an overloaded function, or a lambda of any error") {
  struct overloads {
    static bool never(const error&) { return false; }
    static bool never(const status&) { return true; }
  };
  CHECK(calls_of(0, {.max_attempts = 5, .retry_if = &overloads::never}) == 1);
  CHECK(calls_of(0, {.max_attempts = 5, .retry_if = [](const auto& why) { return why.attempts < 3; }}) == 3);
}

TEST_CASE("retry: a retry_if that takes neither error is refused") {
  CHECK_THROWS_WITH(calls_of(400, {.max_attempts = 5, .retry_if = [](const std::string&) { return true; }}),
                    Catch::Matchers::Contains("retry_if takes an error type that is not predict's"));
  // One that takes an error of its own where predict has none.
  simulation sim;
  script predict(sim, always_fails);
  CHECK_THROWS_WITH(play(sim, predict, one, {.retry = {.max_attempts = 5, .retry_if = &is_503}}),
                    Catch::Matchers::Contains("retry_if takes an error type that is not predict's"));
}

TEST_CASE("retry: one that would never start is not waited for") {
  simulation sim;
  script predict(sim, always_fails);
  const auto results = play(sim, predict, one,
                            {.retry = {.max_attempts = 4,
                                       .initial_backoff = 1h,
                                       .max_backoff = cobatch::no_timeout,
                                       .multiplier = 1e10,
                                       .jitter = false}});
  CHECK(results[0].error().attempts == 2);
  CHECK(sim.now().time_since_epoch() == 1h);
}

TEST_CASE("retry: an attempt that timed out is tried again, with a whole timeout of its own") {
  simulation sim;
  script predict(sim, [](int, int number) { return value_after(number < 3 ? 1h : 5ms); });
  const auto results = play(sim, predict, one, {.timeout = 20ms, .retry = exactly(3)});
  CHECK(outline(results) == "703");
  CHECK(predict.began(7) == times{0ms, 120ms, 340ms});
  CHECK(elapsed(sim) == 345ms);

  script slow(sim, [](int, int) { return value_after(1h); });
  const auto late = play(sim, slow, one, {.timeout = 20ms, .retry = exactly(3)});
  CHECK(outline(late) == "timed_out");
  CHECK(late[0].error().attempts == 3);
  CHECK_THROWS_WITH(std::rethrow_exception(late[0].error().exception), "stopped");
}

TEST_CASE("retry: a value that comes after its timeout is not tried again") {
  simulation sim;
  script predict(sim, [](int, int) { return act{.takes = 50ms, .listens = false}; });
  CHECK(outline(play(sim, predict, one, {.timeout = 20ms, .retry = exactly(3)})) == "701");
  CHECK(predict.calls_of(7) == 1);
}

TEST_CASE("retry: what was cancelled is not tried again") {
  simulation sim;
  std::stop_source stop;
  script predict(sim, [](int, int) { return value_after(1h); });
  run_together(sim, {[&]() -> task<void> {
                       const auto results = co_await playing(sim, predict, one, {.stop = stop, .retry = exactly(3)});
                       CHECK(outline(results) == "cancelled");
                       CHECK(results[0].error().attempts == 1);
                     },
                     [&]() -> task<void> {
                       co_await sim.schedule_after(10ms);
                       stop.request_stop();
                     }});
  CHECK(predict.calls_of(7) == 1);
  CHECK(elapsed(sim) == 10ms);
}

// ---- The error knows better ----

TEST_CASE("retry: an error may say when to come back: retry_later") {
  simulation sim;
  script longer(sim, [](int, int number) { return number == 1 ? throttled(70s) : value_after(0ms); });
  CHECK(outline(play(sim, longer, one, {.retry = exactly(2)})) == "702");
  CHECK(longer.began(7) == times{0ms, 70'000ms});  // also beyond max_backoff

  simulation other;
  script shorter(other, [](int, int number) { return number == 1 ? throttled(3ms) : value_after(0ms); });
  CHECK(outline(play(other, shorter, one, {.retry = exactly(2)})) == "702");
  CHECK(shorter.began(7) == times{0ms, 100ms});  // the backoff is longer

  simulation third;
  script jittered(third, [](int, int number) { return number < 5 ? throttled(100ms) : value_after(0ms); });
  play(third, jittered, one, {.retry = {.max_attempts = 5, .initial_backoff = 1ms, .seed = 3}});
  // Never earlier than it was told; jitter is added on top.
  const times began = jittered.began(7);
  REQUIRE(began.size() == 5);
  for (std::size_t i = 1; i < 5; ++i) {
    const auto pause = began[i] - began[i - 1];
    CHECK(pause >= 100ms);
    CHECK(pause <= 100ms + 1ms * (1 << i));
  }
}

namespace {

/// What a client might return for "too many requests".
class api_error {
 public:
  explicit api_error(std::chrono::milliseconds come_back) : come_back_(come_back) {}
  explicit api_error(const error& why) : code_(why.code) {}
  std::chrono::nanoseconds retry_after() const { return come_back_; }
  std::optional<errc> code() const { return code_; }

 private:
  std::chrono::milliseconds come_back_{};
  std::optional<errc> code_;
};

}  // namespace

TEST_CASE("retry: an error may say when to come back: retry_after() of the user's own error type") {
  simulation sim;
  std::vector<std::chrono::nanoseconds> starts;
  const auto predict = [&](int) -> expected<int, api_error> {
    starts.push_back(elapsed(sim));
    if (starts.size() < 4) return unexpected(api_error(starts.size() * 1s));
    return 1;
  };
  const auto results = sim.run(batch_predict(sim, one, predict, {.retry = exactly(4)}));
  REQUIRE(results[0].has_value());
  CHECK(starts == std::vector<std::chrono::nanoseconds>{0s, 1s, 3s, 6s});
}

// ---- While it sleeps ----

TEST_CASE("retry: the permit is free during the backoff: the next sample takes it") {
  simulation sim;
  script predict(
      sim, [](int sample, int number) { return sample == 0 && number == 1 ? fails_after(10ms) : value_after(10ms); });
  const auto results = play(sim, predict, samples_below(4), {.max_concurrency = 1, .retry = exactly(2)});
  CHECK(outline(results) == "2 101 201 301");
  CHECK(predict.order() == std::vector<int>{0, 1, 2, 3, 0});
  CHECK(predict.began(0) == times{0ms, 110ms});
  CHECK(predict.flight().most() == 1);
}

TEST_CASE("retry: the permit of a shared semaphore is free during the backoff: another batch takes it") {
  simulation sim;
  async_semaphore semaphore(1);
  script first(sim, succeeds_at(2, 10ms));
  script second(sim, [](int, int) { return value_after(30ms); });
  run_together(sim, {[&]() -> task<void> {
                       const auto results =
                           co_await playing(sim, first, one, {.semaphore = &semaphore, .retry = exactly(2)});
                       CHECK(outline(results) == "702");
                       CHECK(elapsed(sim) == 140ms);  // 10, then 100 asleep, then behind the other one until 130
                     },
                     [&]() -> task<void> {
                       co_await sim.schedule_after(1ms);
                       const auto results = co_await playing(sim, second, samples_below(5),
                                                             {.max_concurrency = 1, .semaphore = &semaphore});
                       CHECK(outline(results) == "1 101 201 301 401");
                     }});
  CHECK(first.began(7) == times{0ms, 130ms});
  CHECK(second.began(0) == times{10ms});
  CHECK(semaphore.available() == 1);
}

TEST_CASE("retry: nothing of the failed attempt is alive during the backoff") {
  simulation sim;
  script predict(sim, succeeds_at(3));
  run_together(sim, {[&]() -> task<void> { (void)co_await playing(sim, predict, samples_below(10), {.retry = exactly(3)}); },
                     [&]() -> task<void> {
                       co_await sim.schedule_after(50ms);
                       CHECK(predict.calls().size() == 10);
                       CHECK(predict.flight().inside() == 0);
                     }});
  CHECK(predict.calls().size() == 30);
}

TEST_CASE("retry: a sample whose backoff is over goes before those that have not started, oldest first") {
  const auto fail_at_first = [](int sample, int number) {
    return sample < 3 && number == 1 ? fails_after(10ms) : value_after(100ms);
  };
  const cobatch::batch_options options{.max_concurrency = 1, .retry = exactly(2, 20ms)};
  SECTION("those of a range") {
    simulation sim;
    script predict(sim, fail_at_first);
    const auto results = play(sim, predict, samples_below(6), options);
    CHECK(values_in(results) == 6);
    CHECK(predict.order() == std::vector<int>{0, 1, 2, 0, 1, 2, 3, 4, 5});
    CHECK(elapsed(sim) == 630ms);
  }
  SECTION("those that have not been read: an input that never ends must not keep it for ever") {
    simulation sim;
    script predict(sim, fail_at_first);
    const std::vector<int> samples = samples_below(6);
    auto one_by_one = samples | std::views::filter([](int) { return true; });
    const auto results = sim.run(cobatch::batch_predict(sim, one_by_one, std::ref(predict), options));
    CHECK(values_in(results) == 6);
    CHECK(predict.order() == std::vector<int>{0, 1, 2, 0, 1, 2, 3, 4, 5});
    CHECK(elapsed(sim) == 630ms);
  }
}

TEST_CASE(
    "retry: a sample that comes back while another of its batch queues for a permit takes that one's place in it") {
  // The batch has one waiter in the semaphore, whoever it will be for. Nothing may spin until it is granted.
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    simulation sim(seed);
    async_semaphore semaphore(2);
    script predict(sim, [](int sample, int number) {
      return sample == 0 && number == 1 ? fails_after(10ms) : value_after(100ms);
    });
    run_together(sim, {[&]() -> task<void> {
                         const auto results = co_await playing(
                             sim, predict, samples_below(4),
                             {.max_concurrency = 8, .semaphore = &semaphore, .retry = exactly(2, 20ms)});
                         CHECK(outline(results) == "2 101 201 301");
                       },
                       [&]() -> task<void> {
                         co_await sim.schedule_after(5ms);
                         const auto permit = co_await semaphore.acquire();
                         co_await sim.schedule_after(60ms);
                       }});
    CHECK(predict.flight().most() == 2);
    CHECK(semaphore.available() == 2);
  }
}

TEST_CASE("retry: many that come back at once share what room there is") {
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    simulation sim(seed);
    async_semaphore semaphore(3);
    script predict(sim, succeeds_at(4, 1ms));
    const auto results = play(sim, predict, samples_below(50),
                              {.max_concurrency = 5, .semaphore = &semaphore, .retry = exactly(4, 1ms)});
    CHECK(values_in(results) == 50);
    CHECK(predict.calls().size() == 200);
    CHECK(predict.flight().most() == 3);
    CHECK(semaphore.available() == 3);
  }
}

// ---- The budget ----

TEST_CASE("retry: a budget allows so many extra attempts for each sample that has started") {
  simulation sim;
  script predict(sim, always_fails);
  const auto results = play(sim, predict, samples_below(100),
                            {.max_concurrency = 1, .retry = {.max_attempts = 3, .jitter = false, .budget = 0.1}});
  CHECK(predict.calls().size() == 110);
  // Not before it is earned: of the first nine none.
  for (int i = 0; i < 9; ++i) CHECK(predict.calls_of(i) == 1);
  CHECK(predict.calls_of(9) >= 2);
  std::uint32_t attempts = 0;
  for (const auto& each : results) attempts += each.error().attempts;
  CHECK(attempts == 110);
}

TEST_CASE("retry: a budget is no hindrance to few failures, and one of 0 allows nothing") {
  simulation sim;
  script few(sim, [](int sample, int number) {
    return sample % 20 == 19 && number == 1 ? fails_after(0ms) : value_after(0ms);
  });
  const auto results = play(sim, few, samples_below(100),
                            {.max_concurrency = 4, .retry = {.max_attempts = 2, .jitter = false, .budget = 0.1}});
  CHECK(values_in(results) == 100);

  script none(sim, always_fails);
  play(sim, none, samples_below(10), {.retry = {.max_attempts = 2, .budget = 0}});
  CHECK(none.calls().size() == 10);
}

// ---- Together with what ends a batch ----

TEST_CASE("retry: failures count for max_failures when they are final, not before") {
  simulation sim;
  script predict(sim, succeeds_at(2));
  const auto results =
      play(sim, predict, samples_below(20), {.max_concurrency = 2, .max_failures = 1, .retry = exactly(2)});
  CHECK(values_in(results) == 20);

  script fails(sim, [](int sample, int) { return sample == 4 ? fails_after(0ms) : value_after(0ms); });
  const auto stopped =
      play(sim, fails, samples_below(6), {.max_concurrency = 1, .max_failures = 1, .retry = exactly(3)});
  CHECK(outline(stopped) == "1 101 201 301 exception 501");  // 5 had its turn while 4 slept
  CHECK(stopped[4].error().attempts == 3);
}

TEST_CASE("retry: a stop during the backoff ends the batch at once, and the last error stands") {
  simulation sim;
  std::stop_source stop;
  script predict(sim, always_fails);
  run_together(sim, {[&]() -> task<void> {
                       const auto results =
                           co_await playing(sim, predict, samples_below(3), {.stop = stop, .retry = exactly(9, 1h)});
                       CHECK(outline(results) == "exception exception exception");
                       CHECK(results[1].error().attempts == 1);
                       CHECK_THROWS_WITH(std::rethrow_exception(results[1].error().exception), "call 1");
                       CHECK(elapsed(sim) == 10ms);
                     },
                     [&]() -> task<void> {
                       co_await sim.schedule_after(10ms);
                       stop.request_stop();
                     }});
}

TEST_CASE("retry: one that could not start before the deadline is not waited for, and the last error stands") {
  simulation sim;
  script predict(sim, always_fails);
  const auto results = play(sim, predict, samples_below(3), {.deadline = 150ms, .retry = exactly(9)});
  CHECK(outline(results) == "exception exception exception");
  CHECK(results[0].error().attempts == 2);
  CHECK(elapsed(sim) == 100ms);
}

TEST_CASE("retry: a stop before the deadline ends a backoff at once, and the last error stands") {
  // Here by a stop: the deadline itself is known beforehand.
  simulation sim;
  script predict(sim, [](int sample, int) { return sample == 0 ? fails_after(0ms) : value_after(1h); });
  std::stop_source stop;
  run_together(sim, {[&]() -> task<void> {
                       const auto results =
                           co_await playing(sim, predict, samples_below(1), {.stop = stop, .deadline = 1h, .retry = exactly(9, 30min)});
                       CHECK(outline(results) == "exception");
                     },
                     [&]() -> task<void> {
                       co_await sim.schedule_after(10ms);
                       stop.request_stop();
                     }});
  CHECK(elapsed(sim) == 10ms);
}

TEST_CASE("retry: max_failures during the backoff ends the batch at once, and the last error stands") {
  simulation sim;
  script predict(sim, [](int sample, int number) {
    if (sample == 0) return throttled(1h);
    return number < 3 ? fails_after(10ms) : fails_after(5ms);
  });
  const auto results = play(sim, predict, samples_below(2), {.max_failures = 1, .retry = exactly(3)});
  CHECK(outline(results) == "exception exception");
  CHECK(results[0].error().attempts == 1);
  CHECK(results[1].error().attempts == 3);
  CHECK(elapsed(sim) == 325ms);
}

TEST_CASE("retry: a stop while samples sleep and others are in flight waits for those in flight only") {
  simulation sim;
  std::stop_source stop;
  script predict(sim, [](int sample, int) {
    if (sample == 0) return fails_after(0ms);
    return act{.takes = 40ms, .listens = false};
  });
  run_together(sim, {[&]() -> task<void> {
                       const auto results =
                           co_await playing(sim, predict, samples_below(3),
                                            {.max_concurrency = 2, .stop = stop, .retry = exactly(9, 1h)});
                       CHECK(outline(results) == "exception 101 201");
                       CHECK(elapsed(sim) == 40ms);
                     },
                     [&]() -> task<void> {
                       co_await sim.schedule_after(10ms);
                       stop.request_stop();
                     }});
}

TEST_CASE("retry: a sample that is stopped while it queues for its next attempt keeps its last error") {
  simulation sim;
  async_semaphore semaphore(1);
  script predict(sim, always_fails);
  run_together(sim, {[&]() -> task<void> {
                       const auto results = co_await playing(
                           sim, predict, one, {.semaphore = &semaphore, .deadline = 500ms, .retry = exactly(2)});
                       CHECK(outline(results) == "exception");
                       CHECK(results[0].error().attempts == 1);
                       CHECK(elapsed(sim) == 500ms);
                     },
                     [&]() -> task<void> {
                       co_await sim.schedule_after(1ms);
                       const auto permit = co_await semaphore.acquire();
                       co_await sim.schedule_after(1h);
                     }});
}

// ---- Samples and executors ----

TEST_CASE("retry: a sample of a single-pass range is kept for its next attempt, and destroyed after its last") {
  simulation sim;
  census samples;
  std::vector<int> seen;
  long most_after_failure = 0;
  const auto predict = [&](const tracked& sample) -> task<int> {
    const int number = sample.number();
    co_await sim.schedule_after(10ms);
    CHECK(sample.number() == number);
    seen.push_back(number);
    most_after_failure = std::max(most_after_failure, samples.alive.load());
    if (std::count(seen.begin(), seen.end(), number) < 3 && number % 2 == 0) throw std::runtime_error("again");
    co_return number;
  };
  auto range = generated([&, i = 0]() mutable { return i < 6 ? std::optional(tracked(samples, i++)) : std::nullopt; });
  const auto results =
      sim.run(batch_predict(sim, std::move(range), predict, {.max_concurrency = 2, .retry = exactly(3)}));
  CHECK(outline(results) == "0 1 2 3 4 5");
  CHECK(seen.size() == 12);
  CHECK(samples.copies == 0);
  CHECK(samples.alive == 0);
}

namespace {

/// Cannot be moved without a risk.
struct hard_to_move {
  explicit hard_to_move(int n) : number(n) {}
  hard_to_move(hard_to_move&& other) : number(other.number) {
    if (moves_until_failure > 0 && --moves_until_failure == 0) throw std::runtime_error("moving failed");
  }
  hard_to_move& operator=(hard_to_move&&) = default;

  static inline int moves_until_failure = 0;
  int number;
};

}  // namespace

TEST_CASE("retry: a sample that cannot be moved keeps its last error, and the others go on") {
  for (int failing_move = 1; failing_move < 30; ++failing_move) {
    INFO("move " << failing_move);
    simulation sim;
    int calls = 0;
    hard_to_move::moves_until_failure = 0;
    const auto predict = [&](const hard_to_move& sample) -> task<int> {
      // The moves that the engine makes for a retry only: not those of reading.
      if (++calls == 1) hard_to_move::moves_until_failure = failing_move;
      co_await sim.schedule_after(10ms);
      if (calls < 9) throw std::runtime_error("again");
      co_return sample.number;
    };
    auto range = generated([i = 0]() mutable { return i < 3 ? std::optional(hard_to_move(i++)) : std::nullopt; });
    const auto results = sim.run(batch_predict(sim, std::move(range), predict, {.retry = exactly(20)}));
    hard_to_move::moves_until_failure = 0;
    CHECK(results.size() <= 3);
    for (const auto& each : results)
      CHECK((each || each.error().code == errc::exception || each.error().code == errc::input_failed));
  }
}

TEST_CASE("retry: on an executor without timers, with no backoff, a sample is tried again at once") {
  step_executor ex;
  std::vector<int> order;
  std::optional<std::vector<expected<int, error>>> results;
  const auto predict = [&](int x) -> task<int> {
    order.push_back(x);
    co_await cobatch::schedule(ex);
    if (std::count(order.begin(), order.end(), x) < 3) throw std::runtime_error("again");
    co_return x;
  };
  const std::vector<int> samples{0, 1, 2, 3};
  const auto main = [&]() -> started {
    results = co_await batch_predict(ex, samples, predict,
                                     {.max_concurrency = 2, .retry = {.max_attempts = 3, .initial_backoff = 0ns}});
  };
  const started running = main();
  ex.drain();
  REQUIRE(running.done());
  CHECK(outline(*results) == "0 1 2 3");
  CHECK(order.size() == 12);
}

TEST_CASE("retry: synchronous failures without a backoff never grow the stack") {
  simulation sim;
  script predict(sim, always_fails);
  const auto results = play(sim, predict, one, {.retry = {.max_attempts = 200'000, .initial_backoff = 0ns}});
  CHECK(results[0].error().attempts == 200'000);
  CHECK(elapsed(sim) == 0ms);
}

TEST_CASE("retry: options that make no sense are refused") {
  simulation sim;
  script predict(sim, always_fails);
  const auto refused = [&](const retry_policy& policy) {
    CHECK_THROWS_AS(playing(sim, predict, one, {.retry = policy}), std::invalid_argument);
  };
  refused({.max_attempts = 0});
  refused({.max_attempts = 2, .multiplier = 0.5});
  refused({.max_attempts = 2, .multiplier = std::numeric_limits<double>::quiet_NaN()});
  refused({.max_attempts = 2, .budget = -0.1});
  refused({.max_attempts = 2, .budget = std::numeric_limits<double>::quiet_NaN()});
}
