#pragma once

#include <coroutine>
#include <cstddef>
#include <memory>
#include <optional>
#include <ranges>
#include <stdexcept>
#include <stop_token>
#include <type_traits>
#include <utility>

#include <cobatch/batch_options.hpp>
#include <cobatch/detail/atomic.hpp>
#include <cobatch/detail/config.hpp>
#include <cobatch/detail/results.hpp>
#include <cobatch/engine/running_batch.hpp>
#include <cobatch/error.hpp>
#include <cobatch/executor.hpp>
#include <cobatch/expected.hpp>

namespace cobatch::inline COBATCH_ABI {

/// What batch_predict_into() gives: how the samples ended. The three numbers add up to all of them.
struct batch_counts {
  std::size_t succeeded = 0;
  std::size_t failed = 0;       ///< the last attempt came to an error, or there was none for one
  std::size_t not_started = 0;  ///< the batch was stopped before

  bool all_succeeded() const noexcept { return failed == 0 && not_started == 0; }
};

namespace detail {

/// Outcomes that go where the caller says.
template <class Iterator>
struct into {
  template <class Result, bool>
  class sink : public awaited_end {
    // What fails to be made must leave something behind that is known.
    static constexpr bool needs_an_error =
        !std::is_nothrow_move_constructible_v<Result> || !std::is_nothrow_move_assignable_v<Result>;

   public:
    struct handful {
      std::size_t succeeded = 0, failed = 0;
    };

    sink(std::size_t size, Iterator first, std::coroutine_handle<> awaiting) noexcept
        : awaited_end(awaiting), size_(size), first_(first) {}

    // -- for batch_engine --
    static constexpr void make_room(index_range) noexcept {}
    Result* made_slot(std::size_t index) {
      Result* const slot = std::addressof(first_[static_cast<std::iter_difference_t<Iterator>>(index)]);
      if constexpr (needs_an_error) settle(slot, error(errc::not_started, {}, 0));
      return slot;
    }
    template <class Item>
    bool place(Item& item) {
      if (item.index >= size_) return false;
      item.slot = made_slot(item.index);
      return true;
    }
    static constexpr bool drops_unstarted(std::size_t) noexcept { return true; }
    template <class Sample>
    void settled(handful& done, const Sample& sample) noexcept {
      ++(sample.slot->has_value() ? done.succeeded : done.failed);
      if (sample.item) unreserve(*sample.item);
    }
    void hand_over(handful& done) noexcept {
      if (done.succeeded + done.failed == 0) return;
      // Counts, ordering nothing; read when all is over.
      succeeded_.fetch_add(done.succeeded, std::memory_order_relaxed);
      failed_.fetch_add(done.failed, std::memory_order_relaxed);
      done = {};
    }

    // -- for running_batch --
    template <class EachUnstarted>
    batch_counts take(errc why, EachUnstarted&& each_unstarted) {
      rethrow();
      each_unstarted([&](index_range range) {
        range.end = std::min(range.end, size_);
        for (; range.begin < range.end; ++range.begin) settle(made_slot(range.begin), error(why, {}, 0));
      });
      batch_counts counts;
      counts.succeeded = succeeded_.load(std::memory_order_relaxed);
      counts.failed = failed_.load(std::memory_order_relaxed);
      counts.not_started = size_ - counts.succeeded - counts.failed;
      return counts;
    }

   private:
    std::size_t size_;
    Iterator first_;
    detail::atomic<std::size_t> succeeded_{0}, failed_{0};
  };
};

}  // namespace detail

/// What batch_predict_into() returns: await it once; see there.
template <class Executor, class View, class Predict, class Iterator>
class [[nodiscard]] batch_into {
  using running = detail::running_batch<Executor, View, Predict, detail::into<Iterator>::template sink>;

 public:
  /// The type of one sample's outcome: expected<T, E>.
  using result = typename running::result;
  static_assert(std::is_same_v<std::iter_reference_t<Iterator>, result&>,
                "cobatch: batch_predict_into writes into a range of exactly the outcomes of predict, such as a "
                "std::vector<expected<T, error>> for a predict that comes to a T");

  batch_into(Executor& ex, View&& samples, Predict predict, Iterator first, const batch_options& options)
      : ex_(&ex),
        samples_(std::move(samples)),
        predict_(std::move(predict)),
        first_(first),
        options_(options),
        stop_(options.stop.token()) {
    detail::check<Executor, typename running::traits>(options);
  }
  /// Only before it is awaited.
  batch_into(batch_into&& other) noexcept(
      std::is_nothrow_move_constructible_v<View> && std::is_nothrow_move_constructible_v<Predict>)
      : ex_(other.ex_),
        samples_(std::move(other.samples_)),
        predict_(std::move(other.predict_)),
        first_(other.first_),
        options_(other.options_),
        stop_(std::move(other.stop_)) {}
  batch_into& operator=(batch_into&&) = delete;
  ~batch_into() = default;

  bool await_ready() const noexcept { return std::ranges::size(samples_) == 0; }
  bool await_suspend(std::coroutine_handle<> awaiting) {
    return running_.emplace(*ex_, std::move(samples_), predict_, options_, std::move(stop_), first_, awaiting).start();
  }
  batch_counts await_resume() { return running_ ? running_->take() : batch_counts(); }

 private:
  Executor* ex_;
  mutable View samples_;
  Predict predict_;
  Iterator first_;
  batch_options options_;
  std::stop_token stop_;
  std::optional<running> running_;
};

/// batch_predict() that writes into `outcomes`, a random-access range of `expected<T, E>` with one element for each
/// sample, and gives how many there are of each kind: for results that are used again and again, that lie in memory of
/// the caller's choice, or of which there are so many that to make them costs as much as to compute them.
///
/// What the elements held before is overwritten; a sample that was not started has errc::not_started, as in
/// batch_predict().
///
/// Resumes, Stops: as batch_predict().
/// Lifetime: as batch_predict(); `outcomes` is referred to until the await has ended, and not to be touched meanwhile.
/// Errors: std::invalid_argument where the sizes differ, or for options that make no sense. All else is in the outcomes.
/// Allocates: one frame for each sample in flight, none per sample.
///
/// Example: `const batch_counts counts = co_await batch_predict_into(pool, images, outcomes, model);`
template <executor Executor, std::ranges::viewable_range Samples, std::ranges::random_access_range Outcomes,
          class Predict>
  requires(std::ranges::sized_range<Samples> && std::ranges::sized_range<Outcomes>)
auto batch_predict_into(Executor& ex, Samples&& samples, Outcomes& outcomes, Predict&& predict,
                        batch_options options = {})
    -> batch_into<Executor, std::views::all_t<Samples>, std::decay_t<Predict>, std::ranges::iterator_t<Outcomes>> {
  if (static_cast<std::size_t>(std::ranges::size(samples)) != static_cast<std::size_t>(std::ranges::size(outcomes))) {
    detail::throw_or_fail<std::invalid_argument>(
        "batch_predict_into: there must be one outcome for each sample: resize the outcomes first");
  }
  return {ex, std::views::all(std::forward<Samples>(samples)), std::forward<Predict>(predict),
          std::ranges::begin(outcomes), options};
}

}  // namespace cobatch
