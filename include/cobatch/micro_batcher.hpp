#pragma once

#include <chrono>
#include <concepts>
#include <coroutine>
#include <cstddef>
#include <exception>
#include <memory>
#include <optional>
#include <stdexcept>
#include <stop_token>
#include <type_traits>
#include <utility>

#include <cobatch/detail/config.hpp>
#include <cobatch/detail/current_executor.hpp>
#include <cobatch/engine/micro_batch_model.hpp>
#include <cobatch/error.hpp>
#include <cobatch/executor.hpp>
#include <cobatch/expected.hpp>
#include <cobatch/micro_batch_options.hpp>

namespace cobatch::inline COBATCH_ABI {

namespace detail {

template <class Sample, class T>
class micro_batch_predict;
class micro_batch_close;

}  // namespace detail

/// Makes batches of the samples of many callers, for a model that is fast only in batches.
///
/// A batch starts as soon as fewer than max_concurrent_batches run and one of these holds: max_batch_size samples wait,
/// or samples of max_batch_cost; the oldest has waited for max_delay; max_queue wait; or it is closed. So one caller
/// alone waits for max_delay at the most, and under load batches fill up while others run. A batch takes the oldest
/// samples first; with bucketed() those of one key, and of the keys that are due the one whose sample waits longest
/// goes first.
///
/// `predict_many(std::span<const Sample>)` returns one result for each sample: a std::vector (or something else with
/// size() and []) of T or of expected<T, error>, an expected of such a vector, or an awaitable of any of these. It is
/// called on the executor, never inside predict(), and by max_concurrent_batches threads at once.
///
/// Resumes: a caller goes on on the executor on which it suspended, or else on the batcher's; the callers of a batch in
/// one sweep, where that executor takes many handles at a time.
/// Order: first come, first served among equal keys. Of samples that come on different threads before one of the
/// batcher's turns on the executor, those of one thread may go first.
/// Stops: a caller's stop or deadline takes its sample out of the queue; once its batch runs, a value counts however
/// late it comes, and an exception or error of the model's is reported as the stop's or the deadline's.
/// Lifetime: the executor must outlive the batcher and what it runs. Destroyed while a coroutine waits in it, it ends
/// the program with a message: co_await close() first. Not moved, not copied. A coroutine that waits may be destroyed,
/// but not while another thread starts or ends its batch.
/// Thread safety: predict(), close() and waiting() from any thread.
/// Errors: see predict().
/// Complexity: a sample costs one compare-exchange on a line that few threads share, and some three times a mutex is
/// taken for a whole batch; with a deadline, or where max_queue is limited, once more for each sample. With keys O(log
/// keys), counting those for which somebody waits: others are forgotten.
/// Allocates: when it is made; for a batch what predict_many does; for a key that nobody waited for. Nothing per sample:
/// it waits in the caller's own frame, and is moved into the batch, whose memory is used again.
///
/// Example:
///     cobatch::micro_batcher<image, int> batcher(pool, [&](std::span<const image> x) { return model(x); },
///                                                {.max_batch_size = 64, .max_delay = 2ms});
///     const cobatch::expected<int, cobatch::error> digit = co_await batcher.predict(x);
template <class Sample, class T>
class micro_batcher {
  static_assert(std::is_object_v<Sample> && std::move_constructible<Sample> && !std::is_const_v<Sample>,
                "cobatch: micro_batcher<Sample, T>: samples are moved into a batch, so Sample must be movable");
  static_assert(!std::same_as<Sample, bool>,
                "cobatch: micro_batcher<bool, T>: there is no span over a std::vector<bool>; use char");

 public:
  /// Errors: std::invalid_argument for options that make no sense: a size, number or cost of 0, a negative delay.
  template <executor Executor, class PredictMany>
  micro_batcher(Executor& ex, PredictMany&& predict_many, micro_batch_options options = {});
  micro_batcher(const micro_batcher&) = delete;
  micro_batcher& operator=(const micro_batcher&) = delete;
  ~micro_batcher() { model_->detach(); }

  /// `co_await b.predict(sample, stop_token, deadline)` gives the sample's own outcome, an expected<T, error>.
  ///
  /// The deadline counts from the co_await. A sample whose deadline is not longer than max_delay does not wait for
  /// others: its bucket is due at once. Nothing happens before it is awaited.
  /// Errors: `cancelled` and `deadline_exceeded`, with 0 attempts where it was never in a batch; `queue_full` and
  /// `closed`, at once; `cost_exceeds_capacity` for a cost above max_batch_cost; `executor_stopped`; `exception` with
  /// what predict_many threw, or an error that it returned (or with what cost or key of the sample threw, and 0
  /// attempts): with isolate_failures the batch is halved until the sample's own failure is found, else it is that of
  /// every sample of the batch; `batch_size_mismatch` for all of a batch with a wrong number of results. std::bad_alloc
  /// from the co_await.
  [[nodiscard]] detail::micro_batch_predict<Sample, T> predict(Sample&& sample, std::stop_token stop = {},
                                                               time_span deadline = no_timeout) {
    return {*model_, std::move(sample), std::move(stop), deadline};
  }
  /// The same with a copy of the sample, which is made here.
  [[nodiscard]] detail::micro_batch_predict<Sample, T> predict(const Sample& sample, std::stop_token stop = {},
                                                               time_span deadline = no_timeout)
    requires std::copy_constructible<Sample>
  {
    return {*model_, Sample(sample), std::move(stop), deadline};
  }

  /// `co_await b.close()`: no more samples from now on; what waits runs at once, in as many batches as it takes; goes
  /// on when all callers have their outcomes and nothing of the batcher runs. Any number may close it.
  ///
  /// Resumes: as the callers of predict().
  [[nodiscard]] detail::micro_batch_close close();

  /// How many samples wait for a batch at this moment.
  std::size_t waiting() const { return model_->waiting(); }

 private:
  std::shared_ptr<detail::micro_batch_model<Sample, T>> model_;
};

// ---- Implementation ----

namespace detail {

/// What predict() returns. Movable until it is awaited.
template <class Sample, class T>
class [[nodiscard]] micro_batch_predict {
 public:
  micro_batch_predict(micro_batch_model<Sample, T>& model, Sample&& sample, std::stop_token stop,
                      std::chrono::nanoseconds deadline)
      : model_(&model), waiter_(std::move(sample)), stop_(std::move(stop)), patience_(deadline) {}
  micro_batch_predict(micro_batch_predict&& other) noexcept(std::is_nothrow_move_constructible_v<Sample>)
      : micro_batch_predict(*other.model_, std::move(other.waiter_.sample), std::move(other.stop_), other.patience_) {}
  ~micro_batch_predict() {
    on_stop_.reset();
    if (suspended_) [[unlikely]]
      model_->abandon(waiter_);
  }

  bool await_ready() const noexcept { return false; }

  // The callback stands before the waiter is queued: nobody resumes the coroutine, which destroys the callback, while
  // it is under construction. A stop between the two is seen by enqueue().
  bool await_suspend(std::coroutine_handle<> awaiting) {
    if (stop_.stop_requested()) {
      waiter_.outcome = batch_outcome::cancelled;
      return false;
    }
    if (model_->measures && !measure()) return false;
    waiter_.handle = awaiting;
    waiter_.executor = current_executor();
    if (!waiter_.executor) waiter_.executor = model_->executor();
    if (stop_.stop_possible()) on_stop_.emplace(stop_, stopper{model_->shared_from_this(), &waiter_});
    suspended_ = true;
    const auto give_up = [&]() -> bool {
      suspended_ = false;
      std::rethrow_exception(std::current_exception());
    };
    return guarded([&] { return model_->enqueue(waiter_, patience_.count()); }, give_up);
    // If true, *this may be gone: another thread may have resumed the coroutine.
  }

  [[nodiscard]] expected<T, error> await_resume() {
    on_stop_.reset();  // waits for the callback to return, should it be running on another thread
    suspended_ = false;
    if (!waiter_.result) {
      if (waiter_.outcome == batch_outcome::no_memory) throw_bad_alloc();
      return unexpected(error(why(), {}, 0));
    }
    if (!*waiter_.result && stop_.stop_requested()) {
      error& why = waiter_.result->error();
      if (is_of_the_model(why) && why.code != errc::deadline_exceeded) why.code = errc::cancelled;
    }
    return *std::move(waiter_.result);
  }

 private:
  // Keeps the model: the callback may run when the caller has its outcome, but has not gone on yet.
  struct stopper {
    std::shared_ptr<micro_batch_core> core;
    batch_waiter* waiter;
    void operator()() const noexcept { core->stop(*waiter); }
  };

  bool measure() {
    return guarded(
        [&] {
          model_->measure(waiter_, waiter_.sample);
          return true;
        },
        [&] {
          waiter_.result.emplace(unexpect, error(errc::exception, std::current_exception(), 0));
          return false;
        });
  }

  errc why() const noexcept {
    switch (waiter_.outcome) {
      case batch_outcome::expired:
        return errc::deadline_exceeded;
      case batch_outcome::closed:
        return errc::closed;
      case batch_outcome::full:
        return errc::queue_full;
      case batch_outcome::too_costly:
        return errc::cost_exceeds_capacity;
      case batch_outcome::executor_stopped:
        return errc::executor_stopped;
      case batch_outcome::result:
      case batch_outcome::cancelled:
      case batch_outcome::no_memory:
        break;
    }
    return errc::cancelled;
  }

  micro_batch_model<Sample, T>* model_;
  sample_waiter<Sample, T> waiter_;
  std::stop_token stop_;
  std::chrono::nanoseconds patience_;
  bool suspended_ = false;
  std::optional<std::stop_callback<stopper>> on_stop_;  // destroyed before what it stops
};

/// What close() returns. Movable until it is awaited.
class [[nodiscard]] micro_batch_close {
 public:
  explicit micro_batch_close(micro_batch_core& core) noexcept : core_(&core) {}
  micro_batch_close(micro_batch_close&& other) noexcept : core_(other.core_) {}
  ~micro_batch_close() {
    if (suspended_) [[unlikely]]
      core_->abandon_close(waiter_);
  }

  bool await_ready() const noexcept { return false; }
  bool await_suspend(std::coroutine_handle<> awaiting) {
    waiter_.handle = awaiting;
    waiter_.executor = current_executor();
    if (!waiter_.executor) waiter_.executor = core_->executor();
    suspended_ = true;
    return core_->close(waiter_);  // if true, *this may be gone
  }
  void await_resume() noexcept { suspended_ = false; }

 private:
  micro_batch_core* core_;
  waiter waiter_;
  bool suspended_ = false;
};

inline void check(const micro_batch_options& options) {
  const auto require = [](bool holds, const char* message) {
    if (!holds) throw_or_fail<std::invalid_argument>(message);
  };
  require(options.max_batch_size > 0, "micro_batcher: max_batch_size is 0: no batch could ever start");
  require(options.max_concurrent_batches > 0, "micro_batcher: max_concurrent_batches is 0: no batch could ever start");
  require(options.max_queue > 0, "micro_batcher: max_queue is 0: no sample could ever wait for its batch");
  require(options.max_batch_cost > 0, "micro_batcher: max_batch_cost is 0: no sample would fit into a batch");
  require(options.max_delay >= std::chrono::nanoseconds::zero(), "micro_batcher: max_delay is negative");
}

}  // namespace detail

template <class Sample, class T>
template <executor Executor, class PredictMany>
micro_batcher<Sample, T>::micro_batcher(Executor& ex, PredictMany&& predict_many, micro_batch_options options) {
  using function = std::decay_t<PredictMany>;
  static_assert(
      timed_executor<Executor>,
      "cobatch: micro_batcher needs an executor with timers (schedule_after), such as run_loop, thread_pool or "
      "simulation: a sample that waits for others must not wait for ever");
  detail::check(options);
  if constexpr (timed_executor<Executor>) {
    model_ = std::make_shared<detail::micro_batch_engine<Sample, T, Executor, function>>(
        ex, function(std::forward<PredictMany>(predict_many)),
        detail::micro_batch_limits{.samples = options.max_batch_size,
                                   .cost = options.max_batch_cost,
                                   .waiting = options.max_queue,
                                   .delay = options.max_delay.count(),
                                   .batches = options.max_concurrent_batches},
        options.isolate_failures);
  }
}

template <class Sample, class T>
detail::micro_batch_close micro_batcher<Sample, T>::close() {
  return detail::micro_batch_close(*model_);
}

}  // namespace cobatch
