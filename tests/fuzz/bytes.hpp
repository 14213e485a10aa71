// SPDX-License-Identifier: BSL-1.0
// What a fuzzer gives, as decisions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <span>
#include <string>

class bytes {
 public:
  bytes(const std::uint8_t* data, std::size_t size) noexcept : left_(data, size) {}

  bool empty() const noexcept { return left_.empty(); }
  /// A number of these; the least once nothing is left.
  int pick(int least, int most) noexcept {
    if (left_.empty()) return least;
    const unsigned byte = left_.front();
    left_ = left_.subspan(1);
    return least + static_cast<int>(byte % static_cast<unsigned>(most - least + 1));
  }
  std::string text(std::size_t longest) {
    std::string made;
    for (auto size = static_cast<std::size_t>(pick(0, static_cast<int>(longest))); size > 0 && !empty(); --size) {
      made += static_cast<char>(pick(0, 255));
    }
    return made;
  }

 private:
  std::span<const std::uint8_t> left_;
};

/// Ends the program where something is wrong.
inline void demand(bool good, const char* what) {
  if (good) return;
  std::fprintf(stderr, "wrong: %s\n", what);
  std::abort();
}
