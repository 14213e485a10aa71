#pragma once

#include <exception>
#include <optional>
#include <stop_token>
#include <type_traits>
#include <utility>

#include <cobatch/callback.hpp>
#include <cobatch/detail/awaitable.hpp>
#include <cobatch/detail/caught.hpp>
#include <cobatch/detail/config.hpp>
#include <cobatch/detail/countdown.hpp>
#include <cobatch/detail/frame_pool.hpp>
#include <cobatch/detail/mutex.hpp>
#include <cobatch/detail/stop_token.hpp>
#include <cobatch/executor.hpp>
#include <cobatch/expected.hpp>
#include <cobatch/task.hpp>

namespace cobatch::inline COBATCH_ABI {

/// What the others do when one of a task_scope throws.
enum class scope_failure : unsigned char {
  stops_all,  ///< they are asked to stop
  is_kept,    ///< nothing; join() throws the first exception in the end
};

/// Runs tasks that nobody awaits one by one, and outlives none of them: accept loops, background jobs.
///
///     cobatch::task_scope scope;
///     while (auto client = co_await accept(scope.stop_token())) scope.spawn(serve(std::move(*client)));
///     co_await scope.join();
///
/// For a cap on how many are alive, let each take a permit of an async_semaphore with it.
/// Lifetime: join() must have returned before the destructor, which otherwise ends the program where a task is alive: what
/// may throw between spawn() and join() must be caught there, and a simulation that deadlocks inside a scope ends so, too.
/// Thread safety: everything from any thread, join() once.
class task_scope {
 public:
  /// Errors: std::bad_alloc.
  explicit task_scope(scope_failure failure = scope_failure::stops_all) : failure_(failure) {}
  task_scope(const task_scope&) = delete;
  task_scope& operator=(const task_scope&) = delete;
  ~task_scope() {
    if (tasks_.left() > (joining_ ? 0u : 1u)) detail::fail("a task_scope was destroyed with tasks that run: co_await its join() before");
  }

  /// Starts it; false: join() has returned, and nothing was started. What it comes to is dropped, but for an exception.
  ///
  /// Resumes: it runs on this thread up to where it first suspends.
  /// Errors: std::bad_alloc, with nothing started.
  /// Allocates: one frame, from a per-thread pool.
  template <class Awaitable>
    requires detail::awaitable<std::remove_cvref_t<Awaitable>>
  bool spawn(Awaitable&& work) {
    if (!tasks_.add_one()) return false;
    return detail::guarded(
        [&] {
          std::remove_cvref_t<Awaitable> own(std::forward<Awaitable>(work));
          detached::run(*this, own);
          return true;
        },
        [&]() -> bool {
          tasks_.one_ended();
          std::rethrow_exception(std::current_exception());
        });
  }
  /// The same, started on `ex`. Where that refuses, it is a failure of the task.
  template <executor Executor, class Awaitable>
    requires detail::awaitable<std::remove_cvref_t<Awaitable>>
  bool spawn(Executor& ex, Awaitable&& work) {
    return spawn(detached::on(ex, std::remove_cvref_t<Awaitable>(std::forward<Awaitable>(work))));
  }

  /// Asks all to stop that look at the token.
  void request_stop() { stop_.request_stop(); }
  std::stop_token stop_token() const { return stop_.get_token(); }

  COBATCH_COROUTINES_BEGIN
  /// `co_await` waits until all have ended, those included that they spawn meanwhile; then nothing can be spawned.
  ///
  /// Resumes: on the executor on which it suspended.
  /// Errors: throws the first exception that left one of them.
  task<> join() {
    const auto wait = [this](callback<void> done) {
      tasks_.tells(std::move(done));
      joining_ = true;
      tasks_.one_ended();
    };
    (void)co_await from_callback<void>(wait);
    std::exception_ptr first;
    {
      const std::lock_guard lock(mutex_);
      first = std::exchange(first_, nullptr);
    }
    if (first) std::rethrow_exception(std::move(first));
  }
  COBATCH_COROUTINES_END

 private:
  /// Belongs to nobody, and destroys itself at its end.
  struct detached {
    struct promise_type : detail::pooled_frame {
      detached get_return_object() const noexcept { return {}; }
      std::suspend_never initial_suspend() const noexcept { return {}; }
      std::suspend_never final_suspend() const noexcept { return {}; }
      void return_void() const noexcept {}
      void unhandled_exception() const noexcept { detail::fail("an exception left a task_scope"); }
    };

    COBATCH_COROUTINES_BEGIN
    template <class Awaitable>
    static detached run(task_scope& scope, Awaitable& work) {
      std::exception_ptr why;
      {
        // What is awaited goes before the scope may go; `work` is there until the first suspension.
        std::optional<Awaitable> own;
        detail::guarded([&] { own.emplace(std::move(work)); }, [&] { why = std::current_exception(); });
        if (own) {
          const auto make = [&own]() -> Awaitable&& { return *std::move(own); };
          auto came = co_await detail::caught<decltype(make)>(make);
          if (!came) why = std::move(came).error();
        }
      }
      if (why) scope.failed(std::move(why));
      scope.tasks_.one_ended();
    }
    template <class Executor, class Awaitable>
    static task<> on(Executor& ex, Awaitable work) {
      co_await schedule(ex);
      (void)co_await std::move(work);
    }
    COBATCH_COROUTINES_END
  };

  void failed(std::exception_ptr why) {
    {
      const std::lock_guard lock(mutex_);
      if (!first_) first_ = std::move(why);
    }
    if (failure_ == scope_failure::stops_all) stop_.request_stop();
  }

  const scope_failure failure_;
  std::stop_source stop_;
  detail::countdown<callback<void>> tasks_;
  bool joining_ = false;   // of who joins, and destroys
  detail::mutex mutex_;    // guards the exception
  std::exception_ptr first_;
};

}  // namespace cobatch
