#pragma once

#include <algorithm>
#include <chrono>
#include <concepts>
#include <coroutine>
#include <cstddef>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>

#include <cobatch/detail/awaitable.hpp>
#include <cobatch/detail/config.hpp>
#include <cobatch/detail/current_executor.hpp>
#include <cobatch/detail/stop_token.hpp>
#include <cobatch/detail/thread.hpp>
#include <cobatch/error.hpp>

namespace cobatch::inline COBATCH_ABI {

/// Something that resumes coroutines: `ex.execute(handle)` queues the handle, to be resumed once, soon, on a thread
/// of its own choice. It returns nothing, or a bool: false means refused, the handle was not taken. Throwing means
/// the same.
///
/// Optional members: `ex.concurrency()`, how many handles it resumes at the same time; `ex.running_in_this_thread()`,
/// whether the calling thread runs its loop right now; `ex.now()`, a time point of a clock of its own.
/// Lifetime: everything here refers to an executor by its address; it must outlive what runs on it. A coroutine that
/// has been handed over must not be destroyed before it has been resumed.
template <class Executor>
concept executor = requires(Executor& ex, std::coroutine_handle<> handle) {
  requires std::is_void_v<decltype(ex.execute(handle))> || std::same_as<decltype(ex.execute(handle)), bool>;
};

/// An executor with timers: `co_await ex.schedule_after(delay, stop_token)` gives true once the delay has elapsed,
/// false if it was stopped before, and goes on on the executor.
template <class Executor>
concept timed_executor =
    executor<Executor> && requires(Executor& ex, std::chrono::nanoseconds delay, std::stop_token token) {
      { ex.schedule_after(delay) } -> detail::awaitable;
      { ex.schedule_after(delay, token) } -> detail::awaitable;
      requires std::convertible_to<detail::await_result<decltype(ex.schedule_after(delay, token))>, bool>;
    };

/// Resumes at once, inside execute(), on the calling thread.
class inline_executor {
 public:
  void execute(std::coroutine_handle<> handle) const { handle.resume(); }
  std::size_t concurrency() const noexcept { return 1; }
  bool running_in_this_thread() const noexcept { return true; }
};

/// Turns any "run this on your threads" function into an executor:
/// `function_executor mine{[&](auto f) { threads.post(f); }};`
///
/// `post` is called with a copyable callable `void()` of two pointers (it fits into std::function without an
/// allocation) and must see to it that it runs exactly once, now or later, on any thread. It may return a bool: false
/// means refused, and so does an exception; a refused callable must not run.
///
/// Lifetime: the callable refers to this object, which can therefore be neither copied nor moved.
/// Thread safety: that of `post`.
template <class Post>
class function_executor {
 public:
  explicit function_executor(Post post, std::size_t concurrency = detail::thread::hardware_concurrency())
      : post_(std::move(post)), concurrency_(concurrency > 0 ? concurrency : 1) {}
  function_executor(const function_executor&) = delete;
  function_executor& operator=(const function_executor&) = delete;

  bool execute(std::coroutine_handle<> handle);
  std::size_t concurrency() const noexcept { return concurrency_; }

 private:
  template <class Executor>
  friend class schedule_awaiter;

  class resumption;
  enum class handed : unsigned char { over, back, refused };
  handed hand_over(std::coroutine_handle<> handle) noexcept;

  // The frame that hand_over() is giving to post_ on this thread; null once the resumption was called inside that.
  static inline thread_local constinit void* handing_over_ = nullptr;

  Post post_;
  std::size_t concurrency_;
};

template <class Post>
function_executor(Post) -> function_executor<Post>;
template <class Post>
function_executor(Post, std::size_t) -> function_executor<Post>;

/// What schedule() returns.
template <class Executor>
class [[nodiscard]] schedule_awaiter {
 public:
  explicit schedule_awaiter(Executor& ex) noexcept : executor_(&ex) {}

  bool await_ready() const noexcept { return std::same_as<std::remove_const_t<Executor>, inline_executor>; }
  bool await_suspend(std::coroutine_handle<> handle) noexcept;
  void await_resume() const {
    if (refused_) [[unlikely]]
      detail::throw_system_error(errc::executor_stopped, "the executor refused to schedule");
  }

 private:
  Executor* executor_;
  bool refused_ = false;
};

/// `co_await schedule(ex)` goes on on `ex`, behind what is queued there.
///
/// Resumes: on ex. On an inline_executor, and where a function_executor's post runs its callable at once, it does not
/// suspend: no number of them deepens the stack.
/// Errors: std::system_error with errc::executor_stopped if ex refuses.
/// Allocates: nothing here; what ex.execute() allocates.
template <executor Executor>
schedule_awaiter<Executor> schedule(Executor& ex) noexcept {
  return schedule_awaiter<Executor>(ex);
}

// ---- Implementation ----

namespace detail {

/// The name of Executor's loop if blocking inside it stops the loop; specialised by the executors of that kind.
template <class Executor>
inline constexpr const char* executor_blocks = nullptr;

/// ex.execute(handle), whichever of its forms; true: taken, and the coroutine may already be gone.
template <executor Executor>
bool execute_on(Executor& ex, std::coroutine_handle<> handle) noexcept {
  const auto execute = [&]() -> bool {
    if constexpr (std::is_void_v<decltype(ex.execute(handle))>) {
      ex.execute(handle);
      return true;
    } else {
      return ex.execute(handle);
    }
  };
  if constexpr (noexcept(ex.execute(handle))) {
    return execute();
  } else {
    return detail::guarded(execute, [] { return false; });
  }
}

/// How many handles ex resumes at the same time; at least 1.
template <executor Executor>
std::size_t concurrency_of(Executor& ex) noexcept {
  if constexpr (requires { static_cast<std::size_t>(ex.concurrency()); }) {
    return std::max<std::size_t>(1, static_cast<std::size_t>(ex.concurrency()));
  } else {
    return std::max<std::size_t>(1, detail::thread::hardware_concurrency());
  }
}

/// True if this thread is inside ex's loop.
template <executor Executor>
bool runs_here(Executor& ex) noexcept {
  if constexpr (requires { static_cast<bool>(ex.running_in_this_thread()); }) {
    return static_cast<bool>(ex.running_in_this_thread());
  } else {
    return detail::current_executor().refers_to(&ex);
  }
}

/// The time on ex's own clock, or on the steady clock, since that clock's epoch.
template <executor Executor>
std::chrono::nanoseconds now_of(Executor& ex) noexcept {
  if constexpr (requires { std::chrono::nanoseconds(ex.now().time_since_epoch()); }) {
    return std::chrono::nanoseconds(ex.now().time_since_epoch());
  } else {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch());
  }
}

/// Throws if blocking this thread would stop an executor's loop; `what` names the blocking function.
inline void require_blockable_thread(const char* what) {
  if (const char* const loop = this_thread_loop) [[unlikely]] {
    std::string message = what;  // += for GCC 12, which sees + go out of bounds
    message += " was called on ";
    message += loop;
    message += ": it would block the thread that it may be waiting for; co_await instead";
    throw_system_error(errc::would_deadlock, message.c_str());
  }
}

template <class Executor>
inline constexpr executor_table executor_table_of{
    [](void* ex, std::coroutine_handle<> handle) noexcept {
      return detail::execute_on(*static_cast<Executor*>(ex), handle);
    },
    executor_blocks<Executor>,
};

/// ex with its type erased.
template <executor Executor>
constexpr executor_ref ref(Executor& ex) noexcept {
  return executor_ref(const_cast<std::remove_const_t<Executor>*>(std::addressof(ex)), &executor_table_of<Executor>);
}

}  // namespace detail

/// What post gets: resumes one coroutine inside the executor's scope.
template <class Post>
class function_executor<Post>::resumption {
 public:
  resumption(function_executor& ex, std::coroutine_handle<> handle) noexcept : executor_(&ex), handle_(handle) {}

  void operator()() const {
    if (handing_over_ == handle_.address()) {  // still inside hand_over() of this very coroutine: let it go on there
      handing_over_ = nullptr;
      return;
    }
    // The executor may be gone once the coroutine has run; the scope only compares its address.
    const detail::executor_scope scope(detail::ref(*executor_));
    handle_.resume();
  }

 private:
  function_executor* executor_;
  std::coroutine_handle<> handle_;
};

template <class Post>
bool function_executor<Post>::execute(std::coroutine_handle<> handle) {
  static_assert(std::is_invocable_v<Post&, resumption>,
                "cobatch: the post of a function_executor must take any copyable callable void(), such as a generic "
                "lambda [&](auto f) { threads.post(f); } or one that takes a std::function<void()>");
  if constexpr (std::same_as<decltype(post_(resumption(*this, handle))), bool>) {
    return post_(resumption(*this, handle));
  } else {
    post_(resumption(*this, handle));
    return true;
  }
}

/// execute() for a coroutine that is just suspending; `back`: post called at once, the coroutine should simply go on.
template <class Post>
auto function_executor<Post>::hand_over(std::coroutine_handle<> handle) noexcept -> handed {
  void* const outer = std::exchange(handing_over_, handle.address());
  const bool taken = detail::execute_on(*this, handle);
  // Unless it came back or was refused, *this and the coroutine may be gone.
  const bool back = std::exchange(handing_over_, outer) == nullptr;
  if (back) return handed::back;
  return taken ? handed::over : handed::refused;
}

template <class Executor>
bool schedule_awaiter<Executor>::await_suspend(std::coroutine_handle<> handle) noexcept {
  if constexpr (requires { executor_->hand_over(handle); }) {
    using handed = typename Executor::handed;
    const handed outcome = executor_->hand_over(handle);
    if (outcome == handed::over) return true;  // *this may be gone
    refused_ = outcome == handed::refused;
  } else {
    if (detail::execute_on(*executor_, handle)) return true;  // *this may be gone
    refused_ = true;
  }
  return false;
}

}  // namespace cobatch
