// SPDX-License-Identifier: BSL-1.0
// Compiled without the library's flags: headers that know no stop tokens need none.
#include <cobatch/expected.hpp>
#include <cobatch/task.hpp>

cobatch::expected<int, int> half(int n);
cobatch::expected<int, int> half(int n) {
  if (n % 2 != 0) return cobatch::unexpected(n);
  return n / 2;
}

cobatch::task<int> a_task();
cobatch::task<int> a_task() { co_return *half(4); }
