#pragma once

#include <array>
#include <charconv>
#include <chrono>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include <cobatch/detail/abi.hpp>

namespace cobatch::inline COBATCH_ABI::detail {

/// How many bytes the character has that `rest`, which is not empty, begins with; 0: it is no UTF-8.
inline std::size_t utf8_length(std::string_view rest) noexcept {
  const auto byte = [&](std::size_t at) { return at < rest.size() ? static_cast<unsigned char>(rest[at]) : 0u; };
  const auto continues = [&](std::size_t at) { return (byte(at) & 0xc0u) == 0x80u; };
  const unsigned first = byte(0), second = byte(1);
  if (first < 0x80) return 1;
  if (first >= 0xc2 && first <= 0xdf) return continues(1) ? 2 : 0;
  if (first >= 0xe0 && first <= 0xef) {
    if ((first == 0xe0 && second < 0xa0) || (first == 0xed && second > 0x9f)) return 0;  // too long; a surrogate
    return continues(1) && continues(2) ? 3 : 0;
  }
  if (first >= 0xf0 && first <= 0xf4) {
    if ((first == 0xf0 && second < 0x90) || (first == 0xf4 && second > 0x8f)) return 0;  // too long; beyond Unicode
    return continues(1) && continues(2) && continues(3) ? 4 : 0;
  }
  return 0;
}

/// Text that is the same in every locale, for reports and for other programs.
///
/// Appends to a string that is written to a stream in one piece.
class text {
 public:
  template <class... Parts>
  text& add(const Parts&... parts) {
    (put(parts), ...);
    return *this;
  }

  /// With so many digits after the point; "+Inf", "-Inf" and "NaN" as Prometheus spells them.
  text& fixed(double value, int digits) {
    std::array<char, 400> buffer;
    if (!std::isfinite(value)) return add(value);
    const auto end =
        std::to_chars(buffer.data(), buffer.data() + buffer.size(), value, std::chars_format::fixed, digits);
    all_.append(buffer.data(), end.ptr);
    return *this;
  }

  /// Three digits that matter, and a unit: "1.23 ms", "45.6 s", "890 ns".
  text& duration(std::chrono::nanoseconds time) {
    constexpr std::array<std::string_view, 4> units{" ns", " us", " ms", " s"};
    double value = static_cast<double>(time.count());
    std::size_t unit = 0;
    for (; unit + 1 < units.size() && std::abs(value) >= 999.5; ++unit) value /= 1000;
    const double size = std::abs(value);
    return fixed(value, unit == 0 || size >= 99.95 ? 0 : size >= 9.995 ? 1 : 2).add(units[unit]);
  }

  /// Seconds with nanoseconds, exactly.
  text& seconds(std::chrono::nanoseconds time) {
    const std::int64_t count = time.count();
    const std::uint64_t size = count < 0 ? -static_cast<std::uint64_t>(count) : static_cast<std::uint64_t>(count);
    std::string fraction = std::to_string(size % 1'000'000'000);
    fraction.insert(0, 9 - fraction.size(), '0');
    return add(count < 0 ? "-" : "", size / 1'000'000'000, ".", fraction);
  }

  /// `value` between quotation marks, as JSON wants it; bytes that are no UTF-8 become the replacement character.
  text& json(std::string_view value) {
    add("\"");
    while (!value.empty()) {
      const std::size_t length = utf8_length(value);
      const std::string_view each = value.substr(0, length);
      const auto byte = static_cast<unsigned char>(value.front());
      value.remove_prefix(length == 0 ? 1 : length);
      if (length == 0) {
        add("\\ufffd");
      } else if (byte == '"' || byte == '\\') {
        add("\\", each);
      } else if (byte < 0x20 || byte == 0x7f) {
        constexpr std::string_view digits = "0123456789abcdef";
        add("\\u00", digits.substr(byte >> 4, 1), digits.substr(byte & 15, 1));
      } else {
        add(each);
      }
    }
    return add("\"");
  }

  /// Blanks up to the column, counted from the last line's begin; at least one blank.
  text& column(std::size_t where) {
    const std::size_t line = all_.rfind('\n');
    const std::size_t here = all_.size() - (line == std::string::npos ? 0 : line + 1);
    all_.append(here < where ? where - here : 1, ' ');
    return *this;
  }

  text& repeat(std::size_t count, char what) {
    all_.append(count, what);
    return *this;
  }

  const std::string& str() const noexcept { return all_; }
  bool empty() const noexcept { return all_.empty(); }

 private:
  void put(std::string_view value) { all_ += value; }

  template <std::integral Integer>
  void put(Integer value) {
    std::array<char, 24> buffer;
    all_.append(buffer.data(), std::to_chars(buffer.data(), buffer.data() + buffer.size(), value).ptr);
  }

  void put(double value) {
    if (std::isnan(value)) return put(std::string_view("NaN"));
    if (std::isinf(value)) return put(std::string_view(value < 0 ? "-Inf" : "+Inf"));
    std::array<char, 40> buffer;
    all_.append(buffer.data(), std::to_chars(buffer.data(), buffer.data() + buffer.size(), value).ptr);
  }

  std::string all_;
};

}  // namespace cobatch::detail
