#pragma once

#include <atomic>
#include <coroutine>
#include <cstddef>
#include <exception>

/// What one needs in order to do without batch_predict: coroutines that run on their own, and waiting for all of them.

namespace bench {

/// A coroutine that nobody awaits; its frame comes from the heap.
struct detached {
  struct promise_type {
    detached get_return_object() const noexcept { return {}; }
    std::suspend_never initial_suspend() const noexcept { return {}; }
    std::suspend_never final_suspend() const noexcept { return {}; }
    void return_void() const noexcept {}
    [[noreturn]] void unhandled_exception() const noexcept { std::terminate(); }
  };
};

/// `co_await group` suspends until end() has been called once for each of the coroutines.
class group {
 public:
  explicit group(std::size_t coroutines) noexcept : left_(coroutines + 1) {}

  /// The last thing that a coroutine does: the group may be gone afterwards.
  void end() noexcept {
    if (left_.fetch_sub(1, std::memory_order_acq_rel) == 1) awaiting_.resume();
  }

  bool await_ready() const noexcept { return false; }
  bool await_suspend(std::coroutine_handle<> awaiting) noexcept {
    awaiting_ = awaiting;
    return left_.fetch_sub(1, std::memory_order_acq_rel) != 1;
  }
  void await_resume() const noexcept {}

 private:
  std::atomic<std::size_t> left_;  // whoever takes it to 0 sees what all others did
  std::coroutine_handle<> awaiting_;
};

}  // namespace bench
