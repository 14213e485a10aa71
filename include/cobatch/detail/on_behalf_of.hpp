#pragma once

#include <coroutine>

#include <cobatch/detail/abi.hpp>
#include <cobatch/detail/frame_pool.hpp>

namespace cobatch::inline COBATCH_ABI::detail {

/// A coroutine that waits for something on behalf of `Owner`: starts when it is first resumed, destroys itself at its
/// end and then tells its owner, ended(); what it throws it tells before that, failed(), inside the handler.
template <class Owner>
class on_behalf_of {
 public:
  class promise_type : public pooled_frame {
   public:
    explicit promise_type(Owner& owner) noexcept : owner_(owner) {}

    struct last_word {
      bool await_ready() const noexcept { return false; }
      void await_suspend(std::coroutine_handle<promise_type> self) const noexcept {
        Owner& owner = self.promise().owner_;
        self.destroy();
        owner.ended();
      }
      void await_resume() const noexcept {}
    };

    on_behalf_of get_return_object() noexcept {
      return on_behalf_of(std::coroutine_handle<promise_type>::from_promise(*this));
    }
    std::suspend_always initial_suspend() const noexcept { return {}; }
    last_word final_suspend() const noexcept { return {}; }
    void return_void() const noexcept {}
    void unhandled_exception() const noexcept { owner_.failed(); }

   private:
    Owner& owner_;
  };

  std::coroutine_handle<> handle() const noexcept { return frame_; }

 private:
  explicit on_behalf_of(std::coroutine_handle<> frame) noexcept : frame_(frame) {}

  std::coroutine_handle<> frame_;
};

}  // namespace cobatch::detail
