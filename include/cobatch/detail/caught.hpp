#pragma once

#include <coroutine>
#include <exception>
#include <type_traits>
#include <utility>

#include <cobatch/detail/attempt.hpp>
#include <cobatch/detail/awaitable.hpp>
#include <cobatch/detail/config.hpp>
#include <cobatch/detail/results.hpp>
#include <cobatch/expected.hpp>

namespace cobatch::inline COBATCH_ABI::detail {

/// `co_await caught(call)` awaits what `call()` returns and gives its value, or what was thrown by either, as an
/// expected: a try block that also compiles without exceptions. Await it where it stands; it refers to `call`.
template <class Call>
class [[nodiscard]] caught {
  using raw = std::invoke_result_t<Call&>;
  using value = std::remove_cvref_t<await_result<raw>>;
  using outcome = expected<value, std::exception_ptr>;

 public:
  explicit caught(Call& call) noexcept : call_(&call) {}
  caught(const caught&) = delete;
  caught& operator=(const caught&) = delete;
  ~caught() {
    if (waits_) work_.abandon();
  }

  bool await_ready() const noexcept { return false; }
  bool await_suspend(std::coroutine_handle<> awaiting) {
    waits_ = true;
    return guarded([&] { return !work_.start(*call_, awaiting); },
                   [&] {
                     waits_ = false;
                     thrown_ = std::current_exception();
                     return false;
                   });
    // If true, *this may be gone.
  }
  outcome await_resume() {
    if (!std::exchange(waits_, false)) return outcome(unexpect, std::move(thrown_));
    outcome result(unexpect, std::exception_ptr());
    const auto keep = [&](auto&&... came) {
      if constexpr (sizeof...(came) == 0) {
        result.emplace(came...);
      } else {
        rewrite(result, std::in_place, static_cast<decltype(came)>(came)...);
      }
    };
    guarded([&] { work_.resume(keep); },
            [&] { rewrite(result, unexpect, std::current_exception()); });
    return result;
  }

 private:
  Call* call_;
  attempt<raw> work_;
  bool waits_ = false;
  std::exception_ptr thrown_;
};

}  // namespace cobatch::detail
