#pragma once

#include <cobatch/error.hpp>
#include <cobatch/expected.hpp>
#include <cobatch/task.hpp>

#include <cstddef>
#include <exception>
#include <numeric>
#include <utility>
#include <vector>

namespace bench {

using result = cobatch::expected<int, cobatch::error>;
using results = std::vector<result>;

/// 0, 1, 2 and so on.
inline std::vector<int> numbers(std::size_t count) {
  std::vector<int> all(count);
  std::iota(all.begin(), all.end(), 0);
  return all;
}

/// The trivial predict: a coroutine that does not suspend.
inline constexpr auto twice = [](int x) -> cobatch::task<int> { co_return x * 2; };

inline bool are_doubles(const results& all, std::size_t count) {
  if (all.size() != count) return false;
  int i = 0;
  for (const result& each : all) {
    if (!each || *each != 2 * i++) return false;
  }
  return true;
}

/// For the checks of jobs.
inline auto doubles(std::size_t count) {
  return [count](const results& all) { return are_doubles(all, count); };
}

/// For the catch (...) that every way of doing it owes a sample.
inline result caught() {
  return result(cobatch::unexpect, cobatch::error(cobatch::errc::exception, std::current_exception()));
}

}  // namespace bench
