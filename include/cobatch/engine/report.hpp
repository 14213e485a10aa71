#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>

#include <cobatch/adaptive_limit.hpp>
#include <cobatch/batch_options.hpp>
#include <cobatch/detail/abi.hpp>
#include <cobatch/detail/atomic.hpp>
#include <cobatch/engine/head_count.hpp>
#include <cobatch/engine/lane.hpp>
#include <cobatch/engine/types.hpp>
#include <cobatch/executor.hpp>
#include <cobatch/observer.hpp>
#include <cobatch/semaphore.hpp>

namespace cobatch::inline COBATCH_ABI::detail {

/// Tells the batch's observer, where it has one, what happens.
template <class Types>
class batch_report {
  using names = batch_types<Types>;
  using lane = batch_lane<Types>;
  using result = typename names::result;
  using time = std::chrono::nanoseconds;

 public:
  batch_report(typename names::executor& ex, const batch_options& options, const head_count& crew, bool gated) noexcept
      : ex_(ex), options_(options), crew_(crew), gated_(gated) {}

  void started(std::optional<std::size_t> samples, std::size_t window) {
    number_ = next_batch_number();
    began_ = now_of(ex_);
    known_ = samples.value_or(unlimited);
    batch_info info;
    info.batch = number_;
    info.samples = known_;
    info.limit = limit_now();
    info.window = window;
    info.at = began_;
    tell(&batch_observer::batch_started, info);
  }
  void ended(halt why) {
    batch_summary summary;
    summary.batch = number_;
    summary.finished = finished_.load(std::memory_order_relaxed);
    if (known_ != unlimited && known_ > summary.finished) summary.not_started = known_ - summary.finished;
    if (why != halt::none) summary.stopped = meaning(why);
    summary.hook_failures = hook_failures_.load(std::memory_order_relaxed);
    summary.at = now_of(ex_);
    summary.elapsed = summary.at - began_;
    tell(&batch_observer::batch_ended, summary);
  }

  /// Of a wait; who waits is a key. Gives when it began.
  time wait_started(const void* who, std::size_t index, wait_for what) {
    wait_event event = wait_of(who, index, what);
    tell(&batch_observer::wait_started, event);
    return event.at;
  }
  /// How long it has lasted.
  time wait_ended(const void* who, std::size_t index, wait_for what, time began) {
    wait_event event = wait_of(who, index, what);
    event.waited = event.at - began;
    tell(&batch_observer::wait_ended, event);
    return event.waited;
  }

  void attempt_started(lane& self) {
    self.observed = true;
    if (gated_) in_flight_.fetch_add(1, std::memory_order_relaxed);
    self.in_flight_then = in_flight();
    attempt_event event = attempt_of(self);
    event.at = self.started;
    tell(&batch_observer::attempt_started, event);
  }
  void attempt_ended(lane& self) {
    if (!std::exchange(self.observed, false)) return;  // its sample could not be read
    if (gated_) in_flight_.fetch_sub(1, std::memory_order_relaxed);
    attempt_event event = attempt_of(self);
    for (time& each : self.waited_for) each = time::zero();
    event.late = self.timed_out;
    event.failure = self.target ? failure_in(*self.target) : errc::exception;
    event.at = self.ended;
    event.ran = self.ended - self.started;
    tell(&batch_observer::attempt_ended, event);
  }
  void retried(const sample_state<Types>& sample, time at, time delay) {
    tell(&batch_observer::sample_retried,
         retry_event{number_, sample.index, sample.attempts, failure_in(*sample.slot), at, delay});
  }
  void finished(const sample_state<Types>& sample, time at) {
    tell(&batch_observer::sample_finished, sample_of(*sample.slot, sample.index, sample.attempts, at));
  }
  /// So many have: added up now and then, as a shared count for each would cost more than all its events.
  void add_finished(std::size_t samples) noexcept { finished_.fetch_add(samples, std::memory_order_relaxed); }
  /// The consumer of a stream takes a result, which it could have had since `ready`.
  void taken(const result& outcome, std::size_t index, time final, time ready) {
    sample_event event = sample_of(outcome, index, 0, now_of(ex_));
    event.waited_for_turn = ready - final;
    event.waited_for_consumer = event.at - ready;
    tell(&batch_observer::sample_taken, event);
  }

 private:
  template <class Event>
  void tell(void (batch_observer::*hook)(const Event&), const Event& event) noexcept {
    notify(options_.observer, hook_failures_, hook, event);
  }
  std::size_t limit_now() const noexcept {
    std::size_t limit = options_.max_concurrency;
    if (options_.limit) limit = std::min(limit, options_.limit->limit());
    if (options_.semaphore && !names::weighs) limit = std::min(limit, options_.semaphore->limit());
    return limit;
  }
  /// Where nothing but the cap keeps a lane from its sample, that is as many as there are lanes.
  std::size_t in_flight() const noexcept {
    return gated_ ? in_flight_.load(std::memory_order_relaxed) : crew_.lanes();
  }
  wait_event wait_of(const void* who, std::size_t index, wait_for what) const noexcept {
    wait_event event;
    event.batch = number_;
    event.lane = who;
    event.index = index;
    event.what = what;
    event.in_flight = in_flight();
    event.limit = limit_now();
    event.at = now_of(ex_);
    return event;
  }
  attempt_event attempt_of(const lane& self) const noexcept {
    attempt_event event;
    event.batch = number_;
    event.lane = &self;
    event.index = self.sample.index;
    event.attempt = self.sample.attempts;
    event.hedge = self.is_twin;
    event.in_flight = self.in_flight_then;
    event.limit = limit_now();
    event.waited_for_input = self.waited_for[0];
    event.waited_for_permits = self.waited_for[1];
    event.waited_for_rate = self.waited_for[2];
    return event;
  }
  sample_event sample_of(const result& outcome, std::size_t index, std::uint32_t attempts, time at) const noexcept {
    sample_event event;
    event.batch = number_;
    event.index = index;
    event.attempts = attempts;
    event.failure = failure_in(outcome);
    event.at = at;
    return event;
  }

  typename names::executor& ex_;
  const batch_options& options_;
  const head_count& crew_;
  const bool gated_;
  std::uint64_t number_ = 0;
  time began_{};
  // Counts, ordering nothing.
  atomic<std::uint64_t> hook_failures_{0};
  atomic<std::size_t> finished_{0};
  atomic<std::size_t> in_flight_{0};  // only where there are gates
  std::size_t known_ = unlimited;          // how many samples there are
};

}  // namespace cobatch::detail
