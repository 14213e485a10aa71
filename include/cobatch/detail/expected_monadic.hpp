#pragma once

#include <type_traits>
#include <utility>

#include <cobatch/detail/abi.hpp>
#include <cobatch/detail/expected_content.hpp>
#include <cobatch/detail/invoke.hpp>
#include <cobatch/detail/unexpected.hpp>

namespace cobatch::inline COBATCH_ABI::detail {

template <class F, class Self>
struct result_with_value : std::invoke_result<F, decltype(std::declval<Self>().operator*())> {};
template <class F, class Self>
  requires(std::is_void_v<typename std::remove_cvref_t<Self>::value_type>)
struct result_with_value<F, Self> : std::invoke_result<F> {};

template <class F, class Self>
using result_with_error = std::invoke_result<F, decltype(std::declval<Self>().error())>;

// The monadic operations, once for all value categories and for expected with and without a value. Members
// are called by name, `self.operator*()`, because `*self` would also look for operators in the namespaces of
// T and E.
struct expected_monadic {
  template <class Self, class F>
  static constexpr auto and_then(Self&& self, F&& f) {
    using source = std::remove_cvref_t<Self>;
    using result = std::remove_cvref_t<typename result_with_value<F, Self>::type>;
    static_assert(is_expected_v<result>, "expected::and_then: the function must return an expected");
    static_assert(std::is_same_v<typename result::error_type, typename source::error_type>,
                  "expected::and_then: the function must return an expected with the same error type");
    if (!self.has_value()) return result(unexpect, std::forward<Self>(self).error());
    if constexpr (std::is_void_v<typename source::value_type>) {
      return static_cast<result>(detail::invoke(std::forward<F>(f)));
    } else {
      return static_cast<result>(detail::invoke(std::forward<F>(f), std::forward<Self>(self).operator*()));
    }
  }

  template <class Self, class F>
  static constexpr auto or_else(Self&& self, F&& f) {
    using source = std::remove_cvref_t<Self>;
    using result = std::remove_cvref_t<typename result_with_error<F, Self>::type>;
    static_assert(is_expected_v<result>, "expected::or_else: the function must return an expected");
    static_assert(std::is_same_v<typename result::value_type, typename source::value_type>,
                  "expected::or_else: the function must return an expected with the same value type");
    if (!self.has_value()) {
      return static_cast<result>(detail::invoke(std::forward<F>(f), std::forward<Self>(self).error()));
    }
    return pass_value<result>(std::forward<Self>(self));
  }

  template <class Self, class F>
  static constexpr auto transform(Self&& self, F&& f) {
    using source = std::remove_cvref_t<Self>;
    using value = std::remove_cv_t<typename result_with_value<F, Self>::type>;
    static_assert(valid_value_type<value>,
                  "expected::transform: the function's result cannot be the value of an expected");
    using result = expected<value, typename source::error_type>;
    if (!self.has_value()) return result(unexpect, std::forward<Self>(self).error());
    if constexpr (std::is_void_v<value>) {
      if constexpr (std::is_void_v<typename source::value_type>) {
        detail::invoke(std::forward<F>(f));
      } else {
        detail::invoke(std::forward<F>(f), std::forward<Self>(self).operator*());
      }
      return result();
    } else if constexpr (std::is_void_v<typename source::value_type>) {
      return result(value_from_call_t{}, std::forward<F>(f));
    } else {
      return result(value_from_call_t{}, std::forward<F>(f), std::forward<Self>(self).operator*());
    }
  }

  template <class Self, class F>
  static constexpr auto transform_error(Self&& self, F&& f) {
    using source = std::remove_cvref_t<Self>;
    using error = std::remove_cv_t<typename result_with_error<F, Self>::type>;
    static_assert(valid_error_type<error>,
                  "expected::transform_error: the function's result cannot be the error of an expected");
    using result = expected<typename source::value_type, error>;
    if (!self.has_value()) {
      return result(error_from_call_t{}, std::forward<F>(f), std::forward<Self>(self).error());
    }
    return pass_value<result>(std::forward<Self>(self));
  }

private:
  template <class Result, class Self>
  static constexpr Result pass_value(Self&& self) {
    if constexpr (std::is_void_v<typename Result::value_type>) {
      return Result();
    } else {
      return Result(std::in_place, std::forward<Self>(self).operator*());
    }
  }
};

}  // namespace cobatch::detail
