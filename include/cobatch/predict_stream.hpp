#pragma once

#include <concepts>
#include <cstddef>
#include <memory>
#include <ranges>
#include <stdexcept>
#include <type_traits>
#include <utility>

#include <cobatch/batch_options.hpp>
#include <cobatch/detail/awaitable.hpp>
#include <cobatch/detail/config.hpp>
#include <cobatch/engine/input.hpp>
#include <cobatch/engine/stream.hpp>
#include <cobatch/executor.hpp>
#include <cobatch/stream_options.hpp>

namespace cobatch::inline COBATCH_ABI {

/// Anything whose `co_await source.next()` gives an optional sample, empty at the end.
template <class Source>
concept async_source = requires(std::remove_reference_t<Source>& source) {
  { source.next() } -> detail::awaitable;
  static_cast<bool>(std::declval<detail::await_result<decltype(source.next())>>());
  *std::declval<detail::await_result<decltype(source.next())>>();
};

/// What predict_stream() returns; see there. Movable; one consumer at a time.
template <class State>
class [[nodiscard]] result_stream {
 public:
  /// The type of one sample's outcome, expected<T, E>, and of what next() gives.
  using result = typename State::result;
  using item = stream_item<result>;

  explicit result_stream(std::unique_ptr<State> state) noexcept : state_(std::move(state)) {}
  result_stream(result_stream&&) noexcept = default;
  result_stream& operator=(result_stream&&) = delete;
  /// Stops what is in flight. On a thread of no executor it waits for its end. On an executor's thread, which must not
  /// be blocked, and inside the stream's own delivery of an item, what is in flight ends by itself: await close()
  /// first, if predict refers to something that ends earlier. A run_loop or a simulation that nobody runs is run until
  /// the end; in a deadlock what waits is destroyed. An executor of your own tells by running_in_this_thread()
  /// that the thread is one of its own.
  ~result_stream() {
    if (state_) State::abandon(std::move(state_));
  }

  /// `co_await stream.next()` gives an optional item: empty once the input has ended, or the stream was stopped, and
  /// all that was started has been given. The first call starts the stream.
  ///
  /// Resumes: on the stream's executor, if it had to wait.
  detail::stream_next<State> next() noexcept { return detail::stream_next<State>(*state_); }

  /// `co_await stream.close()` stops the stream, drops what is left, and waits for what is in flight.
  ///
  /// Resumes: on the stream's executor, if it had to wait.
  detail::stream_close<State> close() noexcept { return detail::stream_close<State>(*state_); }

 private:
  std::unique_ptr<State> state_;
};

// ---- Implementation ----

namespace detail {

template <class Samples>
struct stream_source;
template <class Samples>
  requires async_source<Samples>
struct stream_source<Samples> {
  using type = awaited_source<Samples>;
  static Samples&& of(std::remove_reference_t<Samples>& samples) noexcept { return static_cast<Samples&&>(samples); }
};
template <class Samples>
  requires(!async_source<Samples> && std::ranges::viewable_range<Samples>)
struct stream_source<Samples> {
  using type = pulled_source<std::views::all_t<Samples>>;
  static auto of(std::remove_reference_t<Samples>& samples) {
    return std::views::all(static_cast<Samples&&>(samples));
  }
};

template <class Executor, class Source, class Result, bool Weighs>
struct stream_kind {
  using executor = Executor;
  using source = Source;
  using result = Result;
  using sink = stream_state<stream_kind>;
  static constexpr bool weighs = Weighs;
  static constexpr bool can_pause = true;
};

}  // namespace detail

/// Calls `predict` for one sample after another and gives the outcomes one by one: for data that fits no memory, and
/// for requests that never end. `while (auto item = co_await stream.next()) use(item->index, item->result);`
///
/// `samples` is any input range, or an asynchronous source: anything whose `co_await source.next()` gives an optional,
/// such as another stream; so stages compose. A `next(std::stop_token)` gets a token that is stopped with the stream.
/// Never more than max_concurrency samples are running, and never more than `window` are read, running, or finished and
/// not yet taken. A finished
/// sample gives its permit back at once and keeps only its place in the window: a slow consumer stalls nothing in
/// flight.
///
/// All batch_options apply; the deadline counts from the first next(). Stopped by one of them, the stream gives what
/// was started, and ends. For predict, outcomes and errors see batch_predict().
///
/// Resumes: every predict starts on `ex`.
/// Lifetime: an lvalue range or source is referred to, an rvalue is moved in; predict is kept until the last sample has
/// ended. The executor, and what the options point to, must outlive the stream. A stream that was never asked does
/// nothing.
/// Errors: std::invalid_argument for options that make no sense.
/// Allocates: its state, then one frame and one box for each sample in flight or in the window; none per sample.
template <executor Executor, class Samples, class Predict>
  requires(async_source<Samples> || (std::ranges::input_range<Samples> && std::ranges::viewable_range<Samples>))
auto predict_stream(Executor& ex, Samples&& samples, Predict&& predict, batch_options options = {},
                    stream_options how = {}) {
  using predict_type = std::decay_t<Predict>;
  using source = typename detail::stream_source<Samples>::type;
  using outcome = detail::outcome_of<source, predict_type>;
  using kind = detail::stream_kind<Executor, source, typename outcome::result, detail::weighs_samples<predict_type>>;
  detail::check<Executor, typename outcome::traits>(options);
  if (how.window == 0) how.window = options.max_concurrency == unlimited ? 256 : options.max_concurrency;
  if (options.max_concurrency == unlimited) options.max_concurrency = how.window;
  if (how.window < options.max_concurrency) {
    detail::throw_or_fail<std::invalid_argument>(
        "predict_stream: the window is smaller than max_concurrency: so many could never run");
  }
  auto made = std::make_unique<detail::stream_of<kind, predict_type>>(
      ex, detail::stream_source<Samples>::of(samples), predict_type(std::forward<Predict>(predict)), options, how,
      how.window);
  return result_stream<detail::stream_state<kind>>(std::move(made));
}

}  // namespace cobatch
