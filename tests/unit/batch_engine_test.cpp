#include <cobatch/engine/batch.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <new>
#include <numeric>
#include <optional>
#include <ranges>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <cobatch/adaptive_limit.hpp>
#include <cobatch/batch_predict.hpp>
#include <cobatch/error.hpp>
#include <cobatch/executor.hpp>
#include <cobatch/expected.hpp>
#include <cobatch/predict_stream.hpp>
#include <cobatch/rate_limiter.hpp>
#include <cobatch/semaphore.hpp>
#include <cobatch/simulation.hpp>
#include <cobatch/sync_wait.hpp>
#include <cobatch/task.hpp>
#include <cobatch/thread_pool.hpp>

#include "support/catch.hpp"
#include "support/detached.hpp"
#include "support/outline.hpp"
#include "support/parking_place.hpp"
#include "support/plain_threads.hpp"
#include "support/started.hpp"
#include "support/step_executor.hpp"
#include "support/told.hpp"

// Where the parts of the engine meet: its clock with lanes that do not suspend, its gates with retries and with awaited
// inputs, and every way to an end with what is still on its way then.

using cobatch::async_semaphore;
using cobatch::batch_options;
using cobatch::batch_predict;
using cobatch::errc;
using cobatch::error;
using cobatch::expected;
using cobatch::predict_stream;
using cobatch::simulation;
using cobatch::task;
using namespace std::chrono_literals;

namespace {

// One predict type and few kinds of input: each pair is a whole engine to compile.
using predict_type = std::function<task<int>(int, std::stop_token)>;
using outcomes = std::vector<expected<int, error>>;
using activity = std::function<task<int>()>;

/// Runs all of them side by side.
void run_all(simulation& sim, const std::vector<activity>& all) {
  const auto results = sim.run(batch_predict(sim, all, [](const activity& each) { return each(); }));
  for (const auto& each : results) {
    if (!each) FAIL_CHECK(each.error().message());
  }
}

std::chrono::nanoseconds elapsed(const simulation& sim) {
  return sim.now().time_since_epoch();
}

std::vector<int> zero_to(int end) {
  std::vector<int> samples(static_cast<std::size_t>(end));
  std::iota(samples.begin(), samples.end(), 0);
  return samples;
}

/// 0 to 9, read one by one; one of them cannot be read.
auto unreadable_at(int which) {
  return std::views::iota(0, 10) | std::views::transform([which](int x) {
           if (x == which) throw std::runtime_error("unreadable");
           return x;
         });
}

/// Takes as long as the sample is told to, unless it is stopped.
predict_type takes(simulation& sim, std::function<std::chrono::nanoseconds(int)> how_long) {
  return [&sim, how_long](int x, std::stop_token stop) -> task<int> {
    if (!co_await sim.schedule_after(how_long(x), stop)) throw std::runtime_error("stopped");
    co_return x;
  };
}

/// An asynchronous source as a user would write it.
struct asynchronous {
  std::function<task<std::optional<int>>()> next;
};

/// A simulation whose timers come to an end: after so many, the next ones are refused, or throw.
class failing_timers {
 public:
  failing_timers(int timers, bool throws) : left_(timers), throws_(throws) {}

  bool execute(std::coroutine_handle<> handle) { return loop.execute(handle); }
  std::size_t concurrency() const noexcept { return 1; }
  bool running_in_this_thread() const noexcept { return true; }
  auto now() const noexcept { return loop.now(); }
  task<bool> schedule_after(std::chrono::nanoseconds delay, std::stop_token token = {}) {
    const bool works = left_-- > 0;
    if (!works && throws_) throw std::bad_alloc();
    return sleep(works, delay, std::move(token));
  }

  simulation loop;

 private:
  task<bool> sleep(bool works, std::chrono::nanoseconds delay, std::stop_token token) {
    if (!works) co_return false;  // no &&: GCC 12 awaits its right operand in any case
    co_return co_await loop.schedule_after(delay, std::move(token));
  }

  int left_;
  bool throws_;
};

/// An executor whose clock moves as the test says.
struct clocked : step_executor {
  auto now() const noexcept { return std::chrono::time_point<std::chrono::steady_clock, std::chrono::nanoseconds>(time); }
  std::size_t concurrency() const noexcept { return 1; }
  std::chrono::nanoseconds time{};
};

/// Two threads: what one of them hands over runs on the other.
class relay {
 public:
  void execute(std::coroutine_handle<> handle) { (one_.here() ? other_ : one_).execute(handle); }
  std::size_t concurrency() const noexcept { return 2; }
  bool running_in_this_thread() const noexcept { return one_.here() || other_.here(); }

 private:
  plain_threads one_{1}, other_{1};
};

/// Its caller runs: an execute() that finds too much queued resumes the oldest one itself.
struct helping_executor : step_executor {
  std::size_t most = 100;

  std::size_t concurrency() const noexcept { return 2; }
  bool execute(std::coroutine_handle<> handle) {
    const bool taken = step_executor::execute(handle);
    while (queued() > most) step();
    return taken;
  }

  struct turn {
    helping_executor& ex;
    bool ready;
    bool await_ready() const noexcept { return ready; }
    void await_suspend(std::coroutine_handle<> handle) const { ex.execute(handle); }
    int await_resume() const noexcept { return 1; }
  };
};

/// An error type that does not always succeed in being made.
struct fragile_error {
  explicit fragile_error(const error&) {
    if (makes-- <= 0) throw std::runtime_error("no error can be made");
  }
  static inline int makes = 0;
};

}  // namespace

// ---- The clock ----

TEST_CASE("batch_engine: an attempt behind one that did not suspend has a whole timeout, and is doubled no earlier") {
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    for (const bool hedged : {false, true}) {
      INFO("seed: " << seed << ", hedged: " << hedged);
      simulation sim(seed);
      const std::vector<int> samples = zero_to(100);
      int calls = 0;
      const predict_type alternating = [&](int x, std::stop_token stop) -> task<int> {
        ++calls;
        if (x % 2 == 1 && !co_await sim.schedule_after(50ms, stop)) throw std::runtime_error("stopped");
        co_return x;
      };
      batch_options options{.max_concurrency = 2};
      if (hedged) {
        options.hedge = {.delay = 5s, .max_extra = 1};
      } else {
        options.timeout = 5s;
      }
      const auto body = [&]() -> task<outcomes> {
        co_await sim.schedule_after(10s);
        co_return co_await batch_predict(sim, samples, alternating, options);
      };
      const outcomes results = sim.run(body());
      CHECK(values_in(results) == 100);
      CHECK(calls == 100);
      CHECK(elapsed(sim) == 10s + 25 * 50ms);
    }
  }
}

TEST_CASE("batch_engine: a wait for the adaptive limit between two samples is no part of the attempt") {
  simulation sim;
  cobatch::adaptive_limit limit({.initial = 1, .min = 1, .max = 1});
  const std::vector<int> first = zero_to(3), second = zero_to(4);
  const predict_type brief = takes(sim, [](int) { return 1s; });
  const predict_type second_at_once = [&](int x, std::stop_token stop) -> task<int> {
    if (x == 1) co_return x;
    co_return co_await brief(x, stop);
  };
  const predict_type lengthy = takes(sim, [](int) { return 10s; });
  outcomes results;
  run_all(sim, {[&]() -> task<int> {
                  results = co_await batch_predict(sim, first, second_at_once,
                                                   {.max_concurrency = 1, .limit = &limit, .timeout = 5s});
                  CHECK(elapsed(sim) == 22s);  // twice behind a sample of the other batch
                  co_return 0;
                },
                [&]() -> task<int> {
                  (void)co_await batch_predict(sim, second, lengthy, {.max_concurrency = 1, .limit = &limit});
                  co_return 0;
                }});
  CHECK(outline(results) == "0 1 2");
  CHECK(elapsed(sim) == 42s);
}

TEST_CASE("batch_engine: timers that end while a sample sleeps for its retry end the batch, its last error stands") {
  const std::vector<int> samples{1, 2};
  for (const bool throws : {false, true}) {
    for (int timers = 0; timers < 8; ++timers) {
      INFO("timers: " << timers << ", throws: " << throws);
      failing_timers ex(timers, throws);
      int calls = 0;
      const predict_type fails = [&](int, std::stop_token) -> task<int> {
        ++calls;
        throw std::runtime_error("always");
        co_return 0;
      };
      const batch_options options{.retry = {.max_attempts = 3, .initial_backoff = 20ms, .jitter = false}};
      const outcomes results = ex.loop.run(batch_predict(ex, samples, fails, options));
      REQUIRE(results.size() == 2);
      std::uint32_t attempts = 0;
      for (const auto& each : results) {
        REQUIRE_FALSE(each);
        attempts += each.error().attempts;
        CHECK(each.error().code == (each.error().attempts == 0 ? errc::executor_stopped : errc::exception));
      }
      CHECK(attempts == static_cast<std::uint32_t>(calls));
      if (timers == 1) CHECK(calls == 2);
      if (timers == 7) CHECK(calls == 6);
    }
  }
}

TEST_CASE("batch_engine: timers that end under a rate limiter end the batch, what had no turn says executor_stopped") {
  const std::vector<int> samples{0, 1, 2, 3};
  const predict_type identity = [](int x, std::stop_token) -> task<int> { co_return x; };
  for (int timers = 0; timers < 3; ++timers) {
    failing_timers ex(timers, true);
    cobatch::rate_limiter rate(1, 1);
    const outcomes results = ex.loop.run(batch_predict(ex, samples, identity, {.rate = &rate}));
    REQUIRE(results.size() == 4);
    CHECK(values_in(results) == timers + 1);
    CHECK(count_of(results, errc::executor_stopped) == 3 - timers);
  }
}

// ---- Ways to an end ----

TEST_CASE("batch_engine: what is in flight when the input throws can still be stopped") {
  simulation sim;
  std::stop_source stop;
  batch_options options{.max_concurrency = 4, .stop = stop};
  const auto run = [&](const predict_type& predict) {
    outcomes results;
    run_all(sim, {[&]() -> task<int> {
                    results = co_await batch_predict(sim, unreadable_at(2), predict, options);
                    co_return 0;
                  },
                  [&]() -> task<int> {
                    co_await sim.schedule_after(2s);
                    stop.request_stop();
                    co_return 0;
                  }});
    REQUIRE(results.size() == 10);
    CHECK(results[2].error().code == errc::input_failed);
    CHECK(count_of(results, errc::not_started) == 7);
    results.resize(2);
    return outline(results);
  };
  const predict_type hour = takes(sim, [](int) { return 1h; });
  SECTION("by the user") {
    CHECK(run(hour) == "cancelled cancelled");
  }
  SECTION("by the deadline") {
    options.deadline = 1s;
    CHECK(run(hour) == "deadline_exceeded deadline_exceeded");
  }
  SECTION("by max_failures") {
    options.max_failures = 1;
    const predict_type first_fails = [&](int x, std::stop_token token) -> task<int> {
      if (x == 1) co_return co_await hour(x, token);
      co_await sim.schedule_after(1s);
      throw std::runtime_error("planned");
    };
    CHECK(run(first_fails) == "exception cancelled");
  }
  CHECK(elapsed(sim) == 2s);
}

TEST_CASE("batch_engine: on an inline executor a stop ends a batch that waits for a permit, and touches it no more") {
  for (const std::uint32_t attempts : {1u, 2u}) {
    cobatch::inline_executor ex;
    async_semaphore semaphore(1);
    const auto held = semaphore.try_acquire();
    std::stop_source stop;
    const std::vector<int> samples{1, 2, 3};
    const predict_type identity = [](int x, std::stop_token) -> task<int> { co_return x; };
    const batch_options options{
        .semaphore = &semaphore, .stop = stop, .retry = {.max_attempts = attempts, .initial_backoff = 0ns}};
    outcomes results;
    // Its frame, and with it the batch, is gone before request_stop() returns.
    const auto wait = [](auto& executor, auto& input, auto& predict, auto& how, auto& into) -> detached {
      into = co_await batch_predict(executor, input, predict, how);
    };
    wait(ex, samples, identity, options, results);
    CHECK(results.empty());
    CHECK(semaphore.waiting() == 1);
    stop.request_stop();
    CHECK(outline(results) == "not_started not_started not_started");
    CHECK(semaphore.waiting() == 0);
  }
}

TEST_CASE("batch_engine: samples that queue for their retry when the batch is stopped have their outcome") {
  for (const bool streamed : {false, true}) {
    INFO("streamed: " << streamed);
    step_executor ex;
    async_semaphore semaphore(1);
    std::stop_source stop;
    scribe told;
    const std::vector<int> samples{1, 2};
    std::optional<cobatch::permit> taken;
    const auto take = [&]() -> detached { taken = co_await semaphore.acquire(); };
    int calls = 0;
    const predict_type fails = [&](int, std::stop_token) -> task<int> {
      if (++calls == 2) take();
      throw std::runtime_error("always");
      co_return 0;
    };
    const batch_options options{.max_concurrency = 1,
                                .semaphore = &semaphore,
                                .stop = stop,
                                .retry = {.max_attempts = 100, .initial_backoff = 0ns},
                                .observer = &told};
    outcomes results;
    const auto body = [&]() -> started {
      if (!streamed) {
        results = co_await batch_predict(ex, samples, fails, options);
        std::erase_if(results, [](const auto& each) { return each.error().code == errc::not_started; });
        co_return;
      }
      auto stream = predict_stream(ex, samples, fails, options);
      while (auto item = co_await stream.next()) results.push_back(std::move(item->result));
    };
    const started running = body();
    ex.drain();
    REQUIRE_FALSE(running.done());
    REQUIRE(taken);
    REQUIRE(semaphore.waiting() == 1);
    stop.request_stop();
    ex.drain();
    REQUIRE(running.done());
    std::vector<std::size_t> read;
    for (const auto& each : told.starts) read.push_back(each.index);
    std::ranges::sort(read);
    read.erase(std::ranges::unique(read).begin(), read.end());
    CHECK(count_of(results, errc::exception) == static_cast<long>(read.size()));
    CHECK(results.size() == read.size());
    std::vector<std::size_t> finished;
    for (const auto& each : told.finished) finished.push_back(each.index);
    std::ranges::sort(finished);
    CHECK(finished == read);
    CHECK(told.summaries.at(0).finished == read.size());
    CHECK(told.summaries.at(0).not_started == samples.size() - read.size());
  }
}

TEST_CASE("batch_engine: the timekeeper does not end a batch while what slept for its retry is being settled") {
  // Timers that never elapse; once stopped, a sleeper is queued.
  struct executor : step_executor {
    struct sleep {
      executor& ex;
      std::stop_token token;
      std::coroutine_handle<> handle{};
      struct wake {
        sleep* self;
        void operator()() const { self->ex.execute(self->handle); }
      };
      std::optional<std::stop_callback<wake>> link{};

      bool await_ready() const noexcept { return false; }
      void await_suspend(std::coroutine_handle<> sleeper) {
        handle = sleeper;
        link.emplace(token, wake{this});
      }
      bool await_resume() noexcept {
        link.reset();
        return false;
      }
    };
    sleep schedule_after(std::chrono::nanoseconds, std::stop_token token = {}) { return {*this, std::move(token)}; }
  };
  // Inside the hook everything else runs that can, as it might on another thread.
  struct reader : cobatch::batch_observer {
    explicit reader(executor& runs) : ex(runs) {}
    void sample_finished(const cobatch::sample_event& event) override {
      if (event.index != 0) return;
      inside = told = true;
      ex.drain();
      inside = false;
    }
    void batch_ended(const cobatch::batch_summary&) override { ended_meanwhile = inside; }
    executor& ex;
    bool inside = false, told = false, ended_meanwhile = false;
  };
  executor ex;
  reader observer(ex);
  std::stop_source stop;
  const std::vector<int> samples{0, 1};
  const predict_type predict = [&](int x, std::stop_token) -> task<int> {
    if (x == 0) throw std::runtime_error("again");
    stop.request_stop();
    co_return x;
  };
  const batch_options options{.max_concurrency = 1,
                              .stop = stop,
                              .retry = {.max_attempts = 2, .initial_backoff = 1h, .jitter = false},
                              .observer = &observer};
  outcomes results;
  const auto wait = [&]() -> started { results = co_await batch_predict(ex, samples, predict, options); };
  const started running = wait();
  ex.drain();
  REQUIRE(running.done());
  CHECK(outline(results) == "exception 1");
  CHECK(observer.told);
  CHECK_FALSE(observer.ended_meanwhile);
}

TEST_CASE("batch_engine: a batch whose samples are done does not wait for a permit that never comes") {
  // The last sample hands its handle over and lingers: it ends on the other thread, while this one still looks for
  // more. By then no permit is left.
  async_semaphore semaphore(2);
  const auto outside = semaphore.try_acquire();
  relay threads;
  struct hand_over {
    relay& to;
    async_semaphore* lingers;  // until somebody waits for this one, but not for long
    bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<> handle) const {
      async_semaphore* const awaited = lingers;
      to.execute(handle);  // *this may be gone
      for (int i = 0; awaited && awaited->waiting() == 0 && i < 1000; ++i) std::this_thread::yield();
    }
    int await_resume() const noexcept { return 1; }
  };
  std::mutex mutex;  // guards ended
  std::condition_variable changed;
  bool ended = false, stuck = false;
  std::thread watch([&] {
    std::unique_lock lock(mutex);
    stuck = !changed.wait_for(lock, 20s, [&] { return ended; });
    if (stuck) semaphore.set_limit(cobatch::unlimited / 2);
  });
  const auto stop_watch = [&] {
    const std::lock_guard lock(mutex);
    ended = true;
    changed.notify_one();
    return stuck;
  };
  for (std::size_t round = 0; round < 1500; ++round) {
    const std::vector<int> samples(4 + round % 4);
    std::atomic<std::size_t> calls{0};
    const auto predict = [&](int) {
      const bool last = ++calls == samples.size();
      if (last) semaphore.set_limit(0);
      return hand_over{threads, last ? &semaphore : nullptr};
    };
    const auto results =
        cobatch::sync_wait(batch_predict(threads, samples, predict, {.max_concurrency = 8, .semaphore = &semaphore}));
    CHECK(values_in(results) == static_cast<long>(samples.size()));
    {
      const std::lock_guard lock(mutex);
      if (stuck) break;
    }
    semaphore.set_limit(2);
  }
  CHECK_FALSE(stop_watch());
  watch.join();
}

TEST_CASE("batch_engine: where the user's error type throws, a hedged sample still has one outcome") {
  const std::vector<int> samples{0, 1, 2};
  for (const bool fails : {false, true}) {
    for (int makes = 3; makes < 16; ++makes) {  // 3: one for each slot, which is made beforehand
      INFO("fails: " << fails << ", errors that can be made: " << makes);
      simulation sim;
      int calls = 0;
      const auto predict = [&](int x) -> task<expected<int, fragile_error>> {
        ++calls;
        co_await sim.schedule_after(1s);
        if (fails) throw std::runtime_error("planned");
        co_return x;
      };
      fragile_error::makes = makes;
      const auto results = sim.run(batch_predict(sim, samples, predict, {.hedge = {.delay = 100ms, .max_extra = 1}}));
      REQUIRE(results.size() == 3);
      if (!fails && makes >= 3 + 6) CHECK(values_in(results) == 3);
      if (fails) CHECK(values_in(results) == 0);
      CHECK(calls == 6);
      CHECK(elapsed(sim) == 1100ms);
    }
  }
}

// ---- The gates ----

TEST_CASE("batch_engine: a sample that comes back goes ahead of an input that is not there yet") {
  // The producer gives the second sample once the first one is answered.
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    for (const bool shares : {false, true}) {
      simulation sim(seed);
      async_semaphore answered(0), semaphore(2);
      int given = 0, calls = 0;
      asynchronous source{[&]() -> task<std::optional<int>> {
        if (given == 2) co_return std::nullopt;
        if (given == 1) (co_await answered.acquire()).release();
        co_return given++;
      }};
      const predict_type first_fails = [&](int x, std::stop_token) -> task<int> {
        co_await sim.schedule_after(10ms);
        if (++calls == 1) throw std::runtime_error("once");
        co_return x;
      };
      batch_options options{.max_concurrency = 4,
                            .retry = {.max_attempts = 3, .initial_backoff = 20ms, .jitter = false}};
      if (shares) options.semaphore = &semaphore;
      const auto body = [&]() -> task<int> {
        auto stream = predict_stream(sim, source, first_fails, options);
        int sum = 0;
        while (auto item = co_await stream.next()) {
          CHECK(item->result == static_cast<int>(item->index));
          CHECK(elapsed(sim) == (item->index == 0 ? 40ms : 50ms));
          if (item->index == 0) answered.release();
          ++sum;
        }
        co_return sum;
      };
      CHECK(sim.run(body()) == 2);
      CHECK(calls == 3);
    }
  }
}

TEST_CASE("batch_engine: an awaited input is read on once a permit is free, however long nobody could have one") {
  simulation sim;
  async_semaphore semaphore(2);
  int given = 0;
  asynchronous source{[&]() -> task<std::optional<int>> {
    if (given == 6) co_return std::nullopt;
    co_return given++;
  }};
  const predict_type predict = takes(sim, [](int x) -> std::chrono::nanoseconds { return x == 0 ? 1h : 1s; });
  auto held = semaphore.try_acquire();
  std::string story;
  const auto consume = [&]() -> task<int> {
    auto stream =
        predict_stream(sim, source, predict, {.max_concurrency = 4, .semaphore = &semaphore, .queue_timeout = 5s});
    while (auto item = co_await stream.next()) {
      story += std::to_string(item->index) + (item->result ? "" : "!") + "@" +
               std::to_string(std::chrono::duration_cast<std::chrono::seconds>(elapsed(sim)).count()) + " ";
    }
    co_return 0;
  };
  run_all(sim, {consume, [&]() -> task<int> {
                  co_await sim.schedule_after(10s);
                  held.reset();
                  co_return 0;
                }});
  CHECK(story == "1@11 2@12 3@13 4@14 5@15 0@3600 ");
}

TEST_CASE("batch_engine: two batches of samples that take no time take turns at a shared semaphore, to the end") {
  const bool suspends = GENERATE(false, true);
  INFO("suspends: " << suspends);
  simulation sim;
  async_semaphore semaphore(1);
  const std::vector<int> samples = zero_to(10'000);
  std::vector<int> turns;
  int last = -1;
  const auto batch = [&](int name) -> task<int> {
    const predict_type predict = [&, name](int x, std::stop_token) -> task<int> {
      if (name == 0 && x == 0) co_await sim.schedule_after(1s);  // the other one is there from now on
      if (suspends) co_await sim.schedule();
      if (std::exchange(last, name) != name) turns.push_back(0);
      ++turns.back();
      co_return x;
    };
    (void)co_await batch_predict(sim, samples, predict, {.max_concurrency = 4, .semaphore = &semaphore});
    co_return 0;
  };
  run_all(sim, {[&] { return batch(0); }, [&] { return batch(1); }});
  // But for those at the beginning, until both are there, and those at the end.
  REQUIRE(turns.size() > 60);
  CHECK(std::ranges::count(turns, 10'000 / 64) >= static_cast<std::ptrdiff_t>(turns.size()) - 5);
  CHECK(std::ranges::max(turns) <= 10'000 / 64 + 1);
}

TEST_CASE("batch_engine: after an input that was there at once, a lane waits for what else it needs") {
  simulation sim;
  const auto run = [&](const auto& predict, const batch_options& options) {
    int left = 4;
    asynchronous source{[&]() -> task<std::optional<int>> {
      if (left == 0) co_return std::nullopt;
      co_return left--;
    }};
    const auto body = [&]() -> task<int> {
      auto stream = predict_stream(sim, source, predict, options);
      int good = 0;
      while (auto item = co_await stream.next()) good += item->result.has_value() && *item->result ? 1 : 0;
      co_return good;
    };
    return sim.run(body());
  };
  const auto before = elapsed(sim);
  CHECK(run([&](int) { return sim.schedule_after(20ms); }, {.max_concurrency = 1}) == 4);  // true: it has elapsed
  CHECK(elapsed(sim) - before == 80ms);

  cobatch::rate_limiter rate(50);
  CHECK(run([](int) { return true; }, {.max_concurrency = 1, .rate = &rate}) == 4);

  const auto slow = [&](int) -> task<bool> {
    co_await sim.schedule_after(5ms);
    co_return true;
  };
  CHECK(run(cobatch::weighted(slow, [](int) { return 2; }), {.max_concurrency = 2, .max_weight = 3}) == 4);
}

TEST_CASE("batch_engine: a lane that is resumed inside what its pump calls next is not forgotten") {
  for (const bool as_task : {false, true}) {
    helping_executor ex;
    const std::vector<int> samples(64);
    int calls = 0;
    // The first call lets the second pump run, nested; it takes all other samples and asks the first one to share.
    const auto is_first = [&] {
      if (++calls != 1) return false;
      ex.step();
      ex.most = 1;
      return true;
    };
    const auto awaitable = [&](int) { return helping_executor::turn{ex, !is_first()}; };
    const auto coroutine = [&](int) -> task<int> {
      const bool waits = is_first();
      co_return co_await helping_executor::turn{ex, !waits};
    };
    std::size_t good = 0;
    const auto wait = [&](auto& predict) -> started {
      const auto results = co_await batch_predict(ex, samples, predict, {.max_concurrency = 8});
      for (const auto& each : results) good += each.has_value() ? 1 : 0;
    };
    const started running = as_task ? wait(coroutine) : wait(awaitable);
    while (ex.step()) {}
    CHECK(running.done());
    CHECK(calls == 64);
    CHECK(good == 64);
  }
}

TEST_CASE("batch_engine: in a batch that is given up, the second attempt of a sample ends before the sample") {
  struct reader {
    ~reader() { all_there = all_there && text == std::string(100, 'x'); }
    const std::string& text;
    bool& all_there;
  };
  simulation sim;
  async_semaphore never(0);
  bool all_there = true;
  int calls = 0;
  const auto samples = std::views::iota(0, 1) | std::views::transform([](int) { return std::string(100, 'x'); });
  const auto predict = [&](const std::string& text) -> task<int> {
    const reader reads{text, all_there};
    ++calls;
    const auto permit = co_await never.acquire();
    co_return 1;
  };
  CHECK_THROWS_AS(sim.run(batch_predict(sim, samples, predict, {.hedge = {.delay = 1ms, .max_extra = 1}})),
                  cobatch::deadlock_error);
  CHECK(calls == 2);
  CHECK(all_there);
}

TEST_CASE("batch_engine: a stop may come while the batch starts") {
  struct stopped_by_the_clock {
    cobatch::thread_pool& pool;
    std::stop_source& stop;
    std::atomic<int> looks = 0;
    std::atomic<bool> asked = false;  // relaxed: nothing but the lock orders the two threads
    std::thread other{};

    bool execute(std::coroutine_handle<> handle) { return pool.execute(handle); }
    std::size_t concurrency() const noexcept { return 2; }
    auto schedule_after(std::chrono::nanoseconds delay, std::stop_token token = {}) {
      return pool.schedule_after(delay, std::move(token));
    }
    std::chrono::steady_clock::time_point now() {
      if (looks.fetch_add(1, std::memory_order_relaxed) == 0) {
        other = std::thread([this] {
          stop.request_stop();
          asked.store(true, std::memory_order_relaxed);
        });
        while (!asked.load(std::memory_order_relaxed)) std::this_thread::yield();
      }
      return std::chrono::steady_clock::now();
    }
  };
  cobatch::thread_pool pool(2);
  std::stop_source stop;
  stopped_by_the_clock ex{pool, stop};
  const predict_type identity = [](int x, std::stop_token) -> task<int> { co_return x; };
  const batch_options options{.stop = stop, .deadline = 1h, .retry = {.max_attempts = 2}};
  const outcomes results = cobatch::sync_wait(batch_predict(ex, zero_to(10), identity, options));
  ex.other.join();
  CHECK(count_of(results, errc::not_started) == 10);
}

TEST_CASE("batch_engine: a permit that others wait for does not queue for an executor with its lane") {
  step_executor a, b;
  async_semaphore one(1);
  parking_place in_a, in_b;
  const std::vector<int> samples{0, 1};
  bool done_a = false, done_b = false;
  const auto predict_a = [&](int) -> parking_place& { return in_a; };
  const auto predict_b = [&](int) -> parking_place& { return in_b; };
  const auto go = [&](step_executor& ex, const auto& predict, bool& done) -> detached {
    (void)co_await batch_predict(ex, samples, predict, {.max_concurrency = 1, .semaphore = &one});
    done = true;
  };
  go(b, predict_b, done_b);
  b.drain();
  go(a, predict_a, done_a);
  a.drain();  // waits for b's permit
  std::exchange(in_b.parked, {}).resume();
  b.drain();  // waits for a's
  a.drain();
  std::exchange(in_a.parked, {}).resume();  // on a thread that is not a's
  b.drain();
  REQUIRE(in_b.parked);
  std::exchange(in_b.parked, {}).resume();
  b.drain();
  CHECK(done_b);
  a.drain();
  REQUIRE(in_a.parked);
  std::exchange(in_a.parked, {}).resume();
  a.drain();
  CHECK(done_a);
}

TEST_CASE("batch_engine: after short samples a long one hands over a permit that others wait for") {
  const bool suspends = GENERATE(false, true);
  INFO("suspends: " << suspends);
  simulation sim;
  async_semaphore one(1);
  std::string order;
  const std::vector<int> samples = zero_to(12);
  // A simulation's clock stands still while a sample computes: there the time is that of a sample which sleeps.
  const predict_type mixed = [&](int x, std::stop_token) -> task<int> {
    order += x < 4 ? 'a' : 'A';
    if (x >= 4) {
      co_await sim.schedule_after(1s);
    } else if (suspends) {
      co_await sim.schedule();
    }
    co_return x;
  };
  const predict_type quick = [&](int x, std::stop_token) -> task<int> {
    order += 'b';
    co_await sim.schedule_after(1ms);
    co_return x;
  };
  const batch_options options{.max_concurrency = 1, .semaphore = &one};
  run_all(sim, {[&]() -> task<int> {
                  (void)co_await batch_predict(sim, samples, quick, options);
                  co_return 0;
                },
                [&]() -> task<int> {
                  co_await sim.schedule_after(500us);
                  (void)co_await batch_predict(sim, samples, mixed, options);
                  co_return 0;
                }});
  CHECK(order == "baaaaAbAbAbAbAbAbAbAbbbb");
}

TEST_CASE("batch_engine: an awaitable derived from a task is awaited by its own members") {
  struct traced : task<int> {
    traced(task<int> inner, int& count) : task<int>(std::move(inner)), awaits(&count) {}
    bool await_suspend(std::coroutine_handle<> handle) {
      ++*awaits;
      return task<int>::await_suspend(handle);
    }
    int* awaits;
  };
  cobatch::inline_executor ex;
  int awaits = 0;
  const auto body = [](int x) -> task<int> { co_return x; };
  const auto predict = [&](int x) { return traced(body(x), awaits); };
  CHECK(cobatch::sync_wait(batch_predict(ex, zero_to(10), predict)).size() == 10);
  CHECK(awaits == 10);
}

TEST_CASE("batch_engine: an input that throws ends what sleeps for its retry at once") {
  simulation sim;
  int given = 0;
  asynchronous source{[&]() -> task<std::optional<int>> {
    co_await sim.schedule_after(1s);
    if (given == 2) throw std::runtime_error("unreadable");
    co_return given++;
  }};
  const predict_type predict = [&](int x, std::stop_token) -> task<int> {
    if (x == 0) throw std::runtime_error("again");
    co_await sim.schedule_after(1h);
    co_return x;
  };
  const auto body = [&]() -> task<std::string> {
    auto stream = predict_stream(
        sim, source, predict,
        {.max_concurrency = 3,
         .retry = {.max_attempts = 2, .initial_backoff = 100h, .max_backoff = 100h, .jitter = false}});
    std::string story;
    while (auto item = co_await stream.next()) {
      story += std::to_string(item->index) + "@" +
               std::to_string(std::chrono::duration_cast<std::chrono::seconds>(elapsed(sim)).count()) + " ";
    }
    co_return story;
  };
  const std::string story = sim.run(body());
  CHECK((story == "0@3 2@3 1@3602 " || story == "2@3 0@3 1@3602 "));
}

// ---- What observers are told of it ----

TEST_CASE("batch_engine: an observer is told the end of every wait, also of one for an input that throws") {
  for (const bool in_the_call : {false, true}) {
    simulation sim;
    scribe told;
    int given = 0;
    const auto read = [&]() -> task<std::optional<int>> {
      if (given == 2) throw std::runtime_error("unreadable");
      co_return given++;
    };
    asynchronous source{[&] {
      if (in_the_call && given == 2) throw std::runtime_error("no read was begun");
      return read();
    }};
    const predict_type identity = [](int x, std::stop_token) -> task<int> { co_return x; };
    const auto body = [&]() -> task<std::string> {
      auto stream = predict_stream(sim, source, identity, {.max_concurrency = 1, .observer = &told});
      outcomes results;
      while (auto item = co_await stream.next()) results.push_back(std::move(item->result));
      co_return outline(results);
    };
    CHECK(sim.run(body()) == "0 1 input_failed");
    CHECK(std::ranges::count(told.lines, "wait_started") == 3);
    CHECK(std::ranges::count(told.lines, "wait_ended") == 3);
    REQUIRE(told.finished.size() == 3);
    CHECK(told.finished[2].index == 2);
    CHECK(told.finished[2].attempts == 0);
    CHECK(told.finished[2].failure == errc::input_failed);
  }
}

TEST_CASE("batch_engine: an observer is told that a sample that could not be read was not attempted") {
  simulation sim;
  scribe told;
  const predict_type identity = [](int x, std::stop_token) -> task<int> { co_return x; };
  const batch_options options{.max_concurrency = 1, .observer = &told};
  const outcomes results = sim.run(batch_predict(sim, unreadable_at(2), identity, options));
  CHECK(results[2].error().attempts == 0);
  CHECK(told.starts.size() == 2);
  REQUIRE(told.finished.size() == 3);
  CHECK(told.finished[1].attempts == 1);
  CHECK(told.finished[2].attempts == 0);
  CHECK(told.finished[2].failure == errc::input_failed);
}

TEST_CASE("batch_engine: an observer is never told of more samples in flight than a shared semaphore allows") {
  struct meter : cobatch::batch_observer {
    void attempt_started(const cobatch::attempt_event& event) override { look(event); }
    void attempt_ended(const cobatch::attempt_event& event) override { look(event); }
    void look(const cobatch::attempt_event& event) {
      ++told;
      if (event.in_flight == 0 || event.in_flight > event.limit) ++wrong;
    }
    std::atomic<int> told = 0, wrong = 0;
  };
  meter observer;
  cobatch::thread_pool pool(4);
  const std::vector<int> samples(300);
  const predict_type hop = [&](int x, std::stop_token) -> task<int> {
    co_await pool.schedule();
    co_return x;
  };
  for (std::size_t limit = 1; limit <= 3; ++limit) {
    async_semaphore semaphore(limit);
    for (int round = 0; round < 3; ++round) {
      cobatch::sync_wait(batch_predict(pool, samples, hop, {.semaphore = &semaphore, .observer = &observer}));
    }
  }
  CHECK(observer.told == 2 * 9 * 300);
  CHECK(observer.wrong == 0);
}

TEST_CASE("batch_engine: an attempt does not begin when the lane that makes it had its last one") {
  // The first attempt does not suspend, and its lane rests for as long as the backoff takes.
  simulation sim;
  int calls = 0;
  const predict_type predict = [&](int x, std::stop_token stop) -> task<int> {
    if (calls++ == 0) throw std::runtime_error("once");
    if (!co_await sim.schedule_after(10ms, stop)) throw std::runtime_error("stopped");
    co_return x;
  };
  const std::vector<int> one{7};
  const auto results = sim.run(batch_predict(
      sim, one, predict,
      {.timeout = 50ms, .retry = {.max_attempts = 2, .initial_backoff = 100ms, .jitter = false}}));
  CHECK(outline(results) == "7");
}

TEST_CASE("batch_engine: timeouts too short for looking ahead come for every sample, also one that begins inside a stop") {
  struct until_stopped {
    struct wake {
      std::coroutine_handle<> handle;
      void operator()() const noexcept { handle.resume(); }
    };
    explicit until_stopped(std::stop_token stop) : token(std::move(stop)) {}
    until_stopped(until_stopped&& other) : token(std::move(other.token)) {}
    bool await_ready() const noexcept { return token.stop_requested(); }
    void await_suspend(std::coroutine_handle<> handle) { link.emplace(token, wake{handle}); }
    int await_resume() {
      link.reset();
      return 1;
    }
    std::stop_token token;
    std::optional<std::stop_callback<wake>> link;
  };
  simulation sim;
  const std::vector<int> samples(4);
  const auto predict = [](int, std::stop_token stop) { return until_stopped(std::move(stop)); };
  const auto results = sim.run(batch_predict(sim, samples, predict, {.max_concurrency = 1, .timeout = 500us}));
  CHECK(outline(results) == "1 1 1 1");
}

TEST_CASE("batch_engine: a retry that becomes ready while its lane asks the source is not forgotten") {
  // next() lets the timer of the retry come before it suspends; the next sample comes after the answer to the first.
  for (const std::size_t cap : {std::size_t{1}, std::size_t{2}}) {
    step_executor ex;
    async_semaphore answered(0);
    int given = 0, calls = 0, taken = 0;
    asynchronous source{[&]() -> task<std::optional<int>> {
      if (given++ != 0) {
        (co_await answered.acquire()).release();
        co_return std::nullopt;
      }
      co_return 7;
    }};
    const predict_type predict = [&](int x, std::stop_token) -> task<int> {
      if (calls++ == 0) throw std::runtime_error("once");
      co_return x;
    };
    const auto consume = [&]() -> started {
      auto stream = predict_stream(ex, source, predict,
                                   {.max_concurrency = cap, .retry = {.max_attempts = 2, .initial_backoff = 0ns}},
                                   {.window = 2});
      while (auto item = co_await stream.next()) {
        CHECK(item->result == 7);
        ++taken;
        answered.release();
      }
    };
    const started running = consume();
    ex.drain();
    CHECK(running.done());
    CHECK(taken == 1);
  }
}

TEST_CASE("batch_engine: where every sample suspends, those that have slept have their turn as well") {
  clocked ex;
  const std::vector<int> samples(200);
  int begun = 0, begun_at_first_end = 0;
  const auto predict = [&](int) -> task<int> {
    ++begun;
    ex.time += 2ms;
    co_await cobatch::schedule(ex);
    if (begun_at_first_end == 0) begun_at_first_end = begun;
    co_return 1;
  };
  const auto wait = [&]() -> started { (void)co_await batch_predict(ex, samples, predict); };
  const started running = wait();
  ex.drain();
  REQUIRE(running.done());
  CHECK(begun_at_first_end < 20);
}
