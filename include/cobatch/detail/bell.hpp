#pragma once

#include <coroutine>

#include <cobatch/detail/config.hpp>
#include <cobatch/detail/frame_pool.hpp>

namespace cobatch::inline COBATCH_ABI::detail {

/// A coroutine handle for an object that is no coroutine: each resumption calls `object.rung()`.
///
/// It calls from inside an await_suspend: there the coroutine counts as suspended, so that whatever comes next may be
/// given the same handle, and rung() may destroy the object and the bell.
/// Allocates: one frame.
template <class Object>
class bell {
 public:
  explicit bell(Object& object) : frame_(body(object).frame) {}
  bell(const bell&) = delete;
  bell& operator=(const bell&) = delete;
  ~bell() { frame_.destroy(); }

  std::coroutine_handle<> handle() const noexcept { return frame_; }

 private:
  struct coroutine {
    class promise_type : public pooled_frame {
     public:
      coroutine get_return_object() noexcept { return {std::coroutine_handle<promise_type>::from_promise(*this)}; }
      std::suspend_always initial_suspend() const noexcept { return {}; }
      std::suspend_always final_suspend() const noexcept { return {}; }
      void return_void() const noexcept {}
      void unhandled_exception() const noexcept { fail("an exception left the library's own coroutine"); }
    };
    std::coroutine_handle<> frame;
  };
  struct ring {
    Object* object;
    bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<>) const noexcept { object->rung(); }
    void await_resume() const noexcept {}
  };
  COBATCH_COROUTINES_BEGIN
  static coroutine body(Object& object) {
    for (;;) co_await ring{&object};
  }
  COBATCH_COROUTINES_END

  std::coroutine_handle<> frame_;
};

}  // namespace cobatch::detail
