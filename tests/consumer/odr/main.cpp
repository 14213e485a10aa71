// SPDX-License-Identifier: BSL-1.0
#include <cobatch/cobatch.hpp>

const void* address_in_other();

// An inline variable is one object in the whole program.
int main() {
  return &cobatch::version_string == address_in_other() ? 0 : 1;
}
