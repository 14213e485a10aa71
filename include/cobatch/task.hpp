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
#include <cobatch/detail/start_mark.hpp>
#include <cobatch/detail/task_chain.hpp>

namespace cobatch::inline COBATCH_ABI {

namespace detail {
template <class T>
class task_promise;
template <class Raw>
class attempt;
}  // namespace detail

/// A lazy coroutine: nothing runs until it is awaited, and the awaiting coroutine gets its result or its exception.
///
/// T may be void, a reference, or move-only. Await it once; the result is moved out.
///
/// Resumes: the body starts inside the co_await, on the awaiting thread; the awaiting coroutine goes on where the body
/// ended, at once. Neither tasks that are awaited in a row, nor tasks that await tasks, however deep, deepen the stack;
/// depth costs memory alone.
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
  template <class U>
  bool await_suspend(std::coroutine_handle<detail::task_promise<U>> awaiting);
  T await_resume();

 private:
  friend promise_type;
  template <class Raw>
  friend class detail::attempt;

  /// await_suspend() for who has a mark of its own as the innermost one: a loop need not put on another for each task.
  /// True: the task has ended.
  bool start_under(std::coroutine_handle<> continuation, detail::start_mark& mark);

  void require_unawaited() const;

  explicit task(std::coroutine_handle<promise_type> frame) noexcept : frame_(frame) {}

  std::coroutine_handle<promise_type> frame_;
};

// ---- Implementation ----

namespace detail {

enum class task_state : unsigned char { unfinished, value, exception };

template <class T>
class task_promise final : public task_chain {
 public:
  task_promise() noexcept {}
  task_promise(const task_promise&) = delete;
  task_promise& operator=(const task_promise&) = delete;
  ~task_promise() {
    if (state_ == task_state::value) std::destroy_at(std::addressof(value_));
    if (state_ == task_state::exception) std::destroy_at(&exception_);
  }

  task<T> get_return_object() noexcept { return task<T>(std::coroutine_handle<task_promise>::from_promise(*this)); }

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
    if (state_ == task_state::exception) [[unlikely]]
      std::rethrow_exception(std::move(exception_));
    return std::move(value_);
  }

 private:
  task_state state_ = task_state::unfinished;  // first: there is room for it behind what task_chain has
  union {
    T value_;
    std::exception_ptr exception_;
  };
};

template <class T>
class task_promise<T&> final : public task_chain {
 public:
  task<T&> get_return_object() noexcept { return task<T&>(std::coroutine_handle<task_promise>::from_promise(*this)); }
  void return_value(T& value) noexcept { value_ = std::addressof(value); }
  void unhandled_exception() noexcept { exception_ = std::current_exception(); }
  T& take() {
    if (exception_) [[unlikely]]
      std::rethrow_exception(std::move(exception_));
    return *value_;
  }

 private:
  T* value_ = nullptr;
  std::exception_ptr exception_;
};

template <>
class task_promise<void> final : public task_chain {
 public:
  task<void> get_return_object() noexcept;
  void return_void() const noexcept {}
  void unhandled_exception() noexcept { exception_ = std::current_exception(); }
  void take() {
    if (exception_) [[unlikely]]
      std::rethrow_exception(std::move(exception_));
  }

 private:
  std::exception_ptr exception_;
};

inline task<void> task_promise<void>::get_return_object() noexcept {
  return task<void>(std::coroutine_handle<task_promise>::from_promise(*this));
}

}  // namespace detail

template <class T>
[[gnu::always_inline]] inline void task<T>::require_unawaited() const {
  if (!frame_ || frame_.done()) [[unlikely]] {
    detail::throw_or_fail<std::logic_error>("an empty or already awaited task was awaited: await a task once");
  }
}

template <class T>
bool task<T>::await_suspend(std::coroutine_handle<> awaiting) {
  detail::start_mark mark(nullptr);
  return !start_under(awaiting, mark);
}

template <class T>
template <class U>
[[gnu::always_inline]] inline bool task<T>::await_suspend(std::coroutine_handle<detail::task_promise<U>> awaiting) {
  require_unawaited();
  return !frame_.promise().start_in(awaiting.promise(), frame_, awaiting);
}

template <class T>
[[gnu::always_inline]] inline bool task<T>::start_under(std::coroutine_handle<> continuation,
                                                        detail::start_mark& mark) {
  require_unawaited();
  return frame_.promise().start(frame_, continuation, mark);
}

template <class T>
T task<T>::await_resume() {
  return frame_.promise().take();
}

}  // namespace cobatch
