#pragma once

#include <cstddef>
#include <type_traits>
#include <utility>

#include <cobatch/detail/abi.hpp>

namespace cobatch::inline COBATCH_ABI {

/// In which order a stream gives its results.
enum class result_order : unsigned char {
  completion,  ///< as they are ready
  input,       ///< in that of the samples
};

/// How a stream gives its results. A trivially copyable aggregate for designated initialisers.
struct stream_options {
  result_order order = result_order::completion;
  /// Samples running, or finished and not yet taken. At least max_concurrency; 0: max_concurrency, or 256 if that is
  /// unlimited.
  std::size_t window = 0;
};

static_assert(std::is_trivially_copyable_v<stream_options>, "GCC 12 breaks any other aggregate inside co_await");

/// What a stream gives: the outcome of one sample, and its number in the input.
template <class Result>
struct stream_item {
  stream_item(std::size_t number, Result&& outcome) : index(number), result(std::move(outcome)) {}

  std::size_t index;
  Result result;  ///< an expected<T, E>
};

}  // namespace cobatch
