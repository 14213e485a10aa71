#pragma once

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include <cobatch/detail/config.hpp>
#include <cobatch/detail/text.hpp>

namespace cobatch::inline COBATCH_ABI::detail {

/// Labels as Prometheus' text format has them between its braces: `model="mlp",zone="eu"`.
///
/// What is not allowed in a name becomes an underscore; bytes of a value that are no UTF-8 become `\xff` and the like.
class prometheus_labels {
 public:
  /// Errors: std::invalid_argument, with the label's name, for one that Prometheus or the library's own labels reserve,
  /// and for one that is there already.
  void add(std::string_view label_name, std::string_view value) {
    std::string made = name(label_name, false);
    constexpr std::array<std::string_view, 3> own{"le", "outcome", "for"};
    if (std::find(own.begin(), own.end(), made) != own.end()) refuse(label_name, made, "is one of cobatch's own");
    if (made.starts_with("__")) refuse(label_name, made, "is reserved: it begins with two underscores");
    if (std::find(names_.begin(), names_.end(), made) != names_.end()) refuse(label_name, made, "is there twice");
    if (!text_.empty()) text_ += ',';
    text_ += one(made, value);
    names_.push_back(std::move(made));
  }

  /// One label of the library's own.
  static std::string one(std::string_view label_name, std::string_view value) {
    std::string made = std::string(label_name) + "=\"";
    while (!value.empty()) {
      const std::size_t length = utf8_length(value);
      if (length == 0) {
        constexpr std::string_view digits = "0123456789abcdef";
        const auto byte = static_cast<unsigned char>(value.front());
        made += "\\\\x";
        made += digits[byte >> 4];
        made += digits[byte & 15];
      } else if (value.front() == '\n') {
        made += "\\n";
      } else {
        if (value.front() == '"' || value.front() == '\\') made += '\\';
        made += value.substr(0, length);
      }
      value.remove_prefix(std::max<std::size_t>(length, 1));
    }
    return made + '"';
  }

  static std::string name(std::string_view from, bool colons) {
    std::string made;
    for (const char c : from) {
      const bool digit = c >= '0' && c <= '9';
      const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
      if (digit && made.empty()) made += '_';
      made += digit || letter || (colons && c == ':') ? c : '_';
    }
    return made.empty() ? std::string("_") : made;
  }

  const std::string& str() const noexcept { return text_; }

 private:
  [[noreturn]] static void refuse(std::string_view label_name, const std::string& made, std::string_view why) {
    text message;
    message.add("cobatch: the metric label \"", label_name, "\" ");
    if (made != label_name) message.add("(as \"", made, "\") ");
    throw_or_fail<std::invalid_argument>(message.add(why).str().c_str());
  }

  std::vector<std::string> names_;
  std::string text_;
};

/// Writes metrics in Prometheus' text format, version 0.0.4, with a prefix.
class prometheus_text {
 public:
  /// What is not allowed in a name becomes an underscore.
  explicit prometheus_text(std::string_view prefix)
      : prefix_(prefix.empty() ? "" : prometheus_labels::name(prefix, true) + '_') {}

  void family(std::string_view what, std::string_view type, std::string_view help) {
    out_.add("# HELP ", prefix_, what, " ", help, "\n# TYPE ", prefix_, what, " ", type, "\n");
  }

  /// With labels of the user's, and one of the library's own: either may be empty.
  template <class Number>
  void value(std::string_view what, const prometheus_labels& labels, Number number, const std::string& own_label = {}) {
    out_.add(prefix_, what);
    const std::string& given = labels.str();
    if (!given.empty() || !own_label.empty()) {
      out_.add("{", given, given.empty() || own_label.empty() ? "" : ",", own_label, "}");
    }
    out_.add(" ", number, "\n");
  }

  const std::string& str() const noexcept { return out_.str(); }

 private:
  std::string prefix_;
  text out_;
};

}  // namespace cobatch::detail
