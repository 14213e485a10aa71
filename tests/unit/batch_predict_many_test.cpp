#include <cobatch/batch_predict_many.hpp>

#include <bit>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <numeric>
#include <random>
#include <span>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <cobatch/simulation.hpp>
#include <cobatch/task.hpp>

#include "support/batch_model.hpp"
#include "support/catch.hpp"
#include "support/outline.hpp"
#include "support/started.hpp"

using cobatch::batch_options;
using cobatch::batch_predict_many;
using cobatch::errc;
using cobatch::error;
using cobatch::expected;
using cobatch::many_options;
using cobatch::simulation;
using cobatch::task;
using namespace std::chrono_literals;
using std::chrono::nanoseconds;

namespace {

using outcomes = std::vector<expected<int, error>>;

std::vector<int> numbers_from_1(int count) {
  std::vector<int> all(static_cast<std::size_t>(count));
  std::iota(all.begin(), all.end(), 1);
  return all;
}

struct scene {
  simulation sim;
  batch_model model{sim};

  outcomes run(int count, many_options many, batch_options options = {}) {
    const std::vector<int> samples = numbers_from_1(count);
    return sim.run(batch_predict_many(sim, samples, model.callable(), many, options));
  }
};

}  // namespace

TEST_CASE("batch_predict_many: batches are cut from the input, and the outcomes come in its order") {
  scene test;
  test.model.per_call = 2ms;
  CHECK(outline(test.run(7, {.max_batch_size = 3}, {.max_concurrency = 2})) == "2 4 6 8 10 12 14");
  CHECK(test.model.log == "0: 1 2 3, 0: 4 5 6, 2000: 7");
  CHECK(test.model.running.most() == 2);
}

TEST_CASE("batch_predict_many: an empty input calls nothing") {
  scene test;
  CHECK(test.run(0, {}).empty());
  CHECK(test.model.calls == 0);
}

TEST_CASE("batch_predict_many: one batch's failure is that of its samples, and of no other") {
  scene test;
  test.model.poison = {4};
  test.model.refused = {2};
  CHECK(outline(test.run(7, {.max_batch_size = 3})) == "2 timed_out 6 exception exception exception 14");
}

TEST_CASE("batch_predict_many: isolation gives each poisonous sample its own exception, and the others their values") {
  for (const auto duration : {0ms, 1ms}) {
    scene test;
    test.model.per_call = duration;
    test.model.poison = {4, 5, 11};
    const outcomes all = test.run(16, {.max_batch_size = 8, .isolate_failures = true});
    CHECK(outline(all) == "2 4 6 exception exception 12 14 16 18 20 exception 24 26 28 30 32");
    CHECK(all[3].error().message() == "predict threw an exception: poison 4");
    CHECK(all[10].error().message() == "predict threw an exception: poison 11");
    CHECK(test.model.calls <= 2 + 2 * 3 * 3);
  }
}

TEST_CASE("batch_predict_many: a wrong number of results fails all of the batch") {
  scene test;
  test.model.missing = 1;
  CHECK(outline(test.run(3, {.max_batch_size = 2, .isolate_failures = true})) ==
        "batch_size_mismatch batch_size_mismatch batch_size_mismatch");
  CHECK(test.model.calls == 2);
}

TEST_CASE("batch_predict_many: the options of batch_predict mean batches") {
  scene test;
  test.model.per_call = 10ms;
  CHECK(outline(test.run(6, {.max_batch_size = 2}, {.max_concurrency = 1, .deadline = 15ms})) ==
        "2 4 6 8 not_started not_started");

  scene retried;
  retried.model.poison = {3};
  const outcomes all = retried.run(4, {.max_batch_size = 2}, {.retry = {.max_attempts = 3, .initial_backoff = 1ms}});
  CHECK(outline(all) == "2 4 exception exception");
  CHECK(all[2].error().attempts == 3);
  CHECK(retried.model.calls == 4);

  scene stopped;
  stopped.model.per_call = 10ms;
  std::stop_source stop;
  stop.request_stop();
  CHECK(outline(stopped.run(4, {.max_batch_size = 2}, {.stop = stop})) ==
        "not_started not_started not_started not_started");
}

TEST_CASE("batch_predict_many: a stop ends the search for poisonous samples") {
  simulation sim;
  std::stop_source stop;
  int calls = 0;
  const auto poisonous = [&](std::span<const int>) -> std::vector<int> {
    if (++calls == 3) stop.request_stop();
    throw std::runtime_error("poison");
  };
  const std::vector<int> samples = numbers_from_1(16);
  const auto all = sim.run(
      batch_predict_many(sim, samples, poisonous, {.max_batch_size = 16, .isolate_failures = true}, {.stop = stop}));
  CHECK(calls == 3);
  CHECK(count_of(all, errc::cancelled) == 16);
}

TEST_CASE("batch_predict_many: predict_many may be plain, take a token, and return other vectors") {
  simulation sim;
  const std::vector<int> samples = numbers_from_1(5);
  const auto odd = [](std::span<const int> batch, std::stop_token stop) {
    std::vector<bool> results;
    for (const int each : batch) results.push_back(each % 2 == 1 && !stop.stop_requested());
    return results;
  };
  const auto plain = sim.run(batch_predict_many(sim, samples, odd, {.max_batch_size = 2}));
  static_assert(std::is_same_v<decltype(plain), const std::vector<expected<bool, error>>>);
  CHECK(outline(plain) == "1 0 1 0 1");

  struct status {
    explicit status(std::string what) : text(std::move(what)) {}
    explicit status(const error& why) : text(why.message()) {}
    std::string text;
  };
  using named = expected<std::unique_ptr<int>, status>;
  const auto own_errors = [](std::span<const int> batch) -> expected<std::vector<named>, error> {
    if (batch.front() == 3) return cobatch::unexpected(error(errc::timed_out));
    std::vector<named> results;
    for (const int each : batch) {
      if (each == 2) {
        results.emplace_back(cobatch::unexpect, std::string("two"));
      } else {
        results.emplace_back(std::make_unique<int>(each));
      }
    }
    return results;
  };
  const auto all = sim.run(batch_predict_many(sim, numbers_from_1(5), own_errors, {.max_batch_size = 2}));
  static_assert(std::is_same_v<decltype(all), const std::vector<named>>);
  CHECK(**all[0] == 1);
  CHECK(all[1].error().text == "two");
  CHECK(all[2].error().text == "timed out");
  CHECK(all[3].error().text == "timed out");
  CHECK(**all[4] == 5);
}

TEST_CASE("batch_predict_many: a batch size of 0 is refused") {
  scene test;
  CHECK_THROWS_AS(test.run(3, {.max_batch_size = 0}), std::invalid_argument);
}

TEST_CASE("batch_predict_many: whatever happens, every sample has one outcome, and a right one") {
  for (std::uint64_t seed = 1; seed <= 2000; ++seed) {
    CAPTURE(seed);
    std::mt19937_64 random(seed);
    const auto below = [&](std::uint64_t n) { return static_cast<int>(random() % n); };
    simulation sim(seed);
    batch_model model(sim);
    model.per_call = below(3) * 700us;
    const int count = below(60);
    const many_options many{.max_batch_size = static_cast<std::size_t>(1 + below(16)),
                            .isolate_failures = below(2) == 0};
    batch_options options{.max_concurrency = static_cast<std::size_t>(1 + below(4))};
    const bool has_deadline = below(4) == 0;
    if (has_deadline) options.deadline = below(10) * 350us;
    for (int i = 1; i <= count; ++i) {
      if (below(12) == 0) model.poison.insert(i);
      if (below(12) == 0) model.refused.insert(i);
    }
    std::stop_source stop;
    const bool stops = below(4) == 0;
    if (stops) options.stop = stop;
    const std::vector<int> samples = numbers_from_1(count);
    const auto stop_at = [&](nanoseconds when) -> started {
      co_await sim.schedule_after(when);
      stop.request_stop();
    };
    const started stopping = stop_at(below(10) * 350us);
    const auto predict_many = model.callable();
    const outcomes all = sim.run(batch_predict_many(sim, samples, predict_many, many, options));
    const auto wait = [&]() -> task<> { co_await sim.schedule_after(1h); };
    sim.run(wait());  // until the stop has come, too

    REQUIRE(all.size() == samples.size());
    CHECK(model.largest <= many.max_batch_size);
    CHECK(static_cast<std::size_t>(model.running.most()) <= options.max_concurrency);
    const std::size_t batches = (samples.size() + many.max_batch_size - 1) / many.max_batch_size;
    const auto halvings = static_cast<std::size_t>(std::bit_width(many.max_batch_size - 1));  // log2, rounded up
    CHECK(model.calls <= batches + (many.isolate_failures ? 2 * model.poison.size() * halvings : 0));
    for (const int each : samples) {
      const auto& outcome = all[static_cast<std::size_t>(each - 1)];
      if (outcome) {
        CHECK(*outcome == 2 * each);
        CHECK(!model.poison.contains(each));
        CHECK(!model.refused.contains(each));
      } else if (outcome.error().code == errc::timed_out) {
        CHECK(model.refused.contains(each));
      } else if (outcome.error().code == errc::exception) {
        CHECK((model.poison.contains(each) || !many.isolate_failures));
      } else {
        CHECK((stops || has_deadline));
      }
    }
  }
}

// ---- Keys and costs ----

namespace {

/// Outcomes of 0 .. count - 1 in batches of one parity each; how many batches there were.
struct by_parity {
  simulation sim;
  std::vector<std::size_t> sizes;
  int mixed = 0;

  template <class Adapt>
  outcomes run(int count, Adapt&& adapt, many_options many, batch_options options = {}) {
    const auto model = [this](std::span<const int> batch) -> task<std::vector<int>> {
      sizes.push_back(batch.size());
      const std::vector<int> copy(batch.begin(), batch.end());
      co_await sim.schedule_after(1ms);
      for (const int each : copy) mixed += (each - copy[0]) % 2 != 0 ? 1 : 0;
      co_return std::vector<int>(batch.begin(), batch.end());
    };
    std::vector<int> samples = numbers_from_1(count);
    auto predict = adapt(model);
    return sim.run(batch_predict_many(sim, samples, predict, many, options));
  }
};

std::size_t parity(int x) {
  if (x == 13) throw std::runtime_error("no key");
  return static_cast<std::size_t>(x % 2);
}

}  // namespace

TEST_CASE("batch_predict_many: from bucketed() each batch has one key, and outcomes keep their places") {
  by_parity test;
  const auto keyed = [](auto model) { return cobatch::bucketed(model, parity); };
  CHECK(outline(test.run(12, keyed, {.max_batch_size = 4})) == "1 2 3 4 5 6 7 8 9 10 11 12");
  CHECK(test.mixed == 0);
  CHECK(test.sizes == std::vector<std::size_t>{4, 2, 4, 2});
}

TEST_CASE("batch_predict_many: a sample whose key throws has that exception, and is in no batch") {
  by_parity test;
  const auto keyed = [](auto model) { return cobatch::bucketed(model, parity); };
  CHECK(outline(test.run(14, keyed, {.max_batch_size = 8})) == "1 2 3 4 5 6 7 8 9 10 11 12 exception 14");
  CHECK(test.sizes == std::vector<std::size_t>{7, 6});
}

TEST_CASE("batch_predict_many: from weighted() a batch weighs what its samples do together") {
  const auto costs = [](auto model) { return cobatch::weighted(model, [](int x) { return static_cast<std::size_t>(x); }); };
  by_parity test;
  // 1 + 2, 3 + 4, 5 + 6, 7 + 8: of 10 together only the first two.
  CHECK(outline(test.run(8, costs, {.max_batch_size = 2}, {.max_weight = 15})) == "1 2 3 4 5 6 7 8");
  CHECK(test.sim.now().time_since_epoch() == 3ms);
  by_parity too_heavy;
  CHECK(outline(too_heavy.run(4, costs, {.max_batch_size = 2}, {.max_weight = 5})) ==
        "1 2 cost_exceeds_capacity cost_exceeds_capacity");
}

namespace {

/// A result that cannot be moved a second time.
struct moves_once {
  explicit moves_once(int v) : value(v) {}
  moves_once(moves_once&& other) : value(other.value), moves(other.moves + 1) {
    if (value == 2 && moves == 3) throw std::runtime_error("moved too often");
  }
  int value;
  int moves = 0;
};

}  // namespace

TEST_CASE("batch_predict_many: a result that throws while it is moved to its place is that sample's exception") {
  simulation sim;
  const std::vector<int> samples{1, 2, 3};
  const auto model = [](std::span<const int> batch) {
    std::vector<moves_once> all;
    all.reserve(batch.size());
    for (const int each : batch) all.emplace_back(each);
    return all;
  };
  const auto results = sim.run(batch_predict_many(sim, samples, model, {.max_batch_size = 3}));
  CHECK(results[0]->value == 1);
  CHECK(results[1].error().code == errc::exception);
  CHECK(results[2]->value == 3);
}

TEST_CASE("batch_predict_many: a model's own members named key and cost mean nothing") {
  struct model {
    std::vector<int> operator()(std::span<const int> batch) const { return {batch.begin(), batch.end()}; }
    const char* key(int) const { return "house"; }
    const char* cost(int) const { return "none"; }
  };
  simulation sim;
  const std::vector<int> samples{1, 2, 3};
  CHECK(outline(sim.run(batch_predict_many(sim, samples, model(), {.max_batch_size = 2}))) == "1 2 3");
}

TEST_CASE("batch_predict_many: key and cost may be given in either order") {
  const auto cost = [](int) { return std::size_t{1}; };
  for (const bool key_first : {true, false}) {
    by_parity test;
    const auto check = [&](const outcomes& all) {
      CHECK(outline(all) == "1 2 3 4 5 6");
      CHECK(test.mixed == 0);
      CHECK(test.sizes.size() == 2);
      CHECK(test.sim.now().time_since_epoch() == 2ms);
    };
    if (key_first) {
      check(test.run(6, [&](auto model) { return cobatch::weighted(cobatch::bucketed(model, parity), cost); }, {},
                     {.max_weight = 3}));
    } else {
      check(test.run(6, [&](auto model) { return cobatch::bucketed(cobatch::weighted(model, cost), parity); }, {},
                     {.max_weight = 3}));
    }
  }
}
