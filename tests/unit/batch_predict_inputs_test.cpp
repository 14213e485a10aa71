#include <cobatch/batch_predict.hpp>

#include <chrono>
#include <cstddef>
#include <deque>
#include <list>
#include <memory>
#include <ranges>
#include <set>
#include <sstream>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include <cobatch/semaphore.hpp>
#include <cobatch/simulation.hpp>
#include <cobatch/task.hpp>

#include "support/allocations.hpp"
#include "support/catch.hpp"
#include "support/generated.hpp"
#include "support/lifetimes.hpp"
#include "support/outline.hpp"
#include "support/step_executor.hpp"

using cobatch::batch_predict;
using cobatch::simulation;
using cobatch::task;
using namespace std::chrono_literals;

namespace {

constexpr auto twice = [](int x) { return 2 * x; };

}  // namespace

TEST_CASE("batch_predict: outcomes come in the order of the input, whatever the order of completion") {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    simulation sim(seed);
    const std::vector<int> samples{0, 1, 2, 3, 4, 5, 6, 7, 8, 9};
    std::vector<int> completed;
    const auto results = sim.run(batch_predict(sim, samples, [&](int x) -> task<int> {
      co_await sim.schedule_after((10 - x) * 1ms);
      completed.push_back(x);
      co_return x;
    }));
    CHECK(outline(results) == "0 1 2 3 4 5 6 7 8 9");
    CHECK(completed == std::vector<int>{9, 8, 7, 6, 5, 4, 3, 2, 1, 0});
  }
}

TEST_CASE("batch_predict: an element that a stream overwrites is kept for its predict") {
  simulation sim;
  std::istringstream stream("alpha beta gamma delta");
  const auto results = sim.run(
      batch_predict(sim, std::views::istream<std::string>(stream), [&](const std::string& word) -> task<std::string> {
        co_await sim.schedule_after(1ms);
        co_return word;
      }));
  CHECK(outline(results) == "alpha beta gamma delta");
}

TEST_CASE("batch_predict: an lvalue range is referred to, no sample is copied or moved") {
  const auto check = [](auto empty) {
    simulation sim;
    census samples;
    auto container = std::move(empty);
    for (int i = 0; i < 5; ++i) container.emplace_back(samples, i);
    samples.copies = samples.moves = 0;
    std::set<const tracked*> seen;
    const auto results = sim.run(batch_predict(sim, container, [&](const tracked& sample) -> task<int> {
      seen.insert(&sample);
      co_await sim.schedule_after(1ms);
      co_return sample.number();
    }));
    CHECK(outline(results) == "0 1 2 3 4");
    CHECK(samples.copies == 0);
    CHECK(samples.moves == 0);
    CHECK(samples.alive == 5);
    std::set<const tracked*> own;
    for (const tracked& each : container) own.insert(&each);
    CHECK(seen == own);
  };
  check(std::vector<tracked>());
  check(std::deque<tracked>());
  check(std::list<tracked>());
}

TEST_CASE("batch_predict: predict may change the samples of an lvalue range") {
  simulation sim;
  std::vector<int> vector{1, 2, 3};
  std::list<int> list{1, 2, 3};
  const auto increment = [](int& sample) { ++sample; };
  CHECK(outline(sim.run(batch_predict(sim, vector, increment))) == "value value value");
  CHECK(outline(sim.run(batch_predict(sim, list, increment))) == "value value value");
  CHECK(vector == std::vector<int>{2, 3, 4});
  CHECK(list == std::list<int>{2, 3, 4});
}

TEST_CASE("batch_predict: an rvalue range is moved in, and lives until the last predict has ended") {
  simulation sim;
  census samples;
  const auto run = [&]() -> task<std::string> {
    std::vector<tracked> container;
    container.reserve(4);
    for (int i = 0; i < 4; ++i) container.emplace_back(samples, i);
    const auto results = co_await batch_predict(sim, std::move(container), [&](const tracked& sample) -> task<int> {
      co_await sim.schedule_after(5ms);
      co_return sample.number();
    });
    CHECK(samples.alive == 0);
    co_return outline(results);
  };
  CHECK(sim.run(run()) == "0 1 2 3");
  CHECK(samples.copies == 0);
  CHECK(samples.moves == 0);
}

TEST_CASE("batch_predict: an element that is a temporary is kept until its predict has ended") {
  for (std::uint64_t seed = 0; seed < 5; ++seed) {
    simulation sim(seed);
    census samples;
    const auto make = [&](int i) { return tracked(samples, i); };
    const auto predict = [&](const tracked& sample) -> task<int> {
      co_await sim.schedule_after((5 - sample.number()) * 1ms);
      co_await sim.schedule_after(1ms);
      co_return sample.number();
    };
    CHECK(outline(sim.run(batch_predict(sim, std::views::iota(0, 5) | std::views::transform(make), predict))) ==
          "0 1 2 3 4");
    CHECK(outline(sim.run(batch_predict(sim, numbers_below(5) | std::views::transform(make), predict,
                                        {.max_concurrency = 2}))) == "0 1 2 3 4");
    CHECK(samples.alive == 0);
    CHECK(samples.copies == 0);
  }
}

TEST_CASE("batch_predict: no more lazy samples are alive than are in flight") {
  for (const long cap : {1, 3, 10}) {
    simulation sim(7);
    census samples, frames;
    const auto results = sim.run(
        batch_predict(sim, numbers_below(500) | std::views::transform([&](int i) { return tracked(samples, i); }),
                      [&](const tracked& sample) -> task<int> {
                        const life frame(frames);
                        co_await sim.schedule_after((sample.number() * 31 % 17) * 1ms);
                        co_return sample.number();
                      },
                      {.max_concurrency = static_cast<std::size_t>(cap)}));
    CHECK(values_in(results) == 500);
    CHECK(samples.made == 500);
    CHECK(samples.copies == 0);
    CHECK(samples.most <= cap + 1);  // one may be on its way into its lane
    CHECK(frames.most <= cap);
    CHECK(samples.alive == 0);
    CHECK(frames.alive == 0);
  }
}

TEST_CASE("batch_predict: samples are pulled only when they can start") {
  simulation sim;
  int pulled = 0, started = 0, most_ahead = 0;
  const auto results = sim.run(batch_predict(sim, numbers_below(100) | std::views::transform([&](int i) {
                                                    most_ahead = std::max(most_ahead, ++pulled - started);
                                                    return i;
                                                  }),
                                             [&](int x) -> task<int> {
                                               ++started;
                                               co_await sim.schedule_after(1ms);
                                               co_return x;
                                             },
                                             {.max_concurrency = 4}));
  CHECK(values_in(results) == 100);
  CHECK(pulled == 100);
  CHECK(most_ahead == 1);
}

TEST_CASE("batch_predict: a range of move-only samples is an input") {
  simulation sim;
  const auto make = [] {
    std::vector<std::unique_ptr<int>> samples;
    for (int i = 0; i < 4; ++i) samples.push_back(std::make_unique<int>(i));
    return samples;
  };
  SECTION("by reference") {
    const auto results = sim.run(batch_predict(sim, make(), [&](const std::unique_ptr<int>& sample) -> task<int> {
      co_await sim.schedule_after(1ms);
      co_return *sample;
    }));
    CHECK(outline(results) == "0 1 2 3");
  }
  SECTION("by value, which moves it out of the range that the batch owns") {
    const auto results = sim.run(batch_predict(sim, make(), [&](std::unique_ptr<int> sample) -> task<int> {
      co_await sim.schedule_after(1ms);
      co_return *sample;
    }));
    CHECK(outline(results) == "0 1 2 3");
  }
  SECTION("made one by one") {
    const auto results = sim.run(
        batch_predict(sim, numbers_below(4) | std::views::transform([](int i) { return std::make_unique<int>(i); }),
                      [&](std::unique_ptr<int> sample) -> task<int> {
                        co_await sim.schedule_after(1ms);
                        co_return *sample;
                      }));
    CHECK(outline(results) == "0 1 2 3");
  }
}

TEST_CASE("batch_predict: samples may be objects that can be neither copied nor moved") {
  struct fixed {
    explicit fixed(int i) : number(i) {}
    fixed(fixed&&) = delete;
    int number;
  };
  simulation sim;
  std::list<fixed> samples;
  for (int i = 0; i < 3; ++i) samples.emplace_back(i);
  CHECK(outline(sim.run(batch_predict(sim, samples, &fixed::number))) == "0 1 2");
}

TEST_CASE("batch_predict: an empty input is ready at once, without an allocation, a permit or a call of predict") {
  step_executor executor;
  cobatch::async_semaphore paused(0);
  const std::vector<int> empty;
  const auto never = [](int) -> int { throw std::logic_error("predict was called"); };
  const std::size_t before = allocations();
  {
    auto batch = batch_predict(executor, empty, never, {.max_concurrency = 3, .semaphore = &paused});
    CHECK(batch.await_ready());
    CHECK(batch.await_resume().empty());
  }
  {
    auto batch = batch_predict(executor, std::views::empty<int>, never);
    CHECK(batch.await_ready());
    CHECK(batch.await_resume().empty());
  }
  CHECK(allocations() == before);
  CHECK(executor.queued() == 0);
  CHECK(paused.waiting() == 0);
}

TEST_CASE("batch_predict: an empty input whose length is not known takes no permit that it keeps") {
  simulation sim;
  cobatch::async_semaphore semaphore(1);
  const auto never = [](int) -> int { throw std::logic_error("predict was called"); };
  CHECK(sim.run(batch_predict(sim, numbers_below(0), never, {.semaphore = &semaphore})).empty());
  CHECK(sim.run(batch_predict(sim, std::views::iota(0, 9) | std::views::filter([](int) { return false; }), never,
                              {.semaphore = &semaphore}))
            .empty());
  CHECK(semaphore.available() == 1);
  CHECK(semaphore.waiting() == 0);
}

TEST_CASE("batch_predict: an endless input ends with the batch's stop") {
  simulation sim;
  std::stop_source stop;
  const auto results = sim.run(batch_predict(sim, std::views::iota(0),
                                             [&](int x) -> task<int> {
                                               co_await sim.schedule_after(1ms);
                                               if (x == 20) stop.request_stop();
                                               co_return x;
                                             },
                                             {.max_concurrency = 3, .stop = stop}));
  CHECK(results.size() >= 21);
  CHECK(results.size() <= 24);
  CHECK(values_in(results) == static_cast<long>(results.size()));
}

TEST_CASE("batch_predict: predict is kept until the last sample has ended, and is not copied for each sample") {
  simulation sim;
  census predicts;
  life kept(predicts);
  const std::vector<int> samples{1, 2, 3, 4};
  const auto capturing = [&sim, kept, factor = std::make_shared<int>(3)](int x) -> task<int> {
    co_await sim.schedule_after(x * 1ms);
    co_return x** factor;  // the coroutine refers to the closure
  };
  predicts.copies = predicts.moves = 0;
  CHECK(outline(sim.run(batch_predict(sim, samples, capturing))) == "3 6 9 12");
  CHECK(predicts.copies == 1);
  CHECK(predicts.alive == 2);  // `kept` and the one in `capturing`
}

TEST_CASE("batch_predict: predict may be a function, a member function, a data member or a reference wrapper") {
  struct model {
    int factor;
    int calls = 0;
    int operator()(int x) {
      ++calls;
      return factor * x;
    }
    model(const model&) = delete;
    explicit model(int f) : factor(f) {}
  };
  struct sample {
    int number;
    int doubled() const { return 2 * number; }
    task<int> later(std::stop_token) { co_return 3 * number; }
  };
  simulation sim;
  const std::vector<int> numbers{1, 2, 3};
  model triple(3);
  CHECK(outline(sim.run(batch_predict(sim, numbers, std::ref(triple)))) == "3 6 9");
  CHECK(triple.calls == 3);
  CHECK(outline(sim.run(batch_predict(sim, numbers, +[](int x) { return x + 1; }))) == "2 3 4");
  std::vector<sample> samples{{1}, {2}, {3}};
  CHECK(outline(sim.run(batch_predict(sim, samples, &sample::doubled))) == "2 4 6");
  CHECK(outline(sim.run(batch_predict(sim, samples, &sample::number))) == "1 2 3");
  CHECK(outline(sim.run(batch_predict(sim, samples, &sample::later))) == "3 6 9");
}

TEST_CASE("batch_predict: predict is called exactly once for each sample") {
  for (const std::size_t cap : {std::size_t{1}, std::size_t{3}, cobatch::unlimited}) {
    simulation sim(3);
    std::vector<int> calls(1000, 0);
    const auto results = sim.run(batch_predict(sim, calls,
                                               [&](int& call) -> task<void> {
                                                 ++call;
                                                 if (&call - calls.data() < 500) co_await sim.schedule();
                                               },
                                               {.max_concurrency = cap}));
    CHECK(values_in(results) == 1000);
    CHECK(calls == std::vector<int>(1000, 1));
  }
}

TEST_CASE("batch_predict: a batch that is not awaited does nothing when it is destroyed") {
  census samples, predicts;
  step_executor executor;
  cobatch::async_semaphore semaphore(1);
  std::stop_source stop;
  int calls = 0;
  {
    std::vector<tracked> container;
    for (int i = 0; i < 3; ++i) container.emplace_back(samples, i);
    const life kept(predicts);
    const auto predict = [kept, &calls](const tracked&) { ++calls; };
    auto batch = batch_predict(executor, std::move(container), predict, {.semaphore = &semaphore, .stop = stop});
    auto moved = std::move(batch);
    (void)moved;
  }
  stop.request_stop();
  executor.drain();
  CHECK(calls == 0);
  CHECK(samples.alive == 0);
  CHECK(predicts.alive == 0);
  CHECK(semaphore.available() == 1);
}

TEST_CASE("batch_predict: a named batch may be moved and awaited as an lvalue") {
  simulation sim;
  const std::vector<int> samples{1, 2, 3};
  const auto run = [&]() -> task<std::string> {
    auto batch = batch_predict(sim, samples, twice);
    auto moved = std::move(batch);
    const auto results = co_await moved;
    co_return outline(results);
  };
  CHECK(sim.run(run()) == "2 4 6");
}
