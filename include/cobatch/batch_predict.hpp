#pragma once

#include <algorithm>
#include <coroutine>
#include <cstddef>
#include <exception>
#include <memory>
#include <optional>
#include <ranges>
#include <stop_token>
#include <type_traits>
#include <utility>
#include <vector>

#include <cobatch/batch_options.hpp>
#include <cobatch/detail/atomic.hpp>
#include <cobatch/detail/config.hpp>
#include <cobatch/detail/results.hpp>
#include <cobatch/engine/running_batch.hpp>
#include <cobatch/error.hpp>
#include <cobatch/executor.hpp>
#include <cobatch/expected.hpp>

namespace cobatch::inline COBATCH_ABI {

namespace detail {

/// Where the outcomes of a batch go: the vector that the user gets, or what will become one.
template <class Result, bool Counted>
class batch_sink : public awaited_end {
  struct make_unstarted {
    void operator()(std::vector<Result>& slots) const {
      slots.emplace_back(unexpect, error(errc::not_started, {}, 0));
    }
    // Where anything will do until the outcome is there, a value of nothing but bits is the cheapest.
    using value = typename Result::value_type;
    static constexpr bool any_will_do = std::is_same_v<typename Result::error_type, error> &&
                                        std::is_trivially_copyable_v<value> &&
                                        std::is_trivially_default_constructible_v<value>;
    void operator()(std::vector<Result>& slots, std::size_t size) const { slots.resize(size); }
  };
  struct make_failed {
    void operator()(std::vector<Result>& slots) const {
      slots.emplace_back(unexpect, error(errc::exception, std::current_exception()));
    }
  };
  using results = std::conditional_t<Counted, counted_results<Result, make_unstarted>,
                                     growing_results<Result, make_unstarted, make_failed>>;

 public:
  struct handful {};

  batch_sink(std::size_t size, std::coroutine_handle<> awaiting) : awaited_end(awaiting), results_(results_for(size)) {
    // Only our own error type is made under a lock.
    if constexpr (Counted && !std::is_same_v<typename Result::error_type, error>) results_.grow_all();
  }

  // -- for batch_engine --
  void make_room(index_range range) { results_.make_room(range.begin, range.end); }
  Result* made_slot(std::size_t index) noexcept { return results_.slot(index); }

  template <class Item>
  bool place(Item& item) {
    return guarded(
        [&] {
          if (!results_.grow(item.index + 1)) return false;
          item.slot = results_.slot(item.index);
          return true;
        },
        [&] {
          out_of_memory();
          return false;
        });
  }
  bool drops_unstarted([[maybe_unused]] std::size_t index) noexcept {
    if constexpr (Counted) return false;
    // Counts, ordering nothing; read when all is over.
    unstarted_.fetch_add(1, std::memory_order_relaxed);
    std::size_t first = first_unstarted_.load(std::memory_order_relaxed);
    while (index < first && !first_unstarted_.compare_exchange_weak(first, index, std::memory_order_relaxed)) {}
    return true;
  }

  template <class Sample>
  void settled(handful&, const Sample& sample) noexcept {
    if (sample.item) unreserve(*sample.item);
  }
  static constexpr void hand_over(handful) noexcept {}

  // -- for running_batch --
  /// The outcomes; all that `each_unstarted(visit)` visits, and what has no slot yet, gets `why`.
  template <class EachUnstarted>
  std::vector<Result> take(errc why, EachUnstarted&& each_unstarted) {
    rethrow();
    if constexpr (Counted) {
      results_.grow_all();
      each_unstarted([&](index_range range) {
        range.end = std::min(range.end, results_.size());
        for (; range.begin < range.end; ++range.begin) {
          rewrite(*results_.slot(range.begin), unexpect, error(why, {}, 0));
        }
      });
    }
    if constexpr (!Counted) {
      // Read ahead of what was started, at the end of an input whose length nobody knows: as if it had not been read.
      const std::size_t first = first_unstarted_.load(std::memory_order_relaxed);
      if (first != unlimited && first + unstarted_.load(std::memory_order_relaxed) == results_.size()) {
        return results_.take(first);
      }
    }
    return results_.take();
  }

 private:
  static results results_for([[maybe_unused]] std::size_t size) {
    if constexpr (Counted) {
      return results(size);
    } else {
      return results();
    }
  }

  results results_;
  detail::atomic<std::size_t> unstarted_{0}, first_unstarted_{unlimited};  // only where the length is not known
};

}  // namespace detail

/// What batch_predict() returns: await it once; see there.
template <class Executor, class View, class Predict>
class [[nodiscard]] batch {
  using running = detail::running_batch<Executor, View, Predict, detail::batch_sink>;

 public:
  /// The type of one sample's outcome: expected<T, E>.
  using result = typename running::result;

  batch(Executor& ex, View&& samples, Predict predict, const batch_options& options);

  /// Only before it is awaited.
  batch(batch&& other) noexcept(
      std::is_nothrow_move_constructible_v<View> && std::is_nothrow_move_constructible_v<Predict>)
      : ex_(other.ex_),
        samples_(std::move(other.samples_)),
        predict_(std::move(other.predict_)),
        options_(other.options_),
        stop_(std::move(other.stop_)) {}
  batch& operator=(batch&&) = delete;
  ~batch() = default;

  bool await_ready() const noexcept {
    if constexpr (std::ranges::sized_range<View>) return std::ranges::size(samples_) == 0;
    return false;
  }
  bool await_suspend(std::coroutine_handle<> awaiting) {
    return running_.emplace(*ex_, std::move(samples_), predict_, options_, std::move(stop_), awaiting).start();
  }
  [[nodiscard]] std::vector<result> await_resume() { return running_ ? running_->take() : std::vector<result>(); }

 private:
  Executor* ex_;
  mutable View samples_;
  Predict predict_;
  batch_options options_;
  std::stop_token stop_;
  std::optional<running> running_;
};

/// Calls `predict` once for each sample, at most `options.max_concurrency` of them in flight, and gives every sample's
/// outcome in the order of the input: `co_await batch_predict(...)` is a `std::vector<expected<T, E>>`.
///
/// `predict(sample)` or `predict(sample, std::stop_token)` returns a value or anything awaitable. What it comes to is
/// an `expected<U, E2>` (then that is the outcome; E2 must be constructible from cobatch::error) or any other V (then
/// the outcome is `expected<V, error>`). One sample's failure, also an exception, is its own outcome and stops no
/// other. It is called on several threads at once where the executor has several.
///
/// Resumes: every predict starts on `ex`; the awaiting coroutine resumes on `ex`. Awaited on `ex` itself, the first
/// predicts may start inside the await, to a bounded depth of the stack. After about a millisecond of computing, whatever
/// else is ready on `ex` has its turn. An input that is known to be empty is ready at once.
/// Stops: by options.stop, deadline or max_failures no further sample starts and what is in flight is asked to stop;
/// it is always waited for: when the await ends, nothing of the batch is alive. A value counts however late it comes.
/// Lifetime: an lvalue range is referred to, an rvalue range is moved in; predict is kept until the last sample has
/// ended. The executor, and what the options point to, must outlive the await. Not awaited, it does nothing.
/// Errors: std::invalid_argument for options that make no sense; std::bad_alloc where there is no memory for the
/// results. All else is in the outcomes.
/// Allocates: the vector, and one frame for each sample in flight, none per sample.
///
/// Example: `auto results = co_await batch_predict(pool, images, [&](const image& x) { return model(x); });`
template <executor Executor, std::ranges::input_range Samples, class Predict>
  requires(std::ranges::viewable_range<Samples> && !detail::risky_temporary<Predict>)
auto batch_predict(Executor& ex, Samples&& samples, Predict&& predict, batch_options options = {})
    -> batch<Executor, std::views::all_t<Samples>, std::decay_t<Predict>> {
  return {ex, std::views::all(std::forward<Samples>(samples)), std::forward<Predict>(predict), options};
}

#if COBATCH_WARNS_OF_TEMPORARY_PREDICT
/// The same, with a warning: see detail::risky_temporary.
template <executor Executor, std::ranges::input_range Samples, class Predict>
  requires(std::ranges::viewable_range<Samples> && detail::risky_temporary<Predict>)
[[deprecated(
    "cobatch: GCC 12 destroys a temporary with such captures twice inside a co_await expression: name the predict "
    "before co_await, or define COBATCH_NO_TEMPORARY_PREDICT_WARNING if it is named")]]
auto batch_predict(Executor& ex, Samples&& samples, Predict&& predict, batch_options options = {})
    -> batch<Executor, std::views::all_t<Samples>, std::decay_t<Predict>> {
  return {ex, std::views::all(std::forward<Samples>(samples)), std::forward<Predict>(predict), options};
}
#endif

// ---- Implementation ----

template <class Executor, class View, class Predict>
batch<Executor, View, Predict>::batch(Executor& ex, View&& samples, Predict predict, const batch_options& options)
    : ex_(&ex),
      samples_(std::move(samples)),
      predict_(std::move(predict)),
      options_(options),
      stop_(options.stop.token()) {
  detail::check<Executor, typename running::traits>(options);
}

}  // namespace cobatch
