#pragma once

#include <type_traits>
#include <utility>

#include <cobatch/detail/abi.hpp>

namespace cobatch::inline COBATCH_ABI::detail {

template <class Object, class Member, class Class>
constexpr decltype(auto) object_of(Object&& object, Member Class::*) {
  if constexpr (std::is_base_of_v<Class, std::remove_cvref_t<Object>>) {
    return std::forward<Object>(object);
  } else if constexpr (requires { *std::forward<Object>(object); }) {
    return *std::forward<Object>(object);
  } else {
    return object.get();  // a std::reference_wrapper, which lives in <functional>
  }
}

/// std::invoke of a callable with at most one argument. The standard's own one needs <functional>, which
/// brings searchers and hash maps along and costs more compile time than all of expected.
template <class F>
constexpr std::invoke_result_t<F> invoke(F&& f) noexcept(std::is_nothrow_invocable_v<F>) {
  return std::forward<F>(f)();
}

template <class F, class Arg>
constexpr std::invoke_result_t<F, Arg> invoke(F&& f,
                                              Arg&& arg) noexcept(std::is_nothrow_invocable_v<F, Arg>) {
  using function = std::remove_cvref_t<F>;
  if constexpr (std::is_member_function_pointer_v<function>) {
    return (detail::object_of(std::forward<Arg>(arg), f).*f)();
  } else if constexpr (std::is_member_object_pointer_v<function>) {
    return detail::object_of(std::forward<Arg>(arg), f).*f;
  } else {
    return std::forward<F>(f)(std::forward<Arg>(arg));
  }
}

}  // namespace cobatch::detail
