// SPDX-License-Identifier: BSL-1.0
#include <cobatch/observer.hpp>

#include <algorithm>
#include <atomic>
#include <map>
#include <numeric>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include <cobatch/batch_predict.hpp>
#include <cobatch/predict_stream.hpp>
#include <cobatch/rate_limiter.hpp>
#include <cobatch/simulation.hpp>
#include <cobatch/task.hpp>

#include "support/catch.hpp"
#include "support/told.hpp"

using namespace std::chrono_literals;
using cobatch::errc;

static_assert(std::is_trivially_copyable_v<cobatch::attempt_event>);
static_assert(!std::is_constructible_v<cobatch::observers<1>, scribe>, "a temporary observer would be gone");

namespace {

struct thrower : cobatch::batch_observer {
  void attempt_started(const cobatch::attempt_event&) override { throw std::runtime_error("no"); }
};

}  // namespace

TEST_CASE("observer: hooks that are not overridden do nothing") {
  cobatch::batch_observer nothing;
  teller batch(nothing);
  batch.sample(0, 1ms);
  batch.retry(1, 1, errc::timed_out, 1ms);
  batch.taken(0, 0ns, 0ns);
  nothing.wait_started({});
  nothing.wait_ended({});
  batch.end();
}

TEST_CASE("observer: an exception from a hook is swallowed and counted") {
  thrower bad;
  std::atomic<std::uint64_t> failures{0};
  cobatch::detail::notify(&bad, failures, &cobatch::batch_observer::attempt_started, cobatch::attempt_event{});
  cobatch::detail::notify(&bad, failures, &cobatch::batch_observer::attempt_ended, cobatch::attempt_event{});
  CHECK(failures == 1);
}

TEST_CASE("observer: two batches never have the same number") {
  const auto first = cobatch::detail::next_batch_number();
  CHECK(cobatch::detail::next_batch_number() != first);
}

TEST_CASE("observers: all of them are told everything, in their order") {
  scribe first, second;
  cobatch::observers both(first, second);
  static_assert(std::is_same_v<decltype(both), cobatch::observers<2>>);
  teller batch(both, 8, 1);
  both.wait_started({});
  both.wait_ended({});
  batch.attempt(7, 1ms, 1, errc::timed_out);
  batch.retry(7, 1, errc::timed_out, 1ms);
  batch.sample(7, 1ms);
  batch.taken(7, 0ns, 0ns);
  batch.end();
  CHECK(first.lines == std::vector<std::string>{"batch_started", "wait_started", "wait_ended", "attempt_started 7",
                                                "attempt_ended 7", "sample_retried 7", "attempt_started 7",
                                                "attempt_ended 7", "sample_finished 7", "sample_taken 7",
                                                "batch_ended"});
  CHECK(second.lines == first.lines);
}

TEST_CASE("observers: one that throws keeps nothing from the others, and its exception goes on") {
  thrower bad;
  scribe good;
  cobatch::observers both(bad, good);
  CHECK_THROWS_AS(both.attempt_started({}), std::runtime_error);
  CHECK(good.lines.size() == 1);
}

TEST_CASE("observers: they nest") {
  scribe one, two, three;
  cobatch::observers inner(one, two);
  cobatch::observers outer(inner, three);
  outer.attempt_started({});
  CHECK(one.lines.size() + two.lines.size() + three.lines.size() == 3);
}

// -- what batches tell --

namespace {

struct observed_batch {
  template <class Predict>
  auto run(Predict predict, cobatch::batch_options options = {}, std::size_t count = 20) {
    samples.resize(count);
    std::iota(samples.begin(), samples.end(), 0);
    options.observer = &told;
    return sim.run(cobatch::batch_predict(sim, samples, predict, options));
  }
  /// The hooks that were told of this sample, without its number.
  std::vector<std::string> story(std::size_t index) const {
    std::vector<std::string> hooks;
    for (const std::string& each : told.lines) {
      const std::size_t space = each.find(' ');
      if (space != each.npos && each.substr(space + 1) == std::to_string(index)) hooks.push_back(each.substr(0, space));
    }
    return hooks;
  }

  cobatch::simulation sim{1};
  scribe told;
  std::vector<int> samples;
};

using hooks = std::vector<std::string>;

}  // namespace

TEST_CASE("observer: a batch tells of its begin, of each sample, and of its end") {
  observed_batch batch;
  const auto predict = [&](int x) -> cobatch::task<int> {
    co_await batch.sim.schedule_after(10ms);
    co_return x;
  };
  batch.run(predict, {.max_concurrency = 4});
  CHECK(batch.told.lines.front() == "batch_started");
  CHECK(batch.told.lines.back() == "batch_ended");
  CHECK(batch.told.lines.size() == 2 + 3 * 20);
  for (std::size_t i = 0; i < 20; ++i)
    CHECK(batch.story(i) == hooks{"attempt_started", "attempt_ended", "sample_finished"});
  CHECK(batch.told.infos[0].samples == 20);
  CHECK(batch.told.infos[0].limit == 4);
  CHECK(batch.told.infos[0].batch != 0);
  for (const auto& each : batch.told.ends) {
    CHECK(each.ran == 10ms);
    CHECK(each.succeeded());
    CHECK(each.in_flight >= 1);
    CHECK(each.in_flight <= 4);
    CHECK(each.limit == 4);
    CHECK(each.batch == batch.told.infos[0].batch);
    CHECK(each.lane != nullptr);
  }
  const auto& summary = batch.told.summaries[0];
  CHECK(summary.finished == 20);
  CHECK(summary.not_started == 0);
  CHECK(summary.stopped == errc{});
  CHECK(summary.elapsed == 50ms);
  CHECK(summary.hook_failures == 0);
}

TEST_CASE("observer: an attempt's end repeats what was told at its start") {
  observed_batch batch;
  cobatch::rate_limiter rate(100);
  const auto predict = [&](int) -> cobatch::task<> { co_await batch.sim.schedule_after(25ms); };
  batch.run(predict, {.max_concurrency = 4, .rate = &rate});
  std::map<std::size_t, cobatch::attempt_event> starts;
  for (const auto& each : batch.told.starts) starts[each.index] = each;
  std::chrono::nanoseconds waited{};
  for (const auto& end : batch.told.ends) {
    const auto& start = starts.at(end.index);
    CHECK(start.lane == end.lane);
    CHECK(start.at == end.at - end.ran);
    CHECK(start.ran == 0ns);
    CHECK(start.in_flight == end.in_flight);
    CHECK(start.waited_for_rate == end.waited_for_rate);
    waited += end.waited_for_rate;
  }
  CHECK(waited == 19 * 10ms);  // one after another, one every 10 ms

  // Each wait of a lane is told as well, in pairs.
  std::map<const void*, int> open;
  std::chrono::nanoseconds waits{};
  for (const auto& each : batch.told.waits) {
    CHECK(each.what == cobatch::wait_for::rate);
    waits += each.waited;
  }
  CHECK(waits == waited);
  CHECK(std::count(batch.told.lines.begin(), batch.told.lines.end(), "wait_started") ==
        std::count(batch.told.lines.begin(), batch.told.lines.end(), "wait_ended"));
}

TEST_CASE("observer: a sample that is tried again is told so") {
  observed_batch batch;
  std::vector<int> calls(3);
  const auto predict = [&](int x) -> cobatch::task<int> {
    co_await batch.sim.schedule_after(1ms);
    if (++calls[static_cast<std::size_t>(x)] < 3 && x == 1) throw std::runtime_error("busy");
    if (x == 2) throw std::runtime_error("broken");
    co_return x;
  };
  const cobatch::retry_policy retry{.max_attempts = 3, .initial_backoff = 100ms, .jitter = false};
  batch.run(predict, {.retry = retry}, 3);
  const hooks again{"attempt_started", "attempt_ended",   "sample_retried", "attempt_started", "attempt_ended",
                    "sample_retried",  "attempt_started", "attempt_ended",  "sample_finished"};
  CHECK(batch.story(0) == hooks{"attempt_started", "attempt_ended", "sample_finished"});
  CHECK(batch.story(1) == again);
  CHECK(batch.story(2) == again);
  CHECK(batch.told.retries.size() == 4);
  CHECK(batch.told.retries[0].delay == 100ms);
  CHECK(batch.told.retries[0].failure == errc::exception);
  CHECK(batch.told.retries[3].delay == 200ms);
  CHECK(batch.told.retries[3].attempts == 2);
  for (const auto& each : batch.told.finished) {
    CHECK(each.attempts == (each.index == 0 ? 1 : 3));
    CHECK(each.succeeded() == (each.index != 2));
  }
}

TEST_CASE("observer: an attempt that ends after its timeout is late") {
  observed_batch batch;
  const auto predict = [&](int x) -> cobatch::task<int> {
    co_await batch.sim.schedule_after(x == 1 ? 2s : 1ms);
    co_return x;
  };
  const auto results = batch.run(predict, {.timeout = 1s}, 2);
  CHECK(results[1].has_value());
  for (const auto& each : batch.told.ends) CHECK(each.late == (each.index == 1));
}

TEST_CASE("observer: a second attempt of the same sample is a hedge") {
  observed_batch batch;
  int calls = 0;
  const auto predict = [&](int x, std::stop_token stop) -> cobatch::task<int> {
    const bool slow = x == 1 && ++calls == 1;
    co_await batch.sim.schedule_after(slow ? 1h : 10ms, stop);
    co_return x;
  };
  const cobatch::hedge_policy hedge{.delay = 50ms, .max_extra = 1};
  batch.run(predict, {.hedge = hedge}, 3);
  CHECK(std::count_if(batch.told.ends.begin(), batch.told.ends.end(), [](const auto& each) { return each.hedge; }) ==
        1);
  CHECK(batch.told.ends.size() == 4);
  CHECK(batch.told.finished.size() == 3);
}

TEST_CASE("observer: the end of a batch that stops early tells why, and how many never started") {
  observed_batch batch;
  const auto predict = [&](int x) -> cobatch::task<int> {
    co_await batch.sim.schedule_after(10ms);
    if (x == 0) throw std::runtime_error("bad");
    co_return x;
  };
  batch.run(predict, {.max_concurrency = 4, .max_failures = 1});
  const auto& summary = batch.told.summaries.at(0);
  CHECK(summary.stopped == errc::cancelled);
  CHECK(summary.finished == batch.told.finished.size());
  CHECK(summary.finished + summary.not_started == 20);
  CHECK(summary.not_started >= 13);  // the other three may have ended first, and three more have begun
}

TEST_CASE("observer: hooks that throw do no harm, and the end tells how many did") {
  struct : scribe {
    void attempt_started(const cobatch::attempt_event&) override { throw std::runtime_error("no"); }
    void sample_finished(const cobatch::sample_event&) override { throw 1; }
  } bad;
  cobatch::simulation sim;
  const std::vector<int> samples{1, 2, 3};
  const auto predict = [](int x) { return x; };
  const auto results = sim.run(cobatch::batch_predict(sim, samples, predict, {.observer = &bad}));
  CHECK(results[2].value() == 3);
  CHECK(bad.summaries.at(0).hook_failures == 6);
}

TEST_CASE("observer: of an empty batch nothing is told") {
  observed_batch batch;
  batch.run([](int x) { return x; }, {}, 0);
  CHECK(batch.told.lines.empty());
}

TEST_CASE("observer: a result that is taken from a stream has waited for its turn, then for its consumer") {
  observed_batch batch;
  const std::vector<int> samples{30, 10, 20};
  const auto predict = [&](int x) -> cobatch::task<int> {
    co_await batch.sim.schedule_after(x * 1ms);
    co_return x;
  };
  const auto consume = [&]() -> cobatch::task<> {
    auto stream = cobatch::predict_stream(batch.sim, samples, predict, {.observer = &batch.told},
                                          {.order = cobatch::result_order::input});
    while (auto item = co_await stream.next()) co_await batch.sim.schedule_after(100ms);
  };
  batch.sim.run(consume());
  REQUIRE(batch.told.taken.size() == 3);
  const auto check = [&](std::size_t at, std::chrono::nanoseconds turn, std::chrono::nanoseconds consumer) {
    CHECK(batch.told.taken[at].index == at);
    CHECK(batch.told.taken[at].waited_for_turn == turn);
    CHECK(batch.told.taken[at].waited_for_consumer == consumer);
  };
  check(0, 0ms, 0ms);
  check(1, 20ms, 100ms);
  check(2, 10ms, 200ms);
}
