// SPDX-License-Identifier: BSL-1.0
// What metrics say about real batches on the simulation; with clocks made by hand: see metrics_test.cpp.
#include <cobatch/metrics.hpp>

#include <chrono>
#include <coroutine>
#include <deque>
#include <functional>
#include <limits>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <string_view>
#include <vector>

#include <cobatch/batch_predict.hpp>
#include <cobatch/predict_stream.hpp>
#include <cobatch/rate_limiter.hpp>
#include <cobatch/semaphore.hpp>
#include <cobatch/simulation.hpp>
#include <cobatch/task.hpp>

#include "support/catch.hpp"
#include "support/started.hpp"

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

// ---- What goes wrong, and looks like something else ----

namespace {

/// predict is called for sample x for the n-th time: how long it takes, and whether it fails then.
struct call {
  std::chrono::nanoseconds takes;
  bool fails = false;
};

cobatch::task<> take(world& in, std::function<call(int, int)> what, cobatch::batch_options options,
                     cobatch::stream_options order, std::chrono::nanoseconds consumer) {
  std::vector<int> calls(in.samples.size());
  const auto predict = [&](int x) -> cobatch::task<int> {
    const call now = what(x, ++calls[static_cast<std::size_t>(x)]);
    co_await in.sim.schedule_after(now.takes);
    if (now.fails) throw std::runtime_error("503");
    co_return x;
  };
  options.observer = &in.metrics;
  auto stream = cobatch::predict_stream(in.sim, in.samples, predict, options, order);
  while (auto item = co_await stream.next()) {
    if (consumer > 0ns) co_await in.sim.schedule_after(consumer);
  }
}

bottleneck of_stream(world& in, std::function<call(int, int)> what, const cobatch::batch_options& options,
                     cobatch::stream_options order = {}, std::chrono::nanoseconds consumer = 0ns) {
  in.sim.run(take(in, std::move(what), options, order, consumer));
  return in.metrics.slowed_by();
}

constexpr cobatch::stream_options in_order{.order = cobatch::result_order::input, .window = 1000};

/// So many threads with one clock, on which predict spends time by moving it; nothing ever waits.
struct busy_threads {
  void execute(std::coroutine_handle<> work) { ready.push_back(work); }
  std::size_t concurrency() const { return 1; }
  std::chrono::time_point<std::chrono::steady_clock, std::chrono::nanoseconds> now() const noexcept {
    return std::chrono::time_point<std::chrono::steady_clock, std::chrono::nanoseconds>(clock);
  }
  void run() {
    while (!ready.empty()) {
      const auto next = ready.front();
      ready.pop_front();
      next.resume();
    }
  }

  std::deque<std::coroutine_handle<>> ready;
  std::chrono::nanoseconds clock = 1s;
};

bool says(const world& in, std::string_view what) {
  return in.metrics.advice().find(what) != std::string::npos;
}

}  // namespace

TEST_CASE("bottleneck: a server that is down is named, not the window of the stream that waits for it") {
  world in;
  in.samples.resize(100);
  const auto down = [](int, int) { return call{1ms, true}; };
  CHECK(of_stream(in, down, {.max_concurrency = 16, .retry = {.max_attempts = 6, .seed = 1}}, in_order) ==
        bottleneck::failures);
  CHECK(says(in, "100 of 100 samples came to no value in 600 attempts"));
}

TEST_CASE("bottleneck: a server that is down is named where nothing is tried again") {
  world in;
  const auto down = [](int x, int) { return call{1ms, x % 4 != 0}; };
  CHECK(of_stream(in, down, {.max_concurrency = 16}) == bottleneck::failures);
}

TEST_CASE("bottleneck: the backoff is named where samples sleep more than they run") {
  world in;
  in.samples.resize(200);
  const auto flaky = [](int, int n) { return call{5ms, n < 4}; };
  CHECK(of_stream(in, flaky,
                  {.max_concurrency = 64, .retry = {.max_attempts = 5, .initial_backoff = 500ms, .seed = 1}}) ==
        bottleneck::backoff);
  CHECK(says(in, "after 600 of 800 attempts"));
}

TEST_CASE("bottleneck: a few retries beside much work are not") {
  world in;
  const auto flaky = [](int x, int n) { return call{50ms, x % 20 == 0 && n == 1}; };
  CHECK(of_stream(in, flaky,
                  {.max_concurrency = 64, .retry = {.max_attempts = 3, .initial_backoff = 100ms, .seed = 1}}) ==
        bottleneck::limit);
}

TEST_CASE("bottleneck: the backoff of the first in line is named, not the consumer that then has much to take") {
  world in;
  in.samples.resize(100);
  const auto head = [](int x, int n) { return call{5ms, x == 0 && n < 3}; };
  const cobatch::retry_policy retry{.max_attempts = 5, .initial_backoff = 500ms, .jitter = false};
  CHECK(of_stream(in, head, {.max_concurrency = 64, .retry = retry}, in_order, 1ms) == bottleneck::backoff);
}

TEST_CASE("bottleneck: a slow consumer is named although some are tried again") {
  world in;
  in.samples.resize(300);
  const auto flaky = [](int x, int n) { return call{5ms, x % 10 == 0 && n == 1}; };
  CHECK(of_stream(in, flaky, {.max_concurrency = 32, .retry = {.max_attempts = 3, .initial_backoff = 50ms, .seed = 1}},
                  {}, 10ms) == bottleneck::consumer);
}

TEST_CASE("bottleneck: the rate limiter is named although some are tried again") {
  world in;
  in.samples.resize(300);
  cobatch::rate_limiter rate(100);
  const auto flaky = [](int x, int n) { return call{5ms, x % 10 == 0 && n == 1}; };
  CHECK(of_stream(in, flaky, {.max_concurrency = 32, .retry = {.max_attempts = 3, .seed = 1}, .rate = &rate}) ==
        bottleneck::rate);
}

TEST_CASE("bottleneck: one sample that takes long holds up an ordered stream, and no window does") {
  world in;
  in.samples.resize(100);
  const auto slow_head = [](int x, int) { return call{x == 0 ? 1s : 5ms}; };
  CHECK(of_stream(in, slow_head, {.max_concurrency = 16}, in_order) == bottleneck::nothing);
  CHECK(says(in, "nothing that is sure"));
}

TEST_CASE("bottleneck: a batch that is smaller than its cap is held up by nothing that is sure") {
  world in;
  in.samples.resize(10);
  const auto plain = [](int, int) { return call{50ms}; };
  CHECK(of_stream(in, plain, {.max_concurrency = 64}) == bottleneck::nothing);
}

TEST_CASE("bottleneck: timeouts of a server that has too much in flight are the server's") {
  world in(8);
  in.samples.resize(400);
  const auto call_server = [&in](int x, std::stop_token stop) -> cobatch::task<int> {
    const auto place = co_await in.server.acquire(1, stop);
    if (!place || !co_await in.sim.schedule_after(50ms, stop)) throw std::runtime_error("stopped");
    co_return x;
  };
  in.sim.run(cobatch::batch_predict(in.sim, in.samples, call_server,
                                    {.max_concurrency = 64, .timeout = 260ms, .observer = &in.metrics}));
  INFO(in.metrics.advice());
  CHECK(in.metrics.slowed_by() == bottleneck::server);
}

TEST_CASE("bottleneck: a predict that does not suspend is named, and the number of threads") {
  busy_threads threads;
  world in;
  in.samples.resize(100);
  const auto blocks = [&](int x) {
    threads.clock += 10ms;
    return x;
  };
  for (const std::size_t cap : {std::size_t{64}, std::numeric_limits<std::size_t>::max()}) {
    cobatch::batch_metrics metrics;
    const auto all = [&]() -> started {
      (void)co_await cobatch::batch_predict(threads, in.samples, blocks, {.max_concurrency = cap, .observer = &metrics});
    };
    const started run = all();
    threads.run();
    REQUIRE(run.done());
    INFO(metrics.advice());
    CHECK(metrics.slowed_by() == bottleneck::blocking);
    CHECK(metrics.advice().starts_with("predict does not suspend: the executor has 1 thread,"));
  }
}

TEST_CASE("bottleneck: a cap of one is named, not a predict that seems not to suspend") {
  world in;
  in.samples.resize(100);
  const auto plain = [](int, int) { return call{10ms}; };
  CHECK(of_stream(in, plain, {.max_concurrency = 1}) == bottleneck::limit);
}

TEST_CASE("bottleneck: a window that is told, and full, is named although it is larger than the cap") {
  cobatch::batch_metrics metrics;
  cobatch::batch_info begun;
  begun.limit = 16;
  begun.window = 64;
  metrics.batch_started(begun);
  std::chrono::nanoseconds at{};
  for (std::size_t i = 0; i < 1000; ++i) {
    cobatch::attempt_event attempt;
    attempt.index = i;
    attempt.limit = 16;
    attempt.in_flight = 6;
    attempt.ran = 40ms;
    attempt.at = at += 10ms;
    metrics.attempt_started(attempt);
    metrics.attempt_ended(attempt);
    cobatch::sample_event taken;
    taken.at = at;
    taken.waited_for_turn = 580ms;
    metrics.sample_finished(taken);
    metrics.sample_taken(taken);
  }
  INFO(metrics.advice());
  CHECK(metrics.slowed_by() == bottleneck::window);
}
