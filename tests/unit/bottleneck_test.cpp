// SPDX-License-Identifier: BSL-1.0
// What metrics say about real batches on the simulation; with clocks made by hand: see metrics_test.cpp.
#include <cobatch/metrics.hpp>

#include <chrono>
#include <numeric>
#include <optional>
#include <vector>

#include <cobatch/batch_predict.hpp>
#include <cobatch/predict_stream.hpp>
#include <cobatch/rate_limiter.hpp>
#include <cobatch/semaphore.hpp>
#include <cobatch/simulation.hpp>
#include <cobatch/task.hpp>

#include "support/catch.hpp"

using namespace std::chrono_literals;
using cobatch::bottleneck;

namespace {

/// A server that works on so many requests at once, each for 30 to 70 ms; what is beyond waits in it.
struct world {
  explicit world(std::size_t slots = 1'000'000) : server(slots) { std::iota(samples.begin(), samples.end(), 0); }

  cobatch::task<int> call(int x) {
    const auto slot = co_await server.acquire();
    co_await sim.schedule_after(std::chrono::milliseconds(30 + x * 7919 % 41));
    co_return x;
  }
  bottleneck batch(cobatch::batch_options options) {
    options.observer = &metrics;
    const auto predict = [this](int x) { return call(x); };
    sim.run(cobatch::batch_predict(sim, samples, predict, options));
    INFO(metrics.advice());
    return metrics.slowed_by();
  }

  cobatch::simulation sim{1};
  cobatch::batch_metrics metrics;
  cobatch::async_semaphore server;
  std::vector<int> samples = std::vector<int>(1000);
};

struct slow_input {
  world& in;
  int next_one = 0;
  std::chrono::nanoseconds pause;

  cobatch::task<std::optional<int>> next() {
    co_await in.sim.schedule_after(pause);
    if (next_one == 300) co_return std::nullopt;
    co_return next_one++;
  }
};

cobatch::task<> drain(world& in, std::chrono::nanoseconds input, std::chrono::nanoseconds consumer,
                      cobatch::result_order order) {
  const auto predict = [&in](int x) { return in.call(x); };
  slow_input source{in, 0, input};
  auto stream = cobatch::predict_stream(in.sim, source, predict, {.max_concurrency = 32, .observer = &in.metrics},
                                        {.order = order});
  while (auto item = co_await stream.next()) co_await in.sim.schedule_after(consumer);
}

}  // namespace

TEST_CASE("bottleneck: a cap that is too low for the server is named") {
  world in;
  CHECK(in.batch({.max_concurrency = 4}) == bottleneck::limit);
}

TEST_CASE("bottleneck: a shared semaphore that is too low for the server is named") {
  world in;
  cobatch::async_semaphore shared(4);
  CHECK(in.batch({.semaphore = &shared}) == bottleneck::limit);
}

TEST_CASE("bottleneck: a cap that is too high for the server is named, however much too high") {
  for (const std::size_t cap : {16u, 20u, 64u, 500u}) {
    world in(8);
    CAPTURE(cap);
    CHECK(in.batch({.max_concurrency = cap}) == bottleneck::server);
  }
  world in(8);
  CHECK(in.batch({}) == bottleneck::server);
}

TEST_CASE("bottleneck: a cap within the server's capacity is not taken for one above it") {
  for (const std::size_t cap : {1u, 2u, 7u, 64u}) {
    world in(64);
    CAPTURE(cap);
    CHECK(in.batch({.max_concurrency = cap}) == bottleneck::limit);
  }
}

TEST_CASE("bottleneck: the rate limiter is named") {
  world in;
  cobatch::rate_limiter rate(100);
  CHECK(in.batch({.max_concurrency = 64, .rate = &rate}) == bottleneck::rate);
}

TEST_CASE("bottleneck: a rate limiter that nobody waits for is not") {
  world in;
  cobatch::rate_limiter rate(1000);
  CHECK(in.batch({.max_concurrency = 4, .rate = &rate}) == bottleneck::limit);
}

TEST_CASE("bottleneck: a slow input is named") {
  world in;
  in.sim.run(drain(in, 10ms, 0ms, cobatch::result_order::completion));
  INFO(in.metrics.advice());
  CHECK(in.metrics.slowed_by() == bottleneck::input);
}

TEST_CASE("bottleneck: a slow consumer is named, in either order") {
  for (const auto order : {cobatch::result_order::completion, cobatch::result_order::input}) {
    world in;
    in.sim.run(drain(in, 0ms, 10ms, order));
    INFO(in.metrics.advice());
    CHECK(in.metrics.slowed_by() == bottleneck::consumer);
  }
}

TEST_CASE("bottleneck: a stream whose input and consumer are fast is held up by its cap") {
  world in;
  in.sim.run(drain(in, 0ms, 0ms, cobatch::result_order::completion));
  INFO(in.metrics.advice());
  CHECK(in.metrics.slowed_by() == bottleneck::limit);
}

TEST_CASE("bottleneck: the window of an ordered stream is named where it is full of results that wait for their turn") {
  world in;
  in.sim.run(drain(in, 0ms, 0ms, cobatch::result_order::input));
  INFO(in.metrics.advice());
  CHECK(in.metrics.slowed_by() == bottleneck::window);
}
