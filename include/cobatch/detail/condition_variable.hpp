#pragma once

#include <cobatch/detail/abi.hpp>

#if defined(COBATCH_EXPLORE)
#include COBATCH_EXPLORE
#else
#include <condition_variable>
#endif

/// Condition variables of the library are `detail::condition_variable`: the standard's, unless a test explores what threads do.

namespace cobatch::inline COBATCH_ABI::detail {

using COBATCH_SHARED::condition_variable;

}  // namespace cobatch::detail
