#pragma once

#include <algorithm>
#include <chrono>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <type_traits>
#include <utility>
#include <vector>

#include <cobatch/detail/attempt.hpp>
#include <cobatch/detail/awaitable.hpp>
#include <cobatch/detail/config.hpp>
#include <cobatch/detail/many_results.hpp>
#include <cobatch/detail/micro_batch_core.hpp>
#include <cobatch/detail/start_mark.hpp>
#include <cobatch/error.hpp>
#include <cobatch/executor.hpp>
#include <cobatch/expected.hpp>
#include <cobatch/micro_batch_options.hpp>

/// The part of micro_batcher that knows the types: calls predict_many, and takes its results apart.

namespace cobatch::detail {

/// One sample in its caller's frame.
template <class Sample, class T>
class sample_waiter : public batch_waiter {
 public:
  explicit sample_waiter(Sample&& moved) : sample(std::move(moved)) {}

  Sample sample;                             // until its batch starts
  std::optional<expected<T, error>> result;  // written by the slot before it is settled
};

/// What the model failed with, and not the batcher: after a stop or a deadline it is called by their name.
inline bool is_of_the_model(const error& why) noexcept {
  return why.code != errc::batch_size_mismatch && why.code != errc::executor_stopped;
}

/// The part that knows the samples.
template <class Sample, class T>
class micro_batch_model : public micro_batch_core {
 public:
  using micro_batch_core::micro_batch_core;
  /// Finds out cost and key of a sample; calls what the user gave.
  virtual void measure(batch_waiter& waiter, const Sample& sample) = 0;
};

/// The part that knows everything.
template <class Sample, class T, class Executor, class PredictMany>
class micro_batch_engine final : public micro_batch_model<Sample, T> {
  using samples = std::span<const Sample>;
  static_assert(std::is_invocable_v<PredictMany&, samples>,
                "cobatch: micro_batcher: predict_many must be callable as predict_many(std::span<const Sample>)");
  using raw = std::invoke_result_t<PredictMany&, samples>;
  static constexpr bool is_awaitable = awaitable<raw>;
  using timer = decltype(std::declval<Executor&>().schedule_after(std::chrono::nanoseconds(), std::stop_token()));
  using waiter_type = sample_waiter<Sample, T>;

  struct nothing {};
  struct slot final : micro_batch_slot {
    using micro_batch_slot::micro_batch_slot;
    std::vector<Sample> batch;
    bool cut = false;  // the range that was just called is now two
    [[no_unique_address]]
    typename std::conditional_t<is_awaitable, std::type_identity<attempt<raw>>, std::type_identity<nothing>>::type work;
  };

 public:
  micro_batch_engine(Executor& ex, PredictMany&& predict_many, const micro_batch_options& options)
      : micro_batch_model<Sample, T>(detail::ref(ex),
                                     micro_batch_limits{options.max_batch_size, options.max_batch_cost,
                                                        options.max_queue, options.max_delay.count()},
                                     options.max_concurrent_batches),
        ex_(&ex),
        predict_many_(std::move(predict_many)),
        weighs_(options.max_batch_cost != unlimited),
        isolates_(options.isolate_failures) {
    this->make_first_slot();
  }

  void measure(batch_waiter& waiter, const Sample& sample) override {
    if constexpr (requires { predict_many_->cost(sample); }) {
      if (weighs_) waiter.cost = std::max<std::size_t>(1, predict_many_->cost(sample));
    }
    if constexpr (requires { predict_many_->key(sample); }) waiter.key = predict_many_->key(sample);
    (void)waiter;
    (void)sample;
  }

 private:
  std::int64_t now() const noexcept override { return now_of(*ex_).count(); }
  bool start_timer(std::int64_t delay, std::stop_token stop, std::coroutine_handle<> then) override {
    return timer_.start(
        [&]() -> decltype(auto) { return ex_->schedule_after(std::chrono::nanoseconds(delay), std::move(stop)); },
        then);
  }
  bool end_timer() override {
    bool elapsed = false;
    timer_.resume([&](auto&& result) { elapsed = static_cast<bool>(result); });
    return elapsed;
  }

  std::unique_ptr<micro_batch_slot> make_slot() override { return std::make_unique<slot>(*this); }
  void retire() noexcept override { predict_many_.reset(); }

  void run(micro_batch_slot& started) override {
    slot& self = static_cast<slot&>(started);
    self.batch.clear();
    guarded([&] { self.batch.reserve(self.group.count); }, [] {});  // the same failure comes again below
    for (batch_waiter* next = self.group.first(); next; next = self.group.after(*next)) {
      auto& each = static_cast<waiter_type&>(*next);
      each.index = self.batch.size();
      // One that cannot be moved has its result, and leaves with those before it.
      guarded([&] { self.batch.push_back(std::move(each.sample)); },
              [&] { each.result.emplace(unexpect, error(errc::exception, std::current_exception(), 0)); });
    }
    if (self.batch.empty()) return end(self);
    self.begin = 0;
    self.ranges = 1;
    self.ends[0] = self.batch.size();
    go_on(self);
  }

  /// Calls predict_many for one range after the other, until one suspends or none is left.
  void go_on(micro_batch_slot& on_executor) override {
    slot& self = static_cast<slot&>(on_executor);
    if (self.group.count == 0) return end(self);  // nobody is interested any more
    while (call(self)) {
      if (!advance(self)) return;
    }
    // Suspended: the slot may already be somewhere else, and *this gone.
  }

  void resumed(micro_batch_slot& ended) override {
    slot& self = static_cast<slot&>(ended);
    if constexpr (is_awaitable) take_results(self);
    if (!advance(self)) return;
    if (runs_here(*ex_)) return go_on(self);
    if (!this->hop(self)) {
      fail_range(self, self.batch.size(), error(errc::executor_stopped, {}, 0));
      end(self);
    }
  }

  void abandon_work(micro_batch_slot& abandoned) noexcept override {
    if constexpr (is_awaitable) {
      static_cast<slot&>(abandoned).work.abandon();
    } else {
      (void)abandoned;
      fail("a micro_batcher was destroyed while predict_many runs: co_await its close() first");
    }
  }

  samples range(slot& self) const noexcept {
    return samples(self.batch).subspan(self.begin, self.ends[self.ranges - 1] - self.begin);
  }

  /// Calls predict_many for the next range. True: the range has its results, or has failed.
  bool call(slot& self) {
    if constexpr (is_awaitable) {
      enum class came : unsigned char { to_an_end, to_a_wait, to_nothing };
      came how = came::to_a_wait;
      std::exception_ptr thrown;
      {
        start_mark mark(&self);
        self.mark = &mark;
        const auto begin = [&] {
          const auto predict = [&]() -> raw { return (*predict_many_)(range(self)); };
          return self.work.start(predict, self.handle(), mark) ? came::to_an_end : came::to_a_wait;
        };
        how = guarded(begin, [&] {
          thrown = std::current_exception();
          return came::to_nothing;
        });
        if (how == came::to_a_wait) {
          if (!mark.finished()) return false;  // the slot may already be somewhere else
          how = came::to_an_end;
        }
      }
      if (how == came::to_an_end) {
        take_results(self);
      } else {
        fail_batch(self, error(errc::exception, std::move(thrown)));
      }
    } else {
      guarded([&] { use(self, (*predict_many_)(range(self))); },
              [&] { fail_batch(self, error(errc::exception, std::current_exception())); });
    }
    return true;
  }

  void take_results(slot& self)
    requires is_awaitable
  {
    guarded([&] { self.work.resume([&](auto&& results) { use(self, static_cast<decltype(results)>(results)); }); },
            [&] { fail_batch(self, error(errc::exception, std::current_exception())); });
  }

  template <class Results>
  void use(slot& self, Results&& results) {
    if constexpr (is_expected_v<std::remove_cvref_t<Results>>) {
      if (results) return use(self, *static_cast<Results&&>(results));
      fail_batch(self, error(static_cast<Results&&>(results).error()));
    } else {
      using many = many_results<Results, expected<T, error>>;
      static_assert(many::accepted,
                    "cobatch: micro_batcher<Sample, T>: predict_many must return a std::vector<T> or a "
                    "std::vector<expected<T, error>>, or an awaitable of one");
      const std::size_t end = self.ends[self.ranges - 1];
      if (static_cast<std::size_t>(results.size()) != end - self.begin) {
        return fail_range(self, end, error(errc::batch_size_mismatch));
      }
      for_range(self, end, [&](waiter_type& each) {
        const auto make = [&](auto&&... from) { each.result.emplace(static_cast<decltype(from)>(from)...); };
        guarded([&] { many::take(results, each.index - self.begin, make); },
                [&] { each.result.emplace(unexpect, error(errc::exception, std::current_exception())); });
        name_by_deadline(each);
      });
    }
  }

  /// A whole range failed: cut in two, if we are to find out whose fault it was.
  void fail_batch(slot& self, const error& why) {
    const std::size_t end = self.ends[self.ranges - 1];
    if (isolates_ && end - self.begin > 1) {
      self.ends[self.ranges++] = self.begin + (end - self.begin) / 2;
      self.cut = true;
      return;
    }
    fail_range(self, end, why);
  }

  void fail_range(slot& self, std::size_t end, const error& why) {
    for_range(self, end, [&](waiter_type& each) {
      each.result.emplace(unexpect, why);
      name_by_deadline(each);
    });
  }

  void name_by_deadline(waiter_type& each) const noexcept {
    if (*each.result || each.expires == timer_queue::never || !is_of_the_model(each.result->error())) return;
    if (each.expires <= now()) each.result->error().code = errc::deadline_exceeded;
  }

  /// `use_one` with those of the next range that have no result.
  template <class Use>
  void for_range(slot& self, std::size_t end, Use&& use_one) {
    for (batch_waiter* next = self.group.first(); next && next->index < end; next = self.group.after(*next)) {
      auto& each = static_cast<waiter_type&>(*next);
      if (!each.result) use_one(each);
    }
  }

  /// After a range: true where there is another one. False: the batch has ended, and *this may be gone.
  bool advance(slot& self) {
    if (std::exchange(self.cut, false)) return true;
    self.begin = self.ends[--self.ranges];
    if (self.ranges > 0) {
      this->deliver(self, self.begin);
      return true;
    }
    end(self);
    return false;
  }

  void end(slot& self) {
    self.batch.clear();
    this->finish(self);
  }

  Executor* ex_;
  std::optional<PredictMany> predict_many_;
  bool weighs_;
  bool isolates_;
  attempt<timer> timer_;
};

}  // namespace cobatch::detail
