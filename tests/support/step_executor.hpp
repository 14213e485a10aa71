#pragma once

#include <coroutine>
#include <cstddef>
#include <deque>
#include <utility>

#include <cobatch/detail/current_executor.hpp>
#include <cobatch/executor.hpp>

/// An executor that runs nothing until the test tells it to: first in, first out, on the test's thread.
class step_executor {
 public:
  step_executor() = default;
  step_executor(const step_executor&) = delete;
  step_executor& operator=(const step_executor&) = delete;

  bool execute(std::coroutine_handle<> handle) {
    if (refusing) return false;
    queue_.push_back(handle);
    return true;
  }

  std::size_t queued() const noexcept { return queue_.size(); }

  /// Resumes the oldest one; false: there was none.
  bool step() {
    if (queue_.empty()) return false;
    const std::coroutine_handle<> next = queue_.front();
    queue_.pop_front();
    const cobatch::detail::executor_scope scope(cobatch::detail::ref(*this));
    next.resume();
    return true;
  }

  /// Steps until nothing is ready.
  void drain() {
    while (step()) {}
  }

  /// Calls f as if from a step: coroutines that suspend in it come back to this executor.
  template <class F>
  decltype(auto) run(F&& f) {
    const cobatch::detail::executor_scope scope(cobatch::detail::ref(*this));
    return std::forward<F>(f)();
  }

  bool refusing = false;

 private:
  std::deque<std::coroutine_handle<>> queue_;
};
