// SPDX-License-Identifier: BSL-1.0
#include <cobatch/find_limit.hpp>

#include <array>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <cobatch/semaphore.hpp>
#include <cobatch/simulation.hpp>
#include <cobatch/task.hpp>

#include "support/catch.hpp"

using namespace std::chrono_literals;
using cobatch::find_limit;
using cobatch::limit_report;
using cobatch::limit_step;

static_assert(!std::is_aggregate_v<limit_report>);

namespace {

/// A server that works on so many requests at once, each for 50 ms.
struct world {
  explicit world(std::size_t slots) : server(slots) {}

  limit_report find(cobatch::find_limit_options options = {.time_per_limit = cobatch::no_timeout}) {
    const auto predict = [this](const int& x) -> cobatch::task<int> {
      const auto slot = co_await server.acquire();
      co_await sim.schedule_after(50ms);
      co_return x;
    };
    return sim.run(find_limit(sim, samples, predict, options));
  }

  cobatch::simulation sim;
  cobatch::async_semaphore server;
  std::vector<int> samples{1, 2, 3, 4, 5};
};

std::string csv(const limit_report& of) {
  std::ostringstream os;
  of.write_csv(os);
  return os.str();
}

}  // namespace

TEST_CASE("find_limit: it finds the capacity of a server to within a quarter") {
  for (const std::size_t slots : {1u, 3u, 8u, 13u, 50u, 100u}) {
    CAPTURE(slots);
    world in(slots);
    const limit_report found = in.find();
    CHECK(found.limit() >= slots * 9 / 10);
    CHECK(found.limit() <= slots * 5 / 4 + 1);
    CHECK(found.server_slots() == Approx(static_cast<double>(slots)).epsilon(0.04));
  }
}

TEST_CASE("find_limit: throughput and latency of each limit are the server's") {
  world in(8);
  const limit_report found = in.find();
  for (const limit_step& each : found.steps()) {
    CAPTURE(each.limit);
    CHECK(each.throughput == Approx(20.0 * static_cast<double>(std::min<std::size_t>(each.limit, 8))).epsilon(0.04));
    CHECK(static_cast<double>(each.p99.count()) ==
          Approx(5e7 * std::max(1.0, std::ceil(static_cast<double>(each.limit) / 8))).epsilon(0.01));
    CHECK(each.failed == 0);
  }
}

TEST_CASE("find_limit: it stops soon after more brings nothing, and never goes above max") {
  world in(8);
  CHECK(in.find().steps().back().limit == 32);
  world small(100);
  const limit_report found = small.find({.max = 20, .time_per_limit = cobatch::no_timeout});
  CHECK(found.steps().back().limit == 20);
  CHECK(found.limit() == 20);
}

TEST_CASE("find_limit: the limits that are asked for are those that are tried") {
  world in(8);
  const std::array<std::size_t, 3> limits{16, 4, 8};
  const limit_report found =
      in.find({.limits = limits, .samples_per_limit = 400, .time_per_limit = cobatch::no_timeout});
  REQUIRE(found.steps().size() == 3);
  CHECK(found.steps()[0].limit == 4);
  CHECK(found.steps()[0].samples == 400);
  CHECK(found.limit() == 8);
}

TEST_CASE("find_limit: no sample starts after the time is up") {
  world in(8);
  const std::array<std::size_t, 1> limits{1};
  const auto begin = in.sim.now();
  const limit_report found = in.find({.limits = limits, .time_per_limit = 1s});
  CHECK(found.steps()[0].samples == 20);
  CHECK(in.sim.now() - begin == 1s);
}

TEST_CASE("find_limit: a bound on the latency counts more than throughput") {
  // Twice as many in flight get 1.6 times as much done and take 1.25 times as long.
  cobatch::simulation sim;
  std::size_t in_flight = 0;
  const auto predict = [&](const int&) -> cobatch::task<> {
    ++in_flight;
    co_await sim.schedule_after(10ms + in_flight * 1ms);
    --in_flight;
  };
  const std::vector<int> samples(10);
  const cobatch::find_limit_options options{.time_per_limit = cobatch::no_timeout, .max_p99 = 30ms};
  const limit_report found = sim.run(find_limit(sim, samples, predict, options));
  CHECK(found.limit() >= 14);
  CHECK(found.limit() <= 20);
}

TEST_CASE("find_limit: where every sample fails no limit is good enough") {
  cobatch::simulation sim;
  const auto predict = [&](const int&) -> cobatch::task<> {
    co_await sim.schedule_after(1ms);
    throw std::runtime_error("no");
  };
  const std::vector<int> samples(10);
  const limit_report found = sim.run(find_limit(sim, samples, predict));
  CHECK(found.limit() == 0);
  CHECK(found.steps()[0].failed == 200);
}

TEST_CASE("find_limit: a stop ends it") {
  world in(8);
  std::stop_source stop;
  cobatch::find_limit_options options{.time_per_limit = cobatch::no_timeout};
  options.batch.stop = stop;
  stop.request_stop();
  CHECK(in.find(options).steps().empty());
}

TEST_CASE("find_limit: a predict with a stop token, and one that is no coroutine, will do") {
  cobatch::simulation sim;
  std::vector<int> samples(10);
  const auto stoppable = [&](int&, std::stop_token token) -> cobatch::task<> {
    co_await sim.schedule_after(1ms, token);
  };
  CHECK(sim.run(find_limit(sim, samples, stoppable, {.max = 2})).limit() == 2);
  const auto plain = [](const int& x) { return x; };
  CHECK(sim.run(find_limit(sim, samples, plain, {.max = 2})).steps().size() == 2);
}

TEST_CASE("find_limit: options that make no sense are refused") {
  world in(8);
  const std::array<std::size_t, 1> zero{0};
  CHECK_THROWS_AS(in.find({.min = 0}), std::invalid_argument);
  CHECK_THROWS_AS(in.find({.min = 9, .max = 8}), std::invalid_argument);
  CHECK_THROWS_AS(in.find({.limits = zero}), std::invalid_argument);
  CHECK_THROWS_AS(in.find({.tolerance = 1}), std::invalid_argument);
  in.samples.clear();
  CHECK_THROWS_AS(in.find(), std::invalid_argument);
}

TEST_CASE("find_limit: recorded latencies and a number of slots tell what a limit would do") {
  const std::vector<std::chrono::milliseconds> latencies{40ms, 50ms, 60ms};
  const std::array<std::size_t, 3> limits{4, 32, 64};
  const limit_report found = cobatch::simulate_limits(latencies, 32, {.limits = limits});
  CHECK(found.limit() == 32);
  CHECK(found.steps()[0].throughput == Approx(80).epsilon(0.03));
  CHECK(found.steps()[1].throughput == Approx(640).epsilon(0.03));
  CHECK(found.steps()[2].throughput == Approx(640).epsilon(0.03));
  CHECK(found.steps()[1].p99 < 61ms);
  CHECK(found.steps()[2].p99 > 90ms);
  CHECK_THROWS_AS(cobatch::simulate_limits(latencies, 0), std::invalid_argument);
}

TEST_CASE("find_limit: latencies can be recorded from a batch") {
  world in(100);
  cobatch::latency_recorder recorder;
  const auto predict = [&](int x) -> cobatch::task<> {
    co_await in.sim.schedule_after(x * 1ms);
    if (x == 3) throw std::runtime_error("no");
  };
  in.sim.run(cobatch::batch_predict(in.sim, in.samples, predict, {.observer = &recorder}));
  CHECK(recorder.latencies() == std::vector<std::chrono::nanoseconds>{1ms, 2ms, 4ms, 5ms});
}

TEST_CASE("limit_report: table, chart and CSV tell the same") {
  const limit_report report(
      {{4, 100, 1, 160.25, 25ms, 30ms}, {1, 100, 0, 40, 24ms, 25ms}, {8, 100, 0, 161, 50ms, 60ms}}, 0.05,
      cobatch::no_timeout);
  CHECK(report.limit() == 4);
  std::ostringstream table, chart;
  report.write_table(table);
  report.write_chart(chart);
  CHECK(table.str() ==
        "   limit    values/s         p50         p99    failed\n"
        "       1        40.0     24.0 ms     25.0 ms         0\n"
        "       4       160.2     25.0 ms     30.0 ms         1  <- enough\n"
        "       8       161.0     50.0 ms     60.0 ms         0\n");
  CHECK(chart.str() ==
        "       1 | ############ 40.0/s, p99 25.0 ms\n"
        "       4 > ################################################## 160.2/s, p99 30.0 ms\n"
        "       8 | ################################################## 161.0/s, p99 60.0 ms\n");
  CHECK(csv(report) ==
        "limit,samples,failed,throughput,p50,p99\n"
        "1,100,0,40,0.024000000,0.025000000\n"
        "4,100,1,160.25,0.025000000,0.030000000\n"
        "8,100,0,161,0.050000000,0.060000000\n");
}

TEST_CASE("limit_report: an empty one can be written") {
  const limit_report report({}, 0.05, cobatch::no_timeout);
  std::ostringstream os;
  report.write_table(os);
  report.write_chart(os);
  CHECK(report.limit() == 0);
  CHECK(report.server_slots() == 0);
}

TEST_CASE("find_limit: a server that takes no time is served by the smallest limit") {
  const std::vector<std::chrono::nanoseconds> nothing(100);
  const cobatch::limit_report found = cobatch::simulate_limits(nothing, 64);
  CHECK(found.limit() == 1);
  CHECK(found.server_slots() == 0);
  std::ostringstream os;
  found.write_table(os);
  found.write_chart(os);
  found.write_csv(os);
  CHECK(os.str().find("NaN") == std::string::npos);
}
