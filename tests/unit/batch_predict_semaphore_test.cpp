#include <cobatch/batch_predict.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <functional>
#include <optional>
#include <ranges>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include <cobatch/error.hpp>
#include <cobatch/semaphore.hpp>
#include <cobatch/simulation.hpp>
#include <cobatch/task.hpp>

#include "support/catch.hpp"
#include "support/generated.hpp"
#include "support/lifetimes.hpp"
#include "support/outline.hpp"

using cobatch::async_semaphore;
using cobatch::batch_predict;
using cobatch::errc;
using cobatch::simulation;
using cobatch::task;
using namespace std::chrono_literals;

namespace {

using activity = std::function<task<void>()>;

/// Runs all of them side by side.
void run_all(simulation& sim, const std::vector<activity>& all) {
  for (const auto& each : sim.run(batch_predict(sim, all, [](const activity& one) { return one(); }))) {
    if (!each) FAIL_CHECK(each.error().message());
  }
}

std::chrono::nanoseconds elapsed(const simulation& sim) {
  return sim.now().time_since_epoch();
}

/// A predict of 10 ms that can be watched.
auto sleeper(simulation& sim, gauge& flight) {
  return [&](int x) -> task<int> {
    const auto inside = flight.enter();
    co_await sim.schedule_after(10ms);
    co_return x;
  };
}

}  // namespace

TEST_CASE("batch_predict: a semaphore caps what is in flight") {
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    for (const std::size_t limit : {1u, 3u, 7u, 100u}) {
      simulation sim(seed);
      async_semaphore semaphore(limit);
      gauge flight;
      const auto results =
          sim.run(batch_predict(sim, std::views::iota(0, 21), sleeper(sim, flight), {.semaphore = &semaphore}));
      CHECK(values_in(results) == 21);
      CHECK(flight.most() == std::min<long>(21, static_cast<long>(limit)));
      CHECK(elapsed(sim) == 10ms * ((21 + limit - 1) / limit));
      CHECK(semaphore.available() == limit);
      CHECK(semaphore.waiting() == 0);
    }
  }
}

TEST_CASE("batch_predict: both caps hold") {
  simulation sim(1);
  async_semaphore semaphore(5);
  gauge flight;
  sim.run(batch_predict(sim, std::views::iota(0, 30), sleeper(sim, flight),
                        {.max_concurrency = 3, .semaphore = &semaphore}));
  CHECK(flight.most() == 3);
  gauge second;
  sim.run(batch_predict(sim, std::views::iota(0, 30), sleeper(sim, second),
                        {.max_concurrency = 8, .semaphore = &semaphore}));
  CHECK(second.most() == 5);
  CHECK(semaphore.available() == 5);
}

TEST_CASE("batch_predict: two batches share a semaphore, both make headway, and no permit is lost") {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    simulation sim(seed);
    async_semaphore semaphore(4);
    gauge both, first, second;
    std::optional<std::chrono::nanoseconds> first_end, second_end;
    const auto batch = [&](gauge& own, std::size_t cap, auto& end) -> task<void> {
      const auto results = co_await batch_predict(sim, std::views::iota(0, 20),
                                                  [&](int x) -> task<int> {
                                                    const auto inside = both.enter();
                                                    const auto inside_own = own.enter();
                                                    co_await sim.schedule_after(10ms);
                                                    co_return x;
                                                  },
                                                  {.max_concurrency = cap, .semaphore = &semaphore});
      CHECK(values_in(results) == 20);
      end = elapsed(sim);
    };
    run_all(sim, {[&] { return batch(first, 3, first_end); }, [&] { return batch(second, 1000, second_end); }});
    CHECK(both.most() == 4);
    CHECK(first.most() <= 3);
    CHECK(elapsed(sim) <= 120ms);  // 100 ms, and what the first one's own cap costs at the end
    CHECK(*first_end >= 60ms);
    CHECK(semaphore.available() == 4);
    CHECK(semaphore.waiting() == 0);
  }
}

TEST_CASE("batch_predict: permits go round between batches in the order of asking") {
  // One permit, two batches: neither may take it twice in a row while the other waits.
  simulation sim;
  async_semaphore semaphore(1);
  std::string order;
  const auto batch = [&](char name) -> task<void> {
    (void)co_await batch_predict(sim, std::views::iota(0, 5),
                           [&, name](int) -> task<void> {
                             order += name;
                             co_await sim.schedule_after(1ms);
                           },
                           {.semaphore = &semaphore});
  };
  run_all(sim, {[&] { return batch('a'); }, [&] { return batch('b'); }});
  CHECK(order == "aababababb");  // a had asked for its second one before b asked at all
}

TEST_CASE("batch_predict: predicts that do not suspend give way to others that wait, too") {
  simulation sim;
  async_semaphore semaphore(1);
  std::string order;
  const auto batch = [&](char name) -> task<void> {
    (void)co_await batch_predict(sim, std::views::iota(0, 5), [&, name](int) { order += name; }, {.semaphore = &semaphore});
  };
  const auto acquire = [&]() -> task<void> {
    const auto permit = co_await semaphore.acquire();
    order += '!';
  };
  run_all(sim, {[&] { return batch('a'); }, [&] { return batch('b'); }, [&] { return acquire(); }});
  CHECK(order.size() == 11);
  CHECK(order.find('!') < 9);
  CHECK(semaphore.available() == 1);
}

TEST_CASE("batch_predict: a batch keeps one lane in the semaphore's queue, however large its own cap is") {
  simulation sim;
  async_semaphore semaphore(3);
  std::size_t most_waiting = 0;
  const auto results = sim.run(batch_predict(sim, std::views::iota(0, 200),
                                             [&](int x) -> task<int> {
                                               most_waiting = std::max(most_waiting, semaphore.waiting());
                                               co_await sim.schedule_after(1ms);
                                               most_waiting = std::max(most_waiting, semaphore.waiting());
                                               co_return x;
                                             },
                                             {.max_concurrency = 1000, .semaphore = &semaphore}));
  CHECK(values_in(results) == 200);
  CHECK(most_waiting <= 1);
}

TEST_CASE("batch_predict: a waiter for a permit does not keep a batch alive that has no samples left") {
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    simulation sim(seed);
    async_semaphore semaphore(2);
    std::chrono::nanoseconds end{};
    const auto hog = [&]() -> task<void> {  // holds one permit, and then waits for the other
      const auto one = co_await semaphore.acquire();
      co_await sim.schedule_after(5ms);
      const auto other = co_await semaphore.acquire();
      co_await sim.schedule_after(1h);
    };
    const auto batch = [&](auto samples) -> task<void> {
      const auto results =
          co_await batch_predict(sim, std::move(samples), [&](int) -> task<void> { co_await sim.schedule_after(10ms); },
                                 {.semaphore = &semaphore});
      CHECK(values_in(results) == 1);
      end = elapsed(sim);
    };
    SECTION("seed " + std::to_string(seed) + ", known length") {
      run_all(sim, {hog, [&] { return batch(std::vector<int>{1}); }});
    }
    SECTION("seed " + std::to_string(seed) + ", unknown length") {
      run_all(sim, {hog, [&] { return batch(numbers_below(1)); }});
    }
    if (elapsed(sim) != 0ms) CHECK(end <= 20ms);
  }
}

TEST_CASE("batch_predict: a pause does not keep a batch alive that has no samples left") {
  // Of known length, that is: of any other input nothing is read without a permit, also not its end.
  simulation sim;
  async_semaphore semaphore(1);
  std::chrono::nanoseconds end{};
  const std::vector<int> samples{1, 2};
  run_all(sim, {[&]() -> task<void> {
                  (void)co_await batch_predict(sim, samples, [&](int) -> task<void> { co_await sim.schedule_after(10ms); },
                                         {.semaphore = &semaphore});
                  end = elapsed(sim);
                },
                [&]() -> task<void> {
                  co_await sim.schedule_after(15ms);
                  semaphore.set_limit(0);
                  co_await sim.schedule_after(1h);
                  semaphore.set_limit(1);
                }});
  CHECK(end == 20ms);
}

TEST_CASE("batch_predict: the last samples of a batch are not held up by its own waiter") {
  // Two samples, one permit that goes round; somebody else queues behind the batch's waiter and keeps the permit.
  simulation sim;
  async_semaphore semaphore(1);
  std::chrono::nanoseconds end{};
  const auto batch = [&]() -> task<void> {
    const std::vector<int> samples{1, 2, 3};
    (void)co_await batch_predict(sim, samples, [&](int) -> task<void> { co_await sim.schedule_after(10ms); },
                           {.semaphore = &semaphore});
    end = elapsed(sim);
  };
  const auto late_hog = [&]() -> task<void> {
    co_await sim.schedule_after(25ms);  // while the last sample runs
    const auto permit = co_await semaphore.acquire();
    co_await sim.schedule_after(1h);
  };
  run_all(sim, {batch, late_hog});
  CHECK(end == 30ms);
}

TEST_CASE("batch_predict: a stop, a deadline and fail fast reach a batch that waits for a permit") {
  for (std::uint64_t seed = 0; seed < 5; ++seed) {
    simulation sim(seed);
    async_semaphore paused(0);
    std::stop_source stop;
    const auto never = [](int) -> int { throw std::logic_error("predict was called"); };
    run_all(sim, {[&]() -> task<void> {
                    const auto results = co_await batch_predict(sim, std::views::iota(0, 3), never,
                                                                {.semaphore = &paused, .stop = stop});
                    CHECK(outline(results) == "not_started not_started not_started");
                    CHECK(elapsed(sim) == 5ms);
                  },
                  [&]() -> task<void> {
                    co_await sim.schedule_after(5ms);
                    CHECK(paused.waiting() == 2);
                    stop.request_stop();
                  },
                  [&]() -> task<void> {
                    const auto results = co_await batch_predict(sim, std::vector<int>(3), never,
                                                                {.semaphore = &paused, .deadline = 8ms});
                    CHECK(outline(results) == "not_started not_started not_started");
                    CHECK(elapsed(sim) == 8ms);
                  }});
    CHECK(paused.waiting() == 0);

    async_semaphore one(2);
    const auto held = one.try_acquire();
    const auto results = sim.run(batch_predict(sim, std::views::iota(0, 3),
                                               [&](int x) -> task<int> {
                                                 co_await sim.schedule_after(1ms);
                                                 throw x;
                                               },
                                               {.semaphore = &one, .max_failures = 1}));
    CHECK(outline(results) == "exception not_started not_started");
    CHECK(one.available() == 1);
  }
}

TEST_CASE("batch_predict: a limit of 0 pauses, and raising it goes on") {
  simulation sim;
  async_semaphore semaphore(0);
  gauge flight;
  int pulled = 0;
  run_all(sim, {[&]() -> task<void> {
                  const auto results =
                      co_await batch_predict(sim, numbers_below(10) | std::views::transform([&](int x) {
                                                    ++pulled;
                                                    return x;
                                                  }),
                                             sleeper(sim, flight), {.semaphore = &semaphore});
                  CHECK(values_in(results) == 10);
                },
                [&]() -> task<void> {
                  co_await sim.schedule_after(100ms);
                  CHECK(pulled == 0);
                  CHECK(flight.inside() == 0);
                  semaphore.set_limit(5);
                }});
  CHECK(flight.most() == 5);
  CHECK(elapsed(sim) == 120ms);
  CHECK(semaphore.available() == 5);
}

TEST_CASE("batch_predict: a limit that is raised while the batch runs is used at once") {
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    simulation sim(seed);
    async_semaphore semaphore(1);
    gauge flight;
    run_all(sim, {[&]() -> task<void> {
                    (void)co_await batch_predict(sim, std::views::iota(0, 21), sleeper(sim, flight),
                                           {.semaphore = &semaphore});
                  },
                  [&]() -> task<void> {
                    co_await sim.schedule_after(5ms);
                    semaphore.set_limit(11);
                    co_await sim.schedule_after(1ms);
                    CHECK(flight.inside() == 11);
                  }});
    CHECK(flight.most() == 11);
    CHECK(elapsed(sim) == 25ms);
    CHECK(semaphore.available() == 11);
  }
}

TEST_CASE("batch_predict: a limit that is lowered while the batch runs holds for every sample that starts after it") {
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    simulation sim(seed);
    async_semaphore semaphore(10);
    gauge flight;
    run_all(sim, {[&]() -> task<void> {
                    (void)co_await batch_predict(sim, std::views::iota(0, 30), sleeper(sim, flight),
                                           {.semaphore = &semaphore});
                  },
                  [&]() -> task<void> {
                    co_await sim.schedule_after(5ms);
                    semaphore.set_limit(2);
                    CHECK(flight.inside() == 10);  // nothing is revoked
                    co_await sim.schedule_after(10ms);
                    CHECK(flight.inside() == 2);
                  }});
    CHECK(elapsed(sim) == 110ms);
    CHECK(semaphore.available() == 2);
  }
}

TEST_CASE("batch_predict: a batch can be paused while it runs") {
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    simulation sim(seed);
    async_semaphore semaphore(3);
    gauge flight;
    run_all(sim, {[&]() -> task<void> {
                    (void)co_await batch_predict(sim, std::views::iota(0, 9), sleeper(sim, flight),
                                           {.max_concurrency = 3, .semaphore = &semaphore});
                  },
                  [&]() -> task<void> {
                    co_await sim.schedule_after(5ms);
                    semaphore.set_limit(0);
                    co_await sim.schedule_after(10ms);
                    CHECK(flight.inside() == 0);
                    co_await sim.schedule_after(85ms);
                    CHECK(flight.inside() == 0);
                    semaphore.set_limit(3);
                  }});
    CHECK(elapsed(sim) == 120ms);
    CHECK(semaphore.available() == 3);
  }
}

TEST_CASE("batch_predict: permits that come as signals are used, and kept in circulation") {
  simulation sim;
  async_semaphore signals(0);
  gauge flight;
  run_all(sim, {[&]() -> task<void> {
                  (void)co_await batch_predict(sim, std::views::iota(0, 6), sleeper(sim, flight), {.semaphore = &signals});
                },
                [&]() -> task<void> {
                  co_await sim.schedule_after(1ms);
                  signals.release(2);
                }});
  CHECK(flight.most() == 2);
  CHECK(elapsed(sim) == 31ms);
  CHECK(signals.available() == 2);
}
