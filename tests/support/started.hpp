#pragma once

#include <coroutine>
#include <exception>
#include <utility>

/// A coroutine that starts at once on the calling thread and is destroyed, wherever it waits, with the
/// variable that holds it.
class [[nodiscard]] started {
 public:
  struct promise_type {
    started get_return_object() noexcept { return started(std::coroutine_handle<promise_type>::from_promise(*this)); }
    std::suspend_never initial_suspend() const noexcept { return {}; }
    std::suspend_always final_suspend() const noexcept { return {}; }
    void return_void() const noexcept {}
    void unhandled_exception() const noexcept { std::terminate(); }
  };

  started(started&& other) noexcept : frame_(std::exchange(other.frame_, nullptr)) {}
  started& operator=(started&& other) noexcept {
    std::swap(frame_, other.frame_);
    return *this;
  }
  ~started() { destroy(); }

  bool done() const noexcept { return frame_.done(); }

  void destroy() noexcept {
    if (const auto frame = std::exchange(frame_, nullptr)) frame.destroy();
  }

 private:
  explicit started(std::coroutine_handle<promise_type> frame) noexcept : frame_(frame) {}

  std::coroutine_handle<promise_type> frame_;
};
