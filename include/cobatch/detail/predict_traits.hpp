#pragma once

#include <type_traits>

#include <cobatch/detail/abi.hpp>
#include <cobatch/detail/awaitable.hpp>
#include <cobatch/detail/stop_token.hpp>

namespace cobatch::inline COBATCH_ABI::detail {

/// T of an expected<T, E>, or what is not one itself.
template <class Value>
struct value_of_expected {
  using type = Value;
};
template <class Value>
  requires requires {
    typename Value::value_type;
    typename Value::unexpected_type;
  }
struct value_of_expected<Value> {
  using type = typename Value::value_type;
};
template <class Value>
using value_in = typename value_of_expected<Value>::type;

/// What one call of predict takes and gives: all that the engine needs to know of its type. Reference is what the
/// source gives; the sample may be taken away only where it belongs to the batch.
template <class Predict, class Reference, bool Owned>
struct predict_traits {
 private:
  template <class Argument>
  static constexpr bool accepts =
      std::is_invocable_v<Predict&, Argument> || std::is_invocable_v<Predict&, Argument, std::stop_token>;

  using rvalue = std::remove_reference_t<Reference>&&;

 public:
  /// The sample is offered as an lvalue; only a predict that takes move-only samples by value gets an rvalue.
  using argument = std::conditional_t<accepts<Reference> || !Owned, Reference, rvalue>;

  static_assert(accepts<argument>,
                "cobatch: predict must be callable as predict(sample) or predict(sample, std::stop_token); samples "
                "that it is to take away (move-only ones, by value) must be handed to the batch as an rvalue range");

  static constexpr bool takes_token = std::is_invocable_v<Predict&, argument, std::stop_token>;

 private:
  static auto call_result() {
    if constexpr (takes_token) {
      return std::type_identity<std::invoke_result_t<Predict&, argument, std::stop_token>>{};
    } else {
      return std::type_identity<std::invoke_result_t<Predict&, argument>>{};
    }
  }

  template <class Raw>
  static auto awaited_result() {
    if constexpr (awaitable<Raw>) {
      return std::type_identity<await_result<Raw>>{};
    } else {
      return std::type_identity<Raw>{};
    }
  }

 public:
  /// What the call returns: a value, or an awaitable of one.
  using raw = typename decltype(call_result())::type;
  static constexpr bool is_awaitable = awaitable<raw>;
  /// What a sample comes to: V of the contract.
  using value = std::remove_cvref_t<typename decltype(awaited_result<raw>())::type>;
  static_assert(!looks_awaitable<value> && !looks_awaitable<value_in<value>>,
                "cobatch: predict returns something that only looks awaitable: a plain coroutine cannot co_await it, so "
                "its outcome would be a success before it has come. Of a future return .get(); a callback API goes "
                "through cobatch::from_callback(), an asio::awaitable through cobatch::from_asio() of <cobatch/asio.hpp>; "
                "another library's coroutine must be started, and tell how it ended, through from_callback() as well");
};

}  // namespace cobatch::detail
