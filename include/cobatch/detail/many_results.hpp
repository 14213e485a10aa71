#pragma once

#include <concepts>
#include <cstddef>
#include <ranges>
#include <type_traits>
#include <utility>

#include <cobatch/detail/abi.hpp>
#include <cobatch/expected.hpp>

namespace cobatch::inline COBATCH_ABI::detail {

/// Something with size() and [], such as a vector.
template <class Results>
concept many = requires(Results& results, std::size_t index) {
  static_cast<std::size_t>(results.size());
  results[index];
};

/// The outcome of one sample: an element that is an expected is that itself.
template <class Element, class Error>
struct outcome_of_element {
  using type = expected<Element, Error>;
};
template <class T, class E, class Error>
struct outcome_of_element<expected<T, E>, Error> {
  using type = expected<T, E>;
};

/// What predict_many(samples) returned, a vector or its like, taken apart: one Outcome (an expected) for each element.
///
/// Elements are moved out of what was returned by value, and copied out of anything else: references, spans, views.
template <class Results, class Outcome>
struct many_results {
  static constexpr bool accepted = false;
};

template <class Results, class Outcome>
  requires many<std::remove_reference_t<Results>>
struct many_results<Results, Outcome> {
 private:
  using plain = std::remove_reference_t<Results>;
  using element = decltype(std::declval<plain&>()[std::size_t()]);
  static constexpr bool moves = std::is_lvalue_reference_v<element> && !std::is_lvalue_reference_v<Results> &&
                                !std::ranges::enable_borrowed_range<std::remove_cv_t<plain>>;
  using taken = std::conditional_t<moves, std::remove_reference_t<element>&&, element>;
  static constexpr bool elements_are_outcomes = is_expected_v<std::remove_cvref_t<element>>;

  static constexpr bool fits() {
    if constexpr (elements_are_outcomes) {
      return std::constructible_from<Outcome, taken>;
    } else if constexpr (std::is_void_v<typename Outcome::value_type>) {
      return false;
    } else {
      return std::constructible_from<typename Outcome::value_type, taken>;
    }
  }

 public:
  static constexpr bool accepted = fits();

  /// `make(arguments...)` with what an Outcome is made from.
  template <class Make>
  static void take(plain& results, std::size_t index, Make&& make) {
    if constexpr (elements_are_outcomes) {
      make(static_cast<taken>(results[index]));
    } else {
      make(std::in_place, static_cast<taken>(results[index]));
    }
  }
};

}  // namespace cobatch::detail
