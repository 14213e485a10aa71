#include <cobatch/predict_stream.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <functional>
#include <future>
#include <memory>
#include <new>
#include <numeric>
#include <optional>
#include <ranges>
#include <stdexcept>
#include <stop_token>
#include <thread>
#include <utility>
#include <vector>

#include <cobatch/batch_predict.hpp>
#include <cobatch/callback.hpp>
#include <cobatch/executor.hpp>
#include <cobatch/run_loop.hpp>
#include <cobatch/semaphore.hpp>
#include <cobatch/simulation.hpp>
#include <cobatch/sync_wait.hpp>
#include <cobatch/task.hpp>
#include <cobatch/thread_pool.hpp>

#include "support/allocations.hpp"
#include "support/catch.hpp"
#include "support/detached.hpp"
#include "support/parking_place.hpp"
#include "support/plain_threads.hpp"
#include "support/started.hpp"

using cobatch::batch_options;
using cobatch::errc;
using cobatch::predict_stream;
using cobatch::result_order;
using cobatch::simulation;
using cobatch::stream_options;
using cobatch::task;
using namespace std::chrono_literals;

namespace {

// One predict type and one kind of input for most tests: each pair is a whole engine to compile.
using predict_type = std::function<task<int>(int, std::stop_token)>;

/// The numbers 0, 1, 2, ... below `end`, counting how many were read; it may fail at one of them.
struct counter {
  int end = 0;
  int fails_at = -1;
  int read = 0;

  auto numbers() {
    return std::views::iota(0, end) | std::views::transform([this](int x) {
             if (x == fails_at) throw std::runtime_error("unreadable");
             ++read;
             return x;
           });
  }
};

struct taken {
  std::size_t index;
  int value;  // -1: an error
  std::chrono::milliseconds at;
  errc why;

  bool operator==(const taken&) const = default;
};

std::chrono::milliseconds now(const simulation& sim) {
  return std::chrono::duration_cast<std::chrono::milliseconds>(sim.now().time_since_epoch());
}

/// Takes all, or the first `most`.
template <class Stream>
task<std::vector<taken>> drain(simulation& sim, Stream& stream, std::size_t most = cobatch::unlimited) {
  std::vector<taken> all;
  while (all.size() < most) {
    auto item = co_await stream.next();
    if (!item) break;
    const auto& result = item->result;
    all.push_back({item->index, result ? *result : -1, now(sim), result ? errc{} : result.error().code});
  }
  co_return all;
}

std::vector<std::size_t> indices(const std::vector<taken>& all) {
  std::vector<std::size_t> numbers;
  for (const taken& each : all) numbers.push_back(each.index);
  return numbers;
}

std::vector<std::size_t> zero_to(std::size_t n) {
  std::vector<std::size_t> numbers(n);
  std::iota(numbers.begin(), numbers.end(), std::size_t{0});
  return numbers;
}

/// Sample 0 takes a second, all others 100 ms; counts what runs.
struct slow_head {
  simulation& sim;
  int running = 0;
  int most = 0;
  int started = 0;

  predict_type predict() {
    return [this](int x, std::stop_token stop) -> task<int> {
      ++started;
      most = std::max(most, ++running);
      const bool elapsed = co_await sim.schedule_after(x == 0 ? 1s : 100ms, stop);
      --running;
      if (!elapsed) throw std::runtime_error("stopped");
      co_return x * 10;
    };
  }
};

}  // namespace

TEST_CASE("predict_stream: results come as they complete, each with its number") {
  simulation sim;
  slow_head model{sim};
  counter input{4};
  auto run = [&]() -> task<std::vector<taken>> {
    auto stream = predict_stream(sim, input.numbers(), model.predict(), batch_options{.max_concurrency = 2});
    co_return co_await drain(sim, stream);
  };
  const auto all = sim.run(run());
  CHECK(all == std::vector<taken>{
                   {1, 10, 100ms, errc{}}, {2, 20, 200ms, errc{}}, {3, 30, 300ms, errc{}}, {0, 0, 1000ms, errc{}}});
}

TEST_CASE("predict_stream: in input order a slow head holds results back, but nothing in flight") {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    simulation sim(seed);
    slow_head model{sim};
    counter input{30};
    auto run = [&]() -> task<std::vector<taken>> {
      auto stream = predict_stream(sim, input.numbers(), model.predict(), batch_options{.max_concurrency = 3},
                                   stream_options{.order = result_order::input, .window = 8});
      auto first = co_await stream.next();
      CHECK(first->index == 0);
      CHECK(now(sim) == 1000ms);
      // The window is full to the sample: 0 to 7 were started, two at a time beside the head.
      CHECK(model.started == 8);
      CHECK(input.read == 8);
      co_return co_await drain(sim, stream);
    };
    const auto all = sim.run(run());
    REQUIRE(all.size() == 29);
    for (std::size_t i = 0; i < all.size(); ++i) CHECK(all[i].index == i + 1);
    CHECK(model.most == 3);
    CHECK(model.running == 0);
  }
}

TEST_CASE("predict_stream: samples are read only as the window has room") {
  simulation sim;
  slow_head model{sim};
  counter input{1'000'000};
  auto run = [&]() -> task<void> {
    auto stream = predict_stream(sim, input.numbers(), model.predict(), batch_options{.max_concurrency = 4});
    for (int taken = 0; taken < 10; ++taken) {
      (void)co_await stream.next();
      co_await sim.schedule_after(5s);
      CHECK(input.read <= taken + 1 + 4);
    }
    co_await stream.close();
    CHECK(model.running == 0);
  };
  sim.run(run());
  CHECK(input.read <= 15);
}

TEST_CASE("predict_stream: an empty input ends at once, and the end repeats") {
  simulation sim;
  slow_head model{sim};
  counter input{0};
  auto run = [&]() -> task<void> {
    auto stream = predict_stream(sim, input.numbers(), model.predict());
    const auto first = co_await stream.next();
    const auto second = co_await stream.next();
    CHECK_FALSE(first.has_value());
    CHECK_FALSE(second.has_value());
    co_await stream.close();
  };
  sim.run(run());
}

TEST_CASE("predict_stream: one that was never asked does nothing, also when it is closed") {
  simulation sim;
  slow_head model{sim};
  counter input{10};
  auto run = [&]() -> task<void> {
    {
      auto stream = predict_stream(sim, input.numbers(), model.predict());
      auto moved = std::move(stream);
    }
    auto other = predict_stream(sim, input.numbers(), model.predict());
    co_await other.close();
  };
  sim.run(run());
  CHECK(model.started == 0);
  CHECK(input.read == 0);
}

TEST_CASE("predict_stream: close() stops what is in flight and waits for it") {
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    for (std::size_t taken = 1; taken < 6; ++taken) {
      simulation sim(seed);
      slow_head model{sim};
      counter input{1000};
      auto run = [&]() -> task<void> {
        auto stream = predict_stream(sim, input.numbers(), model.predict(), batch_options{.max_concurrency = 3});
        (void)co_await drain(sim, stream, taken);
        co_await stream.close();
        CHECK(model.running == 0);
        const auto after = co_await stream.next();
        CHECK_FALSE(after.has_value());
      };
      sim.run(run());
      CHECK(sim.now().time_since_epoch() <= 1s);
    }
  }
}

TEST_CASE("predict_stream: destroyed early on its own executor, it stops and ends by itself") {
  simulation sim;
  slow_head model{sim};
  counter input{1000};
  auto run = [&]() -> task<void> {
    {
      auto stream = predict_stream(sim, input.numbers(), model.predict(), batch_options{.max_concurrency = 3});
      (void)co_await stream.next();
    }
    co_await sim.schedule_after(1ms);
    CHECK(model.running == 0);
  };
  sim.run(run());
}

TEST_CASE("predict_stream: where the input throws there is one last result") {
  for (const auto order : {result_order::completion, result_order::input}) {
    simulation sim;
    slow_head model{sim};
    counter input{10, 3};
    auto run = [&]() -> task<std::vector<taken>> {
      auto stream = predict_stream(sim, input.numbers(), model.predict(), batch_options{.max_concurrency = 2},
                                   stream_options{.order = order});
      co_return co_await drain(sim, stream);
    };
    auto all = sim.run(run());
    std::ranges::sort(all, {}, &taken::index);
    REQUIRE(indices(all) == zero_to(4));
    CHECK(all[2].value == 20);
    CHECK(all[3].why == errc::input_failed);
  }
}

TEST_CASE("predict_stream: close() stops what is in flight also where the input has thrown") {
  simulation sim;
  slow_head model{sim};
  counter input{10, 2};
  auto run = [&]() -> task<void> {
    auto stream = predict_stream(sim, input.numbers(), model.predict(), batch_options{.max_concurrency = 4});
    const auto first = co_await stream.next();
    CHECK(first->result.error().code == errc::input_failed);
    CHECK(model.running == 2);
    co_await stream.close();
    CHECK(model.running == 0);
  };
  sim.run(run());
  CHECK(now(sim) == 0ms);
}

TEST_CASE("predict_stream: a stop, a deadline and an error budget end it, and what was started is given") {
  simulation sim;
  slow_head model{sim};
  counter input{1000};
  std::stop_source stop;
  batch_options options{.max_concurrency = 4};
  SECTION("a stop") {
    options.stop = stop;
    auto run = [&]() -> task<std::vector<taken>> {
      auto stream = predict_stream(sim, input.numbers(), model.predict(), options);
      auto first = co_await drain(sim, stream, 3);
      stop.request_stop();
      co_return co_await drain(sim, stream);
    };
    const auto all = sim.run(run());
    CHECK(std::ranges::any_of(all, [](const taken& each) { return each.why == errc::cancelled; }));
    CHECK(static_cast<int>(all.size()) + 3 == model.started);
  }
  SECTION("a deadline") {
    options.deadline = 350ms;
    auto run = [&]() -> task<std::vector<taken>> {
      auto stream = predict_stream(sim, input.numbers(), model.predict(), options);
      co_return co_await drain(sim, stream);
    };
    const auto all = sim.run(run());
    CHECK(now(sim) == 350ms);
    CHECK(static_cast<int>(all.size()) == model.started);
    CHECK(std::ranges::count(all, errc::deadline_exceeded, &taken::why) == 4);
  }
  SECTION("an error budget") {
    options.max_failures = 1;
    const predict_type fails = [&](int x, std::stop_token) -> task<int> {
      co_await sim.schedule_after(1ms);
      if (x == 5) throw std::runtime_error("five");
      co_return x;
    };
    auto run = [&]() -> task<std::vector<taken>> {
      auto stream = predict_stream(sim, input.numbers(), fails, options);
      co_return co_await drain(sim, stream);
    };
    const auto all = sim.run(run());
    CHECK(all.size() < 13);
    CHECK(std::ranges::count(all, errc::exception, &taken::why) == 1);
  }
  CHECK(model.running == 0);
}

TEST_CASE("predict_stream: retries and timeouts work as in a batch, and every sample is given once") {
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    simulation sim(seed);
    counter input{40};
    std::vector<int> calls(40);
    const predict_type flaky = [&](int x, std::stop_token stop) -> task<int> {
      const int call = ++calls[static_cast<std::size_t>(x)];
      const bool elapsed = co_await sim.schedule_after(x % 5 == 0 && call == 1 ? 10s : 10ms, stop);
      if (!elapsed || (x % 3 == 0 && call == 1)) throw std::runtime_error("flaky");
      co_return x;
    };
    auto run = [&]() -> task<std::vector<taken>> {
      auto stream = predict_stream(
          sim, input.numbers(), flaky,
          batch_options{.max_concurrency = 5, .timeout = 50ms, .retry = {.max_attempts = 3, .initial_backoff = 20ms, .seed = 1}},
          stream_options{.order = result_order::input, .window = 10});
      co_return co_await drain(sim, stream);
    };
    const auto all = sim.run(run());
    CHECK(indices(all) == zero_to(40));
    CHECK(std::ranges::count(all, errc{}, &taken::why) == 40);
  }
}

TEST_CASE("predict_stream: a stream is a source of another one, with back-pressure throughout") {
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    simulation sim(seed);
    slow_head model{sim};
    counter input{60};
    auto run = [&]() -> task<int> {
      auto first = predict_stream(sim, input.numbers(), model.predict(), batch_options{.max_concurrency = 4});
      const auto second_stage = [&](auto& item) -> task<int> {
        co_await sim.schedule_after(30ms);
        co_return *item.result + 1;
      };
      auto second = predict_stream(sim, first, second_stage, batch_options{.max_concurrency = 2},
                                   stream_options{.order = result_order::input, .window = 3});
      int sum = 0;
      int given = 0;
      while (auto item = co_await second.next()) {
        sum += *item->result;
        ++given;
        // At most a window of each stage, and one on its way between them.
        CHECK(input.read <= given + 3 + 4 + 1);
      }
      CHECK(given == 60);
      co_return sum;
    };
    CHECK(sim.run(run()) == 60 * 59 / 2 * 10 + 60);
  }
}

TEST_CASE("predict_stream: what has failed in the stage before is not tried again in the next, and keeps its number") {
  simulation sim;
  int first_calls = 0;
  int second_calls = 0;
  auto run = [&]() -> task<std::vector<taken>> {
    const std::vector<int> samples{0, 1, 2, 3};
    const auto first_stage = [&](int x) -> task<int> {
      ++first_calls;
      co_await sim.schedule_after(std::chrono::milliseconds(10 * (4 - x)));
      if (x == 2) throw std::runtime_error("bad sample");
      co_return x;
    };
    const auto second_stage = [&](auto& item) -> cobatch::expected<int, cobatch::error> {
      ++second_calls;
      return item.result;
    };
    const batch_options options{.retry = {.max_attempts = 3, .initial_backoff = 1ms, .jitter = false}};
    auto first = predict_stream(sim, samples, first_stage, options);
    auto second = predict_stream(sim, first, second_stage, options);
    co_return co_await drain(sim, second);
  };
  const auto all = sim.run(run());
  CHECK(first_calls == 6);
  CHECK(second_calls == 4);
  // As they come out of the first stage.
  CHECK(indices(all) == std::vector<std::size_t>{3, 1, 0, 2});
  CHECK(all[3].value == -1);
}

TEST_CASE("predict_stream: held by a coroutine in a deadlock, it goes with it") {
  simulation sim;
  const std::vector<int> samples{0, 1, 2};
  int alive = 0;
  for (const bool one_was_given : {false, true}) {
    const auto predict = [&](int x) -> task<int> {
      const std::shared_ptr<int> here(&alive, [](int* count) { --*count; });
      ++alive;
      if (x > 0 || !one_was_given) co_await std::suspend_always();
      co_return x;
    };
    auto run = [&]() -> task<int> {
      auto stream = predict_stream(sim, samples, predict, batch_options{.max_concurrency = 2, .timeout = 1h});
      int given = 0;
      for (;;) {
        const auto item = co_await stream.next();
        if (!item) break;
        ++given;
      }
      co_return given;
    };
    CHECK_THROWS_AS(sim.run(run()), cobatch::deadlock_error);
    CHECK(alive == 0);
  }
  const auto sleep = [&]() -> task<bool> { co_return co_await sim.schedule_after(1s); };
  CHECK(sim.run(sleep()));
}

namespace {

/// Takes one of three from a stream on an executor that only runs inside its run(), then destroys the stream.
template <class Executor>
void leave_outside_run() {
  Executor loop;
  const std::vector<int> samples{0, 1, 2};
  int started = 0;
  int ended = 0;
  const auto predict = [&](int x, std::stop_token stop) -> task<int> {
    ++started;
    if (x > 0) co_await loop.schedule_after(1h, std::move(stop));
    ++ended;
    co_return x;
  };
  {
    auto stream = predict_stream(loop, samples, predict, batch_options{.max_concurrency = 2});
    CHECK(loop.run(stream.next()).has_value());
    CHECK(ended == 1);
  }
  CHECK(started > 1);
  CHECK(ended == started);
}

}  // namespace

TEST_CASE("predict_stream: destroyed while nobody runs its loop, it is stopped and waited for") {
  leave_outside_run<simulation>();
  leave_outside_run<cobatch::run_loop>();
}

TEST_CASE("predict_stream: a consumer that goes in a deadlock is forgotten") {
  simulation sim;
  const std::vector<int> samples{0, 1};
  std::coroutine_handle<> first;
  const auto predict = [&](int x) -> task<int> {
    struct parked {
      bool await_ready() const noexcept { return false; }
      void await_suspend(std::coroutine_handle<> handle) const noexcept { *into = handle; }
      void await_resume() const noexcept {}
      std::coroutine_handle<>* into;
    };
    if (x == 0) co_await parked{&first};
    co_return x;
  };
  auto stream = predict_stream(sim, samples, predict, batch_options{.max_concurrency = 1});
  const auto take = [&]() -> task<std::size_t> {
    const auto item = co_await stream.next();
    co_return item->index;
  };
  CHECK_THROWS_AS(sim.run(take()), cobatch::deadlock_error);
  const auto resume = [&]() -> task<std::size_t> {
    co_await sim.schedule();
    first.resume();
    co_return co_await take();
  };
  CHECK(sim.run(resume()) == 0);
  CHECK(sim.run(take()) == 1);
}

TEST_CASE("predict_stream: options that make no sense are refused") {
  simulation sim;
  counter input{1};
  slow_head model{sim};
  CHECK_THROWS_AS(predict_stream(sim, input.numbers(), model.predict(), batch_options{.max_concurrency = 0}),
                  std::invalid_argument);
  CHECK_THROWS_AS(predict_stream(sim, input.numbers(), model.predict(), batch_options{.max_concurrency = 8},
                                 stream_options{.window = 7}),
                  std::invalid_argument);
}

TEST_CASE("predict_stream: on several threads nothing is lost, doubled or out of order") {
  for (const std::size_t threads : {1u, 2u, 3u}) {
    cobatch::thread_pool pool(threads);
    const predict_type hop = [&](int x, std::stop_token) -> task<int> {
      co_await pool.schedule();
      co_return x;
    };
    auto run = [&]() -> task<int> {
      counter input{5000};
      auto stream = predict_stream(pool, input.numbers(), hop, batch_options{.max_concurrency = 16},
                                   stream_options{.order = result_order::input, .window = 32});
      int next = 0;
      while (auto item = co_await stream.next()) {
        if (*item->result != next) co_return -1;
        ++next;
      }
      co_return next;
    };
    CHECK(cobatch::sync_wait(run()) == 5000);
    for (std::size_t taken = 0; taken < 40; ++taken) {
      counter input{1'000'000};
      auto stream = predict_stream(pool, input.numbers(), hop, batch_options{.max_concurrency = 8});
      for (std::size_t i = 0; i < taken; ++i) (void)cobatch::sync_wait(stream.next());
      if (taken % 2 == 0) cobatch::sync_wait(stream.close());  // else its destructor waits
    }
  }
}

TEST_CASE("predict_stream: whoever waits for the next result may be destroyed, with the stream or before it") {
  for (const bool with_stream : {false, true}) {
    simulation sim;
    slow_head model{sim};
    counter input{1000};
    const auto open = [&] {
      return predict_stream(sim, input.numbers(), model.predict(), batch_options{.max_concurrency = 3});
    };
    std::optional<decltype(open())> stream;
    stream.emplace(open());
    const auto consume = [](auto mine) -> started { (void)co_await mine.next(); };
    const auto borrow = [](auto& theirs) -> started { (void)co_await theirs.next(); };
    auto run = [&]() -> task<void> {
      started consumer = with_stream ? consume(std::move(*stream)) : borrow(*stream);
      co_await sim.schedule_after(1ms);
      CHECK(model.running == 3);
      consumer.destroy();
      stream.reset();
      co_await sim.schedule_after(1ms);
      CHECK(model.running == 0);
    };
    sim.run(run());
    CHECK(now(sim) == 2ms);
  }

  cobatch::thread_pool pool(2);
  cobatch::async_semaphore none(0);
  const predict_type identity = [](int x, std::stop_token) -> task<int> { co_return x; };
  const auto consume = [&]() -> started {
    counter input{10};
    auto stream = predict_stream(pool, input.numbers(), identity, batch_options{.semaphore = &none});
    while (co_await stream.next()) {}
  };
  for (int i = 0; i < 20; ++i) {
    started consumer = consume();
    while (i % 2 == 0 && none.waiting() == 0) std::this_thread::yield();
    consumer.destroy();
    CHECK(none.waiting() == 0);
  }
}

TEST_CASE("predict_stream: destroyed inside another executor on a pool's only thread, it does not block that thread") {
  cobatch::thread_pool pool(1);
  const auto slow = [&](int x) -> task<int> {
    co_await pool.schedule_after(2ms);
    co_return x;
  };
  const auto open = [&] { return predict_stream(pool, std::views::iota(0), slow, {.max_concurrency = 4}); };
  const auto body = [&]() -> task<bool> {
    co_await pool.schedule();
    auto stream = std::make_unique<decltype(open())>(open());
    const auto first = co_await stream->next();
    cobatch::inline_executor here;
    const std::vector<int> one{1};
    const auto destroy = [&](int x) {
      stream.reset();
      return x;
    };
    const auto results = co_await cobatch::batch_predict(here, one, destroy);
    co_return first && results[0] == 1;
  };
  CHECK(cobatch::sync_wait(body()));
}

TEST_CASE("predict_stream: a consumer that a lane resumes may destroy the stream inside that call") {
  std::vector<cobatch::callback<int>> pending;
  const auto predict = [&](int) { return cobatch::from_callback<int>([&](auto done) { pending.push_back(done); }); };
  const std::vector<int> samples{0, 1, 2, 3};
  cobatch::inline_executor ex;
  bool ended = false;
  const auto consume = [&]() -> detached {
    {
      auto stream = predict_stream(ex, samples, predict, {.max_concurrency = 1});
      (void)co_await stream.next();
    }
    ended = true;
  };
  consume();
  REQUIRE(pending.size() == 1);
  std::exchange(pending, {})[0](7);
  CHECK(ended);
  CHECK(pending.empty());
}

TEST_CASE("predict_stream: destroyed on the only thread of a function_executor, it does not block that thread") {
  plain_threads thread(1);
  std::promise<void> ended;
  cobatch::function_executor ex(
      [&](auto work) {
        const auto run = [&](auto job) -> detached {
          co_await hop_to(thread);
          job();
        };
        run(std::move(work));
      },
      1);
  const std::vector<int> samples(100, 1);
  const auto identity = [](int x) { return x; };
  const auto consume = [&]() -> detached {
    co_await schedule(ex);
    {
      auto stream = predict_stream(ex, samples, identity, {.max_concurrency = 2});
      (void)co_await stream.next();
    }
    ended.set_value();
  };
  consume();
  CHECK(ended.get_future().wait_for(10s) == std::future_status::ready);
}

TEST_CASE("predict_stream: a consumer that is resumed inside a predict may destroy the stream there") {
  cobatch::inline_executor ex;
  parking_place sample, consumer;
  const std::vector<int> samples{0, 1, 2, 3};
  const auto predict = [&](int x) -> task<int> {
    if (x == 1) co_await sample;
    if (x == 2 && consumer.parked) std::exchange(consumer.parked, {}).resume();
    co_return x;
  };
  bool ended = false;
  const auto consume = [&]() -> detached {
    {
      auto stream = predict_stream(ex, samples, predict, {.max_concurrency = 1}, {.window = 4});
      (void)co_await stream.next();
      co_await consumer;
    }
    ended = true;
  };
  consume();
  REQUIRE(sample.parked);
  std::exchange(sample.parked, {}).resume();
  CHECK(ended);
}

TEST_CASE("predict_stream: two that wait for their inputs do not hand a shared permit to and fro") {
  cobatch::simulation sim;
  cobatch::async_semaphore permit(1);
  struct source {
    cobatch::simulation* sim;
    int size;
    int next_number = 0;
    cobatch::task<std::optional<int>> next() {
      if (next_number == size) co_return std::nullopt;
      const int number = next_number++;
      if (number % 3 == 1) co_await sim->schedule_after(std::chrono::milliseconds(number));
      co_return number;
    }
  };
  int calls = 0;
  const auto consume = [&](int size, std::chrono::milliseconds first) -> cobatch::task<int> {
    const auto predict = [&, first](int x) -> cobatch::task<int> {
      ++calls;
      if (x == 0) co_await sim.schedule_after(first);
      co_return x;
    };
    auto stream = cobatch::predict_stream(sim, source{&sim, size}, predict, {.semaphore = permit},
                                          {.order = cobatch::result_order::input, .window = 4});
    int taken = 0;
    while (const auto item = co_await stream.next()) ++taken;
    co_await stream.close();
    co_return taken;
  };
  const auto both = [&]() -> cobatch::task<> {
    const std::vector<int> sizes{5, 2};
    const auto each = [&](int size) { return consume(size, std::chrono::milliseconds(size == 2 ? 7 : 0)); };
    const auto taken = co_await cobatch::batch_predict(sim, sizes, each);
    CHECK(taken[0].value() == 5);
    CHECK(taken[1].value() == 2);
  };
  sim.run(both());
  CHECK(calls == 7);
  CHECK(permit.available() == 1);
  CHECK(sim.now().time_since_epoch() == std::chrono::milliseconds(11));
}

TEST_CASE("predict_stream: after there was no memory to start it, the next call starts it as if it were the first") {
  for (std::size_t n = 1; n < 20; ++n) {
    cobatch::simulation sim;
    const auto body = [&]() -> cobatch::task<> {
      const std::vector<int> samples{1, 2};
      const auto predict = [&](int x, std::stop_token stop) -> cobatch::task<int> {
        auto sleep = sim.schedule_after(1h, stop);
        if (!co_await sleep) throw std::runtime_error("stopped");
        co_return x;
      };
      auto stream = cobatch::predict_stream(sim, samples, predict, {.max_concurrency = 2, .deadline = 20ms});
      bool threw = false;
      fail_allocation_in(n);
      try {
        (void)co_await stream.next();
      } catch (const std::bad_alloc&) {
        threw = true;
      }
      (void)allocation_failure_is_pending();
      while (const auto item = co_await stream.next()) {}
      if (threw) CHECK(sim.now().time_since_epoch() == 20ms);
    };
    sim.run(body());
  }
}
