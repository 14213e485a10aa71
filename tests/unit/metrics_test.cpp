// SPDX-License-Identifier: BSL-1.0
#include <cobatch/metrics.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <initializer_list>
#include <limits>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#include "support/catch.hpp"
#include "support/json.hpp"
#include "support/told.hpp"

using namespace std::chrono_literals;
using cobatch::batch_metrics;
using cobatch::bottleneck;
using cobatch::errc;

static_assert(!std::is_aggregate_v<cobatch::metrics_snapshot>, "GCC 12 breaks such ones inside co_await");
static_assert(cobatch::name_of(errc::timed_out) == "timed_out" && cobatch::name_of(errc{}) == "success");

namespace {

std::string prometheus(const cobatch::metrics_snapshot& of, std::string_view prefix,
                       std::span<const cobatch::metric_label> labels = {}) {
  std::ostringstream os;
  of.write_prometheus(os, prefix, labels);
  return os.str();
}

bool has_line(const std::string& text, const std::string& line) {
  return ("\n" + text).find("\n" + line + "\n") != text.npos;
}

}  // namespace

TEST_CASE("metrics: what has not been observed is empty") {
  const batch_metrics metrics;
  const auto seen = metrics.snapshot();
  CHECK(seen.samples == 0);
  CHECK(seen.throughput() == 0);
  CHECK(seen.latency.quantile(0.99) == 0ns);
  CHECK(seen.slowed_by() == bottleneck::nothing);
}

TEST_CASE("metrics: samples, failures, attempts, retries and hedges are counted") {
  batch_metrics metrics;
  teller batch(metrics, 8, 4);
  batch.now += 1s;
  batch.sample(0, 10ms);
  batch.sample(1, 20ms, 2, errc::exception);
  batch.attempt(2, 30ms, 3, errc::timed_out);
  batch.retry(2, 1, errc::timed_out, 500ms);
  batch.attempt(2, 40ms, 2, {}, 2);
  batch.finish(2, {}, 2);
  batch.finish(3, errc::cost_exceeds_capacity, 0);
  batch.waits.hedge = true;
  batch.attempt(5, 1ms);
  batch.now += 1s;
  batch.end();

  const auto seen = metrics.snapshot();
  CHECK(seen.samples == 4);
  CHECK(seen.succeeded == 2);
  CHECK(seen.failed == 2);
  CHECK(seen.failed_with(errc::exception) == 1);
  CHECK(seen.failed_with(errc::cost_exceeds_capacity) == 1);
  CHECK(seen.failed_with(errc::timed_out) == 0);
  CHECK(seen.attempts == 5);
  CHECK(seen.retries == 1);
  CHECK(seen.hedges == 1);
  CHECK(seen.late == 1);
  CHECK(seen.batches == 1);
  CHECK(seen.active_batches == 0);
  CHECK(seen.in_flight == 0);
  CHECK(seen.limit == 8);
  CHECK(seen.elapsed == 2s);
  CHECK(seen.throughput() == 2);
  CHECK(seen.running == 101ms);
  CHECK(seen.backed_off == 500ms);
  CHECK(seen.latency.count() == 5);
  CHECK(seen.latency.max() == 40ms);
  CHECK(seen.latency.min() == 1ms);
  CHECK(seen.latency.mean() == 20200us);
}

TEST_CASE("metrics: an attempt that has not ended is in flight") {
  batch_metrics metrics;
  metrics.attempt_started({});
  metrics.attempt_started({});
  metrics.attempt_ended({});
  CHECK(metrics.snapshot().in_flight == 1);
}

TEST_CASE("metrics: a batch without a cap has no limit") {
  batch_metrics metrics;
  teller batch(metrics);
  batch.sample(0, 1ms);
  CHECK(metrics.snapshot().limit == std::numeric_limits<std::size_t>::max());
}

TEST_CASE("metrics: only time with an active batch counts") {
  batch_metrics metrics;
  for (int i = 0; i < 2; ++i) {
    teller batch(metrics);
    batch.now += i * 1h + 1s;
    batch.sample(0, 1ms);
    CHECK(metrics.snapshot().elapsed >= 1s);
    batch.now = 103s;
    batch.end();
  }
  CHECK(metrics.snapshot().elapsed == 6s);
}

TEST_CASE("metrics: quantiles are within one percent") {
  batch_metrics metrics;
  teller batch(metrics);
  for (int i = 1; i <= 10'000; ++i) batch.sample(0, i * 1us);
  const auto latency = metrics.snapshot().latency;
  for (const double q : {0.01, 0.5, 0.9, 0.99, 0.999}) {
    const double found = static_cast<double>(latency.quantile(q).count());
    CHECK(found == Approx(q * 1e7).epsilon(0.01));
  }
  CHECK(latency.quantile(1) == 10ms);
}

TEST_CASE("latency_histogram: copied, moved and merged ones have all the counts") {
  cobatch::latency_histogram first;
  first.record(1ms);
  first.record(-1ms);
  cobatch::latency_histogram second = first;
  second.record(3ms);
  first.merge(second);
  CHECK(first.count() == 5);
  CHECK(first.min() == 0ns);
  CHECK(first.max() == 3ms);
  const cobatch::latency_histogram moved = std::move(first);
  CHECK(moved.count() == 5);
  CHECK(first.count() == 0);  // NOLINT(bugprone-use-after-move): documented as empty by being swapped
  CHECK(first.quantile(0.5) == 0ns);
  first = moved;
  CHECK(first.count_up_to(2ms) == 4);
}

TEST_CASE("metrics: reports from several threads add up") {
  batch_metrics metrics;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      teller batch(metrics);
      for (int i = 0; i < 1000; ++i) batch.sample(0, 1ms);
      batch.end();
    });
  }
  for (auto& each : threads) each.join();
  const auto seen = metrics.snapshot();
  CHECK(seen.samples == 4000);
  CHECK(seen.attempts == 4000);
  CHECK(seen.latency.count() == 4000);
  CHECK(seen.running == 4s);
  CHECK(seen.in_flight == 0);
}

TEST_CASE("metrics: more threads than it has places for lose nothing") {
  batch_metrics metrics;
  std::vector<std::thread> threads;
  std::atomic<bool> go{false};
  for (int t = 0; t < 40; ++t) {
    threads.emplace_back([&] {
      while (!go) std::this_thread::yield();  // all at the same time: each has a mark of its own
      teller batch(metrics);
      for (int i = 0; i < 20; ++i) batch.sample(0, 1ms);
    });
  }
  go = true;
  for (auto& each : threads) each.join();
  CHECK(metrics.snapshot().samples == 800);
  CHECK(metrics.snapshot().latency.count() == 800);
}

TEST_CASE("metrics: snapshots of several add up") {
  batch_metrics first, second;
  teller one(first, 4), two(second, 8);
  one.sample(0, 1ms);
  two.sample(0, 3ms, 1, errc::exception);
  auto all = first.snapshot();
  all.merge(second.snapshot());
  CHECK(all.samples == 2);
  CHECK(all.failed_with(errc::exception) == 1);
  CHECK(all.latency.count() == 2);
  CHECK(all.batches == 2);
  CHECK(all.limit == 8);
}

TEST_CASE("metrics: the limit is known also where results are taken on another thread") {
  batch_metrics metrics;
  teller batch(metrics, 8);
  batch.sample(0, 3ms);
  std::jthread([&] { metrics.sample_taken({.index = 0, .at = 1h}); }).join();
  CHECK(metrics.snapshot().limit == 8);
}

TEST_CASE("metrics: Prometheus text has help, type and every name under the prefix") {
  batch_metrics metrics;
  teller batch(metrics, 8);
  batch.sample(0, 3ms);
  batch.sample(1, 700s, 1, errc::timed_out);
  const std::string text = prometheus(metrics.snapshot(), "my app");
  CHECK(has_line(text, "# TYPE my_app_samples_total counter"));
  CHECK(has_line(text, "my_app_samples_total{outcome=\"success\"} 1"));
  CHECK(has_line(text, "my_app_samples_total{outcome=\"timed_out\"} 1"));
  CHECK(has_line(text, "my_app_limit 8"));
  CHECK(has_line(text, "my_app_attempt_duration_seconds_bucket{le=\"0.0025\"} 0"));
  CHECK(has_line(text, "my_app_attempt_duration_seconds_bucket{le=\"0.005\"} 1"));
  CHECK(has_line(text, "my_app_attempt_duration_seconds_bucket{le=\"500\"} 1"));
  CHECK(has_line(text, "my_app_attempt_duration_seconds_bucket{le=\"+Inf\"} 2"));
  CHECK(has_line(text, "my_app_attempt_duration_seconds_sum 700.003"));
  CHECK(has_line(text, "my_app_attempt_duration_seconds_count 2"));
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    const bool named =
        line.starts_with("my_app_") || line.starts_with("# HELP my_app_") || line.starts_with("# TYPE my_app_");
    CHECK(named);
  }
}

TEST_CASE("metrics: Prometheus labels are escaped, odd names are made good") {
  const batch_metrics metrics;
  const std::array labels{cobatch::metric_label{"model name", "a\"b\\c\nd"}, cobatch::metric_label{"2x", "y"}};
  const std::string text = prometheus(metrics.snapshot(), "2nd", labels);
  CHECK(has_line(text, "_2nd_in_flight{model_name=\"a\\\"b\\\\c\\nd\",_2x=\"y\"} 0"));
  CHECK(has_line(text, "_2nd_limit{model_name=\"a\\\"b\\\\c\\nd\",_2x=\"y\"} +Inf"));
  CHECK(has_line(prometheus(metrics.snapshot(), ""), "in_flight 0"));
}

TEST_CASE("metrics: the JSON is JSON, empty or not") {
  batch_metrics metrics;
  std::ostringstream empty, full;
  metrics.write_json(empty);
  CHECK(json_checker::accepts(empty.str()));
  teller batch(metrics, 8);
  batch.sample(0, 3ms, 1, errc::exception);
  batch.sample(0, 3ms, 1, errc::timed_out);
  metrics.write_json(full);
  CHECK(json_checker::accepts(full.str()));
  CHECK(full.str().find("\"failed_by\":{\"exception\":1,\"timed_out\":1}") != std::string::npos);
}

TEST_CASE("metrics: the summary is one screen") {
  batch_metrics metrics;
  teller batch(metrics, 8);
  batch.waits.waited_for_input = 1ms;
  batch.waits.waited_for_rate = 2ms;
  for (int i = 1; i < 10; ++i) {
    batch.now += 10ms;
    batch.sample(0, 10ms, 1, static_cast<errc>(i % 5));
  }
  batch.end();
  std::ostringstream os;
  metrics.write_summary(os);
  const std::string text = os.str();
  CHECK(std::count(text.begin(), text.end(), '\n') < 24);
  CHECK(text.find("samples     9 in 90.0 ms, 100 a second: 1 succeeded, 8 failed") != std::string::npos);
  CHECK(text.find("2 exception") != std::string::npos);
  CHECK(text.find("input 1.00 ms, rate 2.00 ms on average") != std::string::npos);
}

// -- what it is slowed by, from clocks made by hand; from batches: see bottleneck_test.cpp --

namespace {

/// A thousand samples, one after another, with what they have waited.
cobatch::metrics_snapshot a_thousand(teller& batch, const batch_metrics& metrics, std::size_t in_flight,
                                     std::chrono::nanoseconds ran, std::chrono::nanoseconds each = 10ms) {
  for (std::size_t i = 0; i < 1000; ++i) {
    batch.now += each;
    batch.sample(i, ran, in_flight);
  }
  batch.end();
  return metrics.snapshot();
}

}  // namespace

TEST_CASE("bottleneck: someone waits for the rate most of the time") {
  batch_metrics metrics;
  teller batch(metrics, 64);
  batch.waits.waited_for_rate = 9ms;
  batch.waits.waited_for_input = 1ms;
  CHECK(a_thousand(batch, metrics, 3, 20ms).slowed_by() == bottleneck::rate);
  CHECK(metrics.advice().find("rate limiter: 90 %") != std::string::npos);
}

TEST_CASE("bottleneck: someone waits for the input most of the time") {
  batch_metrics metrics;
  teller batch(metrics, 64);
  batch.waits.waited_for_rate = 1ms;
  batch.waits.waited_for_input = 9ms;
  CHECK(a_thousand(batch, metrics, 3, 20ms).slowed_by() == bottleneck::input);
}

TEST_CASE("bottleneck: all places are taken, and latency does not grow with them") {
  batch_metrics metrics;
  teller batch(metrics, 4);
  for (std::size_t i = 1; i < 4; ++i) batch.sample(0, 40ms, i);
  CHECK(a_thousand(batch, metrics, 4, 40ms).slowed_by() == bottleneck::limit);
  CHECK(metrics.advice().find("100 % of the attempts") != std::string::npos);
}

TEST_CASE("bottleneck: a shared semaphore's permits are what is waited for") {
  batch_metrics metrics;
  teller batch(metrics);
  batch.waits.waited_for_permits = 9ms;
  CHECK(a_thousand(batch, metrics, 4, 40ms).slowed_by() == bottleneck::limit);
}

TEST_CASE("bottleneck: latency grows in proportion to what is in flight") {
  batch_metrics metrics;
  teller batch(metrics, 64);
  for (std::size_t i = 1; i < 64; ++i) batch.sample(0, 10ms * ((i + 7) / 8), i);
  CHECK(a_thousand(batch, metrics, 64, 80ms).slowed_by() == bottleneck::server);
  CHECK(metrics.advice().find("what predict calls") != std::string::npos);
}

TEST_CASE("bottleneck: latency that grows a little, while more gets done, is no overload") {
  batch_metrics metrics;
  teller batch(metrics, 64);
  const auto latency = [](std::size_t in_flight) { return 10ms + in_flight * 100us; };
  for (std::size_t i = 1; i < 64; ++i) batch.sample(0, latency(i), i);
  CHECK(a_thousand(batch, metrics, 64, latency(64), 250us).slowed_by() == bottleneck::limit);
}

TEST_CASE("bottleneck: results lie ready and nobody takes them") {
  batch_metrics metrics;
  teller batch(metrics, 64);
  for (std::size_t i = 0; i < 1000; ++i) {
    batch.now += 10ms;
    batch.sample(i, 20ms, 2);
    batch.taken(i, 0ms, 500ms);
  }
  batch.end();
  CHECK(metrics.slowed_by() == bottleneck::consumer);
  CHECK(metrics.advice().find("50.0 results lay ready") != std::string::npos);
}

TEST_CASE("bottleneck: a batch that waits for nothing is slowed by nothing") {
  batch_metrics metrics;
  teller batch(metrics, 64);
  CHECK(a_thousand(batch, metrics, 2, 20ms).slowed_by() == bottleneck::nothing);
}

TEST_CASE("prometheus_writer: several metrics share each HELP and TYPE") {
  batch_metrics one, two;
  two.sample_finished({});
  std::ostringstream os;
  cobatch::prometheus_writer("app")
      .add(one.snapshot(), {{"model", "a"}})
      .add(two.snapshot(), {{"model", "b"}, {"zone", "eu"}})
      .write(os);
  const std::string text = os.str();
  std::map<std::string, int> heads;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with('#')) ++heads[line.substr(0, line.find(' ', 7))];
  }
  CHECK(heads.size() == 28);
  for (const auto& [head, count] : heads) {
    CAPTURE(head);
    CHECK(count == 1);
  }
  CHECK(has_line(text, "app_samples_total{model=\"a\",outcome=\"success\"} 0"));
  CHECK(has_line(text, "app_samples_total{model=\"b\",zone=\"eu\",outcome=\"success\"} 1"));
}

TEST_CASE("prometheus_writer: error codes of the user's own are one row, in JSON and the summary too") {
  batch_metrics metrics;
  for (const int code : {20, 21, 200, 21}) {
    cobatch::sample_event own;
    own.failure = static_cast<cobatch::errc>(code);
    metrics.sample_finished(own);
  }
  const std::string text = prometheus(metrics.snapshot(), "app");
  CHECK(has_line(text, "app_samples_total{outcome=\"other\"} 4"));
  CHECK(text.find("outcome=\"other\"") == text.rfind("outcome=\"other\""));
  std::ostringstream json, summary;
  metrics.write_json(json);
  metrics.write_summary(summary);
  CHECK(json.str().find("\"failed_by\":{\"other\":4}") != std::string::npos);
  CHECK(summary.str().find("4 other\n") != std::string::npos);
}

TEST_CASE("prometheus_writer: labels that Prometheus would not take are refused by name") {
  const auto refused = [](std::initializer_list<cobatch::metric_label> labels) -> std::string {
    try {
      cobatch::prometheus_writer().add({}, labels);
    } catch (const std::invalid_argument& error) {
      return error.what();
    }
    return "";
  };
  for (const char* const name : {"le", "outcome", "for", "__name__", "__x"}) {
    CHECK(refused({{name, "a"}}).find(std::string("\"") + name + "\"") != std::string::npos);
  }
  CHECK(refused({{"model", "a"}, {"model", "b"}}).find("\"model\" is there twice") != std::string::npos);
  CHECK(refused({{"mo-del", "a"}, {"mo_del", "b"}}).find("\"mo_del\" is there twice") != std::string::npos);
  CHECK(refused({{"mo_del", "a"}, {"mo-del", "b"}}).find("\"mo-del\" (as \"mo_del\") is there twice") !=
        std::string::npos);
  CHECK(refused({{"-_x", "a"}}).find("\"-_x\" (as \"__x\") is reserved") != std::string::npos);
  CHECK(refused({{"model", "a"}, {"Model", "b"}, {"lE", "c"}}).empty());
}

TEST_CASE("prometheus_writer: two metrics with the same labels are refused") {
  cobatch::prometheus_writer writer;
  writer.add({}, {{"model", "a"}});
  CHECK_THROWS_AS(writer.add({}, {{"model", "a"}}), std::invalid_argument);
  writer.add({});
  CHECK_THROWS_AS(writer.add({}), std::invalid_argument);
}

TEST_CASE("prometheus_writer: what is no UTF-8 is escaped, what is UTF-8 is not") {
  const auto written = [](std::string_view value) {
    std::ostringstream os;
    cobatch::prometheus_writer("app").add({}, {{"m", value}}).write(os);
    const std::string line = os.str().substr(os.str().find("app_in_flight{m=\"") + 17);
    return line.substr(0, line.find("\"} 0"));
  };
  CHECK(written("\xff\xfe") == R"(\\xff\\xfe)");
  CHECK(written("a\x80z") == R"(a\\x80z)");
  CHECK(written("\xc3\xa4 \xe2\x82\xac \xf0\x9f\x99\x82") == "\xc3\xa4 \xe2\x82\xac \xf0\x9f\x99\x82");
  CHECK(written("\xc0\xaf") == R"(\\xc0\\xaf)");           // longer than it need be
  CHECK(written("\xed\xa0\x80") == R"(\\xed\\xa0\\x80)");  // half of a pair
  CHECK(written("\xf4\x90\x80\x80") == R"(\\xf4\\x90\\x80\\x80)");
  CHECK(written("cut \xe2\x82") == R"(cut \\xe2\\x82)");
  CHECK(written("\"\\\n") == R"(\"\\\n)");
}
