#pragma once

#include <cstdint>
#include <random>

#include <cobatch/detail/abi.hpp>

namespace cobatch::inline COBATCH_ABI::detail {

/// A well mixed number for each input: the finaliser of SplitMix64 (Steele, Lea and Flood, 2014). The same everywhere,
/// unlike the distributions of the standard library, and without state to share between threads.
constexpr std::uint64_t mix(std::uint64_t x) noexcept {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

/// Uniform in [0, 1).
constexpr double unit_interval(std::uint64_t mixed) noexcept { return static_cast<double>(mixed >> 11) * 0x1.0p-53; }

/// `seed`, or one chosen at random where it is 0.
inline std::uint64_t seed_or_random(std::uint64_t seed) {
  if (seed != 0) return seed;
  std::random_device device;
  return (std::uint64_t{device()} << 32) | device();
}

}  // namespace cobatch::detail
