#pragma once

// <stop_token>, or what to do where the standard library has none. Headers that know nothing of stopping do without.
#include <version>

#if defined(_LIBCPP_VERSION) && !defined(__cpp_lib_jthread)
#error "cobatch needs std::stop_token: with libc++ before version 20 compile and link with -fexperimental-library"
#endif

#include <stop_token>
