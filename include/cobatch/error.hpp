#pragma once

#include <cstdint>
#include <exception>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>

#include <cobatch/detail/config.hpp>

namespace cobatch::inline COBATCH_ABI {

/// Why a sample has no value.
enum class errc : std::uint8_t {
  exception = 1,          ///< predict threw; the exception is in error::exception
  cancelled,              ///< it had started and was stopped by the user's stop token or by fail fast
  not_started,            ///< the batch ended before this sample's turn
  timed_out,              ///< one attempt took longer than batch_options::timeout
  deadline_exceeded,      ///< it had started when the batch's deadline passed
  input_failed,           ///< the input range threw where this sample should have been
  executor_stopped,       ///< the executor refused to run it
  cost_exceeds_capacity,  ///< its weight is above the limit: it could never run
  would_deadlock,         ///< blocking here would wait for this very thread
  queue_timed_out,        ///< it waited longer than batch_options::queue_timeout for its permits
  queue_full,             ///< the queue in front of it is full
  batch_size_mismatch,    ///< a batch model returned another number of results than it got samples
  callback_dropped,       ///< every copy of the callback was destroyed, and none was called
  closed,                 ///< what it was handed to takes no more
};

/// `"timed_out"` for errc::timed_out: for labels and logs; "success" for errc{}, "other" for what is none of them.
constexpr std::string_view name_of(errc code) noexcept {
  if (code == errc{}) return "success";
  switch (code) {
    case errc::exception: return "exception";
    case errc::cancelled: return "cancelled";
    case errc::not_started: return "not_started";
    case errc::timed_out: return "timed_out";
    case errc::deadline_exceeded: return "deadline_exceeded";
    case errc::input_failed: return "input_failed";
    case errc::executor_stopped: return "executor_stopped";
    case errc::cost_exceeds_capacity: return "cost_exceeds_capacity";
    case errc::would_deadlock: return "would_deadlock";
    case errc::queue_timed_out: return "queue_timed_out";
    case errc::queue_full: return "queue_full";
    case errc::batch_size_mismatch: return "batch_size_mismatch";
    case errc::callback_dropped: return "callback_dropped";
    case errc::closed: return "closed";
  }
  return "other";
}

namespace detail {

constexpr const char* describe(errc code) noexcept {
  switch (code) {
    case errc::exception: return "predict threw an exception";
    case errc::cancelled: return "cancelled after it had started";
    case errc::not_started: return "not started: the batch ended before its turn";
    case errc::timed_out: return "timed out";
    case errc::deadline_exceeded: return "the deadline of the batch passed";
    case errc::input_failed: return "reading the input failed";
    case errc::executor_stopped: return "the executor has stopped";
    case errc::cost_exceeds_capacity: return "the weight exceeds the capacity";
    case errc::would_deadlock: return "blocking here would deadlock";
    case errc::queue_timed_out: return "timed out in the queue";
    case errc::queue_full: return "the queue is full";
    case errc::batch_size_mismatch: return "the batch model returned a wrong number of results";
    case errc::callback_dropped: return "the callback was dropped without a call";
    case errc::closed: return "closed: it takes no more";
  }
  return "unknown cobatch error";
}

struct error_category final : std::error_category {
  const char* name() const noexcept override { return "cobatch"; }
  std::string message(int code) const override { return describe(static_cast<errc>(code)); }
};

/// what() of a kept exception, or a word for one that is no std::exception.
inline std::string describe(const std::exception_ptr& exception) {
#if COBATCH_EXCEPTIONS
  try {
    std::rethrow_exception(exception);
  } catch (const std::exception& e) {
    return e.what();
  } catch (...) {
    return "an exception that is no std::exception";
  }
#else
  (void)exception;
  return "an exception";
#endif
}

}  // namespace detail

/// The std::error_category of errc.
inline const std::error_category& error_category() noexcept {
  static const detail::error_category category;
  return category;
}

/// So that `std::error_code code = errc::timed_out` works.
inline std::error_code make_error_code(errc code) noexcept { return {static_cast<int>(code), error_category()}; }

/// Why one sample has no value: the default E of every result.
///
/// No aggregate on purpose: GCC 12 copies temporaries of aggregates bit by bit inside a co_await expression.
struct error {
  explicit(false) error(errc why, std::exception_ptr cause = {}, std::uint32_t attempts_made = 1) noexcept
      : exception(std::move(cause)), attempts(attempts_made), code(why) {}

  /// One line for a log: the reason, the exception's what() where there is one, and the attempts where there were more.
  std::string message() const {
    std::string text = detail::describe(code);
    if (exception) text += ": " + detail::describe(exception);
    if (attempts > 1) text += " (after " + std::to_string(attempts) + " attempts)";
    return text;
  }

  /// Same reason, same exception object, same number of attempts.
  friend bool operator==(const error&, const error&) noexcept = default;
  /// Whether this is the reason.
  friend bool operator==(const error& why, errc reason) noexcept { return why.code == reason; }

  std::exception_ptr exception;  ///< what was thrown, if anything was
  std::uint32_t attempts;        ///< how often predict was called for the sample; 0 where it never was
  errc code;                     ///< the reason
};

namespace detail {

/// Throws std::system_error with `code`, or ends the program where there are no exceptions.
[[noreturn]] inline void throw_system_error(errc code, const char* message) {
#if COBATCH_EXCEPTIONS
  throw std::system_error(make_error_code(code), message);
#else
  (void)code;
  fail(message);
#endif
}

}  // namespace detail

}  // namespace cobatch

template <>
struct std::is_error_code_enum<cobatch::errc> : std::true_type {};
