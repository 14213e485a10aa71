// SPDX-License-Identifier: BSL-1.0
#include <cobatch/cobatch.hpp>

const void* address_in_other();
const void* address_in_other() {
  return &cobatch::version_string;
}
