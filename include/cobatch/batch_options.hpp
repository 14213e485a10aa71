#pragma once

#include <chrono>
#include <cstddef>
#include <limits>
#include <stop_token>
#include <type_traits>

#include <cobatch/detail/config.hpp>

namespace cobatch {

class async_semaphore;

/// "No cap", for every count in batch_options.
inline constexpr std::size_t unlimited = std::numeric_limits<std::size_t>::max();

/// "Never", for every time in batch_options.
inline constexpr std::chrono::nanoseconds no_timeout = std::chrono::nanoseconds::max();

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

/// What a batch may use, wait for and put up with. Every default means "off", and what is off costs nothing.
///
/// A trivially copyable aggregate for designated initialisers: `{.max_concurrency = 64, .timeout = 2s}`.
struct batch_options {
  std::size_t max_concurrency = unlimited;             ///< samples in flight; 0 is an error
  async_semaphore* semaphore = nullptr;                ///< a cap shared with other batches; both caps hold
  stop_ref stop = {};                                  ///< stops the batch from outside
  std::chrono::nanoseconds timeout = no_timeout;       ///< one attempt, from the call of predict
  std::chrono::nanoseconds deadline = no_timeout;      ///< the whole batch, from its co_await
  std::size_t max_failures = unlimited;                ///< stop once so many samples have failed; 1: fail fast
};

static_assert(std::is_trivially_copyable_v<batch_options>, "GCC 12 breaks any other aggregate inside co_await");

}  // namespace cobatch
