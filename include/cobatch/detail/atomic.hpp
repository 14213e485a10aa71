#pragma once

#include <cobatch/detail/abi.hpp>

#if defined(COBATCH_EXPLORE)
#include COBATCH_EXPLORE
#else
#include <atomic>
#endif

/// Atomics of the library are `detail::atomic`: the standard's, unless a test explores what threads do.

namespace cobatch::inline COBATCH_ABI::detail {

using COBATCH_SHARED::atomic;

}  // namespace cobatch::detail
