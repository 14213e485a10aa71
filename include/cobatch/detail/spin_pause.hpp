#pragma once

#include <cobatch/detail/abi.hpp>

#if defined(COBATCH_EXPLORE)
#include COBATCH_EXPLORE
#endif

namespace cobatch::inline COBATCH_ABI::detail {

/// One turn of a spin loop: leaves the core to its other hardware thread for a moment.
inline void spin_pause() noexcept {
#if defined(COBATCH_EXPLORE)
  COBATCH_SHARED::spin_pause();
#elif defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__arm__)
  asm volatile("yield");
#endif
}

}  // namespace cobatch::detail
