#pragma once

#include <cobatch/detail/abi.hpp>

#if defined(COBATCH_EXPLORE)
#include COBATCH_EXPLORE
#else
#include <thread>
#endif

/// Threads of the library are `detail::thread`: the standard's, unless a test explores what threads do.

namespace cobatch::inline COBATCH_ABI::detail {

using COBATCH_SHARED::thread;

}  // namespace cobatch::detail
