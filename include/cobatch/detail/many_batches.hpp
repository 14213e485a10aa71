#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <span>
#include <vector>

#include <cobatch/detail/config.hpp>

/// How an input that is there is cut into batches.

namespace cobatch::inline COBATCH_ABI::detail {

/// Batches that are pieces of the input, one after the other.
template <class Sample>
class consecutive_batches {
 public:
  using samples = std::span<const Sample>;
  using batch = samples;

  template <class PredictMany, class Fail>
  consecutive_batches(samples all, std::size_t most, PredictMany&, Fail&&) : all_(all) {
    list_.reserve((all.size() + most - 1) / most);
    for (std::size_t i = 0; i < all.size(); i += std::min(most, all.size() - i)) {
      list_.push_back(all.subspan(i, std::min(most, all.size() - i)));
    }
  }

  const std::vector<batch>& list() const noexcept { return list_; }
  samples load(batch which) const noexcept { return which; }
  /// `visit(number)` of each sample, in the order in which load() gives them.
  template <class Visit>
  void each_number(batch which, Visit&& visit) const {
    const auto first = static_cast<std::size_t>(which.data() - all_.data());
    for (std::size_t i = 0; i < which.size(); ++i) visit(first + i);
  }

 private:
  samples all_;
  std::vector<batch> list_;
};

/// Batches of samples with the same key.
template <class Sample>
class keyed_batches {
 public:
  using samples = std::span<const Sample>;
  using batch = std::span<const std::size_t>;
  static_assert(std::copy_constructible<Sample>,
                "cobatch: bucketed() gathers the samples of a batch, so they must be copyable: hand out pointers to "
                "them, or indices");

  static_assert(!std::same_as<Sample, bool>, "cobatch: no span can refer to bools that were gathered: use char");

  template <class PredictMany, class Fail>
  keyed_batches(samples all, std::size_t most, PredictMany& predict_many, Fail&& failed) : all_(all) {
    std::vector<std::size_t> keys(all.size());
    for (std::size_t i = 0; i < all.size(); ++i) {
      const bool has_key = guarded(
          [&] {
            keys[i] = predict_many.key(all[i]);
            return true;
          },
          [&] {
            failed(i);
            return false;
          });
      if (has_key) numbers_.push_back(i);
    }
    std::sort(numbers_.begin(), numbers_.end(), [&](std::size_t a, std::size_t b) {
      return keys[a] != keys[b] ? keys[a] < keys[b] : a < b;
    });
    for (std::size_t begin = 0; begin < numbers_.size();) {
      std::size_t end = begin;
      while (end < numbers_.size() && end - begin < most && keys[numbers_[end]] == keys[numbers_[begin]]) ++end;
      list_.push_back(batch(numbers_).subspan(begin, end - begin));
      begin = end;
    }
  }

  const std::vector<batch>& list() const noexcept { return list_; }
  std::vector<Sample> load(batch which) const {
    std::vector<Sample> gathered;
    gathered.reserve(which.size());
    for (const std::size_t number : which) gathered.push_back(all_[number]);
    return gathered;
  }
  template <class Visit>
  void each_number(batch which, Visit&& visit) const {
    for (const std::size_t number : which) visit(number);
  }

 private:
  samples all_;
  std::vector<std::size_t> numbers_;
  std::vector<batch> list_;
};

}  // namespace cobatch::detail
