#pragma once

#include <chrono>
#include <coroutine>
#include <stop_token>
#include <utility>

#include <cobatch/detail/config.hpp>
#include <cobatch/detail/frame_pool.hpp>

namespace cobatch::inline COBATCH_ABI::detail {

/// The one coroutine of a batch that sleeps: until the next deadline, and then again. Lanes need no timer of their own.
///
/// Engine has, for its friend: expire() -> std::chrono::nanoseconds, which does what is due and tells how long to sleep
/// (zero or less: the batch has ended); sleep(pause) -> an awaitable of bool, false: not for so long; woken() -> bool,
/// whether that was wanted; refused(), where sleep() throws, or the executor has no timers any more;
/// timekeeper_ended(), the last call. It starts when its handle is first resumed, and destroys itself at its end.
template <class Engine>
class timekeeper {
 public:
  class promise_type : public pooled_frame {
   public:
    explicit promise_type(Engine& engine) noexcept : engine_(engine) {}

    struct last_word {
      bool await_ready() const noexcept { return false; }
      void await_suspend(std::coroutine_handle<promise_type> self) const noexcept {
        Engine& engine = self.promise().engine_;
        self.destroy();
        engine.timekeeper_ended();
      }
      void await_resume() const noexcept {}
    };

    timekeeper get_return_object() noexcept {
      return timekeeper(std::coroutine_handle<promise_type>::from_promise(*this));
    }
    std::suspend_always initial_suspend() const noexcept { return {}; }
    last_word final_suspend() const noexcept { return {}; }
    void return_void() const noexcept {}
    void unhandled_exception() const noexcept { engine_.refused(); }  // no timer, no more samples

   private:
    Engine& engine_;
  };

  COBATCH_COROUTINES_BEGIN
  static timekeeper of(Engine& engine) {
    for (;;) {
      const std::chrono::nanoseconds pause = engine.expire();
      if (pause <= std::chrono::nanoseconds::zero()) break;
      if (co_await engine.sleep(pause) || engine.woken()) continue;
      engine.refused();
      break;
    }
  }
  COBATCH_COROUTINES_END

  std::coroutine_handle<> handle() const noexcept { return frame_; }

 private:
  explicit timekeeper(std::coroutine_handle<> frame) noexcept : frame_(frame) {}

  std::coroutine_handle<> frame_;
};

}  // namespace cobatch::detail
