#pragma once

#include <version>

/// What the meaning of cobatch's types and functions depends on, from one unit of a program to another: it is part of
/// their names, so that units which were compiled differently do not link where they would not agree.

// COBATCH_USE_STD_EXPECTED: 1 makes `expected` and its kin aliases of the standard library's, 0 the implementation here.
// Unless it is defined before the first cobatch header, the standard library's are taken where it has them.
#if !defined(COBATCH_USE_STD_EXPECTED)
#if defined(__cpp_lib_expected) && __cpp_lib_expected >= 202211L
#define COBATCH_USE_STD_EXPECTED 1
#else
#define COBATCH_USE_STD_EXPECTED 0
#endif
#elif COBATCH_USE_STD_EXPECTED && !defined(__cpp_lib_expected)
#error "COBATCH_USE_STD_EXPECTED=1, but this standard library has no std::expected in this language mode"
#endif

#if defined(__cpp_exceptions) || defined(__EXCEPTIONS) || defined(_CPPUNWIND)
#define COBATCH_EXCEPTIONS 1
#else
#define COBATCH_EXCEPTIONS 0
#endif

// COBATCH_EXPLORE: for tests/explore alone. The header that has what threads share in a checked form, as `<...>`.
#if defined(COBATCH_EXPLORE)
#define COBATCH_SHARED cobatch_explore
#else
#define COBATCH_SHARED std
#endif

#if defined(COBATCH_EXPLORE) && COBATCH_USE_STD_EXPECTED
#define COBATCH_ABI explored_std_expected
#elif defined(COBATCH_EXPLORE)
#define COBATCH_ABI explored_own_expected
#elif COBATCH_EXCEPTIONS && COBATCH_USE_STD_EXPECTED
#define COBATCH_ABI std_expected
#elif COBATCH_EXCEPTIONS
#define COBATCH_ABI own_expected
#elif COBATCH_USE_STD_EXPECTED
#define COBATCH_ABI std_expected_without_exceptions
#else
#define COBATCH_ABI own_expected_without_exceptions
#endif
