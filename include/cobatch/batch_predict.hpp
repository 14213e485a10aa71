#pragma once

#include <coroutine>
#include <optional>
#include <ranges>
#include <stdexcept>
#include <stop_token>
#include <type_traits>
#include <utility>
#include <vector>

#include <cobatch/batch_engine.hpp>
#include <cobatch/batch_options.hpp>
#include <cobatch/detail/config.hpp>
#include <cobatch/executor.hpp>

// GCC 12 copies a temporary lambda with non-trivial captures bit by bit inside a co_await expression and destroys it
// twice. Where that can happen, a predict that comes as an rvalue gives a warning at compile time.
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 13 && !defined(COBATCH_NO_TEMPORARY_PREDICT_WARNING)
#define COBATCH_WARNS_OF_TEMPORARY_PREDICT 1
#else
#define COBATCH_WARNS_OF_TEMPORARY_PREDICT 0
#endif

namespace cobatch {

/// What batch_predict() returns: await it once; see there.
template <class Executor, class View, class Predict>
class [[nodiscard]] batch {
  using engine = detail::batch_engine<Executor, View, Predict>;

 public:
  /// The type of one sample's outcome: expected<T, E>.
  using result = typename engine::result;

  batch(Executor& ex, View&& samples, Predict predict, const batch_options& options);

  /// Only before it is awaited.
  batch(batch&& other) noexcept(std::is_nothrow_move_constructible_v<View>&& std::is_nothrow_move_constructible_v<Predict>)
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
    engine_.emplace(*ex_, std::move(samples_), predict_, options_, std::move(stop_));
    return engine_->start(awaiting);  // if true, *this may be gone
  }
  std::vector<result> await_resume() { return engine_ ? engine_->take() : std::vector<result>(); }

 private:
  Executor* ex_;
  mutable View samples_;
  Predict predict_;
  batch_options options_;
  std::stop_token stop_;
  std::optional<engine> engine_;
};

/// Calls `predict` once for each sample, at most `options.max_concurrency` of them in flight, and gives every sample's
/// outcome in the order of the input: `co_await batch_predict(...)` is a `std::vector<expected<T, E>>`.
///
/// `predict(sample)` or `predict(sample, std::stop_token)` returns a value or anything awaitable. What it comes to is an
/// `expected<U, E2>` (then that is the outcome; E2 must be constructible from cobatch::error) or any other V (then the
/// outcome is `expected<V, error>`). One sample's failure, also an exception, is its own outcome and stops no other.
/// It is called on several threads at once where the executor has several.
///
/// Resumes: every predict starts on `ex`; the awaiting coroutine resumes on `ex`. An empty input is ready at once.
/// Stops: by options.stop, deadline or max_failures no further sample starts and what is in flight is asked to stop;
/// it is always waited for: when the await ends, nothing of the batch is alive. A value counts however late it comes.
/// Lifetime: an lvalue range is referred to, an rvalue range is moved in; predict is kept until the last sample has ended.
/// The executor, and what the options point to, must outlive the await. Not awaited, it does nothing.
/// Errors: std::invalid_argument for options that make no sense; std::bad_alloc where there is no memory for the results.
/// All else is in the outcomes.
/// Allocates: the vector, and one frame for each sample in flight, none per sample.
///
/// Example: `auto results = co_await batch_predict(pool, images, [&](const image& x) { return model(x); });`
template <executor Executor, std::ranges::input_range Samples, class Predict>
  requires std::ranges::viewable_range<Samples>
auto batch_predict(Executor& ex, Samples&& samples, Predict&& predict, batch_options options = {})
    -> batch<Executor, std::views::all_t<Samples>, std::decay_t<Predict>> {
  return {ex, std::views::all(std::forward<Samples>(samples)), std::forward<Predict>(predict), options};
}

// ---- Implementation ----

template <class Executor, class View, class Predict>
batch<Executor, View, Predict>::batch(Executor& ex, View&& samples, Predict predict, const batch_options& options)
    : ex_(&ex), samples_(std::move(samples)), predict_(std::move(predict)), options_(options), stop_(options.stop.token()) {
  const auto refuse = [](const char* message) { detail::throw_or_fail<std::invalid_argument>(message); };
  if (options.max_concurrency == 0) refuse("batch_predict: max_concurrency is 0, no sample could ever start: use at least 1");
  if (options.max_failures == 0) refuse("batch_predict: max_failures is 0: use 1 to stop at the first failure");
  if constexpr (!timed_executor<Executor>) {
    if (options.timeout != no_timeout || options.deadline != no_timeout) {
      refuse(
          "batch_predict: timeout and deadline need an executor with schedule_after(): use thread_pool or run_loop, or "
          "give yours that member");
    }
  }
}

}  // namespace cobatch
