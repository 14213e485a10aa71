// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <string_view>

#include <cobatch/detail/abi.hpp>

// New in 0.2:
//   - <cobatch/asio.hpp>, optional: asio_executor, as_asio, from_asio.
//   - batch_predict_into: outcomes where the caller says. batch_predict_many groups by key and weighs.
//   - when_all, when_any, with_timeout and task_scope, for a few things of different kinds.
//   - resource_pool and with_resource lend each of a number of models to one coroutine at a time.
//   - Options take any std::chrono duration, and what is shared itself or by its address; what co_await gives must be used.
//   - retry_if may see predict's own error type.
//   - What looks awaitable and is not, such as a std::future, is refused as the result of predict.
//   - Units that were compiled differently do not link where they would not agree.
//   - thread_pool: execute_all(), take_back(), idle().
//   - A pkg-config file, one header instead of many, and a module.

// The build reads the project's version from these three lines.
#define COBATCH_VERSION_MAJOR 0
#define COBATCH_VERSION_MINOR 2
#define COBATCH_VERSION_PATCH 0

/// The version as one number that the preprocessor can compare: 1.2.3 is 10203.
#define COBATCH_VERSION (COBATCH_VERSION_MAJOR * 10000 + COBATCH_VERSION_MINOR * 100 + COBATCH_VERSION_PATCH)

#define COBATCH_DETAIL_STRING_OF(x) #x
#define COBATCH_DETAIL_STRING(x) COBATCH_DETAIL_STRING_OF(x)

/// The version as a string literal: "1.2.3".
#define COBATCH_VERSION_STRING                 \
  COBATCH_DETAIL_STRING(COBATCH_VERSION_MAJOR) \
  "." COBATCH_DETAIL_STRING(COBATCH_VERSION_MINOR) "." COBATCH_DETAIL_STRING(COBATCH_VERSION_PATCH)

namespace cobatch::inline COBATCH_ABI {

/// The version's three numbers, for code that prefers constants to macros.
inline constexpr int version_major = COBATCH_VERSION_MAJOR;
inline constexpr int version_minor = COBATCH_VERSION_MINOR;
inline constexpr int version_patch = COBATCH_VERSION_PATCH;

/// The version as text, "major.minor.patch"; its data() is null-terminated.
inline constexpr std::string_view version_string = COBATCH_VERSION_STRING;

}  // namespace cobatch
