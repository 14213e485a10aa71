// What comes after the end, and how callers come and go on: in one go, whatever their number.

#include <cobatch/micro_batcher.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <coroutine>
#include <cstddef>
#include <memory>
#include <new>
#include <optional>
#include <span>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#include <cobatch/detail/current_executor.hpp>
#include <cobatch/simulation.hpp>
#include <cobatch/task.hpp>

#include "support/allocations.hpp"
#include "support/batch_model.hpp"
#include "support/catch.hpp"
#include "support/outline.hpp"
#include "support/started.hpp"

using cobatch::errc;
using cobatch::error;
using cobatch::expected;
using cobatch::micro_batch_options;
using cobatch::micro_batcher;
using cobatch::no_timeout;
using cobatch::simulation;
using cobatch::task;
using namespace std::chrono_literals;
using std::chrono::nanoseconds;

namespace {

using batcher = micro_batcher<int, int>;

/// Forwards to a simulation, counts what it is given, and refuses what it is told to.
template <class Taken = void>
struct counting_executor {
  static constexpr bool in_bulk = !std::is_same_v<Taken, std::nullptr_t>;

  bool execute(std::coroutine_handle<> handle) {
    if (refuses) return false;
    ++handles;
    return sim.execute(handle);
  }
  Taken execute_all(std::span<const std::coroutine_handle<>> all)
    requires in_bulk
  {
    ++sweeps;
    std::size_t taken = refuses ? 0 : all.size();
    if constexpr (std::is_same_v<Taken, std::size_t>) taken = std::min(taken, most);
    for (const std::coroutine_handle<> each : all.first(taken)) sim.execute(each);
    if constexpr (!std::is_void_v<Taken>) return static_cast<Taken>(taken);
  }
  auto schedule_after(nanoseconds delay, std::stop_token stop = {}) { return sim.schedule_after(delay, stop); }
  auto now() const { return sim.now(); }

  simulation& sim;
  std::size_t handles = 0;
  std::size_t sweeps = 0;
  std::size_t most = 1000;
  bool refuses = false;
};

struct scene {
  task<> wait(nanoseconds delay) { co_await sim.schedule_after(delay); }
  void run_for(nanoseconds delay) { sim.run(wait(delay)); }

  /// Calls from outside every executor; what came of it is appended to `text`.
  started call(batcher& to, int sample, std::stop_token stop = {}, nanoseconds deadline = no_timeout) {
    const auto result = co_await to.predict(sample, stop, deadline);
    text += outline(result) + " ";
  }
  started close(batcher& all) {
    co_await all.close();
    text += "end ";
  }

  simulation sim;
  batch_model model{sim};
  std::string text;
};

std::stop_token stopped() {
  std::stop_source source;
  source.request_stop();
  return source.get_token();
}

}  // namespace

// ---- After the end ----

TEST_CASE("micro batcher: closed before the first sample, it has ended at once, and takes none") {
  for (const std::size_t max_queue : {cobatch::unlimited, std::size_t(8)}) {
    scene test;
    batcher all(test.sim, test.model.callable(), {.max_queue = max_queue});
    const started first = test.close(all);
    const started second = test.close(all);
    CHECK(test.text == "end end ");
    test.text.clear();
    const started plain = test.call(all, 1);
    const started late = test.call(all, 1, {}, 1s);
    const started too_late = test.call(all, 1, {}, 0s);
    CHECK(test.text == "closed closed closed ");
    test.text.clear();
    const started given_up = test.call(all, 1, stopped());
    CHECK(test.text == "cancelled ");
    CHECK(all.waiting() == 0);
    test.run_for(1s);
    CHECK(test.model.calls == 0);
  }
}

TEST_CASE("micro batcher: after close a cost or a key is still that sample's failure, and closed otherwise") {
  scene test;
  const auto key = [](int x) { return x == 2 ? throw std::runtime_error("no key") : x; };
  batcher all(test.sim, cobatch::bucketed(cobatch::weighted(test.model.callable(), [](int x) { return x; }), key),
              {.max_batch_cost = 10});
  const started end = test.close(all);
  const started fits = test.call(all, 1);
  const started fails = test.call(all, 2);
  const started does_not_fit = test.call(all, 11);
  CHECK(test.text == "end closed exception closed ");
}

TEST_CASE("micro batcher: who came before the close is in a batch, who comes after it is not, at one moment") {
  scene test;
  test.model.per_call = 5ms;
  batcher all(test.sim, test.model.callable(), {.max_delay = 1h});
  const started before = test.call(all, 1);  // nobody has looked yet
  const started end = test.close(all);
  const started after = test.call(all, 2);
  const started again = test.close(all);
  CHECK(test.text == "closed ");
  test.run_for(1s);
  CHECK(test.text == "closed 2 end end ");
  CHECK(test.model.log == "0: 1");
}

TEST_CASE("micro batcher: a stop after the close takes its sample out, and the end does not wait for it") {
  scene test;
  batcher all(test.sim, test.model.callable(), {.max_delay = 1h});
  std::stop_source stop;
  const started waits = test.call(all, 1, stop.get_token());
  test.run_for(1ms);
  const started end = test.close(all);  // its batch is on its way
  stop.request_stop();
  test.run_for(1s);
  stop.request_stop();
  CHECK(test.text == "cancelled end ");
  CHECK(test.model.calls == 0);
}

TEST_CASE("micro batcher: a stop before anybody has looked takes its sample out, and nobody else's") {
  scene test;
  batcher all(test.sim, test.model.callable(), {});
  std::stop_source stop;
  const started before = test.call(all, 1);
  const started waits = test.call(all, 2, stop.get_token());
  const started behind = test.call(all, 3);
  stop.request_stop();
  CHECK(all.waiting() == 2);
  test.run_for(1s);
  CHECK(test.text == "cancelled 2 6 ");
  CHECK(test.model.log == "1000: 1 3");
}

TEST_CASE("micro batcher: a caller may be destroyed before anybody has looked") {
  scene test;
  {
    batcher all(test.sim, test.model.callable(), {});
    const started before = test.call(all, 1);
    started gone = test.call(all, 2);
    const started behind = test.call(all, 3);
    gone.destroy();
    test.run_for(1s);
    CHECK(test.text == "2 6 ");
    started last = test.call(all, 4);
    last.destroy();
  }  // the look is still on its way
  test.run_for(1s);
  CHECK(test.model.calls == 1);
}

TEST_CASE("micro batcher: a coroutine that waits for the end may be destroyed, and the end comes for others") {
  scene test;
  test.model.per_call = 5ms;
  batcher all(test.sim, test.model.callable(), {});
  const started waits = test.call(all, 1);
  started gone = test.close(all);
  const started stays = test.close(all);
  test.run_for(1ms);
  gone.destroy();
  test.run_for(1s);
  CHECK(test.text == "2 end ");
}

TEST_CASE("micro batcher: a batch that throws at the end fails its own samples, and the end comes") {
  scene test;
  test.model.per_call = 5ms;
  test.model.poison = {1, 2};
  batcher all(test.sim, test.model.callable(), {.max_batch_size = 2, .max_delay = 1h});
  const started a = test.call(all, 1);
  const started b = test.call(all, 3);
  const started c = test.call(all, 2);
  const started end = test.close(all);
  test.run_for(1s);
  CHECK(test.text == "exception exception exception end ");
}

TEST_CASE("micro batcher: after an error it goes on as before") {
  scene test;
  test.model.poison = {1};
  batcher all(test.sim, test.model.callable(), {});
  const started fails = test.call(all, 1);
  test.run_for(1s);
  const started works = test.call(all, 2);
  test.run_for(1s);
  CHECK(test.text == "exception 4 ");
}

TEST_CASE("micro batcher: refused by its executor, callers know at once; when that takes work again, it works again") {
  for (const nanoseconds deadline : {no_timeout, nanoseconds(500us)}) {
    scene test;
    counting_executor<std::nullptr_t> executor{.sim = test.sim};
    batcher all(executor, test.model.callable(), {.max_batch_size = 1});
    executor.refuses = true;
    const started first = test.call(all, 1, {}, deadline);
    const started second = test.call(all, 2, {}, deadline);
    CHECK(test.text == "executor_stopped executor_stopped ");
    executor.refuses = false;
    const started third = test.call(all, 3, {}, deadline);
    test.run_for(1s);
    CHECK(test.text == "executor_stopped executor_stopped 6 ");
  }
}

TEST_CASE("micro batcher: closed on an executor that takes nothing any more, it ends, and so has everybody else") {
  scene test;
  counting_executor<std::nullptr_t> executor{.sim = test.sim};
  batcher all(executor, test.model.callable(), {.max_delay = 1h});
  const started waits = test.call(all, 1);
  test.run_for(1ms);
  executor.refuses = true;
  const started end = test.close(all);
  test.run_for(1ms);
  CHECK(test.text == "executor_stopped end ");
}

// ---- In one go ----

TEST_CASE("micro batcher: a thousand callers cost their executor one handle until somebody looks") {
  scene test;
  counting_executor<std::nullptr_t> executor{.sim = test.sim};
  batcher all(executor, test.model.callable(), {.max_batch_size = 64, .max_concurrent_batches = 100});
  std::vector<started> running;
  for (int i = 0; i < 1000; ++i) running.push_back(test.call(all, i));
  CHECK(executor.handles == 1);
  CHECK(all.waiting() == 1000);
  CHECK(executor.handles == 1);
  test.run_for(1s);
  CHECK(test.model.calls == 16);
  CHECK(executor.handles == 1 + 15 + 1000);  // the first batch runs where somebody looks, the last by the clock
}

TEST_CASE("micro batcher: a batch on its way takes along who came on other threads, also if nobody has looked there") {
  scene test;
  struct {
    bool execute(std::coroutine_handle<> handle) { return sim.execute(handle); }
    auto schedule_after(nanoseconds delay, std::stop_token stop = {}) { return sim.schedule_after(delay, stop); }
    auto now() const { return sim.now(); }
    std::size_t concurrency() const { return 2; }

    simulation& sim;
  } executor{test.sim};
  batcher all(executor, test.model.callable(), {.max_batch_size = 2, .max_delay = 0ns});
  std::vector<started> running;
  running.push_back(test.call(all, 1, {}, 1s));  // with a deadline: it needs no look
  // Threads are numbered one after the other, and every other one shares our place.
  const std::size_t own_place = cobatch::detail::this_thread_number() % 2;
  for (bool elsewhere = false; !elsewhere;) {
    std::thread([&] {
      elsewhere = cobatch::detail::this_thread_number() % 2 != own_place;
      if (elsewhere) running.push_back(test.call(all, 2));
    }).join();
  }
  test.run_for(1s);
  CHECK(test.model.calls == 1);
  CHECK(test.text == "2 4 ");
}

TEMPLATE_TEST_CASE("micro batcher: where the executor takes many handles at a time, a batch goes on in one sweep", "",
                   void, bool, std::size_t) {
  scene test;
  counting_executor<TestType> executor{.sim = test.sim};
  batcher all(executor, test.model.callable(), {.max_batch_size = 64});
  std::vector<started> running;
  for (int i = 0; i < 64; ++i) running.push_back(test.call(all, i));
  test.run_for(1ms);
  CHECK(executor.sweeps == 1);
  CHECK(executor.handles == 1);
  for (const started& each : running) CHECK(each.done());
  CHECK(test.text.starts_with("0 2 4 6 "));
}

TEST_CASE("micro batcher: an executor may also call that execute()") {
  struct only_overloaded {
    bool execute(std::coroutine_handle<> handle) { return counts.execute(handle); }
    void execute(std::span<const std::coroutine_handle<>> all) { counts.execute_all(all); }
    auto schedule_after(nanoseconds delay, std::stop_token stop = {}) { return counts.schedule_after(delay, stop); }
    auto now() const { return counts.now(); }

    counting_executor<void> counts;
  };
  static_assert(cobatch::detail::bulk_executor<only_overloaded>);
  static_assert(!cobatch::detail::bulk_executor<simulation>);
  scene test;
  only_overloaded executor{.counts = {.sim = test.sim}};
  batcher all(executor, test.model.callable(), {.max_batch_size = 2, .max_delay = 0ns});
  const started a = test.call(all, 1);
  const started b = test.call(all, 2);
  test.run_for(1ms);
  CHECK(executor.counts.sweeps == 1);
  CHECK(test.text == "2 4 ");
}

TEST_CASE("micro batcher: callers that a sweep refuses go on all the same, each once") {
  scene test;
  const auto work = [&](auto& executor, std::size_t sweeps) {
    test.text.clear();
    batcher all(executor, test.model.callable(), {.max_batch_size = 4});
    std::vector<started> running;
    for (int i = 0; i < 4; ++i) running.push_back(test.call(all, i));
    test.run_for(1ms);
    CHECK(executor.sweeps == sweeps);
    CHECK(test.text.size() == std::string("0 2 4 6 ").size());
    for (const char* const each : {"0 ", "2 ", "4 ", "6 "}) CHECK(test.text.find(each) != std::string::npos);
  };
  counting_executor<std::size_t> some{.sim = test.sim, .most = 1};
  work(some, 1);
  counting_executor<bool> none{.sim = test.sim};
  const auto predict_many = [&](std::span<const int> batch) {
    none.refuses = true;
    return std::vector<int>(batch.begin(), batch.end());
  };
  test.text.clear();
  batcher all(none, predict_many, {.max_batch_size = 2});
  const started a = test.call(all, 1);
  const started b = test.call(all, 2);
  test.run_for(1ms);
  CHECK(none.sweeps == 1);
  CHECK(test.text == "1 2 ");
}

TEST_CASE("micro batcher: with keys, memory that runs out is one sample's, and leaves the co_await as std::bad_alloc") {
  int thrown = 0;
  for (std::size_t n = 1; n < 12; ++n) {
    scene test;
    const auto predict_many = [](std::span<const int> batch) {
      return std::array<int, 1>{batch.front()};  // of a batch of one; needs no memory
    };
    batcher all(test.sim, cobatch::bucketed(predict_many, [](int x) { return x; }), {.max_batch_size = 1});
    int values = 0;
    int refused = 0;
    const auto call = [&](int sample) -> started {
      try {
        const auto result = co_await all.predict(sample);
        if (result) ++values;
      } catch (const std::bad_alloc&) {
        ++refused;
      }
    };
    std::vector<started> running;
    for (int i = 0; i < 5; ++i) running.push_back(call(i));
    const auto look = [&]() -> task<> {
      fail_allocation_in(n);
      co_await test.sim.schedule();
      fail_allocation_in(0);
      co_await test.sim.schedule_after(1s);
    };
    test.sim.run(look());
    CHECK(values + refused == 5);
    CHECK(refused <= 1);
    thrown += refused;
  }
  CHECK(thrown > 0);
}
