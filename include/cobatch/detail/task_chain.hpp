#pragma once

#include <coroutine>
#include <cstdint>
#include <utility>

#include <cobatch/detail/config.hpp>
#include <cobatch/detail/frame_pool.hpp>
#include <cobatch/detail/start_mark.hpp>

namespace cobatch::inline COBATCH_ABI::detail {

/// What a task's frame holds apart from its result: who goes on when it ends, and what keeps the stack shallow where
/// tasks await tasks, however deep.
///
/// **Down**: an awaited task is started by resume() inside the await_suspend of the one that awaits it, so one that
/// ends without suspending costs no hand-shake. Such starts nest. After `deepest` of them a task is not started but
/// left in `next_`: all levels then look suspended and return, down to the start with which the nest began, and that
/// one runs on with the task that was left, in a loop.
/// **Up**: whatever ends inside the nest, or inside the loop, is recognised by its start_mark, and the loop (or the
/// level below in the nest) goes on with who awaits it. A task that ends elsewhere, after it had been suspended, hands
/// over to who awaits it by symmetric transfer. That is a tail call only where the compiler makes it one; so after
/// `deepest` of these transfers, one after another, a coroutine of ours comes between that has such a loop.
///
/// Between the start with which a nest began and the task that is left there are only starts of tasks by tasks, which
/// return without doing anything: nobody can see that the task started a little later.
class task_chain : public pooled_frame {
 public:
  std::suspend_always initial_suspend() const noexcept { return {}; }

  struct final_awaiter {
    bool await_ready() const noexcept { return false; }
    template <class Promise>
    std::coroutine_handle<> await_suspend(std::coroutine_handle<Promise> self) const noexcept {
      task_chain& ended = self.promise();
      // Nested in a start, or in a loop: unwind to it. Otherwise the awaiting coroutine has long been suspended.
      if (start_mark::finish(ended.mark_, &ended)) return std::noop_coroutine();
      return ended.hand_over();
    }
    void await_resume() const noexcept {}
  };
  final_awaiter final_suspend() const noexcept { return {}; }

  /// Runs the coroutine from its start until it first suspends or ends; true: it has ended. `mark` is the innermost one
  /// of this thread.
  [[gnu::always_inline]] bool start(std::coroutine_handle<> self, std::coroutine_handle<> continuation,
                                    start_mark& mark) {
    continuation_ = continuation;
    if (run_here(self, mark)) return true;
    // It has not ended inside this call: *this may be gone, another thread may have finished it.
    return next_.task && run_left(this, nullptr, mark);
  }

  /// The same where `awaiting` is a task, which is suspended as `continuation`.
  [[gnu::always_inline]] bool start_in(task_chain& awaiting, std::coroutine_handle<> self,
                                       std::coroutine_handle<> continuation) {
    continuation_ = continuation;
    awaiting_ = &awaiting;
    depth_ = static_cast<std::uint8_t>(awaiting.depth_ + 1);
    if (depth_ > deepest) [[unlikely]] {
      if (leave(self)) return false;
    }
    start_mark mark(this);
    if (run_here(self, mark)) return true;
    return next_.task && run_left(this, &awaiting, mark);
  }

 private:
  static constexpr std::uint8_t deepest = 64;

  struct left_task {
    task_chain* task;
    std::coroutine_handle<> handle;
  };

  /// The loop of a climb: see climb_on().
  class climb;

  [[gnu::always_inline]] bool run_here(std::coroutine_handle<> self, start_mark& mark) {
    mark_ = &mark;
    mark.reopen(this);
    self.resume();
    return mark.finished();
  }

  /// Whether the start of this task, or a loop that went on with it, is what this thread is just doing.
  bool is_in_a_start() const noexcept {
    if (!start_mark::finish(mark_, this)) return false;
    mark_->reopen(this);
    return true;
  }

  /// For a start that looks too deep. True: it is left, to whom the nest began with; false: it begins a nest itself.
  [[gnu::noinline]] bool leave(std::coroutine_handle<> self) noexcept {
    if (!next_.task && awaiting_->is_in_a_start()) {
      next_ = {this, self};
      return true;
    }
    depth_ = 1;
    return false;
  }

  /// For a start in which a task was left: runs that, if the nest began here and not with `awaiting`. True: `started`
  /// has ended.
  [[gnu::noinline]] static bool run_left(const task_chain* started, task_chain* awaiting, start_mark& mark) {
    if (awaiting) {  // it is still there: a task was left inside this nest, so nothing else has happened
      mark.take_off();
      const bool inside = awaiting->is_in_a_start();
      mark.put_on();
      if (inside) return false;
    }
    return run_on(std::exchange(next_, {}), started, mark) != nullptr;
  }

  /// Runs a task, and whoever awaits it, and so on, one after the other. Returns the last one that has ended, if that
  /// is `last` or awaited by no task; null: one was suspended, *last may be gone.
  static inline task_chain* run_on(left_task next, const task_chain* last, start_mark& mark);
  /// The same for a climb. Returns who awaits the last one, if it has ended.
  static inline std::coroutine_handle<> run_on(left_task next);

  /// Who is to go on now that *this has ended outside of its start. Out of line: tasks end inside of it much more often.
  [[gnu::noinline]] std::coroutine_handle<> hand_over() noexcept {
    if (!awaiting_) return continuation_;
    if (climbed_ >= deepest) [[unlikely]]
      return climb_on();
    awaiting_->climbed_ = static_cast<std::uint8_t>(climbed_ + 1);
    return continuation_;
  }
  inline std::coroutine_handle<> climb_on() noexcept;

  // The task that was left, between that and the end of the unwinding; null: none. Of this thread alone.
  static inline thread_local constinit left_task next_ = {};

  std::coroutine_handle<> continuation_;
  start_mark* mark_;                // may dangle; set by the start, before which nobody looks at it
  task_chain* awaiting_ = nullptr;  // whose coroutine continuation_ is, if that is a task
  std::uint8_t depth_ = 1;          // starts inside starts; never too low, maybe too high after a suspension
  std::uint8_t climbed_ = 0;        // transfers that led here, one after another
};

// ---- Implementation ----

class task_chain::climb {
 public:
  class promise_type : public pooled_frame {
   public:
    climb get_return_object() noexcept { return {std::coroutine_handle<promise_type>::from_promise(*this)}; }
    std::suspend_always initial_suspend() const noexcept { return {}; }
    std::suspend_never final_suspend() const noexcept { return {}; }
    void return_void() const noexcept {}
    void unhandled_exception() const noexcept { fail("an exception left a task"); }
  };

  COBATCH_COROUTINES_BEGIN
  /// Goes on with `first`, and then with whoever awaits it; at last with the coroutine that is no task.
  static climb up(left_task first) {
    if (const std::coroutine_handle<> next = run_on(first)) next.resume();
    co_return;
  }
  COBATCH_COROUTINES_END

  std::coroutine_handle<> frame;
};

inline std::coroutine_handle<> task_chain::climb_on() noexcept {
  // Where there is no memory for the loop, the stack has to do.
  return guarded(
      [this]() -> std::coroutine_handle<> {
        return climb::up({awaiting_, continuation_}).frame;
      },
      [this]() -> std::coroutine_handle<> { return continuation_; });
}

inline task_chain* task_chain::run_on(left_task next, const task_chain* last, start_mark& mark) {
  for (;;) {
    task_chain* const now = next.task;
    now->depth_ = 1;
    now->climbed_ = 0;
    if (now->run_here(next.handle, mark)) {
      if (now == last || !now->awaiting_) return now;
      next = {now->awaiting_, now->continuation_};
    } else if (next_.task) {
      next = std::exchange(next_, {});
    } else {
      return nullptr;
    }
  }
}

inline std::coroutine_handle<> task_chain::run_on(left_task next) {
  start_mark mark(nullptr);
  const task_chain* const last = run_on(next, nullptr, mark);
  return last ? last->continuation_ : std::coroutine_handle<>();
}

}  // namespace cobatch::detail
