#pragma once

#include <sstream>
#include <string>
#include <type_traits>
#include <vector>

#include <cobatch/error.hpp>
#include <cobatch/expected.hpp>

/// The name of a reason, as it is spelled.
inline const char* name_of(cobatch::errc code) noexcept {
  using enum cobatch::errc;
  switch (code) {
    case exception:
      return "exception";
    case cancelled:
      return "cancelled";
    case not_started:
      return "not_started";
    case timed_out:
      return "timed_out";
    case deadline_exceeded:
      return "deadline_exceeded";
    case input_failed:
      return "input_failed";
    case executor_stopped:
      return "executor_stopped";
    case cost_exceeds_capacity:
      return "cost_exceeds_capacity";
    case would_deadlock:
      return "would_deadlock";
    case queue_timed_out:
      return "queue_timed_out";
    case queue_full:
      return "queue_full";
    case batch_size_mismatch:
      return "batch_size_mismatch";
    case callback_dropped:
      return "callback_dropped";
    case closed:
      return "closed";
    default:
      return "another one";
  }
}

/// One outcome in a word: the value if it can be printed, else "value"; or the name of the error.
template <class T>
std::string outline(const cobatch::expected<T, cobatch::error>& outcome) {
  if (!outcome) return name_of(outcome.error().code);
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
