#include <cobatch/callback.hpp>

#include <atomic>
#include <chrono>
#include <coroutine>
#include <cstddef>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include <cobatch/batch_predict.hpp>
#include <cobatch/simulation.hpp>
#include <cobatch/sync_wait.hpp>
#include <cobatch/task.hpp>
#include <cobatch/thread_pool.hpp>

#include "support/allocations.hpp"
#include "support/catch.hpp"
#include "support/lifetimes.hpp"
#include "support/outline.hpp"
#include "support/started.hpp"
#include "support/step_executor.hpp"

using cobatch::callback;
using cobatch::errc;
using cobatch::error;
using cobatch::expected;
using cobatch::from_callback;
using cobatch::simulation;
using cobatch::sync_wait;
using cobatch::task;
using namespace std::chrono_literals;

namespace {

using number = expected<int, error>;

/// An API that keeps the callback for later.
struct server {
  callback<int> pending;
};

/// Waits for one number from the server.
started wait_for(server& api, std::optional<number>& outcome) {
  const auto initiate = [&](callback<int> done) { api.pending = std::move(done); };
  auto answer = co_await from_callback<int>(initiate);
  outcome.emplace(std::move(answer));
}

template <class T, class Initiate>
expected<T, error> outcome_of(Initiate initiate) {
  return sync_wait(from_callback<T>(initiate));
}

std::exception_ptr an_exception() {
  return std::make_exception_ptr(std::runtime_error("no answer"));
}

}  // namespace

TEST_CASE("callback: the await gives what done is called with") {
  CHECK(outcome_of<int>([](auto done) { done(7); }) == 7);
  CHECK(outcome_of<void>([](auto done) { done(); }).has_value());
  CHECK(outcome_of<std::string>([](auto done) { done("text"); }) == std::string("text"));
  CHECK(outcome_of<int>([](auto done) { done(errc::timed_out); }).error().code == errc::timed_out);
  CHECK(outcome_of<int>([](auto done) { done(error(errc::timed_out, {}, 3)); }).error().attempts == 3);
  CHECK(outcome_of<int>([](auto done) { done(an_exception()); }).error().message() ==
        "predict threw an exception: no answer");
  CHECK(outcome_of<int>([](auto done) { done(number(8)); }) == 8);
  CHECK(*outcome_of<std::unique_ptr<int>>([](auto done) { done(std::make_unique<int>(9)); }).value() == 9);
}

TEST_CASE("callback: done fits into a std::function, and into an argument of its exact type") {
  CHECK(outcome_of<int>([](std::function<void(int)> done) { done(7); }) == 7);
  CHECK(outcome_of<int>([](callback<int>&& done) { done(7); }) == 7);
  CHECK(outcome_of<int>([](const callback<int>& done) { done(7); }) == 7);
  static_assert(sizeof(callback<int>) == sizeof(void*));
  static_assert(std::is_nothrow_move_constructible_v<callback<int>>);
  static_assert(!std::is_invocable_v<callback<int>&, std::string>);
  static_assert(!std::is_invocable_v<callback<int>&>);
  static_assert(!std::is_invocable_v<callback<void>&, int>);
}

TEST_CASE("callback: exactly the first call counts, of all copies") {
  CHECK(outcome_of<int>([](auto done) {
          const auto copy = done;
          done(1);
          copy(2);
          done(errc::timed_out);
        }) == 1);
  callback<int> late;
  CHECK(outcome_of<int>([&](auto done) {
          late = done;
          done(errc::timed_out);
          throw std::runtime_error("too late to matter");
        })
            .error()
            .code == errc::timed_out);
  late(3);  // long after the end of the await
  const callback<int> moved = std::move(late);
  moved(4);
  late(5);  // moved from: nobody is there
}

TEST_CASE("callback: dropped without a call, the await ends with an error") {
  CHECK(outcome_of<int>([](auto) {}).error().code == errc::callback_dropped);
  server api;
  std::optional<number> outcome;
  const started waiting = wait_for(api, outcome);
  REQUIRE(!outcome);
  auto copy = api.pending;
  api.pending = {};
  REQUIRE(!outcome);
  copy = {};
  REQUIRE(outcome);
  CHECK(outcome->error().code == errc::callback_dropped);
}

TEST_CASE("callback: what initiate throws is the outcome, unless done was called before") {
  const auto outcome = outcome_of<int>([](auto) { throw std::runtime_error("no connection"); });
  CHECK(outcome.error().code == errc::exception);
  CHECK(outcome.error().message() == "predict threw an exception: no connection");
}

TEST_CASE("callback: an exception from making the value is the outcome") {
  struct refusing {
    explicit refusing(int) { throw std::runtime_error("made of glass"); }
  };
  const auto outcome = outcome_of<refusing>([](auto done) { done(1); });
  REQUIRE(!outcome);
  CHECK(outcome.error().message() == "predict threw an exception: made of glass");
}

TEST_CASE("callback: nothing is called before the await, and initiate is kept until its end") {
  census lives;
  int calls = 0;
  {
    const auto initiate = [&, kept = std::make_shared<life>(lives)](callback<int> done) {
      ++calls;
      done(1);
    };
    auto unused = from_callback<int>(initiate);
    (void)unused;
    CHECK(calls == 0);
    CHECK(sync_wait(from_callback<int>(initiate)) == 1);
    CHECK(calls == 1);
  }
  CHECK(lives.alive == 0);
}

TEST_CASE("callback: the coroutine goes on on the executor on which it suspended") {
  step_executor executor;
  server api;
  std::optional<number> outcome;
  const started waiting = executor.run([&] { return wait_for(api, outcome); });
  api.pending(5);
  CHECK(!outcome);
  CHECK(executor.queued() == 1);
  executor.drain();
  CHECK(*outcome == 5);
}

TEST_CASE("callback: without an executor, or where it refuses, the coroutine goes on inside done") {
  server api;
  std::optional<number> outcome;
  const started waiting = wait_for(api, outcome);
  api.pending(5);
  CHECK(*outcome == 5);

  step_executor executor;
  const started refused = executor.run([&] { return wait_for(api, outcome); });
  executor.refusing = true;
  api.pending(6);
  CHECK(*outcome == 6);
}

TEST_CASE("callback: the coroutine may destroy the callback that resumes it") {
  struct owner {
    server api;
    std::optional<number> outcome;
  };
  auto all = std::make_unique<owner>();
  const auto use = [](std::unique_ptr<owner>& owned) -> started {
    const auto initiate = [&](callback<int> done) { owned->api.pending = std::move(done); };
    (void)co_await from_callback<int>(initiate);
    owned.reset();
  };
  const started waiting = use(all);
  all->api.pending(1);
  CHECK(!all);
}

TEST_CASE("callback: a coroutine that waits may be destroyed, and done is then ignored") {
  server api;
  std::optional<number> outcome;
  started waiting = wait_for(api, outcome);
  waiting.destroy();
  api.pending(5);
  api.pending = {};
  CHECK(!outcome);
}

TEST_CASE("callback: two coroutines that answer each other in turn run on a flat stack") {
  // Each is resumed inside the other's call of done: without a trampoline this would be a million frames deep.
  constexpr int rounds = 1'000'000;
  struct player {
    callback<int> pending;
    int count = 0;
  };
  player players[2];
  const auto play = [](player& self, player& other) -> started {
    while (self.count < rounds) {
      const auto initiate = [&](callback<int> done) { self.pending = std::move(done); };
      auto ball = co_await from_callback<int>(initiate);
      ++self.count;
      const auto answer = std::exchange(other.pending, {});
      answer(*ball + 1);
    }
  };
  const started first = play(players[0], players[1]);
  const started second = play(players[1], players[0]);
  std::exchange(players[0].pending, {})(0);
  CHECK(players[0].count + players[1].count >= 2 * rounds - 1);
}

TEST_CASE("callback: steady state calls the heap for nothing") {
  const auto loop = [](int rounds) -> task<int> {
    int sum = 0;
    for (int i = 0; i < rounds; ++i) {
      const auto initiate = [&](callback<int> done) { done(i); };
      sum += *co_await from_callback<int>(initiate);
    }
    co_return sum;
  };
  (void)sync_wait(loop(10));
  const std::size_t before = allocations();
  const int sum = sync_wait(loop(1000));
  const std::size_t after = allocations();
  CHECK(sum == 499'500);
#if COBATCH_RECYCLE_FRAMES
  CHECK(after == before);
#else
  CHECK(after > before);
#endif
}

TEST_CASE("callback: what runs out of memory is the await") {
  const auto calls = [](callback<int> done) { done(1); };
  int failed = 0;
  fail_each_allocation(
      [&]() -> std::optional<number> {
        try {
          return sync_wait(from_callback<int>(calls));
        } catch (const std::bad_alloc&) {
          return std::nullopt;
        }
      },
      [&](std::optional<number> outcome, bool fails) {
        CHECK(outcome.has_value() != fails);
        failed += fails;
      });
  SUCCEED(failed << " allocations");
}

TEST_CASE("callback: a predict may return it as it is") {
  simulation sim(1);
  std::vector<callback<int>> pending;
  const std::vector<int> samples{1, 2, 3, 4};
  const auto predict = [&](int x) {
    const auto initiate = [&, x](callback<int> done) {
      if (x == 2) return done(an_exception());
      if (x == 3) return;
      done(10 * x);
    };
    return from_callback<int>(initiate);
  };
  const auto results = sim.run(cobatch::batch_predict(sim, samples, predict));
  static_assert(std::is_same_v<decltype(results), const std::vector<number>>);
  CHECK(outline(results) == "10 exception callback_dropped 40");
  CHECK(results[2].error().code == errc::callback_dropped);
}

TEST_CASE("callback: called on other threads, before and after the await suspends, each value arrives once") {
  cobatch::thread_pool pool(2);
  const auto ask = [&](int rounds) -> task<long> {
    co_await pool.schedule();
    long sum = 0;
    for (int i = 0; i < rounds; ++i) {
      std::thread other;
      std::thread another;
      const auto initiate = [&](callback<int> done) {
        other = std::thread([done, i] { done(i); });
        another = std::thread([done = std::move(done), i] { done(i); });
      };
      sum += *co_await from_callback<int>(initiate);
      other.join();
      another.join();
    }
    co_return sum;
  };
  CHECK(sync_wait(ask(200)) == 19'900);
}
