#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <type_traits>

#include <cobatch/detail/abi.hpp>
#include <cobatch/detail/as_size.hpp>

namespace cobatch::inline COBATCH_ABI::detail {

/// Counts of durations in buckets that are about 1.5 % wide: any quantile is within 1 % of a true one, whatever the
/// range.
///
/// Log-linear, after HdrHistogram (Tene): 64 buckets for each power of two; values below 64 are exact. 30 KB, taken by
/// the first record(). Not thread-safe. Nanoseconds, but any unit will do.
class histogram {
 public:
  static constexpr int fraction_bits = 6;
  static constexpr std::size_t per_octave = std::size_t{1} << fraction_bits;
  static constexpr std::size_t bucket_count = (63 - fraction_bits + 1) * per_octave;

  void record(std::int64_t value) {
    if (!counts_) counts_ = std::make_unique<std::array<std::uint64_t, bucket_count>>();
    const auto magnitude = static_cast<std::uint64_t>(std::max<std::int64_t>(value, 0));
    ++(*counts_)[bucket_of(magnitude)];
    ++count_;
    sum_ += static_cast<double>(magnitude);
    max_ = std::max(max_, magnitude);
    min_ = std::min(min_, magnitude);
  }

  void merge(const histogram& other) {
    if (!other.counts_) return;
    if (!counts_) counts_ = std::make_unique<std::array<std::uint64_t, bucket_count>>();
    for (std::size_t i = 0; i < bucket_count; ++i) (*counts_)[i] += (*other.counts_)[i];
    count_ += other.count_;
    sum_ += other.sum_;
    max_ = std::max(max_, other.max_);
    min_ = std::min(min_, other.min_);
  }

  std::uint64_t count() const noexcept { return count_; }
  double sum() const noexcept { return sum_; }
  std::int64_t max() const noexcept { return static_cast<std::int64_t>(max_); }
  std::int64_t min() const noexcept { return count_ == 0 ? 0 : static_cast<std::int64_t>(min_); }

  /// The smallest recorded value that at least the share q of all values does not exceed, to within 1 %; 0 if there is
  /// none.
  std::int64_t quantile(double q) const noexcept {
    if (count_ == 0) return 0;
    const double share = q > 0 ? std::min(q, 1.0) : 0;  // not std::clamp(): q may be no number
    const auto rank = static_cast<std::uint64_t>(std::ceil(share * static_cast<double>(count_)));
    std::uint64_t below = 0;
    for (std::size_t i = 0; i < bucket_count; ++i) {
      below += (*counts_)[i];
      if (below >= std::max<std::uint64_t>(rank, 1)) return std::clamp(middle_of(i), min(), max());
    }
    return max();
  }

  /// How many values are at most `limit`, to within the width of a bucket.
  std::uint64_t count_up_to(std::int64_t limit) const noexcept {
    if (count_ == 0 || limit < 0) return 0;
    std::uint64_t below = 0;
    for (std::size_t i = 0; i <= bucket_of(static_cast<std::uint64_t>(limit)); ++i) below += (*counts_)[i];
    return below;
  }

  /// For counts that are kept elsewhere: count(i) values in each bucket i.
  template <class Count>
  void add(Count&& count, double sum, std::uint64_t min, std::uint64_t max) {
    if (!counts_) counts_ = std::make_unique<std::array<std::uint64_t, bucket_count>>();
    for (std::size_t i = 0; i < bucket_count; ++i) {
      const std::uint64_t more = count(i);
      (*counts_)[i] += more;
      count_ += more;
    }
    sum_ += sum;
    max_ = std::max(max_, max);
    min_ = std::min(min_, min);
  }

  // Bucket i < 64 holds the value i; above, octave k (from 1) holds the values whose top bit is fraction_bits + k - 1.
  static constexpr std::size_t bucket_of(std::uint64_t value) noexcept {
    if (value < per_octave) return as_size(value);
    const int shift = static_cast<int>(std::bit_width(value)) - 1 - fraction_bits;
    return as_size(shift) * per_octave + as_size(value >> shift);
  }

 private:
  static constexpr std::int64_t middle_of(std::size_t bucket) noexcept {
    if (bucket < 2 * per_octave) return static_cast<std::int64_t>(bucket);
    const int shift = static_cast<int>(bucket / per_octave) - 1;
    const std::uint64_t low = (bucket % per_octave + per_octave) << shift;
    return static_cast<std::int64_t>(low + ((std::uint64_t{1} << shift) >> 1));
  }

  std::unique_ptr<std::array<std::uint64_t, bucket_count>> counts_;
  std::uint64_t count_ = 0;
  double sum_ = 0;
  std::uint64_t max_ = 0;
  std::uint64_t min_ = ~std::uint64_t{0};
};

}  // namespace cobatch::detail
