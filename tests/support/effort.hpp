#pragma once

#include <cstdint>
#include <cstdlib>
#include <random>

/// How much a stress test does: all of it; a tenth under ThreadSanitizer, which is some ten times slower; a third under
/// AddressSanitizer.
#if !defined(__has_feature)
#define __has_feature(feature) 0
#endif
constexpr int effort(int full) noexcept {
#if defined(__SANITIZE_THREAD__) || __has_feature(thread_sanitizer)
  return full / 10;
#elif defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)
  return full / 3;
#else
  return full;
#endif
}

/// The seed of a stress test: new each time, or the one in COBATCH_TEST_SEED. Print it with INFO.
inline std::uint32_t stress_seed() {
  if (const char* const given = std::getenv("COBATCH_TEST_SEED")) {
    return static_cast<std::uint32_t>(std::strtoul(given, nullptr, 10));
  }
  return std::random_device()();
}
