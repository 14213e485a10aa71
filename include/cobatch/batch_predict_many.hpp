#pragma once

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <exception>
#include <ranges>
#include <span>
#include <stdexcept>
#include <stop_token>
#include <type_traits>
#include <utility>
#include <vector>

#include <cobatch/batch_options.hpp>
#include <cobatch/batch_predict.hpp>
#include <cobatch/detail/awaitable.hpp>
#include <cobatch/detail/caught.hpp>
#include <cobatch/detail/config.hpp>
#include <cobatch/detail/many_batches.hpp>
#include <cobatch/detail/many_results.hpp>
#include <cobatch/detail/predict_traits.hpp>
#include <cobatch/detail/results.hpp>
#include <cobatch/error.hpp>
#include <cobatch/executor.hpp>
#include <cobatch/expected.hpp>
#include <cobatch/task.hpp>

namespace cobatch::inline COBATCH_ABI {

/// How batch_predict_many() cuts its input, and what it does with a batch that fails.
struct many_options {
  std::size_t max_batch_size = 32;  ///< samples in one call of predict_many; 0 is an error
  bool isolate_failures = false;    ///< find out whose fault a failed batch is
};

static_assert(std::is_trivially_copyable_v<many_options>, "GCC 12 breaks any other aggregate inside co_await");

namespace detail {

template <class Samples, class PredictMany>
struct many_traits;

}  // namespace detail

/// batch_predict() for a model that takes many samples at once: calls `predict_many` for one batch after the other, at
/// most `options.max_concurrency` of them in flight, and gives every sample's own outcome in the order of the input.
///
/// `predict_many(std::span<const Sample>)`, or with a std::stop_token, returns what that of a micro_batcher may: one
/// result for each sample, of T or of expected<T, E>. The batches are spans of the input: max_batch_size samples each,
/// but for the last. Nothing is copied, so the input must be contiguous (a vector, an array, a span). From bucketed()
/// each batch has samples of one key, in their order, the smallest key first; those are copied for the call.
///
/// To batch_predict() one batch is one sample: all its options mean batches. max_concurrency, the semaphore, the rate
/// and max_failures count batches; from weighted() a batch weighs what its samples do together; a timeout is that of a
/// batch, and so is a retry. What a batch that comes to no result has is then the outcome of each of its samples. With
/// isolate_failures a batch that throws is halved until each poisonous sample has its own exception and the others their
/// values; such a batch counts as a success: it is not tried again.
///
/// Resumes, Stops, Lifetime: as batch_predict(). Nothing is done before it is awaited.
/// Errors: as batch_predict(), from the await; `batch_size_mismatch` for all of a batch with a wrong number of results.
/// What key(sample) throws is that sample's outcome; what cost(sample) throws, that of its whole batch.
/// Allocates: the vector, another for each batch, and a frame for each batch in flight. bucketed(): two numbers for each
/// sample, and their sort.
///
/// Example:
///     auto results = co_await batch_predict_many(pool, images, model, {.max_batch_size = 64}, {.max_concurrency = 2});
template <executor Executor, std::ranges::viewable_range Samples, class PredictMany>
auto batch_predict_many(Executor& ex, Samples&& samples, PredictMany&& predict_many, many_options many = {},
                        batch_options options = {})
    -> task<std::vector<typename detail::many_traits<std::views::all_t<Samples>, std::decay_t<PredictMany>>::outcome>>;

// ---- Implementation ----

namespace detail {

template <class View, class PredictMany>
struct many_traits {
  static_assert(std::ranges::contiguous_range<View> && std::ranges::sized_range<View>,
                "cobatch: batch_predict_many hands out spans of its input, so it must be contiguous: collect it in a "
                "std::vector first, or predict sample by sample with a micro_batcher");
  using sample = std::ranges::range_value_t<View>;
  using samples = std::span<const sample>;
  static constexpr bool takes_token = std::is_invocable_v<PredictMany&, samples, std::stop_token>;
  static_assert(takes_token || std::is_invocable_v<PredictMany&, samples>,
                "cobatch: predict_many must be callable as predict_many(std::span<const Sample>) or "
                "predict_many(std::span<const Sample>, std::stop_token)");

  static constexpr bool has_key = groups_samples<PredictMany>;
  static constexpr bool has_cost = weighs_samples<PredictMany>;

  static decltype(auto) call(PredictMany& predict_many, samples batch, [[maybe_unused]] const std::stop_token& stop) {
    if constexpr (takes_token) {
      return predict_many(batch, stop);
    } else {
      return predict_many(batch);
    }
  }

 private:
  template <class Raw>
  static auto awaited() {
    if constexpr (awaitable<Raw>) {
      return std::type_identity<std::remove_cvref_t<await_result<Raw>>>{};
    } else {
      return std::type_identity<std::remove_cvref_t<Raw>>{};
    }
  }
  template <class Value>
  static auto element_of() {
    if constexpr (is_expected_v<Value>) {
      return element_of<typename Value::value_type>();
    } else {
      static_assert(
          detail::many<Value>,
          "cobatch: predict_many must return a std::vector<T> or a std::vector<expected<T, E>>, or an awaitable "
          "of one");
      return std::type_identity<std::ranges::range_value_t<Value>>{};
    }
  }

 public:
  using raw = decltype(call(std::declval<PredictMany&>(), samples(), std::declval<const std::stop_token&>()));
  static constexpr bool is_awaitable = awaitable<raw>;
  using value = typename decltype(awaited<raw>())::type;
  using outcome = typename outcome_of_element<typename decltype(element_of<value>())::type, error>::type;
  static_assert(
      std::constructible_from<typename outcome::error_type, error>,
      "cobatch: the error type of predict_many's results must be constructible from cobatch::error: that is what "
      "a sample has whose batch failed or did not start");
  static_assert(!looks_awaitable<value_in<outcome>>,
                "cobatch: the results of predict_many only look awaitable: their outcomes would be successes before "
                "they have come");
};

/// The outcomes of one batch while it is cut into ranges.
template <class Outcome>
class batch_outcomes {
 public:
  explicit batch_outcomes(std::size_t size, bool isolates) : isolates_(isolates) {
    all_.reserve(size);
    ends_[0] = size;
  }

  bool more() const noexcept { return ranges_ > 0; }
  bool is_cut() const noexcept { return was_cut_; }
  /// What to predict next; all before it have their outcomes.
  template <class Sample>
  std::span<const Sample> next(std::span<const Sample> batch) const noexcept {
    return batch.subspan(all_.size(), ends_[ranges_ - 1] - all_.size());
  }

  /// False: all of the batch has failed, and nobody wants to know more.
  template <class Results>
  bool put(Results&& results, error& failure) {
    if constexpr (is_expected_v<std::remove_cvref_t<Results>>) {
      if (results) return put(*static_cast<Results&&>(results), failure);
      return fail(error(static_cast<Results&&>(results).error()), failure);
    } else {
      using many = many_results<Results, Outcome>;
      const std::size_t first = all_.size();
      const std::size_t end = ends_[ranges_ - 1];
      if (static_cast<std::size_t>(results.size()) != end - first) {
        fill(end, error(errc::batch_size_mismatch));
        return true;
      }
      const auto make = [&](auto&&... from) { all_.emplace_back(static_cast<decltype(from)>(from)...); };
      for (std::size_t i = first; i < end; ++i) {
        guarded([&] { many::take(results, i - first, make); },
                [&] { all_.emplace_back(unexpect, error(errc::exception, std::current_exception())); });
      }
      --ranges_;
      return true;
    }
  }

  bool fail(error why, error& failure) {
    const std::size_t end = ends_[ranges_ - 1];
    if (isolates_ && end - all_.size() > 1) {
      ends_[ranges_++] = all_.size() + (end - all_.size()) / 2;
      was_cut_ = true;
      return true;
    }
    if (!isolates_) {
      failure = std::move(why);
      return false;
    }
    fill(end, why);
    return true;
  }

  /// No more calls.
  void give_up(errc why) {
    fill(ends_[0], error(why));
    ranges_ = 0;
  }

  std::vector<Outcome> take() { return std::move(all_); }

 private:
  void fill(std::size_t end, const error& why) {
    while (all_.size() < end) all_.emplace_back(unexpect, why);
    --ranges_;
  }

  std::vector<Outcome> all_;
  bool isolates_;
  bool was_cut_ = false;
  // Ranges that are left, as their ends: ends_[0] > ends_[1] > ...; the last is next. Never more than log2(size) + 1.
  std::size_t ranges_ = 1;
  std::array<std::size_t, 66> ends_;
};

template <class Traits, class PredictMany>
using one_batch = expected<std::vector<typename Traits::outcome>, error>;

COBATCH_COROUTINES_BEGIN
template <class Traits, class Batch, class PredictMany>
task<one_batch<Traits, PredictMany>> await_one_batch(PredictMany& predict_many, Batch kept, std::stop_token stop,
                                                     bool isolates) {
  const typename Traits::samples batch(kept);
  batch_outcomes<typename Traits::outcome> outcomes(batch.size(), isolates);
  error failure(errc::exception);
  while (outcomes.more()) {
    if (outcomes.is_cut() && stop.stop_requested()) {
      outcomes.give_up(errc::cancelled);
      break;
    }
    const typename Traits::samples range = outcomes.next(batch);
    auto call = [&]() -> typename Traits::raw { return Traits::call(predict_many, range, stop); };
    auto came = co_await caught(call);
    const bool go_on = came ? outcomes.put(*std::move(came), failure)
                            : outcomes.fail(error(errc::exception, std::move(came).error()), failure);
    if (!go_on) co_return unexpected(std::move(failure));
  }
  co_return outcomes.take();
}
COBATCH_COROUTINES_END

template <class Traits, class PredictMany>
one_batch<Traits, PredictMany> call_one_batch(PredictMany& predict_many, typename Traits::samples batch,
                                              const std::stop_token& stop, bool isolates) {
  batch_outcomes<typename Traits::outcome> outcomes(batch.size(), isolates);
  error failure(errc::exception);
  while (outcomes.more()) {
    if (outcomes.is_cut() && stop.stop_requested()) {
      outcomes.give_up(errc::cancelled);
      break;
    }
    const bool go_on =
        guarded([&] { return outcomes.put(Traits::call(predict_many, outcomes.next(batch), stop), failure); },
                [&] { return outcomes.fail(error(errc::exception, std::current_exception()), failure); });
    if (!go_on) return unexpected(std::move(failure));
  }
  return outcomes.take();
}

COBATCH_COROUTINES_BEGIN
template <class Executor, class View, class PredictMany>
task<std::vector<typename many_traits<View, PredictMany>::outcome>> predict_in_batches(Executor& ex, View samples,
                                                                                       PredictMany predict_many,
                                                                                       many_options many,
                                                                                       batch_options options,
                                                                                       std::stop_token stop) {
  using traits = many_traits<View, PredictMany>;
  using outcome = typename traits::outcome;
  using plan_type = std::conditional_t<traits::has_key, keyed_batches<typename traits::sample>,
                                       consecutive_batches<typename traits::sample>>;
  using batch_type = typename plan_type::batch;
  const typename traits::samples all(std::ranges::data(samples), static_cast<std::size_t>(std::ranges::size(samples)));
  std::vector<std::pair<std::size_t, error>> keyless;
  const plan_type plan(all, many.max_batch_size, predict_many, [&](std::size_t number) {
    keyless.emplace_back(number, error(errc::exception, std::current_exception(), 0));
  });

  options.stop = stop;
  const auto predict = [&](batch_type which, std::stop_token token) {
    if constexpr (traits::is_awaitable) {
      return await_one_batch<traits>(predict_many, plan.load(which), std::move(token), many.isolate_failures);
    } else {
      const auto batch = plan.load(which);
      return call_one_batch<traits>(predict_many, batch, token, many.isolate_failures);
    }
  };
  std::vector<one_batch<traits, PredictMany>> results;
  if constexpr (traits::has_cost) {
    const auto cost = [&](batch_type which) {
      std::size_t sum = 0;
      plan.each_number(which, [&](std::size_t number) {
        const std::size_t each = std::max<std::size_t>(predict_many.cost(all[number]), 1);
        sum = each > unlimited - sum ? unlimited : sum + each;
      });
      return sum;
    };
    auto weighs = weighted(predict, cost);
    results = co_await batch_predict(ex, plan.list(), weighs, options);
  } else {
    results = co_await batch_predict(ex, plan.list(), predict, options);
  }

  std::vector<outcome> outcomes;
  outcomes.reserve(all.size());
  while (outcomes.size() < all.size()) outcomes.emplace_back(unexpect, error(errc::not_started, {}, 0));
  for (auto& [number, why] : keyless) rewrite(outcomes[number], unexpect, std::move(why));
  for (std::size_t i = 0; i < results.size(); ++i) {
    std::size_t place = 0;
    plan.each_number(plan.list()[i], [&](std::size_t number) {
      outcome& slot = outcomes[number];
      if (!results[i]) return rewrite(slot, unexpect, error(results[i].error()));
      guarded([&] { rewrite(slot, std::move((*results[i])[place++])); },
              [&] { rewrite(slot, unexpect, error(errc::exception, std::current_exception())); });
    });
    results[i] = unexpected(error(errc::not_started));  // gives its memory back
  }
  co_return outcomes;
}
COBATCH_COROUTINES_END

inline void check(const many_options& options) {
  if (options.max_batch_size == 0) {
    throw_or_fail<std::invalid_argument>("batch_predict_many: max_batch_size is 0: no batch could ever start");
  }
}

}  // namespace detail

template <executor Executor, std::ranges::viewable_range Samples, class PredictMany>
auto batch_predict_many(Executor& ex, Samples&& samples, PredictMany&& predict_many, many_options many,
                        batch_options options)
    -> task<std::vector<typename detail::many_traits<std::views::all_t<Samples>, std::decay_t<PredictMany>>::outcome>> {
  detail::check(many);
  std::stop_token stop = options.stop.token();
  return detail::predict_in_batches<Executor, std::views::all_t<Samples>, std::decay_t<PredictMany>>(
      ex, std::views::all(std::forward<Samples>(samples)), std::forward<PredictMany>(predict_many), many, options,
      std::move(stop));
}

}  // namespace cobatch
