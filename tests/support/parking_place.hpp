#pragma once

#include <coroutine>

/// Suspends, and keeps the handle for the test.
struct parking_place {
  std::coroutine_handle<> parked;

  auto operator co_await() noexcept {
    struct awaiter {
      parking_place* place;
      bool await_ready() const noexcept { return false; }
      void await_suspend(std::coroutine_handle<> handle) const noexcept { place->parked = handle; }
      void await_resume() const noexcept {}
    };
    return awaiter{this};
  }
};
