#pragma once

#include <coroutine>
#include <optional>

#include <cobatch/detail/abi.hpp>
#include <cobatch/stream_options.hpp>

namespace cobatch::inline COBATCH_ABI::detail {

/// A consumer that awaits something of a stream. Where its coroutine is destroyed meanwhile, the stream forgets it.
template <class State>
class stream_wait {
 public:
  explicit stream_wait(State& of) noexcept : state(&of) {}
  stream_wait(const stream_wait&) = delete;
  stream_wait& operator=(const stream_wait&) = delete;
  ~stream_wait() {
    if (waits_ && state) state->forget_consumer();
  }

  State* state;  // null once the stream is gone

 protected:
  bool wait(std::coroutine_handle<> consumer) noexcept {
    waits_ = true;
    if (state->wait(consumer, *this)) return true;  // *this may be gone
    waits_ = false;
    return false;
  }
  void goes_on() noexcept { waits_ = false; }

 private:
  bool waits_ = false;
};

template <class State>
class [[nodiscard]] stream_next : stream_wait<State> {
 public:
  explicit stream_next(State& of) noexcept : stream_wait<State>(of) {}
  bool await_ready() const noexcept { return this->state->has_item(); }
  bool await_suspend(std::coroutine_handle<> consumer) { return !this->state->look() && this->wait(consumer); }
  [[nodiscard]] std::optional<stream_item<typename State::result>> await_resume() {
    this->goes_on();
    return this->state->take();
  }
};

template <class State>
class [[nodiscard]] stream_close : stream_wait<State> {
 public:
  explicit stream_close(State& of) noexcept : stream_wait<State>(of) {}
  bool await_ready() const noexcept { return false; }
  bool await_suspend(std::coroutine_handle<> consumer) { return !this->state->close() && this->wait(consumer); }
  void await_resume() noexcept { this->goes_on(); }
};

}  // namespace cobatch::detail
