#pragma once

#include <chrono>
#include <coroutine>
#include <cstddef>
#include <cstdint>

#include <cobatch/detail/current_executor.hpp>
#include <cobatch/detail/waiter.hpp>
#include <cobatch/executor.hpp>

#include "explorer.hpp"

/// What the explorations have in common. Each is a SCENARIO; scenario_main.cpp runs them.

namespace explored {

namespace x = cobatch_explore;

struct plan {
  int preemptions = 2;
  int stale = 1;
  std::uint64_t most_runs = 200'000;  ///< of the exhaustive part
  std::uint64_t random_runs = 3'000;    ///< beyond it
  std::uint64_t steps = 5'000;
  const char* finds = nullptr;  ///< it must fail, and say so: a test of the explorer
};

struct scenario {
  scenario(const char* called, plan how, void (*runs)());

  const char* name;
  plan bounds;
  void (*body)();
  scenario* next = nullptr;
};

#define EXPLORED_JOIN2(a, b) a##b
#define EXPLORED_JOIN(a, b) EXPLORED_JOIN2(a, b)
/// SCENARIO("name", .preemptions = 3) { what is run in each order }
#define SCENARIO(name, ...)                                                                                         \
  static void EXPLORED_JOIN(scenario_body_, __LINE__)();                                                            \
  static const ::explored::scenario EXPLORED_JOIN(scenario_, __LINE__)(name, ::explored::plan{__VA_ARGS__},         \
                                                                       &EXPLORED_JOIN(scenario_body_, __LINE__));   \
  static void EXPLORED_JOIN(scenario_body_, __LINE__)()

/// A coroutine that starts at once and that nobody awaits.
struct fire_and_forget {
  struct promise_type {
    fire_and_forget get_return_object() const noexcept { return {}; }
    std::suspend_never initial_suspend() const noexcept { return {}; }
    std::suspend_never final_suspend() const noexcept { return {}; }
    void return_void() const noexcept {}
    void unhandled_exception() const { throw; }
  };
};

/// An executor whose every operation is one step. Some logical threads are in work() until it is closed.
class executor {
 public:
  explicit executor(std::size_t threads = 1) : threads_(threads) {}

  bool execute(std::coroutine_handle<> handle) {
    queue_.push(handle.address());
    return true;
  }
  std::size_t concurrency() const noexcept { return threads_; }
  std::chrono::time_point<std::chrono::steady_clock, std::chrono::nanoseconds> now() const noexcept {
    return std::chrono::time_point<std::chrono::steady_clock, std::chrono::nanoseconds>(
        std::chrono::nanoseconds(x::steady_now()));
  }

  void work() {
    const cobatch::detail::executor_scope scope(cobatch::detail::ref(*this));
    while (void* const next = queue_.pop()) std::coroutine_handle<>::from_address(next).resume();
  }
  void close() { queue_.close(); }

 private:
  x::channel queue_;
  std::size_t threads_;
};

}  // namespace explored
