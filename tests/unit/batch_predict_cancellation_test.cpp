#include <cobatch/batch_predict.hpp>

#include <chrono>
#include <cstddef>
#include <exception>
#include <functional>
#include <ranges>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <vector>

#include <cobatch/error.hpp>
#include <cobatch/expected.hpp>
#include <cobatch/simulation.hpp>
#include <cobatch/task.hpp>

#include "support/catch.hpp"
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

const std::vector<int> five{0, 1, 2, 3, 4};

/// Requests a stop after a while, as somebody outside the batch would.
template <class Batch>
auto stopped_after(simulation& sim, std::stop_source& stop, std::chrono::nanoseconds delay, Batch batch)
    -> task<std::vector<typename Batch::result>> {
  // The helper is a batch of one, beside the batch in question in another batch of two.
  std::vector<typename Batch::result> results;
  const std::vector<std::function<task<void>()>> both{
      [&]() -> task<void> {
        co_await sim.schedule_after(delay);
        stop.request_stop();
      },
      [&]() -> task<void> { results = co_await std::move(batch); },
  };
  (void)co_await batch_predict(sim, both, [](const auto& each) { return each(); });
  co_return results;
}

}  // namespace

TEST_CASE("batch_predict: a stop reaches every predict in flight that takes a token, and nothing starts after it") {
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    simulation sim(seed);
    std::stop_source stop;
    int started = 0;
    const auto results = sim.run(stopped_after(sim, stop, 10ms,
                                               batch_predict(sim, five,
                                                             [&](int x, std::stop_token token) -> task<int> {
                                                               ++started;
                                                               if (!co_await sim.schedule_after(1h, token)) throw x;
                                                               co_return x;
                                                             },
                                                             {.max_concurrency = 2, .stop = stop})));
    CHECK(outline(results) == "cancelled cancelled not_started not_started not_started");
    CHECK(started == 2);
    CHECK(sim.now().time_since_epoch() == 10ms);
    CHECK_THROWS_AS(std::rethrow_exception(results[0].error().exception), int);
    CHECK(results[0].error().attempts == 1);
    CHECK(results[4].error().attempts == 0);
    CHECK(!results[4].error().exception);
  }
}

TEST_CASE("batch_predict: a stopped batch is always joined") {
  simulation sim;
  std::stop_source stop;
  census frames;
  const auto results =
      sim.run(stopped_after(sim, stop, 10ms,
                            batch_predict(sim, five,
                                          [&](int x) -> task<int> {  // takes no token: cannot be stopped
                                            const life frame(frames);
                                            co_await sim.schedule_after((x + 1) * 100ms);
                                            co_return x;
                                          },
                                          {.max_concurrency = 3, .stop = stop})));
  CHECK(outline(results) == "0 1 2 not_started not_started");
  CHECK(sim.now().time_since_epoch() == 300ms);
  CHECK(frames.alive == 0);
}

TEST_CASE("batch_predict: a value wins over the stop, however late it comes") {
  simulation sim;
  std::stop_source stop;
  const auto results = sim.run(stopped_after(sim, stop, 10ms,
                                             batch_predict(sim, five,
                                                           [&](int x, std::stop_token token) -> task<int> {
                                                             co_await sim.schedule_after(1h, token);
                                                             CHECK(token.stop_requested());
                                                             co_await sim.schedule_after(24h);
                                                             co_return x;
                                                           },
                                                           {.stop = stop})));
  CHECK(outline(results) == "0 1 2 3 4");
}

TEST_CASE("batch_predict: an error that predict returns after the stop is reported as the stop, its exception kept") {
  simulation sim;
  std::stop_source stop;
  const auto results =
      sim.run(stopped_after(sim, stop, 10ms,
                            batch_predict(sim, five,
                                          [&](int x, std::stop_token token) -> task<expected<int, error>> {
                                            if (x == 0) co_return unexpected(error(errc::queue_full));
                                            co_await sim.schedule_after(1h, token);
                                            if (x == 1) co_return x;
                                            co_return unexpected(error(errc::queue_full, std::make_exception_ptr(x)));
                                          },
                                          {.max_concurrency = 3, .stop = stop})));
  CHECK(outline(results) == "queue_full 1 cancelled cancelled not_started");
  REQUIRE(results[2].error().exception);
  CHECK_THROWS_AS(std::rethrow_exception(results[2].error().exception), int);
}

TEST_CASE("batch_predict: a batch whose stop was requested before starts nothing") {
  std::stop_source stop;
  stop.request_stop();
  const std::stop_token token = stop.get_token();
  const auto never = [](int) -> int { throw std::logic_error("predict was called"); };
  simulation sim;
  const std::string none = "not_started not_started not_started not_started not_started";
  CHECK(outline(sim.run(batch_predict(sim, five, never, {.stop = stop}))) == none);
  CHECK(outline(sim.run(batch_predict(sim, five, never, {.stop = token}))) == none);
  int pulled = 0;
  const auto counted = std::views::iota(0, 5) | std::views::transform([&](int x) {
                         ++pulled;
                         return x;
                       });
  CHECK(outline(sim.run(batch_predict(sim, counted, never, {.stop = stop}))) == none);
  CHECK(sim.run(batch_predict(sim, numbers_below(5), never, {.stop = stop})).empty());
  CHECK(pulled == 0);
}

TEST_CASE("batch_predict: the token is copied when batch_predict is called") {
  simulation sim;
  std::stop_source stop;
  auto batch = [&] {
    const std::stop_token short_lived = stop.get_token();
    return batch_predict(sim, five, [](int x) { return x; }, {.stop = short_lived});
  }();
  stop.request_stop();
  CHECK(count_of(sim.run(batch), errc::not_started) == 5);
}

TEST_CASE("batch_predict: a predict may stop its own batch") {
  SECTION("synchronously") {
    simulation sim;
    std::stop_source stop;
    const auto results = sim.run(batch_predict(sim, five,
                                               [&](int x) {
                                                 if (x == 2) stop.request_stop();
                                                 return x;
                                               },
                                               {.stop = stop}));
    CHECK(outline(results) == "0 1 2 not_started not_started");
  }
  SECTION("later, among others in flight") {
    for (std::uint64_t seed = 0; seed < 10; ++seed) {
      simulation sim(seed);
      std::stop_source stop;
      const auto results = sim.run(batch_predict(sim, five,
                                                 [&](int x, std::stop_token token) -> task<int> {
                                                   if (x == 1) {
                                                     co_await sim.schedule_after(1ms);
                                                     stop.request_stop();
                                                     co_return x;
                                                   }
                                                   if (!co_await sim.schedule_after(1s, token))
                                                     throw std::runtime_error("stopped");
                                                   co_return x;
                                                 },
                                                 {.max_concurrency = 3, .stop = stop}));
      CHECK(outline(results) == "cancelled 1 cancelled not_started not_started");
    }
  }
}

TEST_CASE("batch_predict: predict gets a token that cannot be stopped where nothing could stop it") {
  simulation sim;
  const auto possible = [](int, std::stop_token token) { return token.stop_possible(); };
  std::stop_source stop;
  CHECK(outline(sim.run(batch_predict(sim, five, possible))) == "0 0 0 0 0");
  CHECK(outline(sim.run(batch_predict(sim, five, possible, {.stop = stop}))) == "1 1 1 1 1");
  CHECK(outline(sim.run(batch_predict(sim, five, possible, {.max_failures = 1}))) == "1 1 1 1 1");
}

TEST_CASE("batch_predict: the stop of one batch does not reach another") {
  simulation sim;
  std::stop_source stop;
  const std::vector<int> one{7};
  const auto outer = [&](int x) -> task<std::string> {
    std::stop_source own;
    co_return outline(co_await batch_predict(sim, five,
                                             [&](int y) {
                                               if (y == x) own.request_stop();
                                               return y;
                                             },
                                             {.stop = own}));
  };
  const auto results = sim.run(batch_predict(sim, five, outer, {.stop = stop}));
  CHECK(values_in(results) == 5);
  CHECK(results[0] == "0 not_started not_started not_started not_started");
  CHECK(results[4] == "0 1 2 3 4");
}

TEST_CASE("batch_predict: a stop after the end changes nothing") {
  simulation sim;
  std::stop_source stop;
  auto batch = batch_predict(sim, five, [](int x, std::stop_token) { return x; }, {.stop = stop});
  const auto results = sim.run(batch);
  stop.request_stop();
  CHECK(outline(results) == "0 1 2 3 4");
}

TEST_CASE("batch_predict: a stop callback may end the attempt inside the stop") {
  // The awaiter resumes its coroutine from within the stop callback itself.
  struct until_stopped {
    std::stop_token token;
    struct resume {
      std::coroutine_handle<> awaiting;
      void operator()() const { awaiting.resume(); }
    };
    std::optional<std::stop_callback<resume>> callback;
    explicit until_stopped(std::stop_token t) : token(std::move(t)) {}
    until_stopped(until_stopped&& other) noexcept : token(std::move(other.token)) {}
    bool await_ready() const noexcept { return token.stop_requested(); }
    void await_suspend(std::coroutine_handle<> awaiting) { callback.emplace(token, resume{awaiting}); }
    void await_resume() { throw std::runtime_error("stopped"); }
  };
  simulation sim;
  std::stop_source stop;
  SECTION("by another predict") {
    const auto results = sim.run(batch_predict(sim, five,
                                               [&](int x, std::stop_token token) -> task<int> {
                                                 if (x == 3) {
                                                   co_await sim.schedule_after(1ms);
                                                   stop.request_stop();
                                                   co_return x;
                                                 }
                                                 co_await until_stopped(token);
                                                 co_return x;
                                               },
                                               {.stop = stop}));
    CHECK(outline(results) == "cancelled cancelled cancelled 3 cancelled");
  }
  SECTION("by predicts that are awaiters themselves, under fail fast") {
    const auto results = sim.run(stopped_after(
        sim, stop, 1ms,
        batch_predict(sim, five, [&](int, std::stop_token token) { return until_stopped(token); }, {.stop = stop})));
    CHECK(outline(results) == "cancelled cancelled cancelled cancelled cancelled");
  }
}
