#pragma once

#include <coroutine>
#include <exception>
#include <memory>
#include <optional>
#include <type_traits>
#include <utility>

#include <cobatch/detail/awaitable.hpp>
#include <cobatch/detail/config.hpp>
#include <cobatch/detail/frame_pool.hpp>
#include <cobatch/detail/start_mark.hpp>

/// How a plain function awaits: sync_wait, run_loop::run and simulation::run start a driver and wait for its end.

namespace cobatch::inline COBATCH_ABI::detail {

/// Told of the end of a driver that did not end inside start(); lives on the stack of the waiting function.
class driver_end {
 public:
  /// Called on the thread on which the driver ended. As soon as it has let the waiting thread go, *this is gone.
  virtual void driver_ended() noexcept = 0;

 protected:
  ~driver_end() = default;
};

/// What an awaited expression came to. A result of type T&& is kept as a T: it may refer into what is destroyed here.
template <class T>
class outcome {
 public:
  template <class U>
  void set_value(U&& value) {
    value_.emplace(std::forward<U>(value));
  }
  void set_exception(std::exception_ptr exception) noexcept { exception_ = std::move(exception); }
  T take() {
    if (exception_) std::rethrow_exception(std::move(exception_));
    return std::move(*value_);
  }

 private:
  std::optional<std::remove_const_t<T>> value_;
  std::exception_ptr exception_;
};

template <class T>
class outcome<T&> {
 public:
  void set_value(T& value) noexcept { value_ = std::addressof(value); }
  void set_exception(std::exception_ptr exception) noexcept { exception_ = std::move(exception); }
  T& take() {
    if (exception_) std::rethrow_exception(std::move(exception_));
    return *value_;
  }

 private:
  T* value_ = nullptr;
  std::exception_ptr exception_;
};

template <>
class outcome<void> {
 public:
  void set_exception(std::exception_ptr exception) noexcept { exception_ = std::move(exception); }
  void take() {
    if (exception_) std::rethrow_exception(std::move(exception_));
  }

 private:
  std::exception_ptr exception_;
};

template <class T>
struct remove_rvalue_reference {
  using type = T;
};
template <class T>
struct remove_rvalue_reference<T&&> {
  using type = T;
};

/// What sync_wait(Awaitable) and its like return.
template <class Awaitable>
using driven_result = typename remove_rvalue_reference<await_result<Awaitable>>::type;

/// The one coroutine between a plain function and what it awaits. Destroying it while it is suspended abandons the
/// wait.
template <class Result>
class [[nodiscard]] driver {
 public:
  class promise_type;

  driver(driver&& other) noexcept : frame_(std::exchange(other.frame_, nullptr)) {}
  driver& operator=(driver&&) = delete;
  ~driver() {
    if (frame_) frame_.destroy();
  }

  /// Runs until it first suspends. True: it has ended; else end.driver_ended() will be called, maybe already was.
  bool start(outcome<Result>& result, driver_end& end) { return frame_.promise().start(frame_, result, end); }

 private:
  explicit driver(std::coroutine_handle<promise_type> frame) noexcept : frame_(frame) {}

  std::coroutine_handle<promise_type> frame_;
};

template <class Result>
class driver<Result>::promise_type : public pooled_frame {
 public:
  struct final_awaiter {
    bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<promise_type> self) const noexcept {
      promise_type& promise = self.promise();
      if (start_mark::finish(promise.mark_, &promise)) return;
      promise.end_->driver_ended();  // the frame may be gone
    }
    void await_resume() const noexcept {}
  };

  driver get_return_object() noexcept { return driver(std::coroutine_handle<promise_type>::from_promise(*this)); }
  std::suspend_always initial_suspend() const noexcept { return {}; }
  final_awaiter final_suspend() const noexcept { return {}; }
  void return_void() const noexcept {}
  void unhandled_exception() noexcept { result_->set_exception(std::current_exception()); }

  bool start(std::coroutine_handle<> self, outcome<Result>& result, driver_end& end) {
    result_ = &result;
    end_ = &end;
    start_mark mark(this);
    mark_ = &mark;
    self.resume();
    return mark.finished();
  }

 private:
  outcome<Result>* result_ = nullptr;
  driver_end* end_ = nullptr;
  start_mark* mark_ = nullptr;
};

COBATCH_COROUTINES_BEGIN
/// A driver that awaits `awaitable` and leaves the value in `result`, which must be the one start() gets.
template <class Awaitable>
driver<driven_result<Awaitable>> drive(Awaitable&& awaitable, outcome<driven_result<Awaitable>>& result) {
  if constexpr (std::is_void_v<driven_result<Awaitable>>) {
    (void)result;
    co_await static_cast<Awaitable&&>(awaitable);
  } else {
    result.set_value(co_await static_cast<Awaitable&&>(awaitable));
  }
}
COBATCH_COROUTINES_END

}  // namespace cobatch::detail
