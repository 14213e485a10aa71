#include <cobatch/batch_predict.hpp>

#include <chrono>
#include <coroutine>
#include <cstddef>
#include <functional>
#include <memory>
#include <ranges>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <cobatch/error.hpp>
#include <cobatch/executor.hpp>
#include <cobatch/simulation.hpp>
#include <cobatch/task.hpp>

#include "support/catch.hpp"
#include "support/lifetimes.hpp"
#include "support/outline.hpp"
#include "support/step_executor.hpp"
#include "support/stranger.hpp"

using cobatch::batch_predict;
using cobatch::simulation;
using cobatch::task;
using namespace std::chrono_literals;

namespace {

const std::vector<int> four{0, 1, 2, 3};

static_assert(
    !std::is_aggregate_v<decltype(batch_predict(std::declval<simulation&>(), four, [](int x) { return x; }))>);
static_assert(
    std::is_move_constructible_v<decltype(batch_predict(std::declval<simulation&>(), four, [](int x) { return x; }))>);
static_assert(
    noexcept(std::declval<const decltype(batch_predict(std::declval<simulation&>(), four, [](int x) { return x; }))&>()
                 .await_ready()));

}  // namespace

TEST_CASE("batch_predict: a stranger's task is an awaitable like any other") {
  for (std::uint64_t seed = 0; seed < 5; ++seed) {
    simulation sim(seed);
    const auto results = sim.run(batch_predict(sim, four,
                                               [&](int x) -> stranger::task<int> {
                                                 if (x != 0) co_await sim.schedule_after((4 - x) * 1ms);
                                                 if (x == 2) throw std::runtime_error("two");
                                                 co_return 10 * x;
                                               },
                                               {.max_concurrency = 2}));
    CHECK(outline(results) == "0 10 exception 30");
  }
}

TEST_CASE("batch_predict: a stranger's coroutine may await a batch") {
  step_executor executor;
  const auto run = [&]() -> stranger::task<std::string> {
    const auto predict = [](int x) -> stranger::task<int> { co_return x + 1; };
    const auto first = co_await batch_predict(executor, four, predict);
    const auto second = co_await batch_predict(executor, four, [](int x) { return x * x; }, {.max_concurrency = 1});
    co_return outline(first) + ", " + outline(second);
  };
  auto stranger = run();
  stranger.start();
  executor.drain();
  REQUIRE(stranger.done());
  CHECK(stranger.take() == "1 2 3 4, 0 1 4 9");
}

TEST_CASE("batch_predict: a stranger that asks the awaiter twice, and as an lvalue, gets the same") {
  simulation sim;
  const auto run = [&]() -> task<std::string> {
    auto batch = batch_predict(sim, four, [](int x) { return x; });
    CHECK(!batch.await_ready());
    CHECK(!batch.await_ready());
    const auto results = co_await batch;
    co_return outline(results);
  };
  CHECK(sim.run(run()) == "0 1 2 3");
}

TEST_CASE("batch_predict: every kind of await_suspend is awaited") {
  simulation sim;
  std::vector<std::coroutine_handle<>> kept;
  const auto keep = [&](std::coroutine_handle<> handle) { kept.push_back(handle); };
  // Resumes what was kept, in the reverse order.
  const auto release = [&]() -> task<int> {
    co_await sim.schedule_after(1ms);
    while (!kept.empty()) {
      const auto next = kept.back();
      kept.pop_back();
      next.resume();
    }
    co_return -1;
  };
  const auto check = [&](auto predict) {
    const std::vector<int> samples{0, 1, 2, -1};
    const auto results = sim.run(batch_predict(sim, samples, [&](int x) -> task<int> {
      if (x < 0) co_return co_await release();
      co_return co_await predict(x);
    }));
    CHECK(outline(results) == "0 1 2 -1");
  };
  // The same without a task around them: the awaiter is what predict returns.
  const auto check_directly = [&](auto predict) {
    const auto both = [&](int which) -> task<std::string> {
      if (which == 1) {
        co_await release();
        co_return "";
      }
      co_return outline(co_await batch_predict(sim, std::views::iota(0, 3), predict));
    };
    const std::vector<int> samples{0, 1};
    CHECK(outline(sim.run(batch_predict(sim, samples, both))) == "0 1 2 ");
  };
  const auto each = [&](auto predict) {
    check(predict);
    check_directly(predict);
  };
  SECTION("void, resumed later") {
    each([&](int x) { return stranger::void_awaiter{x, keep}; });
  }
  SECTION("void, resumed at once") {
    each([&](int x) { return stranger::void_awaiter{x, [](std::coroutine_handle<> h) { h.resume(); }}; });
  }
  SECTION("bool, true") {
    each([&](int x) {
      return stranger::bool_awaiter{x, [&](std::coroutine_handle<> h) {
                                      keep(h);
                                      return true;
                                    }};
    });
  }
  SECTION("bool, false") {
    each([&](int x) { return stranger::bool_awaiter{x, [](std::coroutine_handle<>) { return false; }}; });
  }
  SECTION("bool, resumed at once") {
    each([&](int x) {
      return stranger::bool_awaiter{x, [](std::coroutine_handle<> h) {
                                      h.resume();
                                      return true;
                                    }};
    });
  }
  SECTION("a handle: back to the awaiting coroutine") {
    each([&](int x) { return stranger::handle_awaiter{x, [](std::coroutine_handle<> h) { return h; }}; });
  }
  SECTION("a handle: none") {
    each([&](int x) {
      return stranger::handle_awaiter{x, [&](std::coroutine_handle<> h) -> std::coroutine_handle<> {
                                        keep(h);
                                        return std::noop_coroutine();
                                      }};
    });
  }
  SECTION("a free operator co_await") {
    each([&](int x) { return stranger::by_free_operator{x}; });
  }
}

TEST_CASE("batch_predict: what throws while it is awaited is the sample's exception, and is destroyed") {
  enum class where { ready, suspend, resume, operator_co_await };
  census awaitables;
  struct thrower {
    where point;
    life counted;
    struct awaiter {
      where point;
      life counted;
      bool await_ready() const {
        if (point == where::ready) throw std::runtime_error("await_ready");
        return false;
      }
      bool await_suspend(std::coroutine_handle<>) const {
        if (point == where::suspend) throw std::runtime_error("await_suspend");
        return false;
      }
      int await_resume() const {
        if (point == where::resume) throw std::runtime_error("await_resume");
        return 0;
      }
    };
    awaiter operator co_await() const {
      if (point == where::operator_co_await) throw std::runtime_error("operator co_await");
      return {point, counted};
    }
  };
  simulation sim;
  const std::vector<where> points{where::ready, where::suspend, where::resume, where::operator_co_await};
  const auto results =
      sim.run(batch_predict(sim, points, [&](where point) { return thrower{point, life(awaitables)}; }));
  CHECK(outline(results) == "exception exception exception exception");
  CHECK_THROWS_WITH(std::rethrow_exception(results[1].error().exception), "await_suspend");
  CHECK(awaitables.alive == 0);
}

TEST_CASE("batch_predict: predict may return a reference to an awaitable") {
  simulation sim;
  census awaiters;
  struct event {
    int value;
    life counted;
    bool await_ready() const noexcept { return value == 0; }
    bool await_suspend(std::coroutine_handle<>) noexcept { return false; }
    int await_resume() const noexcept { return value; }
  };
  std::vector<event> events;
  for (int i = 0; i < 4; ++i) events.push_back(event{i, life(awaiters)});
  awaiters.copies = awaiters.moves = 0;
  CHECK(outline(sim.run(batch_predict(sim, events, [](event& each) -> event& { return each; }))) == "0 1 2 3");
  CHECK(outline(sim.run(batch_predict(sim, events, [](event& each) -> event&& { return std::move(each); }))) ==
        "0 1 2 3");
  CHECK(awaiters.copies == 0);
  CHECK(awaiters.moves == 0);
  CHECK(awaiters.alive == 4);
}

TEST_CASE("batch_predict: an awaitable that can be neither copied nor moved is awaited where it is made") {
  struct fixed {
    explicit fixed(int x) : value(x) {}
    fixed(fixed&&) = delete;
    bool await_ready() const noexcept { return false; }
    bool await_suspend(std::coroutine_handle<>) noexcept { return false; }
    int await_resume() const noexcept { return value; }
    int value;
  };
  simulation sim;
  CHECK(outline(sim.run(batch_predict(sim, four, [](int x) { return fixed(x); }))) == "0 1 2 3");
}

TEST_CASE("batch_predict: an awaiter's result may refer into the awaiter") {
  struct holder {
    explicit holder(int x) : value(std::to_string(x)) {}
    bool await_ready() const noexcept { return true; }
    void await_suspend(std::coroutine_handle<>) noexcept {}
    std::string&& await_resume() noexcept { return std::move(value); }
    std::string value;
  };
  simulation sim;
  CHECK(outline(sim.run(batch_predict(sim, four, [](int x) { return holder(x); }))) == "0 1 2 3");
}

TEST_CASE("batch_predict: a predict that resumes another predict's coroutine in its own call is no problem") {
  simulation sim;
  std::coroutine_handle<> waiting;
  const auto results = sim.run(batch_predict(sim, four, [&](int x) -> task<int> {
    if (x == 0) co_await stranger::void_awaiter{0, [&](std::coroutine_handle<> handle) { waiting = handle; }};
    if (x == 2) waiting.resume();
    co_return x;
  }));
  CHECK(outline(results) == "0 1 2 3");
}
