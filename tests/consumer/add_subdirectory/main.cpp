// SPDX-License-Identifier: BSL-1.0
#include <cobatch/cobatch.hpp>

#include <cstdio>

static_assert(COBATCH_VERSION > 0);

int main() {
  std::printf("cobatch %s\n", cobatch::version_string.data());
}
