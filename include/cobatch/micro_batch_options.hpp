#pragma once

#include <chrono>
#include <cstddef>
#include <functional>
#include <type_traits>
#include <utility>

#include <cobatch/batch_options.hpp>
#include <cobatch/detail/abi.hpp>

namespace cobatch::inline COBATCH_ABI {

/// When a micro_batcher starts a batch, and how many callers may wait for one.
///
/// A trivially copyable aggregate for designated initialisers: `{.max_batch_size = 64, .max_delay = 2ms}`.
struct micro_batch_options {
  std::size_t max_batch_size = 32;  ///< samples in one call of predict_many
  /// How long a sample waits for others; 0: not at all.
  time_span max_delay = std::chrono::milliseconds(1);
  std::size_t max_concurrent_batches = 1;  ///< calls of predict_many that run at a time
  std::size_t max_queue = unlimited;       ///< samples that wait; beyond: errc::queue_full
  std::size_t max_batch_cost = unlimited;  ///< the sum of costs in one call, see weighted()
  bool isolate_failures = false;           ///< find out whose fault a failed batch is
};

static_assert(std::is_trivially_copyable_v<micro_batch_options>, "GCC 12 breaks any other aggregate inside co_await");

/// What bucketed() returns: a predict_many that knows which samples go together.
template <class PredictMany, class Key>
class bucketed_predict {
 public:
  bucketed_predict(PredictMany predict_many, Key by) : predict_many_(std::move(predict_many)), key_(std::move(by)) {}

  template <class... Arguments>
    requires std::is_invocable_v<PredictMany&, Arguments...>
  decltype(auto) operator()(Arguments&&... arguments) {
    return std::invoke(predict_many_, std::forward<Arguments>(arguments)...);
  }
  template <class Sample>
  std::size_t key(const Sample& sample) {
    return static_cast<std::size_t>(std::invoke(key_, sample));
  }
  template <class Sample>
  std::size_t cost(const Sample& sample)
    requires requires(PredictMany& inner) { inner.cost(sample); }
  {
    return predict_many_.cost(sample);
  }

 private:
  PredictMany predict_many_;
  Key key_;
};

/// `bucketed(predict_many, key)`: a batch of a micro_batcher, or of batch_predict_many(), holds only samples of equal
/// `key(sample)`, a number: a sequence length, rounded up, so that little is padded. It goes together with weighted(), in either order.
///
/// Thread safety: for a micro_batcher, key and cost are called inside the co_await of predict(), on the callers'
/// threads, by many at once; batch_predict_many() calls key for one sample after another.
/// Errors: what they throw is the outcome of that sample.
template <class PredictMany, class Key>
bucketed_predict<std::decay_t<PredictMany>, std::decay_t<Key>> bucketed(PredictMany&& predict_many, Key&& key) {
  return {std::forward<PredictMany>(predict_many), std::forward<Key>(key)};
}

}  // namespace cobatch
