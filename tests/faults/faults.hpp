// SPDX-License-Identifier: BSL-1.0
// The faults of the world, one at a time: whatever may fail asks here, and the n-th of one kind does.
#pragma once

#include <array>
#include <chrono>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <initializer_list>
#include <new>
#include <span>
#include <stop_token>
#include <string>
#include <utility>

#include <cobatch/detail/current_executor.hpp>
#include <cobatch/error.hpp>
#include <cobatch/simulation.hpp>

#include "support/allocations.hpp"
#include "support/catch.hpp"
#include "support/fail_at.hpp"
#include "support/lifetimes.hpp"

enum class fault : unsigned char {
  none,
  allocation,
  no_memory,  // this allocation and all later ones
  copy,       // of a sample or a value
  move,
  compare,  // of the input's iterators
  advance,
  read,
  predict,
  cost,
  retry_if,
  retry_after,
  key,
  hook,
  post,  // the executor says no to this one
  post_throws,
  stopped,  // to this one and all later ones
  timer,    // schedule_after() gives false, though nobody stopped it
  timer_throws,
  no_timers,  // from this one on
};

constexpr const char* name_of(fault kind) noexcept {
  constexpr std::array names{"none", "allocation",  "no_memory", "copy",     "move",         "compare",  "advance",
                             "read", "predict",     "cost",      "retry_if", "retry_after",  "key",      "hook",
                             "post", "post_throws", "stopped",   "timer",    "timer_throws", "no_timers"};
  return names[static_cast<std::size_t>(kind)];
}

constexpr bool is_of_memory(fault kind) noexcept {
  return kind == fault::allocation || kind == fault::no_memory;
}

/// Every kind.
inline constexpr std::array all_faults{fault::allocation, fault::no_memory,    fault::copy,        fault::move,
                                       fault::compare,    fault::advance,      fault::read,        fault::predict,
                                       fault::cost,       fault::retry_if,     fault::retry_after, fault::key,
                                       fault::hook,       fault::post,         fault::post_throws, fault::stopped,
                                       fault::timer,      fault::timer_throws, fault::no_timers};

/// Which one is to strike: the n-th of its kind from arm() on.
class fault_plan {
 public:
  void choose(fault kind, std::size_t n) noexcept {
    steps_ = 0;
    kind_ = kind;
    n_ = n;
    left_ = 0;
    struck_ = false;
  }
  void arm() noexcept {
    left_ = kind_ == fault::none ? 0 : n_;
    if (is_of_memory(kind_)) fail_allocation_in(n_, kind_ == fault::no_memory);
  }
  /// Ends what has no end: from some number of steps on the executor refuses all.
  void one_more_step() {
    if (++steps_ < 20'000) return;
    throw injected_failure();
  }
  bool has_no_end() const noexcept { return steps_ >= 20'000; }
  void disarm() noexcept {
    if (is_of_memory(kind_) && left_ > 0) struck_ = !allocation_failure_is_pending();
    left_ = 0;
  }
  bool struck() const noexcept {
    if (is_of_memory(kind_) && left_ > 0) return allocation_has_failed();
    return struck_;
  }
  fault kind() const noexcept { return kind_; }

  bool strikes(fault kind) noexcept {
    if (kind != kind_ || left_ == 0 || --left_ > 0) return false;
    struck_ = true;
    if (kind_ == fault::stopped || kind_ == fault::no_timers) left_ = 1;
    return true;
  }

 private:
  fault kind_ = fault::none;
  std::size_t steps_ = 0;
  std::size_t n_ = 0, left_ = 0;
  bool struck_ = false;
};

inline fault_plan plan;

inline void may_strike(fault kind) {
  if (plan.strikes(kind)) throw injected_failure();
}

inline census fragile_lives;

/// A number that fails to be copied or moved when it is told so.
class fragile {
 public:
  explicit fragile(int number) : life_(fragile_lives), number_(number) {}
  fragile(const fragile& other) : life_((may_strike(fault::copy), other.life_)), number_(other.number_) {}
  fragile(fragile&& other) noexcept(false)
      : life_((may_strike(fault::move), other.life_)), number_(std::exchange(other.number_, tracked::moved_from)) {}
  fragile& operator=(const fragile& other) {
    may_strike(fault::copy);
    number_ = other.number_;
    return *this;
  }
  fragile& operator=(fragile&& other) noexcept(false) {
    may_strike(fault::move);
    number_ = std::exchange(other.number_, tracked::moved_from);
    return *this;
  }
  ~fragile() { number_ = tracked::dead; }

  int number() const noexcept { return number_; }

 private:
  life life_;
  volatile int number_;
};

class faulty_simulation;
namespace cobatch::inline COBATCH_ABI::detail {
template <>
inline constexpr const char* executor_blocks<faulty_simulation> = "the thread of a running simulation";
}

/// A simulation that refuses what the library posts, and its timers. What a test waits for by itself: calm().
class faulty_simulation : public cobatch::simulation {
 public:
  using simulation::simulation;

  cobatch::simulation& calm() noexcept { return *this; }

  bool execute(std::coroutine_handle<> handle) {
    plan.one_more_step();
    may_strike(fault::post_throws);
    if (plan.strikes(fault::post) || plan.strikes(fault::stopped)) return false;
    return simulation::execute(handle);
  }

  class timer {
   public:
    timer(simulation& sim, std::chrono::nanoseconds delay, std::stop_token token, bool refused) noexcept
        : wait_(sim.schedule_after(delay, std::move(token))), refused_(refused) {}
    bool await_ready() const noexcept { return refused_; }
    bool await_suspend(std::coroutine_handle<> handle) { return wait_.await_suspend(handle); }
    bool await_resume() noexcept { return !refused_ && wait_.await_resume(); }

   private:
    cobatch::detail::timer_awaiter<simulation> wait_;
    bool refused_;
  };

  timer schedule_after(std::chrono::nanoseconds delay, std::stop_token token = {}) {
    plan.one_more_step();
    may_strike(fault::timer_throws);
    const bool refused = plan.strikes(fault::timer) || plan.strikes(fault::no_timers);
    return timer(*this, delay, std::move(token), refused);
  }
};

/// While it lives, who suspends comes back through ex, with its faults; for the whole of a run.
inline cobatch::detail::executor_scope inside(faulty_simulation& ex) noexcept {
  return cobatch::detail::executor_scope(cobatch::detail::ref(ex));
}

/// What is wrong, in words; the first thing counts. Allocates nothing.
class verdict {
 public:
  void require(bool good, const char* what, int number = -1) noexcept {
    if (good || problem_) return;
    problem_ = what;
    number_ = number;
  }
  const char* problem() const noexcept { return problem_; }
  int number() const noexcept { return number_; }

 private:
  const char* problem_ = nullptr;
  int number_ = -1;
};

/// One run of a scenario: makes what it needs, calls plan.arm(), runs, calls plan.disarm(), and looks at what became of
/// it.
using scenario = std::function<void(verdict&)>;

/// COBATCH_FAULT="vector, no options: allocation 7" runs that one alone: what a failure prints.
inline const char* fault_asked_for() noexcept {
  return std::getenv("COBATCH_FAULT");
}

/// Runs it with the n-th fault of each kind, n = 1, 2, ..., until one goes through. Returns how many faults there were.
inline std::size_t inject(const std::string& name, std::span<const fault> kinds, const scenario& run) {
  std::size_t faults = 0;
  const auto attempt = [&](fault kind, std::size_t n) {
    verdict found;
    const std::ptrdiff_t live = live_allocations();
    plan.choose(kind, n);
    try {
      run(found);
    } catch (const cobatch::deadlock_error&) {
      plan.disarm();
      found.require(false, "it hangs");
    } catch (const std::exception&) {
      plan.disarm();
      found.require(false, "an exception that is not of the fault");
    } catch (const injected_failure&) {
      plan.disarm();
      found.require(false, "an injected failure that should have been an outcome");
    }
    plan.disarm();
    found.require(!plan.has_no_end(), "it goes on for ever");
    // An inside() in a coroutine that outlives its run() has put back what it found there.
    cobatch::detail::this_thread_loop = nullptr;
    cobatch::detail::this_thread_executor = {};
    if (kind != fault::none || n > 1) {
      found.require(live_allocations() == live, "memory leaks, or is freed twice",
                    static_cast<int>(live_allocations() - live));
    }
    found.require(fragile_lives.alive == 0, "objects leak, or are destroyed twice",
                  static_cast<int>(fragile_lives.alive));
    fragile_lives.alive = 0;
    if (found.problem()) {
      INFO(name << ": " << name_of(kind) << " " << n << ": " << found.problem() << " (" << found.number() << ")");
      CHECK(false);
    }
    return plan.struck();
  };
  if (const char* const only = fault_asked_for()) {
    for (const fault kind : kinds) {
      const std::string here = name + ": " + name_of(kind) + ' ';
      if (std::string(only).starts_with(here)) attempt(kind, std::stoul(only + here.size()));
    }
    return 1'000'000;
  }
  attempt(fault::none, 1);  // what is made once in a program
  attempt(fault::none, 2);
  for (const fault kind : kinds) {
    std::size_t n = 1;
    while (attempt(kind, n)) {
      ++faults;
      ++n;
      if (n > 5000) {
        FAIL_CHECK(name << ": there is no end of " << name_of(kind));
        break;
      }
    }
    if (std::getenv("COBATCH_FAULT_COUNTS")) std::printf("%s: %s: %zu\n", name.c_str(), name_of(kind), n - 1);
  }
  return faults;
}
