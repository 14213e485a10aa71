// SPDX-License-Identifier: BSL-1.0
#include <cobatch/log_observer.hpp>

#include <limits>
#include <sstream>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/told.hpp"

using namespace std::chrono_literals;
using cobatch::errc;
using cobatch::log_field;
using cobatch::log_level;
using cobatch::log_observer;

namespace {

struct line {
  log_level level;
  std::string event;
  std::vector<log_field> fields;

  template <class T>
  T get(std::string_view name) const {
    for (const log_field& each : fields) {
      if (each.name == name) return std::get<T>(each.value);
    }
    return {};
  }
};

struct log_lines {
  log_observer::callback callback() {
    return [this](log_level level, std::string_view event, std::span<const log_field> fields) {
      all.push_back({level, std::string(event), {fields.begin(), fields.end()}});
    };
  }
  std::vector<line> all;
};

void tell_of_everything(teller& batch) {
  batch.sample(0, 1ms);
  batch.attempt(1, 2ms, 1, errc::timed_out);
  batch.retry(1, 1, errc::timed_out, 50ms);
  batch.attempt(1, 2ms, 1, errc::exception, 2);
  batch.finish(1, errc::exception, 2);
  batch.taken(0, 1ms, 2ms);
  batch.end();
}

}  // namespace

TEST_CASE("log_observer: a callback gets level, event and fields") {
  log_lines lines;
  log_observer log(lines.callback());
  teller batch(log, 8, 2);
  tell_of_everything(batch);
  REQUIRE(lines.all.size() == 5);
  CHECK(lines.all[0].event == "batch_started");
  CHECK(lines.all[0].get<std::uint64_t>("samples") == 2);
  CHECK(lines.all[0].get<std::uint64_t>("limit") == 8);
  CHECK(lines.all[1].event == "attempt_ended");
  CHECK(lines.all[1].level == log_level::warning);
  CHECK(lines.all[1].get<std::string_view>("late") == "yes");
  CHECK(lines.all[2].event == "sample_retried");
  CHECK(lines.all[2].get<std::chrono::nanoseconds>("delay") == 50ms);
  CHECK(lines.all[3].event == "sample_finished");
  CHECK(lines.all[3].level == log_level::error);
  CHECK(lines.all[3].get<std::uint64_t>("sample") == 1);
  CHECK(lines.all[3].get<std::string_view>("failure") == "exception");
  CHECK(lines.all[4].event == "batch_ended");
  for (const line& each : lines.all) CHECK(each.get<std::chrono::nanoseconds>("at") == 100s);
}

TEST_CASE("log_observer: the least level decides what is told") {
  const auto count = [](log_level least) {
    log_lines lines;
    log_observer log(lines.callback(), {.least = least});
    teller batch(log);
    log.wait_started({});
    log.wait_ended({});
    tell_of_everything(batch);
    return lines.all.size();
  };
  CHECK(count(log_level::error) == 1);
  CHECK(count(log_level::warning) == 3);
  CHECK(count(log_level::info) == 5);
  CHECK(count(log_level::debug) == 14);
}

TEST_CASE("log_observer: what comes too often is counted, and told with the next that gets through") {
  log_lines lines;
  log_observer log(lines.callback(), {.per_second = 10, .burst = 3});
  teller batch(log);
  for (int i = 0; i < 100; ++i) batch.finish(0, errc::exception);
  CHECK(lines.all.size() == 1 + 3);
  batch.now += 99ms;
  batch.finish(0, errc::exception);
  CHECK(lines.all.size() == 1 + 3);
  batch.now += 1ms;
  batch.finish(0, errc::exception);
  REQUIRE(lines.all.size() == 1 + 4);
  CHECK(lines.all.back().get<std::uint64_t>("suppressed") == 98);
  batch.now += 1h;
  for (int i = 0; i < 100; ++i) batch.finish(0, errc::exception);
  CHECK(lines.all.size() == 1 + 4 + 3);
  batch.end();  // that a batch ends is told in any case
  CHECK(lines.all.back().event == "batch_ended");
  CHECK(lines.all.back().get<std::uint64_t>("suppressed") == 97);
}

TEST_CASE("stream_log: one line per event") {
  std::ostringstream os;
  cobatch::stream_log log(os);
  teller batch(log, 8, 2);
  batch.now = 12'003'451us;
  batch.retry(17, 1, errc::timed_out, 100ms);
  CHECK(os.str() == "[cobatch] 100.000000000 info batch_started batch=" + std::to_string(batch.batch) +
                        " samples=2 limit=8\n[cobatch] 12.003451000 warning sample_retried batch=" +
                        std::to_string(batch.batch) + " sample=17 attempts=1 failure=timed_out delay=0.100000000s\n");
}

TEST_CASE("log_observer: rates and bursts near the ends let through what they say") {
  const auto admitted = [](double per_second, double burst, std::chrono::nanoseconds step) {
    int told = 0;
    log_observer log([&](log_level, std::string_view, std::span<const log_field>) { ++told; },
                     {.least = log_level::debug, .per_second = per_second, .burst = burst});
    cobatch::attempt_event event;
    event.at = 100h;
    for (int i = 0; i < 10'000; ++i, event.at += step) log.attempt_started(event);
    return told;
  };
  CHECK(admitted(20, 50, 0ns) == 50);
  CHECK(admitted(0, 50, 1s) == 50);
  CHECK(admitted(-1, 50, 1s) == 50);
  CHECK(admitted(std::numeric_limits<double>::quiet_NaN(), 50, 1s) == 50);
  CHECK(admitted(1e-9, 50, 1s) == 50);
  CHECK(admitted(1e-300, 50, 1s) == 50);
  CHECK(admitted(1, 1e10, 0ns) == 10'000);
  CHECK(admitted(0, 1e300, 0ns) == 10'000);
  CHECK(admitted(1e300, 1, 1ns) == 10'000);
  CHECK(admitted(std::numeric_limits<double>::infinity(), 1, 1ns) == 10'000);
  CHECK(admitted(10, 0, 50ms) == 5'000);
}

TEST_CASE("log_observer: events at the ends of time are no harm") {
  int told = 0;
  log_observer log([&](log_level, std::string_view, std::span<const log_field>) { ++told; },
                   {.least = log_level::debug, .per_second = 1, .burst = 1});
  cobatch::attempt_event event;
  for (const auto at : {std::chrono::nanoseconds::min(), 0ns, std::chrono::nanoseconds::max()}) {
    event.at = at;
    log.attempt_started(event);
    log.attempt_started(event);
  }
  CHECK(told == 3);
}
