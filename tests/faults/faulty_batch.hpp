// SPDX-License-Identifier: BSL-1.0
// What the tests of faults run their batches with, and what may be said of the outcomes.
#pragma once

#include <array>
#include <chrono>
#include <coroutine>
#include <cstddef>
#include <exception>
#include <initializer_list>
#include <new>
#include <optional>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include <cobatch/adaptive_limit.hpp>
#include <cobatch/batch_options.hpp>
#include <cobatch/error.hpp>
#include <cobatch/executor.hpp>
#include <cobatch/expected.hpp>
#include <cobatch/observer.hpp>
#include <cobatch/rate_limiter.hpp>
#include <cobatch/semaphore.hpp>
#include <cobatch/task.hpp>

#include "faults/faults.hpp"
#include "support/detached.hpp"

using fragile_result = cobatch::expected<fragile, cobatch::error>;
using fragile_results = std::vector<fragile_result>;

inline constexpr int samples_of_a_batch = 7;

/// Options in words, to be combined; the objects that they refer to are in a world.
struct wishes {
  const char* name = "";
  std::size_t max_concurrency = cobatch::unlimited;
  bool semaphore = false, rate = false, observer = false, retry = false, hedge = false, timeout = false;
  bool deadline = false, queue_timeout = false, limit = false, weights = false, stop = false, fail_fast = false;
  bool elsewhere = false;  // predicts are resumed by somebody who is not the executor
};

/// Counts what it is told, and throws when it is told so.
class faulty_observer : public cobatch::batch_observer {
 public:
  void batch_started(const cobatch::batch_info&) override { ++begun, may_strike(fault::hook); }
  void wait_started(const cobatch::wait_event&) override { ++waits, may_strike(fault::hook); }
  void wait_ended(const cobatch::wait_event&) override { --waits, may_strike(fault::hook); }
  void attempt_started(const cobatch::attempt_event&) override { ++attempts, may_strike(fault::hook); }
  void attempt_ended(const cobatch::attempt_event&) override { --attempts, may_strike(fault::hook); }
  void sample_retried(const cobatch::retry_event&) override { may_strike(fault::hook); }
  void sample_finished(const cobatch::sample_event&) override { ++finished, may_strike(fault::hook); }
  void sample_taken(const cobatch::sample_event&) override { may_strike(fault::hook); }
  void batch_ended(const cobatch::batch_summary& all) override {
    ++ended;
    failures = all.hook_failures;
    may_strike(fault::hook);
  }

  int begun = 0, ended = 0, waits = 0, attempts = 0, finished = 0;
  std::uint64_t failures = 0;
};

/// All that one run has.
class world {
 public:
  explicit world(const wishes& wanted, std::uint64_t seed) : wants(wanted), sim(seed) { samples.reserve(64); }

  const wishes wants;
  cobatch::async_semaphore semaphore{2};
  faulty_observer observer;
  std::stop_source stop;
  cobatch::adaptive_limit limit;
  faulty_simulation sim;
  cobatch::inline_executor nobody;
  cobatch::rate_limiter rate{1000, 3};
  std::array<int, 64> calls{}, ends{};
  std::vector<fragile> samples;
  int running = 0;
  bool over = false;  // the run has returned or thrown
  int resumed = 0;    // how often the await went on

  void fill() {
    for (int i = 0; i < samples_of_a_batch; ++i) samples.emplace_back(i);
  }

  static bool worth_it(const cobatch::error& why) {
    may_strike(fault::retry_if);
    return why.code != cobatch::errc::cancelled;
  }

  cobatch::batch_options options() {
    using namespace std::chrono_literals;
    cobatch::batch_options all;
    all.max_concurrency = wants.max_concurrency;
    if (wants.semaphore) all.semaphore = &semaphore;
    if (wants.limit) all.limit = &limit;
    if (wants.stop) all.stop = stop;
    if (wants.timeout) all.timeout = 5ms;
    if (wants.deadline) all.deadline = 1s;
    if (wants.queue_timeout) all.queue_timeout = 4ms;
    if (wants.weights) all.max_weight = 3;
    if (wants.fail_fast) all.max_failures = 1;
    if (wants.retry) {
      all.retry.max_attempts = 2;
      all.retry.initial_backoff = 2ms;
      all.retry.seed = 1;
      all.retry.retry_if = &worth_it;
    }
    if (wants.hedge) {
      all.hedge.delay = 3ms;
      all.hedge.max_extra = 1;
    }
    if (wants.rate) all.rate = &rate;
    if (wants.observer) all.observer = &observer;
    return all;
  }

  /// What sample n comes to without a fault; errc{}: a value.
  cobatch::errc natural(int n) const noexcept {
    if (n % 5 == 2 && !wants.retry) return cobatch::errc::exception;
    if (n % 5 == 3 && wants.timeout) return cobatch::errc::timed_out;
    return {};
  }

  /// What was left in flight ends by itself.
  void settle() {
    sim.run(sim.calm().schedule_after(std::chrono::hours(1)));
    over = true;
  }

  // -- What the predicts do --
  class visit {
   public:
    explicit visit(world& w) noexcept : world_(w) { ++world_.running; }
    visit(const visit&) = delete;
    visit& operator=(const visit&) = delete;
    ~visit() { --world_.running; }

   private:
    world& world_;
  };

  /// Resumes it later, as a thread would that is not the executor's.
  detached resume_elsewhere(std::coroutine_handle<> handle) {
    try {
      co_await sim.calm().schedule_after(std::chrono::milliseconds(1));
    } catch (const std::bad_alloc&) {}
    if (over) co_return;  // a run that ended with bad_alloc has destroyed it
    const cobatch::detail::executor_scope scope(cobatch::detail::ref(nobody));
    handle.resume();
  }
  struct way_elsewhere {
    world& own;
    bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<> handle) const { own.resume_elsewhere(handle); }
    void await_resume() const noexcept {}
  };

  cobatch::task<fragile> predict(const fragile& sample, std::stop_token token) {
    using namespace std::chrono_literals;
    const visit inside_of(*this);
    const int number = sample.number();
    const int call = ++calls.at(static_cast<std::size_t>(number));
    may_strike(fault::predict);
    switch (number % 5) {
      case 1:
        if (wants.elsewhere) {
          way_elsewhere way{*this};
          co_await way;
        } else {
          co_await sim.calm().schedule_after(1ms);
        }
        break;
      case 2:
        co_await sim.calm().schedule_after(2ms);
        if (call == 1) throw std::runtime_error("the first call");
        break;
      case 3:
        if (!co_await sim.calm().schedule_after(20ms, token)) throw std::runtime_error("stopped");
        break;
      default:
        break;
    }
    ++ends.at(static_cast<std::size_t>(number));
    co_return fragile(number + 100);
  }
};

struct world_predict {
  world* own;
  cobatch::task<fragile> operator()(const fragile& sample, std::stop_token token) const {
    return own->predict(sample, std::move(token));
  }
};
struct world_cost {
  std::size_t operator()(const fragile& sample) const {
    may_strike(fault::cost);
    return static_cast<std::size_t>(1 + sample.number() % 2);
  }
};

/// Whether a fault of this kind explains that a sample has this error.
inline bool explains(fault kind, const cobatch::error& why) {
  using cobatch::errc;
  const auto is_injected = [&] {
    if (!why.exception) return false;
    try {
      std::rethrow_exception(why.exception);
    } catch (const injected_failure&) {
      return true;
    } catch (...) {
      return false;
    }
  };
  const auto is_memory = [&] {
    if (!why.exception) return true;
    try {
      std::rethrow_exception(why.exception);
    } catch (const std::bad_alloc&) {
      return true;
    } catch (const std::exception&) {
      return why.code != errc::exception;
    } catch (...) {
      return false;
    }
  };
  switch (kind) {
    case fault::none:
    case fault::hook:
      return false;
    case fault::allocation:
    case fault::no_memory:
      switch (why.code) {
        case errc::exception:
        case errc::input_failed:
          return is_memory();
        case errc::executor_stopped:
        case errc::not_started:
          return true;
        default:
          return false;
      }
    case fault::compare:
    case fault::advance:
    case fault::read:
      return why.code == errc::not_started || (why.code == errc::input_failed && is_injected());
    case fault::copy:
    case fault::move:
      return why.code == errc::not_started ||
             ((why.code == errc::input_failed || why.code == errc::exception) && is_injected());
    case fault::predict:
    case fault::cost:
    case fault::retry_if:
    case fault::retry_after:
    case fault::key:
      return why.code == errc::exception && is_injected();
    case fault::post:
    case fault::post_throws:
    case fault::stopped:
    case fault::timer:
    case fault::timer_throws:
    case fault::no_timers:
      return why.code == errc::executor_stopped || why.code == errc::not_started;
  }
  return false;
}

/// One sample's outcome.
inline void check_outcome(verdict& v, const world& w, int number, const fragile_result& outcome) {
  const auto calls = w.calls.at(static_cast<std::size_t>(number));
  v.require(calls <= (w.wants.retry ? 2 : 1) * (w.wants.hedge ? 2 : 1), "predict was called too often for", number);
  if (outcome) {
    v.require(outcome->number() == number + 100, "another one's value is that of", number);
    v.require(w.ends.at(static_cast<std::size_t>(number)) >= 1, "a value that predict did not give is that of", number);
    return;
  }
  const cobatch::error& why = outcome.error();
  if (why.code == w.natural(number)) return;
  if (w.wants.queue_timeout && why.code == cobatch::errc::queue_timed_out) return;
  const fault kind = plan.struck() ? plan.kind() : fault::none;
  // The second attempt that would have helped may not come about.
  if (kind != fault::none && w.wants.retry && number % 5 == 2 && why.code == cobatch::errc::exception) return;
  // Without memory what is over may be noticed late.
  if (is_of_memory(kind) && w.wants.timeout && why.code == cobatch::errc::timed_out) return;
  // A fault may be the failure after which the batch stops.
  if (w.wants.fail_fast && (why.code == cobatch::errc::cancelled || why.code == cobatch::errc::not_started)) return;
  v.require(explains(kind, why), name_of(why.code).data(), number);
}

inline void check_the_end(verdict& v, world& w) {
  v.require(w.running == 0, "predicts are still running", w.running);
  v.require(w.semaphore.available() == 2, "permits are missing", static_cast<int>(w.semaphore.available()));
  v.require(w.semaphore.waiting() == 0, "somebody waits in the semaphore");
  v.require(w.rate.waiting() == 0, "somebody waits in the rate limiter");
  v.require(w.limit.in_flight() == 0, "somebody holds a place of the adaptive limit");
  v.require(w.resumed == 1, "the await did not go on exactly once", w.resumed);
  v.require(w.observer.attempts == 0, "attempts began and did not end for the observer", w.observer.attempts);
  v.require(w.observer.waits == 0, "waits began and did not end for the observer", w.observer.waits);
  v.require(w.observer.begun == w.observer.ended, "a batch began and did not end for the observer");
}

template <class Start>
cobatch::task<void> await_it(world& w, Start start, std::optional<fragile_results>& into) {
  const auto scope = inside(w.sim);
  auto batch = start();
  into.emplace(co_await std::move(batch));
  ++w.resumed;
}

/// Awaits what start() makes, and checks all that can be said.
template <class Start>
void run_batch(verdict& v, world& w, bool sized, Start start) {
  std::optional<fragile_results> results;
  bool no_memory = false;
  plan.arm();
  try {
    w.sim.run(await_it(w, start, results));
  } catch (const std::bad_alloc&) {
    no_memory = true;
    ++w.resumed;
  } catch (...) {
    w.over = true;
    throw;
  }
  plan.disarm();
  w.over = true;
  if (no_memory) v.require(plan.struck() && is_of_memory(plan.kind()), "bad_alloc without a cause");
  if (results) {
    const int size = static_cast<int>(results->size());
    if (sized) v.require(size == samples_of_a_batch, "a wrong number of results", size);
    v.require(size <= samples_of_a_batch + 1, "too many results", size);
    if (!plan.struck() && !w.wants.fail_fast) v.require(size == samples_of_a_batch, "samples got lost", size);
    for (int i = 0; i < size; ++i) check_outcome(v, w, i, (*results)[static_cast<std::size_t>(i)]);
    if (plan.kind() == fault::hook && plan.struck())
      v.require(w.observer.failures <= 1, "a hook's failure was counted twice");
  }
  check_the_end(v, w);
}

inline const std::vector<wishes>& all_wishes() {
  static const std::vector<wishes> all{
      {.name = "no options"},
      {.name = "a cap and a semaphore", .max_concurrency = 2, .semaphore = true},
      {.name = "retry, timeout, semaphore, observer",
       .semaphore = true,
       .observer = true,
       .retry = true,
       .timeout = true},
      {.name = "hedge, rate, observer", .rate = true, .observer = true, .hedge = true},
      {.name = "weights, semaphore, retry", .semaphore = true, .retry = true, .weights = true},
      {.name = "fail fast, a deadline, a stop", .deadline = true, .stop = true, .fail_fast = true},
      {.name = "a short time in the queue",
       .max_concurrency = 4,
       .semaphore = true,
       .observer = true,
       .timeout = true,
       .queue_timeout = true},
      {.name = "ends elsewhere", .elsewhere = true},
      {.name = "ends elsewhere, a cap, a semaphore, hedge, retry",
       .max_concurrency = 3,
       .semaphore = true,
       .observer = true,
       .retry = true,
       .hedge = true,
       .elsewhere = true},
      {.name = "everything",
       .max_concurrency = 3,
       .semaphore = true,
       .rate = true,
       .observer = true,
       .retry = true,
       .hedge = true,
       .timeout = true,
       .deadline = true,
       .queue_timeout = true,
       .limit = true,
       .weights = true,
       .stop = true,
       .elsewhere = true},
  };
  return all;
}
