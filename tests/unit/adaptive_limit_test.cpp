#include <cobatch/adaptive_limit.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <random>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <cobatch/semaphore.hpp>
#include <cobatch/simulation.hpp>
#include <cobatch/task.hpp>

#include "support/catch.hpp"
#include "support/started.hpp"
#include "support/step_executor.hpp"

using cobatch::adaptive_algorithm;
using cobatch::adaptive_limit;
using cobatch::adaptive_options;
using cobatch::async_semaphore;
using cobatch::errc;
using cobatch::simulation;
using cobatch::task;
using namespace std::chrono_literals;
using std::chrono::nanoseconds;

namespace {

using acquire_type = decltype(std::declval<adaptive_limit&>().acquire());
static_assert(std::is_nothrow_move_constructible_v<acquire_type>);
static_assert(!std::is_aggregate_v<acquire_type>);
static_assert(noexcept(std::declval<const acquire_type&>().await_ready()));
static_assert(std::is_nothrow_move_constructible_v<adaptive_limit::ticket>);
static_assert(!std::is_copy_constructible_v<adaptive_limit::ticket>);

/// One round trip: as many calls as the cap allows, all in flight at once, all with the same end.
void round_trip(adaptive_limit& limit, std::optional<nanoseconds> latency) {
  std::vector<adaptive_limit::ticket> tickets;
  while (auto ticket = limit.try_acquire()) tickets.push_back(std::move(*ticket));
  for (auto& each : tickets) {
    if (latency) {
      each.succeeded(*latency);
    } else {
      each.dropped();
    }
  }
}

/// The same, but with the cap held full: one starts as soon as one ends.
void steady_round_trip(adaptive_limit& limit, nanoseconds latency) {
  const std::size_t calls = limit.limit();
  for (std::size_t i = 0; i < calls; ++i) limit.started();
  for (std::size_t i = 0; i < calls; ++i) {
    limit.succeeded(latency, calls);
    limit.started();
  }
  for (std::size_t i = 0; i < calls; ++i) limit.ignored();
}

/// A server on the virtual clock with room for `capacity` calls at a time; the others queue.
class server {
 public:
  enum distribution { constant, uniform, exponential, lognormal };

  server(simulation& sim, std::size_t capacity, nanoseconds service, distribution kind, std::uint64_t seed)
      : sim_(sim), room_(capacity), service_(service), kind_(kind), random_(seed) {}

  task<> call() {
    const auto held = co_await room_.acquire();
    co_await sim_.schedule_after(draw());
  }

  void set_capacity(std::size_t capacity) { room_.set_limit(capacity); }
  void set_service(nanoseconds service) { service_ = service; }

 private:
  /// The same on every platform, unlike std's distributions.
  double unit() { return static_cast<double>(random_() >> 11) * 0x1p-53; }

  nanoseconds draw() {
    double factor = 1;
    if (kind_ == uniform) factor = 0.8 + 0.4 * unit();
    if (kind_ == exponential) factor = -std::log1p(-unit());
    if (kind_ == lognormal) {
      const double normal = std::sqrt(-2 * std::log1p(-unit())) * std::cos(6.283185307179586 * unit());
      factor = std::exp(normal - 0.5);
    }
    return nanoseconds(static_cast<std::int64_t>(static_cast<double>(service_.count()) * factor) + 1);
  }

  simulation& sim_;
  async_semaphore room_;
  nanoseconds service_;
  distribution kind_;
  std::mt19937_64 random_;
};

struct reply {
  nanoseconds at;
  nanoseconds latency;
};

/// Users without end who call the server as the limit allows.
class load {
 public:
  load(simulation& sim, server& to, adaptive_limit& limit, std::size_t users) : sim_(sim), server_(to), limit_(limit) {
    for (std::size_t i = 0; i < users; ++i) users_.push_back(user());
  }
  load(const load&) = delete;
  load& operator=(const load&) = delete;

  /// Lets time pass.
  void run(nanoseconds duration) {
    end_ = now() + duration;
    sim_.run(sim_.schedule_after(duration));
  }
  /// Lets all calls end.
  void stop() {
    stop_.request_stop();
    sim_.run(sim_.schedule_after(24h * 365));
  }

  nanoseconds now() const { return sim_.now().time_since_epoch(); }

  std::vector<reply> replies;
  std::size_t most_in_flight = 0;

 private:
  started user() {
    co_await sim_.schedule();
    for (;;) {
      auto ticket = co_await limit_.acquire(stop_.get_token());
      if (!ticket) co_return;
      const nanoseconds begin = now();
      most_in_flight = std::max(most_in_flight, limit_.in_flight());
      co_await server_.call();
      ticket->succeeded(now() - begin);
      replies.push_back({now(), now() - begin});
    }
  }

  simulation& sim_;
  server& server_;
  adaptive_limit& limit_;
  nanoseconds end_{0};
  std::stop_source stop_;
  std::vector<started> users_;
};

struct figures {
  double per_second;
  double p99;
};

figures measure(const std::vector<reply>& replies, nanoseconds begin, nanoseconds end) {
  std::vector<double> latencies;
  for (const reply& each : replies) {
    if (each.at > begin && each.at <= end) latencies.push_back(static_cast<double>(each.latency.count()));
  }
  REQUIRE_FALSE(latencies.empty());
  std::sort(latencies.begin(), latencies.end());
  return {static_cast<double>(latencies.size()) / std::chrono::duration<double>(end - begin).count(),
          latencies[latencies.size() * 99 / 100]};
}

/// With the best cap there is: as many as the server has room for.
figures best(std::size_t capacity, nanoseconds service, server::distribution kind, std::uint64_t seed) {
  simulation sim;
  server backend(sim, capacity, service, kind, seed);
  adaptive_limit fixed({.initial = capacity, .min = capacity, .max = capacity});
  load users(sim, backend, fixed, capacity);
  users.run(400 * service);
  const figures result = measure(users.replies, 200 * service, 400 * service);
  users.stop();
  return result;
}

}  // namespace

// ---- Tickets ----

TEST_CASE("adaptive limit: it lets as many through as its cap, and gives up its tickets in turn") {
  adaptive_limit limit({.initial = 2});
  step_executor ex;
  std::string log;
  const auto user = [&](char name) -> started {
    auto ticket = co_await limit.acquire();
    log += name;
    co_await cobatch::schedule(ex);
    co_await cobatch::schedule(ex);
    ticket->release();
  };
  std::vector<started> all;
  ex.run([&] {
    for (const char name : {'a', 'b', 'c', 'd'}) all.push_back(user(name));
  });
  CHECK(log == "ab");
  CHECK(limit.in_flight() == 2);
  CHECK(limit.waiting() == 2);
  CHECK_FALSE(limit.try_acquire().has_value());
  ex.drain();
  CHECK(log == "abcd");
  CHECK(limit.in_flight() == 0);
  CHECK(limit.limit() == 2);
}

TEST_CASE("adaptive limit: a stopped waiter gets an error and no ticket") {
  adaptive_limit limit({.initial = 1});
  step_executor ex;
  auto held = limit.try_acquire();
  REQUIRE(held.has_value());
  std::stop_source stop;
  std::optional<cobatch::error> why;
  const auto user = [&]() -> started {
    const auto ticket = co_await limit.acquire(stop.get_token());
    if (!ticket.has_value()) why = ticket.error();
  };
  const started waits = ex.run(user);
  stop.request_stop();
  ex.drain();
  REQUIRE(why.has_value());
  CHECK(why->code == errc::cancelled);
  CHECK(limit.waiting() == 0);
  CHECK(limit.in_flight() == 1);
}

TEST_CASE("adaptive limit: a ticket ends once, whether reported, released, moved from or destroyed") {
  adaptive_limit limit({.initial = 10, .algorithm = adaptive_algorithm::aimd});
  {
    auto first = limit.try_acquire();
    auto second = limit.try_acquire();
    REQUIRE((first && second && *first && *second));
    CHECK(limit.in_flight() == 2);
    first->dropped();
    first->dropped();
    first->release();
    CHECK_FALSE(*first);
    CHECK(limit.in_flight() == 1);
    CHECK(limit.limit() == 9);
    adaptive_limit::ticket third = std::move(*second);
    CHECK_FALSE(*second);
    second->dropped();
    CHECK(limit.in_flight() == 1);
    third = std::move(*limit.try_acquire());
    CHECK(limit.in_flight() == 1);
  }
  CHECK(limit.in_flight() == 0);
  CHECK(limit.limit() == 9);
}

TEST_CASE("adaptive limit: calls can be reported without tickets") {
  adaptive_limit limit({.initial = 4, .algorithm = adaptive_algorithm::aimd});
  CHECK(limit.started() == 1);
  CHECK(limit.started() == 2);
  CHECK(limit.started() == 3);
  limit.succeeded(1ms, 3);
  limit.dropped();
  limit.ignored();
  CHECK(limit.in_flight() == 0);
}

// ---- Additive increase, multiplicative decrease ----

TEST_CASE("adaptive limit: aimd grows by one in a round trip of successes that uses the cap") {
  adaptive_limit limit({.initial = 4, .algorithm = adaptive_algorithm::aimd});
  steady_round_trip(limit, 1ms);
  steady_round_trip(limit, 1ms);  // a little short of it, as 1/cap gets smaller on the way
  CHECK(limit.limit() == 5);
  for (int i = 0; i < 5; ++i) steady_round_trip(limit, 1s);  // however slow
  CHECK(limit.limit() == 10);
  for (int i = 0; i < 2000; ++i) steady_round_trip(limit, 1s);
  CHECK(limit.limit() == 1000);
}

TEST_CASE("adaptive limit: drops take the share 1 - backoff off in a round trip of nothing but drops, down to min") {
  const auto algorithm = GENERATE(adaptive_algorithm::aimd, adaptive_algorithm::gradient);
  adaptive_limit limit({.initial = 100, .algorithm = algorithm});
  round_trip(limit, std::nullopt);
  CHECK(limit.limit() == 50);
  round_trip(limit, std::nullopt);
  CHECK(limit.limit() == 25);
  for (int i = 0; i < 20; ++i) round_trip(limit, std::nullopt);
  CHECK(limit.limit() == 1);

  adaptive_limit gentle({.initial = 100, .min = 60, .algorithm = algorithm, .backoff = 0.9});
  round_trip(gentle, std::nullopt);
  CHECK(gentle.limit() == 90);
  for (int i = 0; i < 20; ++i) round_trip(gentle, std::nullopt);
  CHECK(gentle.limit() == 60);
}

TEST_CASE("adaptive limit: aimd settles at what a server takes that rejects what is beyond") {
  const std::size_t capacity = GENERATE(3u, 10u, 50u, 200u);
  const std::size_t initial = GENERATE(1u, 1000u);
  adaptive_limit limit({.initial = initial, .algorithm = adaptive_algorithm::aimd});
  std::size_t rejected = 0;
  std::size_t served = 0;
  for (int i = 0; i < 600; ++i) {
    std::vector<adaptive_limit::ticket> tickets;
    while (auto ticket = limit.try_acquire()) tickets.push_back(std::move(*ticket));
    for (std::size_t k = 0; k < tickets.size(); ++k) {
      if (k < capacity) {
        tickets[k].succeeded(1ms);
      } else {
        tickets[k].dropped();
      }
      if (i >= 300) ++(k < capacity ? served : rejected);
    }
  }
  CHECK(static_cast<double>(served) >= 0.9 * 300 * static_cast<double>(capacity));
  CHECK(rejected <= 300 * 3);
}

// ---- What says nothing ----

TEST_CASE("adaptive limit: calls that were cancelled leave the cap as it is") {
  const auto algorithm = GENERATE(adaptive_algorithm::aimd, adaptive_algorithm::gradient);
  adaptive_limit limit({.algorithm = algorithm});
  for (int i = 0; i < 1000; ++i) {
    std::vector<adaptive_limit::ticket> tickets;
    while (auto ticket = limit.try_acquire()) tickets.push_back(std::move(*ticket));
  }
  CHECK(limit.limit() == 20);
}

TEST_CASE("adaptive limit: a cap that is not made use of does not grow") {
  const auto algorithm = GENERATE(adaptive_algorithm::aimd, adaptive_algorithm::gradient);
  adaptive_limit limit({.initial = 100, .algorithm = algorithm});
  for (int i = 0; i < 10'000; ++i) {
    std::vector<adaptive_limit::ticket> tickets;
    for (int k = 0; k < 40; ++k) tickets.push_back(std::move(*limit.try_acquire()));
    for (auto& each : tickets) each.succeeded(1ms);
  }
  CHECK(limit.limit() == 100);
}

// ---- Timeouts ----

TEST_CASE("adaptive limit: a server whose every call takes exactly the timeout makes it shrink") {  // issue 137
  const auto algorithm = GENERATE(adaptive_algorithm::aimd, adaptive_algorithm::gradient);
  adaptive_limit limit({.initial = 50, .algorithm = algorithm, .timeout = 5s});
  for (int i = 0; i < 20; ++i) steady_round_trip(limit, 5s);
  CHECK(limit.limit() == 1);
  for (int i = 0; i < 1000; ++i) steady_round_trip(limit, 5s);
  CHECK(limit.limit() == 1);
  for (int i = 0; i < 200; ++i) steady_round_trip(limit, 5s - 1ns);
  CHECK(limit.limit() > 20);
}

TEST_CASE("adaptive limit: timeouts do not become the latency that replies are measured by") {
  adaptive_limit limit({.initial = 20});
  for (int i = 0; i < 100; ++i) steady_round_trip(limit, 10ms);
  const std::size_t before = limit.limit();
  for (int i = 0; i < 100; ++i) round_trip(limit, std::nullopt);
  CHECK(limit.limit() == 1);
  // Replies that come just before the timeout: no reason to grow.
  for (int i = 0; i < 10; ++i) steady_round_trip(limit, 10ms);
  const std::size_t recovering = limit.limit();
  CHECK(recovering > 1);
  for (int i = 0; i < 5; ++i) steady_round_trip(limit, 4999ms);
  CHECK(limit.limit() <= recovering);
  CHECK(recovering < before);
}

// ---- The gradient ----

TEST_CASE("adaptive limit: the cap grows to max where more calls do not make any of them slower") {
  adaptive_limit limit({.initial = 1, .max = 300});
  std::size_t most = 0;
  for (int i = 0; i < 200; ++i) {
    steady_round_trip(limit, 10ms);
    most = std::max(most, limit.limit());
    REQUIRE(limit.limit() >= 1);
  }
  CHECK(most == 300);
}

TEST_CASE("adaptive limit: a cap that grows lets waiters go on") {
  adaptive_limit limit({.initial = 4});
  step_executor ex;
  std::vector<started> all;
  int holders = 0;
  const auto user = [&]() -> started {
    const auto ticket = co_await limit.acquire();
    ++holders;
    co_await std::suspend_always();
  };
  ex.run([&] {
    for (int i = 0; i < 50; ++i) all.push_back(user());
  });
  CHECK(holders == 4);
  for (int i = 0; i < 40; ++i) {
    limit.started();
    limit.succeeded(1ms, limit.limit());
  }
  CHECK(limit.limit() > 4);
  CHECK(holders == 4);  // not inside the report
  ex.drain();
  CHECK(static_cast<std::size_t>(holders) >= limit.limit());
  CHECK(limit.in_flight() == static_cast<std::size_t>(holders));
}

TEST_CASE("adaptive limit: waiters without an executor that report at once run on a flat stack") {
  adaptive_limit limit({.initial = 1, .max = 4, .algorithm = adaptive_algorithm::aimd});
  std::vector<started> all;
  int ended = 0;
  const auto user = [&]() -> started {
    auto ticket = co_await limit.acquire();
    ticket->succeeded(1ms);
    ++ended;
  };
  auto first = limit.try_acquire();
  for (int i = 0; i < 100'000; ++i) all.push_back(user());
  first->succeeded(1ms);
  CHECK(ended == 100'000);
  CHECK(limit.in_flight() == 0);
  CHECK(limit.waiting() == 0);
}

TEST_CASE("adaptive limit: it settles near the best fixed cap within 200 round trips, from wherever it starts") {
  const std::size_t capacity = GENERATE(10u, 50u, 200u);
  const auto kind = GENERATE(server::constant, server::uniform, server::exponential, server::lognormal);
  const nanoseconds service = capacity == 10 ? 1s : capacity == 50 ? nanoseconds(20ms) : nanoseconds(1ms);
  for (const std::uint64_t seed : {1u, 2u}) {
    const figures ideal = best(capacity, service, kind, seed);
    for (const std::size_t initial : {1u, 20u, 1000u}) {
      CAPTURE(capacity, static_cast<int>(kind), initial, seed);
      simulation sim;
      server backend(sim, capacity, service, kind, seed);
      adaptive_limit limit({.initial = initial});
      load users(sim, backend, limit, 1000);
      users.run(400 * service);
      const figures found = measure(users.replies, 200 * service, 400 * service);
      CHECK(found.per_second >= 0.8 * ideal.per_second);
      CHECK(found.p99 <= 2 * ideal.p99 + 10);
      users.stop();
      CHECK(limit.in_flight() == 0);
    }
  }
}

TEST_CASE("adaptive limit: it settles again when the server loses half of its capacity, and when it is back") {
  const auto kind = GENERATE(server::constant, server::uniform, server::exponential, server::lognormal);
  const nanoseconds service = 20ms;
  const figures full = best(50, service, kind, 1);
  const figures half = best(25, service, kind, 1);
  for (const std::uint64_t seed : {1u, 2u}) {
    CAPTURE(static_cast<int>(kind), seed);
    simulation sim;
    server backend(sim, 50, service, kind, seed);
    adaptive_limit limit;
    load users(sim, backend, limit, 1000);
    users.run(400 * service);
    for (const bool halved : {true, false, true, false}) {
      backend.set_capacity(halved ? 25 : 50);
      const nanoseconds begin = users.now();
      users.run(400 * service);
      const figures found = measure(users.replies, begin + 200 * service, users.now());
      const figures ideal = halved ? half : full;
      CHECK(found.per_second >= 0.8 * ideal.per_second);
      CHECK(found.p99 <= 2.1 * ideal.p99);
    }
    users.stop();
  }
}

TEST_CASE("adaptive limit: a server that has become slower, but is not overloaded, keeps its cap") {
  const nanoseconds service = 20ms;
  simulation sim;
  server backend(sim, 50, service, server::uniform, 1);
  adaptive_limit limit;
  load users(sim, backend, limit, 1000);
  users.run(400 * service);
  backend.set_service(4 * service);
  users.run(400 * 4 * service);
  const figures found = measure(users.replies, users.now() - 200 * 4 * service, users.now());
  CHECK(found.per_second >= 0.8 * best(50, 4 * service, server::uniform, 1).per_second);
  users.stop();
}

TEST_CASE(
    "adaptive limit: the cap stays in its range while it probes, and finds its way out of a range that is narrow") {
  const nanoseconds service = 20ms;
  simulation sim;
  server backend(sim, 50, service, server::uniform, 1);
  adaptive_limit limit({.initial = 20, .min = 20, .max = 100});
  load users(sim, backend, limit, 1000);
  std::size_t least = 100;
  std::size_t most = 0;
  const auto watch = [&](nanoseconds duration) {
    for (int i = 0; i < 400; ++i) {
      users.run(duration / 400);
      least = std::min(least, limit.limit());
      most = std::max(most, limit.limit());
    }
  };
  watch(400 * service);
  backend.set_service(5 * service);  // a reason to go down to min, until it is known that there is no queue
  watch(400 * 5 * service);
  CHECK(least >= 20);
  CHECK(most <= 100);
  const figures found = measure(users.replies, users.now() - 200 * 5 * service, users.now());
  CHECK(found.per_second >= 0.8 * best(50, 5 * service, server::uniform, 1).per_second);
  users.stop();
}

TEST_CASE("adaptive limit: a queue that lasts does not become the new normal") {  // issue 165
  const auto kind = GENERATE(server::constant, server::uniform, server::exponential);
  const nanoseconds service = 20ms;
  simulation sim;
  server backend(sim, 50, service, kind, 5);
  adaptive_limit limit({.initial = 400, .max = 10'000});
  load users(sim, backend, limit, 2000);
  users.run(300 * service);
  for (int i = 0; i < 40; ++i) {
    users.replies.clear();
    users.run(50 * service);
    REQUIRE(limit.limit() <= 150);
  }
  users.stop();
}

TEST_CASE("adaptive limit: the scale of the latencies makes no difference") {
  std::vector<std::vector<std::size_t>> caps;
  for (const nanoseconds service : {nanoseconds(1ms), nanoseconds(1s), nanoseconds(1h)}) {
    simulation sim;
    server backend(sim, 50, service, server::constant, 1);
    adaptive_limit limit;
    load users(sim, backend, limit, 200);
    caps.emplace_back();
    for (int i = 0; i < 100; ++i) {
      users.run(2 * service + 3ns);
      caps.back().push_back(limit.limit());
    }
    users.stop();
  }
  CHECK(caps[0] == caps[1]);
  CHECK(caps[0] == caps[2]);
}

// ---- Bad options ----

TEST_CASE("adaptive limit: options that make no sense are refused") {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const adaptive_options bad[] = {
      {.min = 0},
      {.initial = 5, .min = 6},
      {.initial = 7, .max = 6},
      {.backoff = 1.0},
      {.backoff = -0.1},
      {.backoff = nan},
      {.tolerance = 0.9},
      {.tolerance = nan},
      {.smoothing = 0.0},
      {.smoothing = 1.1},
      {.smoothing = nan},
      {.probe_interval = 0},
      {.max = std::numeric_limits<std::size_t>::max()},
  };
  for (const adaptive_options& each : bad) CHECK_THROWS_AS(adaptive_limit(each), std::invalid_argument);
  CHECK(adaptive_limit().limit() == 20);
  CHECK(adaptive_limit({.initial = 1, .max = 1}).limit() == 1);
}

// ---- Any order of events ----

TEST_CASE("adaptive limit: whatever ends however, tickets are conserved and the cap stays in its range") {
  for (std::uint64_t seed = 1; seed <= 1500; ++seed) {
    std::mt19937_64 random(seed);
    const auto up_to = [&](std::uint64_t n) { return random() % n; };
    simulation sim(seed);
    adaptive_options options;
    options.min = 1 + up_to(3);
    options.initial = options.min + up_to(20);
    options.max = options.initial + up_to(30);
    options.algorithm = up_to(2) == 0 ? adaptive_algorithm::aimd : adaptive_algorithm::gradient;
    options.timeout = 25ms;
    adaptive_limit limit(options);
    std::size_t most = 0;
    std::size_t outcomes = 0;
    std::vector<std::stop_source> stops(60);
    const auto user = [&](std::size_t i) -> started {
      co_await sim.schedule_after(nanoseconds(up_to(20'000'000)));
      for (int k = 0; k < 4; ++k) {
        auto ticket = co_await limit.acquire(stops[i].get_token());
        ++outcomes;
        if (!ticket) continue;
        most = std::max(most, limit.in_flight());
        const auto begin = sim.now();
        co_await sim.schedule_after(nanoseconds(up_to(30'000'000)));
        switch (up_to(5)) {
          case 0:
            ticket->dropped();
            break;
          case 1:
            ticket->release();
            break;
          case 2:
            break;
          default:
            ticket->succeeded(sim.now() - begin);
        }
      }
    };
    std::vector<started> all;
    for (std::size_t i = 0; i < stops.size(); ++i) all.push_back(user(i));
    const auto stop = [&](std::size_t i) -> started {
      co_await sim.schedule_after(nanoseconds(up_to(200'000'000)));
      stops[i].request_stop();
    };
    for (std::size_t i = 0; i < stops.size(); i += 3) all.push_back(stop(i));
    sim.run(sim.schedule_after(1h));
    for (const started& each : all) REQUIRE(each.done());
    REQUIRE(outcomes == 4 * stops.size());
    REQUIRE(most <= options.max);
    REQUIRE(limit.in_flight() == 0);
    REQUIRE(limit.waiting() == 0);
    REQUIRE(limit.limit() >= options.min);
    REQUIRE(limit.limit() <= options.max);
    std::vector<adaptive_limit::ticket> tickets;
    while (auto ticket = limit.try_acquire()) tickets.push_back(std::move(*ticket));
    REQUIRE(tickets.size() == limit.limit());
  }
}

TEST_CASE("adaptive limit: a cap as high as a semaphore's never says more") {
  constexpr std::size_t most = cobatch::async_semaphore::max();
  for (const auto algorithm : {cobatch::adaptive_algorithm::gradient, cobatch::adaptive_algorithm::aimd}) {
    for (const std::size_t max : {most, most - 1, most / 2 + 1}) {
      cobatch::adaptive_limit limit({.initial = max, .min = max, .max = max, .algorithm = algorithm});
      CHECK(limit.limit() == max);
      for (int i = 0; i < 100; ++i) limit.succeeded(1ms, limit.started());
      CHECK(limit.limit() == max);
      limit.started();
      limit.dropped();
      CHECK(limit.limit() == max);
    }
  }
}
