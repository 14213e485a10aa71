#pragma once

#include <coroutine>
#include <cstddef>
#include <optional>
#include <stdexcept>
#include <stop_token>
#include <utility>
#include <vector>

#include <cobatch/semaphore.hpp>

#include "support/started.hpp"

/// The coroutines that the semaphore's tests are made of.
namespace semaphore_coroutines {

using numbers = std::vector<int>;

/// Takes `weight` permits for good and writes its number down.
inline started take(cobatch::async_semaphore& semaphore, numbers& log, int number, std::size_t weight = 1) {
  cobatch::permit permit = co_await semaphore.acquire(weight);
  (void)permit.detach();
  log.push_back(number);
}

/// Takes a permit, writes its number down and gives the permit back.
inline started pass(cobatch::async_semaphore& semaphore, numbers& log, int number) {
  const cobatch::permit permit = co_await semaphore.acquire();
  log.push_back(number);
}

/// Where what it took is to be seen; it keeps the permit until it is destroyed.
inline started take_into(cobatch::async_semaphore& semaphore, cobatch::permit& taken, std::size_t weight = 1) {
  taken = co_await semaphore.acquire(weight);
}

using stoppable_result = std::optional<cobatch::expected<cobatch::permit, cobatch::error>>;

inline started take_or_stop(cobatch::async_semaphore& semaphore, std::stop_token stop, stoppable_result& result,
                            std::size_t weight = 1) {
  result.emplace(co_await semaphore.acquire(weight, std::move(stop)));
}

inline bool is_granted(const stoppable_result& result) {
  return result && result->has_value();
}
inline bool is_error(const stoppable_result& result, cobatch::errc code) {
  return result && !result->has_value() && result->error().code == code;
}

/// Notes whether acquire() threw std::invalid_argument.
inline started take_or_throw(cobatch::async_semaphore& semaphore, std::size_t weight, std::optional<bool>& threw) {
  try {
    const cobatch::permit permit = co_await semaphore.acquire(weight);
    threw = false;
  } catch (const std::invalid_argument&) {
    threw = true;
  }
}

}  // namespace semaphore_coroutines
