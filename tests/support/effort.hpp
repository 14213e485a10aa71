#pragma once

#include <cstdint>
#include <cstdlib>
#include <random>

#if defined(__SANITIZE_THREAD__)
#define COBATCH_TEST_UNDER_TSAN 1
#elif defined(__SANITIZE_ADDRESS__)
#define COBATCH_TEST_UNDER_ASAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define COBATCH_TEST_UNDER_TSAN 1
#elif __has_feature(address_sanitizer)
#define COBATCH_TEST_UNDER_ASAN 1
#endif
#endif

/// How much a stress test does: all of it; a tenth under ThreadSanitizer, which is some ten times slower; a third under
/// AddressSanitizer.
constexpr int effort(int full) noexcept {
#if defined(COBATCH_TEST_UNDER_TSAN)
  return full / 10;
#elif defined(COBATCH_TEST_UNDER_ASAN)
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
