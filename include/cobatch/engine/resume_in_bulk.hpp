#pragma once

#include <array>
#include <concepts>
#include <coroutine>
#include <cstddef>
#include <memory>
#include <span>
#include <type_traits>

#include <cobatch/detail/config.hpp>
#include <cobatch/detail/waiter.hpp>
#include <cobatch/executor.hpp>

namespace cobatch::inline COBATCH_ABI::detail {

/// An executor that also takes many handles in one call, `ex.execute_all(handles)` or `ex.execute(handles)` with a span
/// of them, and resumes none of them inside it. It returns nothing, a bool (false: it has taken none) or how many it has
/// taken, the first ones.
template <class Executor>
concept bulk_executor = executor<Executor> &&
    (requires(Executor& ex, std::span<const std::coroutine_handle<>> handles) { ex.execute_all(handles); } ||
     requires(Executor& ex, std::span<const std::coroutine_handle<>> handles) { ex.execute(handles); });

/// Calls it, whichever of its forms; how many were taken.
template <bulk_executor Executor>
std::size_t execute_many_on(Executor& ex, std::span<const std::coroutine_handle<>> handles) noexcept {
  const auto call = [&]() -> decltype(auto) {
    if constexpr (requires { ex.execute_all(handles); }) {
      return ex.execute_all(handles);
    } else {
      return ex.execute(handles);
    }
  };
  using result = decltype(call());
  return guarded(
      [&]() -> std::size_t {
        if constexpr (std::is_void_v<result>) {
          call();
          return handles.size();
        } else if constexpr (std::same_as<result, bool>) {
          return call() ? handles.size() : 0;
        } else {
          return static_cast<std::size_t>(call());
        }
      },
      []() -> std::size_t { return 0; });
}

/// resume_all() where most of `ready` go on on `ex`: in one sweep, if ex can.
template <executor Executor>
void resume_in_bulk(Executor& ex, waiter_list& ready) noexcept {
  if constexpr (bulk_executor<Executor>) {
    const executor_ref own = detail::ref(ex);
    waiter_list others;
    while (!ready.empty()) {
      std::array<std::coroutine_handle<>, 64> handles;
      std::array<waiter*, 64> waiters;
      std::size_t count = 0;
      while (count < handles.size()) {
        waiter* const each = ready.pop_front();
        if (each == nullptr) break;
        if (each->executor != own) {
          others.push_back(*each);
          continue;
        }
        handles[count] = each->handle;
        waiters[count++] = each;
      }
      if (count == 0) break;
      std::size_t taken = execute_many_on(ex, std::span(handles).first(count));
      for (; taken < count; ++taken) others.push_back(*waiters[taken]);  // refused: one by one
    }
    resume_all(others);
  } else {
    (void)ex;
    resume_all(ready);
  }
}

/// resume_in_bulk() with the executor's type erased.
class bulk_resumer {
 public:
  template <executor Executor>
  explicit bulk_resumer(Executor& ex) noexcept
      : executor_(const_cast<std::remove_const_t<Executor>*>(std::addressof(ex))),
        resume_([](void* executor, waiter_list& ready) noexcept {
          resume_in_bulk(*static_cast<Executor*>(executor), ready);
        }) {}

  void operator()(waiter_list& ready) const noexcept {
    if (!ready.empty()) resume_(executor_, ready);
  }

 private:
  void* executor_;
  void (*resume_)(void* executor, waiter_list& ready) noexcept;
};

}  // namespace cobatch::detail
