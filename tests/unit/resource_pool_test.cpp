#include <cobatch/resource_pool.hpp>

#include <chrono>
#include <cstddef>
#include <memory>
#include <optional>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include <cobatch/batch_predict.hpp>
#include <cobatch/simulation.hpp>
#include <cobatch/sync_wait.hpp>
#include <cobatch/task.hpp>
#include <cobatch/thread_pool.hpp>

#include "support/catch.hpp"

using cobatch::errc;
using cobatch::resource_pool;
using cobatch::simulation;
using cobatch::task;
using namespace std::chrono_literals;

namespace {

struct model {
  explicit model(std::size_t n) : number(n) {}
  model(const model&) = delete;
  model& operator=(const model&) = delete;

  std::size_t number;
  int calls = 0;
  bool busy = false;
};

task<> hold(simulation& sim, resource_pool<model>& pool, std::chrono::milliseconds time, std::vector<std::size_t>& order,
            std::size_t who) {
  auto lent = co_await pool.acquire();
  order.push_back(who);
  CHECK_FALSE((*lent)->busy);
  (*lent)->busy = true;
  co_await sim.schedule_after(time);
  (*lent)->busy = false;
}

}  // namespace

TEST_CASE("resource_pool: things are built when they are needed, and no more of them than that") {
  std::size_t made = 0;
  resource_pool<model> pool(3, [&](std::size_t number) { return ++made, model(number); });
  CHECK(made == 0);
  const auto body = [&]() -> task<> {
    for (int i = 0; i < 5; ++i) {
      auto one = co_await pool.acquire();
      CHECK((*one)->number == 0);
      CHECK(pool.lent() == 1);
    }
    auto first = co_await pool.acquire();
    auto second = co_await pool.acquire();
    CHECK(first->number() != second->number());
  };
  simulation sim;
  sim.run(body());
  CHECK(made == 2);
  CHECK(pool.lent() == 0);
}

TEST_CASE("resource_pool: built() builds all at once") {
  std::size_t made = 0;
  const auto pool = resource_pool<model>::built(3, [&](std::size_t number) { return ++made, model(number); });
  CHECK(made == 3);
  CHECK(pool->size() == 3);
}

TEST_CASE("resource_pool: none of them is a mistake") {
  CHECK_THROWS_AS(resource_pool<int>(0, [] { return 3; }), std::invalid_argument);
}

TEST_CASE("resource_pool: each belongs to one at a time, first come, first served") {
  simulation sim;
  resource_pool<model> pool(2, [](std::size_t number) { return model(number); });
  std::vector<int> samples{0, 1, 2, 3, 4, 5};
  std::vector<std::size_t> order;
  const auto predict = [&](int x) { return hold(sim, pool, 10ms, order, static_cast<std::size_t>(x)); };
  const auto begin = sim.now();
  sim.run(cobatch::batch_predict(sim, samples, predict));
  CHECK(order.size() == 6);
  CHECK(sim.now() - begin == 30ms);
  CHECK(pool.lent() == 0);
}

TEST_CASE("resource_pool: what is discarded is built anew") {
  std::size_t made = 0;
  resource_pool<std::unique_ptr<int>> pool(1, [&] { return std::make_unique<int>(static_cast<int>(++made)); });
  const auto body = [&]() -> task<> {
    auto broken = co_await pool.acquire();
    CHECK(***broken == 1);
    broken->discard();
    CHECK(pool.lent() == 0);
    auto sound = co_await pool.acquire();
    CHECK(***sound == 2);
  };
  simulation sim;
  sim.run(body());
}

TEST_CASE("resource_pool: what cannot be built is an error, and the next one tries again") {
  int tries = 0;
  resource_pool<int> pool(1, [&] {
    if (++tries == 1) throw std::runtime_error("no device");
    return 7;
  });
  const auto body = [&]() -> task<> {
    const auto failed = co_await pool.acquire();
    CHECK_FALSE(failed.has_value());
    CHECK(failed.error().code == errc::exception);
    CHECK(failed.error().message().find("no device") != std::string::npos);
    CHECK(pool.lent() == 0);
    const auto lent = co_await pool.acquire();
    CHECK(**lent == 7);
  };
  simulation sim;
  sim.run(body());
}

TEST_CASE("resource_pool: a wait can be stopped") {
  simulation sim;
  resource_pool<int> pool(1, [] { return 7; });
  const auto body = [&]() -> task<> {
    std::stop_source stop;
    const auto held = co_await pool.acquire();
    const auto wait = [&](int) -> task<bool> {
      auto asks = pool.acquire(stop.get_token());
      const auto got = co_await std::move(asks);
      co_return !got && got.error().code == errc::cancelled;
    };
    const auto ask_to_stop = [&](int) -> task<bool> {
      co_await sim.schedule_after(1ms);
      CHECK(pool.waiting() == 1);
      stop.request_stop();
      co_return true;
    };
    const std::vector<int> both{0, 1};
    const auto either = [&](int x) { return x == 0 ? wait(x) : ask_to_stop(x); };
    const auto results = co_await cobatch::batch_predict(sim, both, either);
    CHECK(results[0].value());
    CHECK(results[1].value());
  };
  sim.run(body());
  CHECK(pool.waiting() == 0);
}

TEST_CASE("resource_pool: a lease can be moved and assigned, and ends once") {
  resource_pool<int> pool(2, [] { return 7; });
  const auto body = [&]() -> task<> {
    auto first = co_await pool.acquire();
    auto second = co_await pool.acquire();
    resource_pool<int>::lease kept = *std::move(first);
    CHECK(pool.lent() == 2);
    kept = *std::move(second);
    CHECK(pool.lent() == 1);
    CHECK(*kept == 7);
    kept.give_back();
    kept.give_back();
    CHECK(pool.lent() == 0);
  };
  simulation sim;
  sim.run(body());
}

TEST_CASE("with_resource: a predict has one of the things while it computes or is awaited") {
  simulation sim;
  resource_pool<model> models(2, [](std::size_t number) { return model(number); });
  std::vector<int> samples(20, 3);

  auto computes = cobatch::with_resource(models, [](model& own, int x) { return ++own.calls, 2 * x; });
  for (const auto& each : sim.run(cobatch::batch_predict(sim, samples, computes))) CHECK(each.value() == 6);

  int most = 0, now = 0;
  auto awaits = cobatch::with_resource(models, [&](model& own, const int& x, std::stop_token) -> task<int> {
    CHECK_FALSE(own.busy);
    own.busy = true;
    most = std::max(most, ++now);
    co_await sim.schedule_after(5ms);
    --now;
    own.busy = false;
    co_return 3 * x;
  });
  for (const auto& each : sim.run(cobatch::batch_predict(sim, samples, awaits, {.max_concurrency = 8}))) {
    CHECK(each.value() == 9);
  }
  CHECK(most == 2);
}

TEST_CASE("with_resource: what cannot be built is the sample's error, a stop its reason") {
  simulation sim;
  resource_pool<int> none(1, []() -> int { throw std::runtime_error("no device"); });
  std::vector<int> samples{1, 2};
  auto predict = cobatch::with_resource(none, [](int, int x) { return x; });
  for (const auto& each : sim.run(cobatch::batch_predict(sim, samples, predict))) {
    CHECK(each.error().message().find("no device") != std::string::npos);
  }

  resource_pool<int> one(1, [] { return 7; });
  auto sleeps = cobatch::with_resource(one, [&](int, int x, std::stop_token stop) -> task<int> {
    auto sleep = sim.schedule_after(1h, stop);
    if (!co_await sleep) throw std::runtime_error("stopped");
    co_return x;
  });
  const auto late = sim.run(cobatch::batch_predict(sim, samples, sleeps, {.deadline = 1s}));
  for (const auto& each : late) CHECK(each.error().code == errc::deadline_exceeded);
  CHECK(one.lent() == 0);
}

TEST_CASE("resource_pool: threads that share one") {
  cobatch::thread_pool threads(4);
  resource_pool<model> models(3, [](std::size_t number) { return model(number); });
  std::vector<int> samples(3'000);
  auto predict = cobatch::with_resource(models, [&](model& own, int x) -> task<int> {
    ++own.calls;
    co_await threads.schedule();
    ++own.calls;
    co_return x;
  });
  const auto results = cobatch::sync_wait(cobatch::batch_predict(threads, samples, predict, {.max_concurrency = 16}));
  for (const auto& each : results) REQUIRE(each.has_value());
  CHECK(models.lent() == 0);
}
