#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <ratio>
#include <stop_token>
#include <type_traits>

#include <cobatch/detail/abi.hpp>

/// What options are made of, so that what is written there is taken as it is meant, or refused in words.

namespace cobatch::inline COBATCH_ABI {

/// "No cap", for every count in options.
inline constexpr std::size_t unlimited = std::numeric_limits<std::size_t>::max();

/// "Never", for every time in options.
inline constexpr std::chrono::nanoseconds no_timeout = std::chrono::nanoseconds::max();

namespace detail {

/// Fractions go to the nearest nanosecond, what is finer than that is cut; what is beyond the ends of the range is the
/// end, and no number at all is zero.
template <class Count, class Period>
constexpr std::chrono::nanoseconds whole_nanoseconds(std::chrono::duration<Count, Period> time) noexcept {
  using std::chrono::nanoseconds;
  using per_tick = std::ratio_divide<Period, std::nano>;
  constexpr long double beyond = 9223372036854775808.0L;
  if constexpr (std::chrono::treat_as_floating_point_v<Count>) {
      const long double count = static_cast<long double>(time.count()) * per_tick::num / per_tick::den;
    if (!(count > -beyond)) return count < 0 ? nanoseconds::min() : nanoseconds::zero();
    if (count >= beyond - 1) return nanoseconds::max();
    return nanoseconds(static_cast<std::int64_t>(count < 0 ? count - 0.5L : count + 0.5L));
  } else {
    const long double about = static_cast<long double>(time.count()) * per_tick::num / per_tick::den;
    if (about >= beyond) return nanoseconds::max();
    if (about <= -beyond) return nanoseconds::min();
    // In two parts, neither of which is out of range.
    const auto whole = static_cast<std::int64_t>(time.count() / per_tick::den);
    const auto rest = static_cast<std::int64_t>(time.count() % per_tick::den);
    return nanoseconds(whole * per_tick::num + rest * per_tick::num / per_tick::den);
  }
}

}  // namespace detail

/// A time in options: made implicitly from any std::chrono duration, fractions included (`0.5s`), and otherwise like
/// std::chrono::nanoseconds. What is too long to be counted in nanoseconds never comes.
class time_span : public std::chrono::nanoseconds {
 public:
  constexpr time_span() noexcept : std::chrono::nanoseconds(0) {}
  template <class Count, class Period>
  constexpr time_span(std::chrono::duration<Count, Period> time) noexcept
      : std::chrono::nanoseconds(detail::whole_nanoseconds(time)) {}
  /// A bare number does not compile.
  template <class Number>
    requires std::is_arithmetic_v<Number>
  constexpr time_span(Number) noexcept {
    static_assert(!std::is_arithmetic_v<Number>,
                  "cobatch: a time needs its unit: write 5s, 0.5s or 200ms, with `using namespace std::chrono_literals`");
  }
};

/// An object that a batch uses and that may be shared with others: made implicitly from the object, from its address,
/// or from null, and otherwise like a pointer.
///
/// Lifetime: the object must outlive the batch. A temporary is refused.
template <class Object>
class option_ref {
 public:
  constexpr option_ref() noexcept = default;
  constexpr option_ref(std::nullptr_t) noexcept {}
  constexpr option_ref(Object* object) noexcept : object_(object) {}
  constexpr option_ref(Object& object) noexcept : object_(&object) {}
  option_ref(const Object&&) = delete;

  constexpr operator Object*() const noexcept { return object_; }
  constexpr Object& operator*() const noexcept { return *object_; }
  constexpr Object* operator->() const noexcept { return object_; }

 private:
  Object* object_ = nullptr;
};

/// Where a batch's stop comes from: made implicitly from an lvalue std::stop_source or std::stop_token.
///
/// Lifetime: refers to the lvalue until batch_predict() copies the token, which it does when it is called. Rvalues are
/// refused: GCC 12 would destroy a temporary token inside a co_await expression twice.
class stop_ref {
 public:
  constexpr stop_ref() noexcept = default;
  constexpr stop_ref(const std::stop_source& source) noexcept : source_(&source) {}
  constexpr stop_ref(const std::stop_token& token) noexcept : token_(&token) {}
  stop_ref(const std::stop_source&&) = delete;
  stop_ref(const std::stop_token&&) = delete;

  /// A copy of the token; one that can never be stopped where there is none.
  std::stop_token token() const noexcept {
    if (source_) return source_->get_token();
    if (token_) return *token_;
    return {};
  }

 private:
  const std::stop_source* source_ = nullptr;
  const std::stop_token* token_ = nullptr;
};

}  // namespace cobatch
