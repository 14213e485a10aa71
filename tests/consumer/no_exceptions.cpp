// SPDX-License-Identifier: BSL-1.0
#include <cobatch/cobatch.hpp>

#if defined(__cpp_exceptions) || defined(__cpp_rtti)
#error "this file is compiled with -fno-exceptions -fno-rtti"
#endif

int main() {
  return COBATCH_VERSION > 0 ? 0 : 1;
}
