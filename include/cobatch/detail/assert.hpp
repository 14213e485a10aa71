#pragma once

// COBATCH_ASSERT(condition) checks what a caller has promised: assert() unless it is defined before the first cobatch
// header, so nothing under NDEBUG.
//
// COBATCH_ASSERTS stands before a function with such a check in it: units of one program that were compiled with and
// without NDEBUG, or with an assertion of their own, then have functions of different names, and each keeps its own.
#if defined(COBATCH_ASSERT)
#define COBATCH_ASSERTS [[gnu::abi_tag("asserts_own")]]
#else
#include <cassert>
#define COBATCH_ASSERT(condition) assert(condition)
#if defined(NDEBUG)
#define COBATCH_ASSERTS
#else
#define COBATCH_ASSERTS [[gnu::abi_tag("asserts")]]
#endif
#endif
