#pragma once

#include <chrono>
#include <cstdint>
#include <utility>

#include <cobatch/detail/abi.hpp>
#include <cobatch/detail/histogram.hpp>
#include <cobatch/detail/saturating.hpp>

namespace cobatch::inline COBATCH_ABI {

/// How long things took: any quantile to within 1 %, whatever the range, in 30 KB that the first record() allocates.
///
/// Thread safety: as an int. Histograms of several threads, batches or machines can be merged without a loss.
class latency_histogram {
 public:
  latency_histogram() = default;
  latency_histogram(const latency_histogram& other) { merge(other); }
  latency_histogram(latency_histogram&& other) noexcept { std::swap(counts_, other.counts_); }
  latency_histogram& operator=(latency_histogram other) noexcept {
    std::swap(counts_, other.counts_);
    return *this;
  }

  /// A negative time counts as zero.
  void record(std::chrono::nanoseconds time) { counts_.record(time.count()); }
  void merge(const latency_histogram& other) { counts_.merge(other.counts_); }

  std::uint64_t count() const noexcept { return counts_.count(); }
  /// The smallest recorded time that at least the share q of all does not exceed; zero if there is none.
  /// What is not between 0 and 1 counts as the nearer of the two, no number as 0.
  std::chrono::nanoseconds quantile(double q) const noexcept { return std::chrono::nanoseconds(counts_.quantile(q)); }
  std::chrono::nanoseconds min() const noexcept { return std::chrono::nanoseconds(counts_.min()); }
  std::chrono::nanoseconds max() const noexcept { return std::chrono::nanoseconds(counts_.max()); }
  std::chrono::nanoseconds mean() const noexcept {
    if (count() == 0) return std::chrono::nanoseconds::zero();
    return detail::saturating_nanoseconds(counts_.sum() / static_cast<double>(count()));
  }
  /// All of them together, in nanoseconds.
  double sum() const noexcept { return counts_.sum(); }
  /// How many took at most `limit`, to within the width of a bucket, 1.6 %.
  std::uint64_t count_up_to(std::chrono::nanoseconds limit) const noexcept {
    return counts_.count_up_to(limit.count());
  }

 private:
  friend class batch_metrics;

  detail::histogram counts_;
};

}  // namespace cobatch
