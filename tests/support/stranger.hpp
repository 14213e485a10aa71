#pragma once

#include <coroutine>
#include <exception>
#include <optional>
#include <utility>

/// Coroutine and awaiter types as other libraries write them; nothing of cobatch is in them.
namespace stranger {

/// A lazy task with symmetric transfer in both directions, awaited through a member operator co_await.
template <class T>
class [[nodiscard]] task {
 public:
  struct promise_type {
    std::coroutine_handle<> continuation = std::noop_coroutine();
    std::optional<T> value;
    std::exception_ptr exception;

    struct final_awaiter {
      bool await_ready() const noexcept { return false; }
      std::coroutine_handle<> await_suspend(std::coroutine_handle<promise_type> self) const noexcept {
        return self.promise().continuation;
      }
      void await_resume() const noexcept {}
    };

    task get_return_object() { return task(std::coroutine_handle<promise_type>::from_promise(*this)); }
    std::suspend_always initial_suspend() const noexcept { return {}; }
    final_awaiter final_suspend() const noexcept { return {}; }
    template <class U>
    void return_value(U&& result) {
      value.emplace(std::forward<U>(result));
    }
    void unhandled_exception() noexcept { exception = std::current_exception(); }
  };

  task(task&& other) noexcept : frame_(std::exchange(other.frame_, nullptr)) {}
  task& operator=(task&&) = delete;
  ~task() {
    if (frame_) frame_.destroy();
  }

  auto operator co_await() && noexcept {
    struct awaiter {
      std::coroutine_handle<promise_type> frame;
      bool await_ready() const noexcept { return false; }
      std::coroutine_handle<> await_suspend(std::coroutine_handle<> awaiting) const noexcept {
        frame.promise().continuation = awaiting;
        return frame;
      }
      T await_resume() const {
        if (frame.promise().exception) std::rethrow_exception(frame.promise().exception);
        return std::move(*frame.promise().value);
      }
    };
    return awaiter{frame_};
  }

  /// Starts it from a plain function; it must not be awaited as well.
  void start() { frame_.resume(); }
  bool done() const noexcept { return frame_.done(); }
  T take() {
    if (frame_.promise().exception) std::rethrow_exception(frame_.promise().exception);
    return std::move(*frame_.promise().value);
  }

 private:
  explicit task(std::coroutine_handle<promise_type> frame) noexcept : frame_(frame) {}

  std::coroutine_handle<promise_type> frame_;
};

/// One awaiter with each kind of await_suspend. `suspend(handle)` is called inside it; it may keep the
/// handle, or resume it at once where that is allowed (void and handle only).
template <class T, class Suspend>
struct void_awaiter {
  T value;
  Suspend suspend;
  bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> awaiting) { suspend(awaiting); }
  T await_resume() { return std::move(value); }
};
template <class T, class Suspend>
void_awaiter(T, Suspend) -> void_awaiter<T, Suspend>;

template <class T, class Suspend>
struct bool_awaiter {
  T value;
  Suspend suspend;
  bool await_ready() const noexcept { return false; }
  bool await_suspend(std::coroutine_handle<> awaiting) { return suspend(awaiting); }
  T await_resume() { return std::move(value); }
};
template <class T, class Suspend>
bool_awaiter(T, Suspend) -> bool_awaiter<T, Suspend>;

template <class T, class Suspend>
struct handle_awaiter {
  T value;
  Suspend suspend;
  bool await_ready() const noexcept { return false; }
  std::coroutine_handle<> await_suspend(std::coroutine_handle<> awaiting) { return suspend(awaiting); }
  T await_resume() { return std::move(value); }
};
template <class T, class Suspend>
handle_awaiter(T, Suspend) -> handle_awaiter<T, Suspend>;

/// Awaited through a free operator co_await only.
struct by_free_operator {
  int value;
};
inline auto operator co_await(by_free_operator awaited) noexcept {
  struct awaiter {
    int value;
    bool await_ready() const noexcept { return true; }
    void await_suspend(std::coroutine_handle<>) const noexcept {}
    int await_resume() const noexcept { return value; }
  };
  return awaiter{awaited.value};
}

}  // namespace stranger
