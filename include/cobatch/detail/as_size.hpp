#pragma once

#include <cstddef>
#include <type_traits>

#include <cobatch/detail/abi.hpp>

namespace cobatch::inline COBATCH_ABI::detail {

/// A count as a std::size_t, whether that is its type already or not.
template <class Integer>
constexpr std::size_t as_size(Integer count) noexcept {
  if constexpr (std::is_same_v<Integer, std::size_t>) {
    return count;
  } else {
    return static_cast<std::size_t>(count);
  }
}

}  // namespace cobatch::detail
