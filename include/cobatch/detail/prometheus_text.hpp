#pragma once

#include <string>
#include <string_view>

#include <cobatch/detail/text.hpp>

namespace cobatch::detail {

/// Writes metrics in Prometheus' text format, version 0.0.4, with a prefix and labels that all of them have.
class prometheus_text {
 public:
  /// What is not allowed in a name becomes an underscore.
  explicit prometheus_text(std::string_view prefix) : prefix_(prefix.empty() ? "" : name(prefix, true) + '_') {}

  void add_common_label(std::string_view label_name, std::string_view value) { add(common_, label(label_name, value)); }

  static std::string label(std::string_view label_name, std::string_view value) {
    std::string made = name(label_name, false) + "=\"";
    for (const char c : value) {
      if (c == '\n') {
        made += "\\n";
      } else {
        if (c == '"' || c == '\\') made += '\\';
        made += c;
      }
    }
    return made + '"';
  }

  void family(std::string_view what, std::string_view type, std::string_view help) {
    out_.add("# HELP ", prefix_, what, " ", help, "\n# TYPE ", prefix_, what, " ", type, "\n");
  }

  template <class Number>
  void value(std::string_view what, Number number, const std::string& own_label = {}) {
    out_.add(prefix_, what);
    std::string labels = common_;
    if (!own_label.empty()) add(labels, own_label);
    if (!labels.empty()) out_.add("{", labels, "}");
    out_.add(" ", number, "\n");
  }

  const std::string& str() const noexcept { return out_.str(); }

 private:
  static void add(std::string& to, const std::string& one) {
    if (!to.empty()) to += ',';
    to += one;
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

  std::string prefix_, common_;
  text out_;
};

}  // namespace cobatch::detail
