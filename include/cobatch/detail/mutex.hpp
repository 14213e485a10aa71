#pragma once

#include <cobatch/detail/abi.hpp>

#if defined(COBATCH_EXPLORE)
#include COBATCH_EXPLORE
#else
#include <mutex>
#endif

/// Mutexes of the library are `detail::mutex`: the standard's, unless a test explores what threads do.

namespace cobatch::inline COBATCH_ABI::detail {

using COBATCH_SHARED::mutex;

}  // namespace cobatch::detail
