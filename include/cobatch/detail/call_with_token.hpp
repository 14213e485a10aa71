#pragma once

#include <functional>
#include <type_traits>
#include <utility>

#include <cobatch/detail/config.hpp>
#include <cobatch/detail/stop_token.hpp>

namespace cobatch::inline COBATCH_ABI::detail {

/// `f(arguments..., stop)`, or `f(arguments...)` where it takes no token.
template <class F, class... Arguments>
  requires(std::is_invocable_v<F&, Arguments..., std::stop_token> || std::is_invocable_v<F&, Arguments...>)
constexpr decltype(auto) call_with_token(F& f, [[maybe_unused]] const std::stop_token& stop, Arguments&&... arguments) {
  if constexpr (std::is_invocable_v<F&, Arguments..., std::stop_token>) {
    return std::invoke(f, std::forward<Arguments>(arguments)..., stop);
  } else {
    return std::invoke(f, std::forward<Arguments>(arguments)...);
  }
}

}  // namespace cobatch::detail
