#pragma once

#include <chrono>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <stop_token>
#include <utility>
#include <vector>

#include <cobatch/detail/current_executor.hpp>
#include <cobatch/detail/punctual_wait.hpp>
#include <cobatch/detail/timer_awaiter.hpp>
#include <cobatch/detail/timer_queue.hpp>
#include <cobatch/detail/waiter.hpp>
#include <cobatch/executor.hpp>

#include "explorer.hpp"

/// What the explorations have in common. Each is a SCENARIO; scenario_main.cpp runs them.

namespace explored {

namespace x = cobatch_explore;

struct plan {
  int preemptions = 2;
  int stale = 1;
  std::uint64_t most_runs = 50'000;  ///< of the exhaustive part
  std::uint64_t random_runs = 3'000;  ///< beyond it
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
#define SCENARIO(name, ...)                                                                                       \
  static void EXPLORED_JOIN(scenario_body_, __LINE__)();                                                          \
  static const ::explored::scenario EXPLORED_JOIN(scenario_, __LINE__)(name, ::explored::plan{__VA_ARGS__},       \
                                                                       &EXPLORED_JOIN(scenario_body_, __LINE__)); \
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

  /// Where nobody knows the end: until every thread would wait.
  void work_while_there_is_some() {
    const cobatch::detail::executor_scope scope(cobatch::detail::ref(*this));
    while (void* const next = queue_.pop_unless_all_wait(threads_))
      std::coroutine_handle<>::from_address(next).resume();
  }

 private:
  x::channel queue_;
  std::size_t threads_;
};

/// An executor with timers, on a mutex and a condition variable. Time passes only where nothing else can happen, or as
/// an interruption.
class timed_executor {
 public:
  explicit timed_executor(std::size_t threads = 1) : threads_(threads) {}

  bool execute(std::coroutine_handle<> handle) {
    const std::lock_guard lock(mutex_);
    ready_.push_back(handle);
    changed_.notify_one();
    return true;
  }
  std::size_t concurrency() const noexcept { return threads_; }
  std::chrono::time_point<std::chrono::steady_clock, std::chrono::nanoseconds> now() const noexcept {
    return std::chrono::time_point<std::chrono::steady_clock, std::chrono::nanoseconds>(
        std::chrono::nanoseconds(x::steady_now()));
  }
  cobatch::detail::timer_awaiter<timed_executor> schedule_after(std::chrono::nanoseconds delay,
                                                                std::stop_token token = {}) noexcept {
    return {*this, delay, std::move(token)};
  }

  // -- for timer_awaiter --
  bool add_timer(cobatch::detail::timer_node& node, std::int64_t delay) {
    const std::lock_guard lock(mutex_);
    if (!timers_.add(node, cobatch::detail::timer_queue::deadline_after(x::steady_now(), delay))) return false;
    changed_.notify_all();
    return true;
  }
  void stop_timer(cobatch::detail::timer_node& node) {
    const std::lock_guard lock(mutex_);
    if (timers_.stop(node)) changed_.notify_all();
  }
  void erase_timer(cobatch::detail::timer_node& node) {
    const std::lock_guard lock(mutex_);
    if (node.linked()) timers_.erase(node);
  }

  void work() {
    const cobatch::detail::executor_scope scope(cobatch::detail::ref(*this));
    std::unique_lock lock(mutex_);
    for (;;) {
      std::coroutine_handle<> next;
      if (cobatch::detail::timer_node* const due = timers_.take_due(x::steady_now())) {
        next = due->handle;
      } else if (!ready_.empty()) {
        next = ready_.front();
        ready_.erase(ready_.begin());
      }
      if (next) {
        lock.unlock();
        next.resume();
        lock.lock();
      } else if (closed_) {
        return;
      } else if (timers_.earliest() == cobatch::detail::timer_queue::never) {
        changed_.wait(lock);
      } else {
        changed_.wait_until(lock, cobatch::detail::steady_time(timers_.earliest()));
      }
    }
  }
  void close() {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    changed_.notify_all();
  }

 private:
  std::size_t threads_;
  x::mutex mutex_;
  x::condition_variable changed_;
  std::vector<std::coroutine_handle<>> ready_;
  cobatch::detail::timer_queue timers_;
  bool closed_ = false;
};

/// Suspends, and is resumed by whoever serves the channel: a thread that is no executor's.
struct handed_to {
  x::channel* server;
  bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> handle) const { server->push(handle.address()); }
  void await_resume() const noexcept {}
};
inline void serve(x::channel& requests, int count) {
  while (count-- > 0) {
    if (void* const next = requests.pop()) std::coroutine_handle<>::from_address(next).resume();
  }
}

}  // namespace explored
