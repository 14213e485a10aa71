#include <cobatch/rate_limiter.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <limits>
#include <memory>
#include <optional>
#include <random>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <cobatch/detail/attempt.hpp>
#include <cobatch/detail/token_bucket.hpp>
#include <cobatch/semaphore.hpp>
#include <cobatch/simulation.hpp>
#include <cobatch/task.hpp>

#include "support/catch.hpp"
#include "support/started.hpp"

using cobatch::rate_limiter;
using cobatch::simulation;
using cobatch::task;
using namespace std::chrono_literals;
using std::chrono::nanoseconds;

namespace {

using times = std::vector<std::int64_t>;

std::int64_t now(const simulation& sim) {
  return sim.now().time_since_epoch().count();
}

/// Takes a token, and notes the time at which it had it.
started start_one(simulation& sim, rate_limiter& limiter, times& log, double cost = 1, std::stop_token stop = {}) {
  co_await sim.schedule();
  // Not inside the condition: GCC 12.2 breaks the frame of a coroutine that has no other variable.
  const bool granted = co_await limiter.acquire(sim, cost, stop);
  if (granted) log.push_back(now(sim));
}

task<> sleep(simulation& sim, nanoseconds delay) {
  co_await sim.schedule_after(delay);
}

/// The times of `count` starts at `rate` that all ask at once.
times starts(std::uint64_t seed, double rate, double burst, int count) {
  simulation sim(seed);
  rate_limiter limiter(rate, burst);
  times log;
  std::vector<started> all;
  for (int i = 0; i < count; ++i) all.push_back(start_one(sim, limiter, log));
  sim.run(sleep(sim, 1h));
  CHECK(limiter.waiting() == 0);
  std::sort(log.begin(), log.end());
  return log;
}

/// An executor of the test's own, with a clock that the test turns; its timers may be made to do all that is allowed.
class hand_clock {
 public:
  struct clock {
    using duration = nanoseconds;
    using time_point = std::chrono::time_point<std::chrono::steady_clock, nanoseconds>;
  };
  enum behaviour { waits, elapses_at_once, resumes_inside, refuses, throws, throws_at_end };

  hand_clock() = default;
  /// One that shares its clock.
  explicit hand_clock(hand_clock& other) : time(other.time) {}

  bool execute(std::coroutine_handle<> handle) {
    if (refusing) return false;
    ready.push_back(handle);
    return true;
  }
  clock::time_point now() const { return clock::time_point(*time); }

  struct timer {
    hand_clock* ex;
    nanoseconds due;
    std::stop_token stop;
    struct awaiter {
      struct stopper {
        awaiter* self;
        void operator()() const { self->stopped(); }
      };

      explicit awaiter(timer* made_by) : self(made_by) {}

      timer* self;
      std::coroutine_handle<> handle;
      std::optional<std::stop_callback<stopper>> on_stop;
      bool elapsed = true;

      bool await_ready() const { return false; }
      bool await_suspend(std::coroutine_handle<> awaiting) {
        ++self->ex->timers_started;
        switch (self->ex->timers) {
          case elapses_at_once:
            *self->ex->time = self->due;
            return false;
          case refuses:
            elapsed = false;
            return false;
          case throws:
            throw std::runtime_error("no timer");
          case resumes_inside:
            *self->ex->time = self->due;
            awaiting.resume();
            return true;
          case waits:
          case throws_at_end:
            break;
        }
        handle = awaiting;
        self->ex->sleepers.push_back(this);
        on_stop.emplace(self->stop, stopper{this});
        return true;
      }
      bool await_resume() {
        on_stop.reset();
        if (self->ex->timers == throws_at_end) throw std::runtime_error("no end");
        return elapsed;
      }
      void stopped() {
        if (std::erase(self->ex->sleepers, this) == 0) return;
        elapsed = false;
        self->ex->ready.push_back(handle);
      }
    };
    awaiter operator co_await() { return awaiter(this); }
  };
  timer schedule_after(nanoseconds delay, std::stop_token stop = {}) { return {this, *time + delay, std::move(stop)}; }

  void drain() {
    while (!ready.empty()) {
      const auto next = ready.front();
      ready.pop_front();
      const cobatch::detail::executor_scope scope(cobatch::detail::ref(*this));
      next.resume();
    }
  }
  void turn_to(nanoseconds then) {
    *time = then;
    for (const auto each : std::exchange(sleepers, {})) {
      if (each->self->due <= then) {
        ready.push_back(each->handle);
      } else {
        sleepers.push_back(each);
      }
    }
    drain();
  }

  behaviour timers = waits;
  int timers_started = 0;
  bool refusing = false;
  std::shared_ptr<nanoseconds> time = std::make_shared<nanoseconds>(0);
  std::deque<std::coroutine_handle<>> ready;
  std::vector<timer::awaiter*> sleepers;
};

static_assert(cobatch::timed_executor<hand_clock>);

template <class Executor>
started note(Executor& ex, rate_limiter& limiter, std::string& log, char name, double cost = 1,
             std::stop_token stop = {}) {
  const bool granted = co_await limiter.acquire(ex, cost, stop);
  log += granted ? name : static_cast<char>(name - 'a' + 'A');
}

using acquire_type = decltype(std::declval<rate_limiter&>().acquire(std::declval<simulation&>()));
static_assert(std::is_nothrow_move_constructible_v<acquire_type>);
static_assert(!std::is_aggregate_v<acquire_type>);
static_assert(noexcept(std::declval<const acquire_type&>().await_ready()));
static_assert(std::is_same_v<decltype(std::declval<acquire_type&>().await_suspend(std::coroutine_handle<>())), bool>);
static_assert(std::is_same_v<decltype(std::declval<acquire_type&>().await_resume()), bool>);

}  // namespace

TEST_CASE("rate limiter: the first start is at once, and consecutive starts are exactly 1/rate apart") {  // [G1] [G2]
  for (const std::uint64_t seed : {0u, 1u, 2u}) {
    CHECK(starts(seed, 5, 1, 4) == times{0, 200'000'000, 400'000'000, 600'000'000});
    CHECK(starts(seed, 100, 1, 3) == times{0, 10'000'000, 20'000'000});
    CHECK(starts(seed, 3, 1, 7) ==
          times{0, 333'333'333, 666'666'667, 1'000'000'000, 1'333'333'333, 1'666'666'667, 2'000'000'000});
    CHECK(starts(seed, 0.01, 1, 3) == times{0, 100'000'000'000, 200'000'000'000});
    CHECK(starts(seed, 1e9, 1, 3) == times{0, 1, 2});
  }
}

TEST_CASE("rate limiter: a million starts do not drift") {
  const double rate = GENERATE(3.0, 7.0, 1000.0, 30'000.0);
  simulation sim;
  rate_limiter limiter(rate);
  std::int64_t worst = 0;
  sim.run([](simulation& on, rate_limiter& limit, double r, std::int64_t& off) -> task<> {
    for (int i = 0; i < 1'000'000; ++i) {
      co_await limit.acquire(on);
      const auto expected = static_cast<std::int64_t>(std::llround(static_cast<long double>(i) * 1e9L / r));
      off = std::max(off, std::abs(now(on) - expected));
    }
  }(sim, limiter, rate, worst));
  CHECK(worst <= (rate == 1000.0 ? 0 : 1));
}

TEST_CASE("rate limiter: a burst starts at once, and is kept while nobody asks, but no more than it") {
  simulation sim;
  rate_limiter limiter(10, 3);
  times log;
  sim.run([](simulation& on, rate_limiter& limit, times& at) -> task<> {
    for (const nanoseconds pause : {0ns, nanoseconds(1h), nanoseconds(150ms)}) {
      co_await on.schedule_after(pause);
      const std::int64_t begin = now(on);
      for (int i = 0; i < 5; ++i) {
        co_await limit.acquire(on);
        at.push_back((now(on) - begin) / 1'000'000);
      }
    }
  }(sim, limiter, log));
  // After the second round the bucket is empty; 150 ms bring one and a half tokens.
  CHECK(log == times{0, 0, 0, 100, 200, 0, 0, 0, 100, 200, 0, 50, 150, 250, 350});
}

TEST_CASE("rate limiter: costs are waited for in turn, and a light one does not overtake a heavy one") {
  simulation sim;
  rate_limiter limiter(10, 5);
  times log;
  std::vector<started> all;
  for (const double cost : {4.0, 3.0, 0.5, 5.0, 0.0, 1.0}) all.push_back(start_one(sim, limiter, log, cost));
  sim.run(sleep(sim, 1h));
  // 5 tokens: 4 at 0; the next 3 at 200 ms; 0.5 more at 250 ms; 5 at 750 ms, 0 with them, and 1 at 850 ms.
  CHECK(log == times{0, 200'000'000, 250'000'000, 750'000'000, 750'000'000, 850'000'000});
}

TEST_CASE("rate limiter: a cost above the burst waits for a full bucket and makes the others wait for its debt") {
  simulation sim;
  rate_limiter limiter(10, 2);
  times log;
  std::vector<started> all;
  for (const double cost : {1.0, 7.0, 0.0, 1.0}) all.push_back(start_one(sim, limiter, log, cost));
  sim.run(sleep(sim, 1h));
  // Full again at 100 ms; then 5 short: none short at 600 ms, one there at 700 ms.
  CHECK(log == times{0, 100'000'000, 600'000'000, 700'000'000});
}

TEST_CASE("rate limiter: a clock that counts from 1970 will do") {
  hand_clock ex;
  *ex.time = std::chrono::hours(24 * 365 * 60);
  rate_limiter limiter(10);
  std::string log;
  const started one = note(ex, limiter, log, 'a');
  const started two = note(ex, limiter, log, 'b');
  CHECK(log == "a");
  ex.turn_to(*ex.time + 99ms);
  CHECK(log == "a");
  ex.turn_to(*ex.time + 1ms);
  CHECK(log == "ab");
}

TEST_CASE("rate limiter: no cost and no rate makes a start wait for ever") {
  simulation sim;
  rate_limiter slow(1e-300);
  rate_limiter fast(1e300, 1e300);
  sim.run([](simulation& on, rate_limiter& s, rate_limiter& f) -> task<> {
    int granted = 0;
    granted += co_await s.acquire(on, 1e300);
    granted += co_await s.acquire(on);  // after some 126 years
    granted += co_await f.acquire(on, std::numeric_limits<double>::max());
    granted += co_await f.acquire(on, 1e300);
    CHECK(granted == 4);
  }(sim, slow, fast));
  CHECK(sim.now().time_since_epoch() < std::chrono::years(200));
}

TEST_CASE("rate limiter: try_acquire takes what is there, and nothing while anyone waits") {
  simulation sim;
  rate_limiter limiter(10, 2);
  std::string log;
  CHECK(limiter.try_acquire(sim, 2));
  CHECK_FALSE(limiter.try_acquire(sim));
  const started waits = note(sim, limiter, log, 'a', 2);
  CHECK(limiter.waiting() == 1);
  sim.run(sleep(sim, 150ms));
  CHECK_FALSE(limiter.try_acquire(sim));  // one and a half are there, but not for newcomers
  CHECK_FALSE(limiter.try_acquire(sim, 0));
  sim.run(sleep(sim, 51ms));
  CHECK(log == "a");
  CHECK(limiter.waiting() == 0);
  CHECK(limiter.try_acquire(sim, 0));
  CHECK_FALSE(limiter.try_acquire(sim, 3));
  sim.run(sleep(sim, 199ms));
  CHECK(limiter.try_acquire(sim, 3));  // full, and in debt then
  sim.run(sleep(sim, 199ms));
  CHECK_FALSE(limiter.try_acquire(sim));
  sim.run(sleep(sim, 1ms));
  CHECK(limiter.try_acquire(sim));
}

TEST_CASE("rate limiter: an acquire that is never awaited takes nothing") {
  simulation sim;
  rate_limiter limiter(10);
  { const auto unused = limiter.acquire(sim); }
  CHECK(limiter.try_acquire(sim));
}

TEST_CASE("rate limiter: an acquire can be moved before it is awaited") {
  simulation sim;
  rate_limiter limiter(10);
  sim.run([](simulation& on, rate_limiter& limit) -> task<> {
    std::stop_source stop;
    for (int i = 0; i < 3; ++i) {
      auto first = limit.acquire(on, 1, stop.get_token());
      auto second = std::move(first);
      const bool granted = co_await second;
      CHECK(granted);
    }
    stop.request_stop();
    auto first = limit.acquire(on, 1, stop.get_token());
    auto second = std::move(first);
    const bool granted = co_await std::move(second);
    CHECK_FALSE(granted);
  }(sim, limiter));
  CHECK(now(sim) == 200'000'000);
}

TEST_CASE("rate limiter: a rate and a cap hold together") {  // [G3]
  for (const double rate : {1.0, 10.0, 100.0}) {
    for (const std::size_t cap : {1u, 2u, 5u, 10u}) {
      simulation sim(7);
      rate_limiter limiter(rate);
      cobatch::async_semaphore semaphore(cap);
      std::size_t running = 0;
      std::size_t most = 0;
      times log;
      const auto work = [&]() -> started {
        co_await sim.schedule();
        const auto permit = co_await semaphore.acquire();
        co_await limiter.acquire(sim);
        log.push_back(now(sim));
        most = std::max(most, ++running);
        co_await sim.schedule_after(100ms);
        --running;
      };
      std::vector<started> all;
      for (int i = 0; i < 20; ++i) all.push_back(work());
      sim.run(sleep(sim, 1h));
      REQUIRE(log.size() == 20);
      CHECK(most <= cap);
      const auto apart = static_cast<std::int64_t>(1e9 / rate);
      for (std::size_t i = 1; i < log.size(); ++i) CHECK(log[i] - log[i - 1] >= apart);
      // Whichever is the narrower sets the pace.
      const double pace = std::min(rate, static_cast<double>(cap) / 0.1);
      CHECK(std::abs(static_cast<double>(log.back()) - 19e9 / pace) <= 1e8 + 1e9 / pace);
    }
  }
}

// ---- Stopping ----

TEST_CASE("rate limiter: a stop before the await takes nothing, even where a token is there") {
  simulation sim;
  rate_limiter limiter(10);
  std::stop_source stop;
  stop.request_stop();
  std::string log;
  const started one = note(sim, limiter, log, 'a', 1, stop.get_token());
  CHECK(log == "A");
  CHECK(limiter.try_acquire(sim));
}

TEST_CASE("rate limiter: a stopped waiter has cost nothing, and those behind it move up at once") {
  const int stopped = GENERATE(0, 1, 2);
  simulation sim;
  rate_limiter limiter(10, 4);
  std::vector<started> all;
  times log;
  std::stop_source stop;
  REQUIRE(limiter.try_acquire(sim, 4));
  const double costs[] = {2, 1, 4};
  for (int i = 0; i < 3; ++i) {
    all.push_back(start_one(sim, limiter, log, costs[i], i == stopped ? stop.get_token() : std::stop_token()));
  }
  sim.run([](simulation& on, std::stop_source& source) -> task<> {
    co_await on.schedule_after(150ms);
    source.request_stop();
    co_await on.schedule_after(1ns);
  }(sim, stop));
  CHECK(limiter.waiting() == (stopped == 0 ? 1 : 2));
  sim.run(sleep(sim, 1h));
  for (auto& each : log) each /= 1'000'000;
  if (stopped == 0) {
    CHECK(log == times{150, 500});  // one and a half tokens were there: the one behind went at once
  } else if (stopped == 1) {
    CHECK(log == times{200, 600});
  } else {
    CHECK(log == times{200, 300});
  }
}

TEST_CASE("rate limiter: a waiter that is stopped goes on on its executor, not inside request_stop") {
  hand_clock ex;
  rate_limiter limiter(10);
  std::string log;
  std::stop_source stop;
  REQUIRE(limiter.try_acquire(ex));
  const started one = note(ex, limiter, log, 'a', 1, stop.get_token());
  const started two = note(ex, limiter, log, 'b', 1, stop.get_token());
  const started three = note(ex, limiter, log, 'c');
  stop.request_stop();
  CHECK(log.empty());
  CHECK(limiter.waiting() == 1);
  ex.drain();
  CHECK(log.size() == 2);
  CHECK(log.find('A') != std::string::npos);
  CHECK(log.find('B') != std::string::npos);
  ex.turn_to(100ms);
  CHECK(log.back() == 'c');
}

TEST_CASE("rate limiter: a waiter that was granted before it was stopped keeps its tokens") {
  hand_clock ex;
  rate_limiter limiter(10);
  std::string log;
  std::stop_source stop;
  REQUIRE(limiter.try_acquire(ex));
  const started one = note(ex, limiter, log, 'a', 1, stop.get_token());
  *ex.time = 100ms;
  REQUIRE(ex.sleepers.size() == 1);
  ex.sleepers.front()->handle.resume();  // its timer: granted, and queued on its executor
  stop.request_stop();
  CHECK(log.empty());
  ex.drain();
  CHECK(log == "a");
}

// ---- Executors ----

TEST_CASE("rate limiter: waiters of several executors take turns, each goes on on its own") {
  hand_clock one;
  hand_clock two(one);
  rate_limiter limiter(10);
  std::string log;
  REQUIRE(limiter.try_acquire(one));
  const started a = note(one, limiter, log, 'a');
  const started b = note(two, limiter, log, 'b');
  const started c = note(one, limiter, log, 'c');
  two.turn_to(100ms);
  CHECK(log.empty());  // the oldest waiter's executor keeps the time
  one.turn_to(100ms);
  CHECK(log == "a");
  REQUIRE(two.sleepers.size() == 1);
  two.turn_to(200ms);
  CHECK(log == "ab");
  one.turn_to(300ms);
  CHECK(log == "abc");
  CHECK(one.timers_started + two.timers_started == 3);
}

TEST_CASE("rate limiter: whoever was due while a timer was late goes on on its own executor") {
  hand_clock one;
  hand_clock two(one);
  rate_limiter limiter(10, 2);
  std::string log;
  REQUIRE(limiter.try_acquire(one, 2));
  const started a = note(one, limiter, log, 'a');
  const started b = note(two, limiter, log, 'b');
  one.turn_to(200ms);
  CHECK(log == "a");
  CHECK(two.ready.size() == 1);
  two.drain();
  CHECK(log == "ab");
  CHECK(two.timers_started == 0);
}

TEST_CASE("rate limiter: a timer that is late by up to a millisecond costs no throughput, and no more is made up for") {
  hand_clock ex;
  rate_limiter limiter(10'000);  // 100 us apart
  std::string log;
  REQUIRE(limiter.try_acquire(ex));
  std::vector<started> all;
  for (int i = 0; i < 100; ++i) all.push_back(note(ex, limiter, log, 'a'));
  ex.turn_to(160us);
  CHECK(log.size() == 1);
  ex.turn_to(200us);  // on time again
  CHECK(log.size() == 2);
  ex.turn_to(1200us);  // late by 900 us
  CHECK(log.size() == 12);
  ex.turn_to(101'200us);  // late by much more: 1 ms and the burst
  CHECK(log.size() == 12 + 11);
}

TEST_CASE("rate limiter: a late timer costs a lone user no throughput either, but an idle one gains nothing by it") {
  hand_clock ex;
  rate_limiter limiter(10'000);
  REQUIRE(limiter.try_acquire(ex));
  std::string log;
  const started waits = note(ex, limiter, log, 'a');
  ex.turn_to(350us);  // late by 250 us
  CHECK(log == "a");
  CHECK(limiter.try_acquire(ex));
  CHECK(limiter.try_acquire(ex));
  CHECK_FALSE(limiter.try_acquire(ex));
  ex.turn_to(400us);
  CHECK(limiter.try_acquire(ex));
  const started waits_again = note(ex, limiter, log, 'b');
  ex.turn_to(800us);
  CHECK(log == "ab");
  ex.turn_to(1801us);
  CHECK(limiter.try_acquire(ex));
  CHECK_FALSE(limiter.try_acquire(ex));
}

TEST_CASE("rate limiter: a timer that has elapsed at once, or resumes inside its start, will do") {
  const auto kind = GENERATE(hand_clock::elapses_at_once, hand_clock::resumes_inside);
  hand_clock ex;
  ex.timers = kind;
  rate_limiter limiter(10);
  int granted = 0;
  // 100,000: on a flat stack
  const started all = [](hand_clock& on, rate_limiter& limit, int& count) -> started {
    for (int i = 0; i < 100'000; ++i) count += co_await limit.acquire(on) ? 1 : 0;
  }(ex, limiter, granted);
  ex.drain();
  CHECK(all.done());
  CHECK(granted == 100'000);
  CHECK(*ex.time == 9999900ms);
}

TEST_CASE("rate limiter: an executor that has stopped gives false, and the next executor keeps the time") {
  hand_clock stopped;
  hand_clock other(stopped);
  rate_limiter limiter(10);
  std::string log;
  REQUIRE(limiter.try_acquire(other));
  stopped.timers = hand_clock::refuses;
  stopped.refusing = true;
  const started a = note(stopped, limiter, log, 'a');
  CHECK(log == "A");
  const started b = note(other, limiter, log, 'b');
  const started c = note(stopped, limiter, log, 'c');
  const started d = note(other, limiter, log, 'd');
  other.turn_to(100ms);
  CHECK(log.size() == 3);
  other.turn_to(200ms);
  CHECK(log.size() == 4);
  CHECK(log.find('C') != std::string::npos);
  CHECK(log.back() == 'd');
}

TEST_CASE("rate limiter: a simulation that is destroyed lets its waiters go") {
  rate_limiter limiter(10);
  std::string log;
  std::vector<started> all;
  {
    simulation sim;
    REQUIRE(limiter.try_acquire(sim));
    for (const char name : {'a', 'b', 'c'}) all.push_back(note(sim, limiter, log, name));
  }
  CHECK(log == "ABC");
  CHECK(limiter.waiting() == 0);
}

TEST_CASE("rate limiter: what a timer throws reaches its own waiter, and the others go on") {
  const auto when = GENERATE(hand_clock::throws, hand_clock::throws_at_end);
  hand_clock bad;
  hand_clock good(bad);
  bad.timers = when;
  rate_limiter limiter(10);
  std::string log;
  const auto tries = [&](char name) -> started {
    try {
      co_await limiter.acquire(bad);
      log += '?';
    } catch (const std::runtime_error&) {
      log += name;
    }
  };
  REQUIRE(limiter.try_acquire(good));
  const started a = tries('a');
  const started b = note(good, limiter, log, 'b');
  const started c = tries('c');
  const started d = note(good, limiter, log, 'd');
  for (const nanoseconds time : {100ms, 200ms, 300ms, 400ms}) {
    bad.turn_to(time);
    good.turn_to(time);
    bad.drain();
    good.drain();
  }
  std::sort(log.begin(), log.end());
  CHECK(log == "abcd");
}

TEST_CASE("rate limiter: it can be driven by hand, without a coroutine that awaits") {
  simulation sim;
  rate_limiter limiter(10);
  cobatch::detail::attempt<acquire_type> first;
  REQUIRE(first.start([&] { return limiter.acquire(sim); }, std::noop_coroutine()));
  bool granted = false;
  first.resume([&](bool result) { granted = result; });
  CHECK(granted);
  cobatch::detail::attempt<acquire_type> second;
  CHECK_FALSE(second.start([&] { return limiter.acquire(sim); }, std::noop_coroutine()));
  sim.run(sleep(sim, 100ms));
  granted = false;
  second.resume([&](bool result) { granted = result; });
  CHECK(granted);
}

TEST_CASE("rate limiter: a waiter that is destroyed leaves the queue") {
  const int destroyed = GENERATE(0, 1, 2);
  simulation sim;
  rate_limiter limiter(10);
  std::string log;
  REQUIRE(limiter.try_acquire(sim));
  std::vector<started> all;
  for (const char name : {'a', 'b', 'c'}) all.push_back(note(sim, limiter, log, name));
  sim.run(sleep(sim, 50ms));
  all[static_cast<std::size_t>(destroyed)].destroy();
  CHECK(limiter.waiting() == 2);
  sim.run(sleep(sim, 51ms));
  CHECK(log.size() == 1);
  sim.run(sleep(sim, 100ms));
  CHECK(log == (destroyed == 0 ? "bc" : destroyed == 1 ? "ac" : "ab"));
}

TEST_CASE("rate limiter: one that is destroyed by a coroutine that was granted with it is not resumed") {
  hand_clock ex;
  rate_limiter limiter(10, 2);
  REQUIRE(limiter.try_acquire(ex, 2));
  std::string log;
  std::vector<started> all;
  const auto destroys = [&]() -> started {
    co_await limiter.acquire(ex);
    log += 'a';
    all.back().destroy();
  };
  all.push_back(destroys());
  all.push_back(note(ex, limiter, log, 'b'));
  ex.refusing = true;  // so that they are resumed where they are granted
  ex.turn_to(200ms);
  CHECK(log == "a");
  CHECK(limiter.waiting() == 0);
}

// ---- Changing the rate ----

TEST_CASE("rate limiter: a new rate holds for those who wait already") {
  const auto [rate, expected] = GENERATE(table<double, times>({
      {20.0, {50, 100, 150}},
      {100.0, {30, 39, 49}},  // three were due since the last start, of which the burst and one millisecond are kept
      {5.0, {200, 400, 600}},
  }));
  simulation sim;
  rate_limiter limiter(10);
  times log;
  std::vector<started> all;
  REQUIRE(limiter.try_acquire(sim));
  for (int i = 0; i < 3; ++i) all.push_back(start_one(sim, limiter, log));
  sim.run([](simulation& on, rate_limiter& limit, double new_rate) -> task<> {
    co_await on.schedule_after(30ms);
    limit.set_rate(new_rate);
  }(sim, limiter, rate));
  CHECK(limiter.per_second() == rate);
  sim.run(sleep(sim, 10s));
  for (auto& each : log) each /= 1'000'000;
  CHECK(log == expected);
}

TEST_CASE("rate limiter: a new rate leaves what is in the bucket") {
  simulation sim;
  rate_limiter limiter(10, 4);
  limiter.set_rate(1);
  CHECK(limiter.try_acquire(sim, 3));
  limiter.set_rate(100);
  CHECK(limiter.try_acquire(sim, 1));
  CHECK_FALSE(limiter.try_acquire(sim, 1));
  sim.run(sleep(sim, 10ms));
  CHECK(limiter.try_acquire(sim, 1));
  sim.run(sleep(sim, 20ms));
  CHECK_FALSE(limiter.try_acquire(sim, 3));
  CHECK(limiter.try_acquire(sim, 2));
}

// ---- Bad arguments ----

TEST_CASE("rate limiter: a rate, burst or cost that makes no sense is refused with a word on what to do") {
  const double infinity = std::numeric_limits<double>::infinity();
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const double rate : {0.0, -1.0, infinity, nan}) {
    CHECK_THROWS_AS(rate_limiter(rate), std::invalid_argument);
    rate_limiter limiter(1);
    CHECK_THROWS_AS(limiter.set_rate(rate), std::invalid_argument);
    CHECK(limiter.per_second() == 1);
  }
  for (const double burst : {0.0, 0.99, -1.0, infinity, nan}) {
    CHECK_THROWS_AS(rate_limiter(1, burst), std::invalid_argument);
  }
  simulation sim;
  rate_limiter limiter(10, 2);
  CHECK(limiter.burst() == 2);
  for (const double cost : {-0.5, infinity, nan}) {
    CHECK_THROWS_AS(limiter.try_acquire(sim, cost), std::invalid_argument);
    CHECK_THROWS_AS(limiter.acquire(sim, cost), std::invalid_argument);
  }
  CHECK_THROWS_AS(limiter.acquire(sim, -1), std::invalid_argument);
  CHECK(limiter.try_acquire(sim, std::size_t{2}));
  try {
    const rate_limiter none(0);
  } catch (const std::invalid_argument& e) {
    CHECK(std::string(e.what()).find("for no limit use no rate_limiter") != std::string::npos);
  }
}

// ---- Any order of events ----

namespace {

/// Exact arithmetic beside the bucket's: tokens as a number.
struct reference_bucket {
  long double rate;
  long double burst;
  long double tokens = burst;
  std::int64_t last = 0;

  void refill(std::int64_t at) {
    tokens = std::min(burst, tokens + static_cast<long double>(at - last) * rate / 1e9L);
    last = at;
  }
  std::int64_t due(long double cost) const {
    const long double missing = std::min(cost, burst) - tokens;
    return missing <= 0 ? last : last + static_cast<std::int64_t>(std::llround(missing * 1e9L / rate));
  }
};

struct user {
  std::int64_t arrives;
  std::int64_t stops;  // never: the greatest number
  double cost;
  std::int64_t settled = -1;
  bool granted = false;
  std::stop_source stop = {};
};

}  // namespace

TEST_CASE("rate limiter: whoever stops whenever, each start is in turn and at the first moment that is due") {
  int grants = 0;
  int stops = 0;
  for (std::uint64_t seed = 0; seed < 3000; ++seed) {
    std::mt19937_64 random(seed);
    const auto up_to = [&](std::uint64_t n) { return random() % n; };
    const double rate = static_cast<double>(1 + up_to(40));
    const double burst = static_cast<double>(1 + up_to(5));
    simulation sim(seed);
    rate_limiter limiter(rate, burst);
    std::vector<user> users(3 + up_to(20));
    std::int64_t arrival = 0;
    for (user& each : users) {
      // Distinct times, so that the order is no matter of the seed.
      arrival += 1 + static_cast<std::int64_t>(up_to(2) == 0 ? 0 : up_to(150'000'000));
      each.arrives = arrival;
      each.stops = up_to(3) == 0 ? arrival + static_cast<std::int64_t>(up_to(400'000'000))
                                 : std::numeric_limits<std::int64_t>::max();
      each.cost = up_to(4) == 0 ? static_cast<double>(up_to(8)) / 2 : 1;
    }
    std::vector<std::size_t> order;
    const auto arrive = [&](std::size_t i) -> started {
      user& self = users[i];
      co_await sim.schedule_after(nanoseconds(self.arrives));
      self.granted = co_await limiter.acquire(sim, self.cost, self.stop.get_token());
      self.settled = now(sim);
      if (self.granted) order.push_back(i);
    };
    const auto stop = [&](std::size_t i) -> started {
      if (users[i].stops == std::numeric_limits<std::int64_t>::max()) co_return;
      co_await sim.schedule_after(nanoseconds(users[i].stops));
      users[i].stop.request_stop();
    };
    std::vector<started> all;
    for (std::size_t i = 0; i < users.size(); ++i) {
      all.push_back(arrive(i));
      all.push_back(stop(i));
    }
    sim.run(sleep(sim, 1h));
    REQUIRE(limiter.waiting() == 0);

    reference_bucket bucket{rate, burst};
    std::int64_t those_ahead = 0;  // all settled at this time
    for (const user& each : users) {
      REQUIRE(each.settled >= 0);
      const std::int64_t turn = std::max(each.arrives, those_ahead);
      bucket.refill(turn);
      const std::int64_t due = std::max(turn, bucket.due(each.cost));
      if (each.granted) {
        REQUIRE(std::abs(each.settled - due) <= 1);
        REQUIRE(each.settled <= each.stops);
        bucket.refill(each.settled);
        bucket.tokens -= each.cost;
        ++grants;
      } else {
        REQUIRE(each.settled == each.stops);
        REQUIRE(each.stops <= due);
        ++stops;
      }
      those_ahead = std::max(those_ahead, each.settled);
    }
  }
  CHECK(grants > 10'000);
  CHECK(stops > 3'000);
}

TEST_CASE("rate_limiter: rates near the ends let what costs nothing start, and the first one") {
  for (const double per_second : {5e-324, 1e-300, 1e-9, 1e300, std::numeric_limits<double>::max()}) {
    CAPTURE(per_second);
    cobatch::simulation sim;
    cobatch::rate_limiter limiter(per_second);
    for (int i = 0; i < 3; ++i) CHECK(limiter.try_acquire(sim, 0));
    CHECK(limiter.try_acquire(sim));
    CHECK(limiter.try_acquire(sim) == (per_second > 1));
    limiter.set_rate(1);
    limiter.set_rate(per_second);
    CHECK(limiter.waiting() == 0);
  }
}
