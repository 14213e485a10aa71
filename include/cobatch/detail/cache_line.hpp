#pragma once

#include <cstddef>

#include <cobatch/detail/abi.hpp>

namespace cobatch::inline COBATCH_ABI::detail {

/// The size of a cache line where it is known to matter.
inline constexpr std::size_t cache_line = 64;

/// Keeps the members before and after it on different cache lines.
///
/// In place of alignas for what may live in a coroutine frame: GCC 12 aligns frames no further than operator new does.
struct line_gap {
  std::byte unused[cache_line]{};
};

}  // namespace cobatch::detail
