#pragma once

#include <sstream>
#include <string>
#include <type_traits>
#include <vector>

#include <cobatch/error.hpp>
#include <cobatch/expected.hpp>

/// One outcome in a word: the value if it can be printed, else "value"; or the name of the error.
template <class T>
std::string outline(const cobatch::expected<T, cobatch::error>& outcome) {
  if (!outcome) return std::string(name_of(outcome.error().code));
  if constexpr (!std::is_void_v<T>) {
    if constexpr (requires(std::ostringstream& text) { text << *outcome; }) {
      std::ostringstream text;
      text << *outcome;
      return text.str();
    }
  }
  return "value";
}

/// All outcomes in order, separated by spaces: "1 2 exception not_started".
template <class T>
std::string outline(const std::vector<cobatch::expected<T, cobatch::error>>& outcomes) {
  std::string text;
  for (const auto& each : outcomes) {
    if (!text.empty()) text += ' ';
    text += outline(each);
  }
  return text;
}

/// How many of the outcomes are this error.
template <class T>
long count_of(const std::vector<cobatch::expected<T, cobatch::error>>& outcomes, cobatch::errc code) {
  long count = 0;
  for (const auto& each : outcomes) {
    if (!each && each.error().code == code) ++count;
  }
  return count;
}

/// How many of the outcomes are values.
template <class T, class E>
long values_in(const std::vector<cobatch::expected<T, E>>& outcomes) {
  long count = 0;
  for (const auto& each : outcomes) {
    if (each) ++count;
  }
  return count;
}
