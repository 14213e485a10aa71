#pragma once

#include <coroutine>
#include <exception>
#include <memory>
#include <new>
#include <stdexcept>
#include <type_traits>
#include <utility>

#include <cobatch/detail/awaitable.hpp>
#include <cobatch/detail/config.hpp>
#include <cobatch/detail/frame_pool.hpp>
#include <cobatch/detail/start_mark.hpp>

namespace cobatch {

namespace detail {
template <class T>
class task_promise;
template <class Raw>
class attempt;
}

/// A lazy coroutine: nothing runs until it is awaited, and the awaiting coroutine gets its result or its exception.
///
/// T may be void, a reference, or move-only. Await it once; the result is moved out.
///
/// Resumes: the body starts inside the co_await, on the awaiting thread; the awaiting coroutine goes on where the body
/// ended, at once. A body that ends without suspending never deepens the stack, however many are awaited in a row.
/// Lifetime: destroying a task that was never awaited runs nothing; one must not destroy a task that is running.
/// The parameters of the coroutine are copied into its frame; a lambda's captures are not, they must outlive the task.
/// Errors: awaiting an empty (moved-from) or finished task throws std::logic_error.
/// Allocates: one frame, from a per-thread pool.
template <class T = void>
class [[nodiscard]] task {
 public:
  using promise_type = detail::task_promise<T>;
  using value_type = T;

  task() noexcept = default;
  task(task&& other) noexcept : frame_(std::exchange(other.frame_, nullptr)) {}
  task& operator=(task&& other) noexcept {
    if (this != &other) {
      if (frame_) frame_.destroy();
      frame_ = std::exchange(other.frame_, nullptr);
    }
    return *this;
  }
  ~task() {
    if (frame_) frame_.destroy();
  }

  /// False once moved from.
  explicit operator bool() const noexcept { return static_cast<bool>(frame_); }

  bool await_ready() const noexcept { return false; }
  bool await_suspend(std::coroutine_handle<> awaiting);
  T await_resume();

 private:
  friend promise_type;
  template <class Raw>
  friend class detail::attempt;

  /// await_suspend() for who has a mark of its own as the innermost one: a loop need not put on another for each task.
  /// True: the task has ended.
  bool start_under(std::coroutine_handle<> continuation, detail::start_mark& mark);

  explicit task(std::coroutine_handle<promise_type> frame) noexcept : frame_(frame) {}

  std::coroutine_handle<promise_type> frame_;
};

// ---- Implementation ----

namespace detail {

/// What a task's frame holds apart from its result: who goes on when it ends.
class task_promise_base : public pooled_frame {
 public:
  std::suspend_always initial_suspend() const noexcept { return {}; }

  struct final_awaiter {
    bool await_ready() const noexcept { return false; }
    template <class Promise>
    std::coroutine_handle<> await_suspend(std::coroutine_handle<Promise> self) const noexcept {
      task_promise_base& promise = self.promise();
      // Nested in start(): unwind to it. Otherwise the awaiting coroutine has long been suspended: go on with it.
      if (start_mark::finish(promise.mark_, &promise)) return std::noop_coroutine();
      return promise.continuation_;
    }
    void await_resume() const noexcept {}
  };
  final_awaiter final_suspend() const noexcept { return {}; }

  /// Runs the coroutine from its start until it first suspends or ends; true: it has ended. `mark` is the innermost one
  /// of this thread, and already open for this promise.
  bool start(std::coroutine_handle<> self, std::coroutine_handle<> continuation, start_mark& mark) {
    continuation_ = continuation;
    mark_ = &mark;
    self.resume();
    // If it has not ended inside this call, *this may be gone: another thread may have finished it.
    return mark.finished();
  }

 private:
  std::coroutine_handle<> continuation_;
  start_mark* mark_ = nullptr;
};

enum class task_state : unsigned char { unfinished, value, exception };

template <class T>
class task_promise final : public task_promise_base {
 public:
  task_promise() noexcept {}
  task_promise(const task_promise&) = delete;
  task_promise& operator=(const task_promise&) = delete;
  ~task_promise() {
    if (state_ == task_state::value) std::destroy_at(std::addressof(value_));
    if (state_ == task_state::exception) std::destroy_at(&exception_);
  }

  task<T> get_return_object() noexcept {
    return task<T>(std::coroutine_handle<task_promise>::from_promise(*this));
  }

  template <class U = T>
    requires std::constructible_from<T, U>
  void return_value(U&& value) noexcept(std::is_nothrow_constructible_v<T, U>) {
    std::construct_at(std::addressof(value_), std::forward<U>(value));
    state_ = task_state::value;
  }

  void unhandled_exception() noexcept {
    if (state_ == task_state::value) std::destroy_at(std::addressof(value_));  // a destructor threw after co_return
    std::construct_at(&exception_, std::current_exception());
    state_ = task_state::exception;
  }

  T take() {
    if (state_ == task_state::exception) [[unlikely]] std::rethrow_exception(std::move(exception_));
    return std::move(value_);
  }

 private:
  union {
    T value_;
    std::exception_ptr exception_;
  };
  task_state state_ = task_state::unfinished;
};

template <class T>
class task_promise<T&> final : public task_promise_base {
 public:
  task<T&> get_return_object() noexcept {
    return task<T&>(std::coroutine_handle<task_promise>::from_promise(*this));
  }
  void return_value(T& value) noexcept { value_ = std::addressof(value); }
  void unhandled_exception() noexcept { exception_ = std::current_exception(); }
  T& take() {
    if (exception_) [[unlikely]] std::rethrow_exception(std::move(exception_));
    return *value_;
  }

 private:
  T* value_ = nullptr;
  std::exception_ptr exception_;
};

template <>
class task_promise<void> final : public task_promise_base {
 public:
  task<void> get_return_object() noexcept;
  void return_void() const noexcept {}
  void unhandled_exception() noexcept { exception_ = std::current_exception(); }
  void take() {
    if (exception_) [[unlikely]] std::rethrow_exception(std::move(exception_));
  }

 private:
  std::exception_ptr exception_;
};

inline task<void> task_promise<void>::get_return_object() noexcept {
  return task<void>(std::coroutine_handle<task_promise>::from_promise(*this));
}

}  // namespace detail

template <class T>
bool task<T>::await_suspend(std::coroutine_handle<> awaiting) {
  detail::start_mark mark(nullptr);
  return !start_under(awaiting, mark);
}

template <class T>
[[gnu::always_inline]] inline bool task<T>::start_under(std::coroutine_handle<> continuation,
                                                        detail::start_mark& mark) {
  if (!frame_ || frame_.done()) [[unlikely]] {
    detail::throw_or_fail<std::logic_error>("an empty or already awaited task was awaited: await a task once");
  }
  mark.reopen(&frame_.promise());
  return frame_.promise().start(frame_, continuation, mark);
}

template <class T>
T task<T>::await_resume() {
  return frame_.promise().take();
}

}  // namespace cobatch
