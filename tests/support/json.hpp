// SPDX-License-Identifier: BSL-1.0
// Whether a text is JSON (RFC 8259), for what the library writes as such.
#pragma once

#include <cstddef>
#include <string_view>

class json_checker {
 public:
  static bool accepts(std::string_view text) {
    json_checker all(text);
    return all.value(0) && (all.blanks(), all.left_.empty());
  }

 private:
  explicit json_checker(std::string_view text) : left_(text) {}

  void blanks() {
    const std::size_t begin = left_.find_first_not_of(" \t\r\n");
    left_.remove_prefix(begin == left_.npos ? left_.size() : begin);
  }
  bool take(std::string_view what) {
    if (left_.substr(0, what.size()) != what) return false;
    left_.remove_prefix(what.size());
    return true;
  }
  std::size_t digits() {
    std::size_t count = 0;
    for (; !left_.empty() && left_[0] >= '0' && left_[0] <= '9'; ++count) left_.remove_prefix(1);
    return count;
  }

  bool value(int depth) {
    if (depth > 50) return false;
    blanks();
    if (take("{")) return list("}", [&] { return blanks(), text() && (blanks(), take(":")) && value(depth + 1); });
    if (take("[")) return list("]", [&] { return value(depth + 1); });
    if (!left_.empty() && left_[0] == '"') return text();
    return take("true") || take("false") || take("null") || number();
  }
  template <class Element>
  bool list(std::string_view end, Element element) {
    blanks();
    if (take(end)) return true;
    for (;;) {
      if (!element()) return false;
      blanks();
      if (take(end)) return true;
      if (!take(",")) return false;
    }
  }
  bool text() {
    if (!take("\"")) return false;
    while (!left_.empty() && !take("\"")) {
      if (static_cast<unsigned char>(left_[0]) < 0x20) return false;
      if (take("\\")) {
        if (take("u")) {
          if (left_.size() < 4 || left_.substr(0, 4).find_first_not_of("0123456789abcdefABCDEF") != left_.npos)
            return false;
          left_.remove_prefix(4);
          continue;
        }
        if (left_.empty() || std::string_view("\"\\/bfnrt").find(left_[0]) == left_.npos) return false;
      }
      left_.remove_prefix(1);
      if (left_.empty()) return false;
    }
    return true;
  }
  bool number() {
    take("-");
    if (!take("0") && digits() == 0) return false;
    if (take(".") && digits() == 0) return false;
    if (take("e") || take("E")) {
      if (!take("+")) take("-");
      if (digits() == 0) return false;
    }
    return true;
  }

  std::string_view left_;
};
