#pragma once

#include <coroutine>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>

#include <cobatch/detail/abi.hpp>
#include <cobatch/detail/awaitable.hpp>

namespace cobatch::inline COBATCH_ABI {

template <class T>
class task;

namespace detail {

template <class T>
inline constexpr bool is_task = false;
template <class T>
inline constexpr bool is_task<task<T>> = true;

/// Room for one awaitable that predict returned, and for its awaiter: awaits it without a coroutine of our own.
///
/// What `co_await` does in a coroutine is done here in plain functions, so that a whole run of samples that finish
/// synchronously is one loop, and no exception ever passes through a coroutine frame.
template <class Raw>
class attempt {
  static constexpr bool by_reference = std::is_reference_v<Raw>;
  static constexpr bool has_operator = has_member_co_await<Raw> || has_free_co_await<Raw>;
  using awaiter = awaiter_type<Raw>;
  static constexpr bool awaiter_by_reference = has_operator && std::is_reference_v<awaiter>;

  struct nothing {};
  using awaitable_holder = std::conditional_t<by_reference, std::remove_reference_t<Raw>*, Raw>;
  using awaiter_holder =
      std::conditional_t<!has_operator, nothing,
                         std::conditional_t<awaiter_by_reference, std::remove_reference_t<awaiter>*, awaiter>>;

 public:
  attempt() noexcept {}
  attempt(const attempt&) = delete;
  attempt& operator=(const attempt&) = delete;
  ~attempt() {}

  /// Calls predict and begins to await what it returns. True: the result is there, call resume(). False: suspended;
  /// unless `handle` was resumed from inside this very call, *this may be gone. If anything throws, nothing is kept.
  /// `mark`, if there is one, is a start_mark, the innermost one of this thread; it may be open or finished for another
  /// owner then.
  template <class Call, class... Mark>
  bool start(Call&& call, std::coroutine_handle<> handle, Mark&... mark) {
    if constexpr (by_reference) {
      auto&& referred = call();
      ::new (address(awaitable_)) awaitable_holder(std::addressof(referred));
    } else {
      ::new (address(awaitable_)) awaitable_holder(call());
    }
    undo_awaitable undo_first{this};
    if constexpr (awaiter_by_reference) {
      auto&& referred = detail::get_awaiter(static_cast<Raw&&>(the_awaitable()));
      ::new (address(awaiter_)) awaiter_holder(std::addressof(referred));
    } else if constexpr (has_operator) {
      ::new (address(awaiter_)) awaiter_holder(detail::get_awaiter(static_cast<Raw&&>(the_awaitable())));
    }
    undo_awaiter undo_second{this};

    bool finished = true;
    std::coroutine_handle<> next;
    if constexpr (sizeof...(Mark) != 0 && is_task<std::remove_cvref_t<decltype(the_awaiter())>>) {
      finished = the_awaiter().start_under(handle, mark...);
    } else if (auto& waits = the_awaiter(); !waits.await_ready()) {
      using suspend_result = decltype(waits.await_suspend(handle));
      if constexpr (std::is_void_v<suspend_result>) {
        waits.await_suspend(handle);
        finished = false;
      } else if constexpr (std::is_same_v<suspend_result, bool>) {
        finished = !waits.await_suspend(handle);
      } else {
        next = waits.await_suspend(handle);
        finished = false;
      }
    }
    // Here *this may be gone; the two guards are ours.
    undo_second.self = nullptr;
    undo_first.self = nullptr;
    if (next) next.resume();
    return finished;
  }

  /// `use(result)` with what the await comes to; then, also when something throws, the awaitable is destroyed.
  template <class Use>
  void resume(Use&& use) {
    undo_awaitable last{this};
    undo_awaiter first{this};
    if constexpr (std::is_void_v<decltype(the_awaiter().await_resume())>) {
      the_awaiter().await_resume();
      std::forward<Use>(use)();
    } else {
      std::forward<Use>(use)(the_awaiter().await_resume());
    }
  }

  /// For a suspended await that will never be resumed: destroys what it waits with.
  void abandon() noexcept {
    undo_awaitable last{this};
    undo_awaiter first{this};
  }

 private:
  struct undo_awaitable {
    attempt* self;
    ~undo_awaitable() {
      if (self) std::destroy_at(std::addressof(self->awaitable_));
    }
  };
  struct undo_awaiter {
    attempt* self;
    ~undo_awaiter() {
      if (self) std::destroy_at(std::addressof(self->awaiter_));
    }
  };

  static void* address(auto& holder) noexcept {
    return const_cast<void*>(static_cast<const void*>(std::addressof(holder)));
  }

  auto& the_awaitable() noexcept {
    if constexpr (by_reference) {
      return *awaitable_;
    } else {
      return awaitable_;
    }
  }

  auto& the_awaiter() noexcept {
    if constexpr (awaiter_by_reference) {
      return *awaiter_;
    } else if constexpr (has_operator) {
      return awaiter_;
    } else {
      return the_awaitable();
    }
  }

  union {
    awaitable_holder awaitable_;
  };
  union {
    awaiter_holder awaiter_;
  };
};

}  // namespace detail
}  // namespace cobatch
