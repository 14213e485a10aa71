#pragma once

#include <coroutine>
#include <cstddef>
#include <exception>
#include <memory>
#include <ranges>
#include <stop_token>
#include <type_traits>
#include <utility>

#include <cobatch/batch_options.hpp>
#include <cobatch/detail/config.hpp>
#include <cobatch/detail/frame_pool.hpp>
#include <cobatch/detail/start_mark.hpp>
#include <cobatch/engine/batch.hpp>
#include <cobatch/engine/input.hpp>
#include <cobatch/error.hpp>

namespace cobatch::inline COBATCH_ABI::detail {

/// The part of a sink that is the same for all batches that are awaited to their end: items for what is read one by one,
/// and who goes on when all is over.
class awaited_end {
 public:
  explicit awaited_end(std::coroutine_handle<> awaiting) noexcept : awaiting_(awaiting) {}

  template <class Item>
  Item* reserve() {
    return guarded([] { return static_cast<Item*>(::new (frame_pool::allocate(sizeof(Item))) Item()); },
                   [&]() -> Item* {
                     out_of_memory();
                     return nullptr;
                   });
  }
  template <class Item>
  void unreserve(Item& item) noexcept {
    std::destroy_at(&item);
    frame_pool::deallocate(&item, sizeof(Item));
  }
  static constexpr bool can_go_on() noexcept { return false; }
  static constexpr bool room_came() noexcept { return false; }
  static constexpr std::size_t window() noexcept { return 0; }

  void complete() {
    if (start_mark::finish(starting_, this)) return;  // still inside await_suspend
    awaiting_.resume();
  }

  void starting(start_mark* mark) noexcept { starting_ = mark; }

 protected:
  /// Inside the handler: what the await will throw.
  void out_of_memory() noexcept { no_memory_ = std::current_exception(); }
  void rethrow() {
    if (no_memory_) std::rethrow_exception(no_memory_);
  }

 private:
  std::coroutine_handle<> awaiting_;
  start_mark* starting_ = nullptr;
  std::exception_ptr no_memory_;
};

template <class View>
using batch_source = std::conditional_t<indexable<View>, indexed_source<View>, pulled_source<View>>;

template <class Executor, class View, class Result, template <class, bool> class Sink, bool Weighs>
struct batch_kind {
  using executor = Executor;
  using source = batch_source<View>;
  using result = Result;
  using sink = Sink<Result, std::ranges::sized_range<View>>;
  static constexpr bool weighs = Weighs;
  static constexpr bool can_pause = false;
};

/// A batch that has been awaited.
template <class Executor, class View, class Predict, template <class, bool> class Sink>
class running_batch {
  using outcome = outcome_of<batch_source<View>, Predict>;
  using types = batch_kind<Executor, View, typename outcome::result, Sink, weighs_samples<Predict>>;

 public:
  using result = typename outcome::result;
  using traits = typename outcome::traits;

  template <class... Sinks>
  running_batch(Executor& ex, View&& samples, Predict& predict, const batch_options& options, std::stop_token stop,
                Sinks&&... for_the_sink)
      : source_(std::move(samples)),
        samples_(source_.size_hint().value_or(unlimited)),
        sink_(samples_, std::forward<Sinks>(for_the_sink)...),
        engine_(ex, source_, predict, sink_, options, std::move(stop)) {}

  /// True: suspended, `awaiting` will be resumed, or already was.
  bool start() {
    start_mark mark(static_cast<awaited_end*>(&sink_));
    sink_.starting(&mark);
    engine_.start(samples_);
    return !mark.finished();  // if open, *this may be gone
  }

  auto take() {
    const errc unstarted = engine_.why_halted() == halt::executor ? errc::executor_stopped : errc::not_started;
    return sink_.take(unstarted, [&](auto&& visit) {
      if constexpr (types::source::indexed) {
        engine_.each_unstarted(visit);
      } else {
        visit(index_range{source_.handed_out(), unlimited});
      }
    });
  }

 private:
  typename types::source source_;
  std::size_t samples_;
  typename types::sink sink_;
  batch_engine<types> engine_;
};

}  // namespace cobatch::detail
