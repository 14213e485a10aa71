#pragma once

#include <concepts>
#include <cstddef>
#include <optional>
#include <ranges>
#include <type_traits>
#include <utility>

#include <cobatch/expected.hpp>

namespace cobatch::detail {

/// Something with size() and [], such as a vector.
template <class Results>
concept many = requires(Results& results, std::size_t index) {
  static_cast<std::size_t>(results.size());
  results[index];
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

  static void move_to(plain& results, std::size_t index, std::optional<Outcome>& to) {
    if constexpr (elements_are_outcomes) {
      to.emplace(static_cast<taken>(results[index]));
    } else {
      to.emplace(std::in_place, static_cast<taken>(results[index]));
    }
  }
};

}  // namespace cobatch::detail
