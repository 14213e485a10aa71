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

#include <cobatch/detail/awaitable.hpp>
#include <cobatch/detail/config.hpp>
#include <cobatch/detail/many_results.hpp>
#include <cobatch/detail/on_behalf_of.hpp>
#include <cobatch/detail/start_mark.hpp>
#include <cobatch/engine/micro_batch.hpp>
#include <cobatch/engine/resume_in_bulk.hpp>
#include <cobatch/engine/types.hpp>
#include <cobatch/error.hpp>
#include <cobatch/executor.hpp>
#include <cobatch/expected.hpp>

/// The part of micro_batcher that knows the types: calls predict_many, and takes its results apart.

namespace cobatch::inline COBATCH_ABI::detail {

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
  /// Finds out cost and key of a sample; calls what the user gave, so only where that can tell.
  virtual void measure(batch_waiter& waiter, const Sample& sample) = 0;

  bool measures = false;  // whether it can tell; does not change
};

/// The part that knows everything.
template <class Sample, class T, class Executor, class PredictMany>
class micro_batch_engine final : public micro_batch_model<Sample, T> {
  using samples = std::span<const Sample>;
  static_assert(std::is_invocable_v<PredictMany&, samples>,
                "cobatch: micro_batcher: predict_many must be callable as predict_many(std::span<const Sample>)");
  static constexpr bool is_awaitable = awaitable<std::invoke_result_t<PredictMany&, samples>>;
  static constexpr bool has_key = groups_samples<PredictMany>;
  static constexpr bool has_cost = weighs_samples<PredictMany>;
  using waiter_type = sample_waiter<Sample, T>;

  struct slot final : micro_batch_slot {
    using micro_batch_slot::micro_batch_slot;
    micro_batch_engine& engine() const noexcept { return static_cast<micro_batch_engine&>(*this->core); }
    void failed() noexcept { engine().fail_batch(*this, error(errc::exception, std::current_exception())); }
    void ended() {
      if (!start_mark::finish(mark, this)) engine().resumed(*this);
    }

    std::vector<Sample> batch;
    bool cut = false;              // the range that was just called is now two
    std::coroutine_handle<> work;  // what awaits the results
    start_mark* mark = nullptr;    // of the call that began that
  };
  struct alarm {
    void failed() noexcept { has_failed = true; }
    void ended() { engine->timer_ended(std::exchange(has_failed, false)); }

    micro_batch_engine* engine;
    bool has_failed = false;
  };

 public:
  micro_batch_engine(Executor& ex, PredictMany&& predict_many, const micro_batch_limits& limits, bool isolates)
      : micro_batch_model<Sample, T>(detail::ref(ex), bulk_resumer(ex), limits, concurrency_of(ex)),
        ex_(&ex),
        predict_many_(std::move(predict_many)),
        weighs_(limits.cost != micro_batch_limits::none),
        isolates_(isolates) {
    this->measures = has_key || (weighs_ && has_cost);
    this->make_first_slot();
  }

  void measure(batch_waiter& waiter, const Sample& sample) override {
    if constexpr (has_cost) {
      if (weighs_) waiter.cost = std::max<std::size_t>(1, predict_many_->cost(sample));
    }
    if constexpr (has_key) waiter.key = predict_many_->key(sample);
    (void)waiter;
    (void)sample;
  }

 private:
  std::int64_t now() const noexcept override { return now_of(*ex_).count(); }

  void start_timer() override { keep_time(alarm_).handle().resume(); }
  COBATCH_COROUTINES_BEGIN
  static on_behalf_of<alarm> keep_time(alarm& of) {
    micro_batch_engine& self = *of.engine;
    while (const std::int64_t pause = self.time_to_sleep()) {
      const bool elapsed = static_cast<bool>(co_await self.sleep(pause));
      self.slept(elapsed);
    }
  }
  COBATCH_COROUTINES_END
  decltype(auto) sleep(std::int64_t pause) {
    return ex_->schedule_after(std::chrono::nanoseconds(pause), this->wake_up_call());
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

  /// What predict_many returned has ended later, on whichever thread.
  void resumed(slot& self) {
    if (!advance(self)) return;
    if (runs_here(*ex_)) return go_on(self);
    if (!this->hop(self)) {
      fail_range(self, self.batch.size(), error(errc::executor_stopped, {}, 0));
      end(self);
    }
  }

  void abandon_work(micro_batch_slot& abandoned) noexcept override {
    if constexpr (is_awaitable) {
      static_cast<slot&>(abandoned).work.destroy();
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
      start_mark mark(&self);
      self.mark = &mark;
      const auto begin = [&] {
        self.work = await_range(self).handle();
        return true;
      };
      const auto give_up = [&] {
        self.failed();
        return false;
      };
      if (!guarded(begin, give_up)) return true;
      self.work.resume();
      return mark.finished();  // if not, the slot may already be somewhere else
    } else {
      guarded([&] { use(self, (*predict_many_)(range(self))); }, [&] { self.failed(); });
      return true;
    }
  }

  COBATCH_COROUTINES_BEGIN
  static on_behalf_of<slot> await_range(slot& self)
    requires is_awaitable
  {
    micro_batch_engine& engine = self.engine();
    engine.use(self, co_await (*engine.predict_many_)(engine.range(self)));
  }
  COBATCH_COROUTINES_END

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
  alarm alarm_{this};
};

}  // namespace cobatch::detail
