#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <utility>

#include <cobatch/adaptive_limit.hpp>
#include <cobatch/batch_lane.hpp>
#include <cobatch/batch_options.hpp>
#include <cobatch/batch_types.hpp>
#include <cobatch/error.hpp>
#include <cobatch/executor.hpp>
#include <cobatch/observer.hpp>
#include <cobatch/semaphore.hpp>

namespace cobatch::detail {

/// What a lane in that stage waits for, in an observer's words.
constexpr wait_for waits_for(lane_stage stage) noexcept {
  return stage == lane_stage::rate ? wait_for::rate : stage == lane_stage::input ? wait_for::input : wait_for::permits;
}

/// Tells the batch's observer, where it has one, what happens.
template <class Types>
class batch_reporter {
  using names = batch_types<Types>;
  using engine = batch_engine<Types>;
  using lane = batch_lane<Types>;
  using result = typename names::result;
  static constexpr bool weighs = names::weighs;

 public:
  explicit batch_reporter(engine& owner) noexcept : engine_(owner) {}

  void started();
  void ended();
  void wait_started(lane& self, lane_stage stage);
  void wait_ended(lane& self, lane_stage stage);
  void attempt_started(lane& self);
  void attempt_ended(lane& self);
  void retried(const lane& self, std::chrono::nanoseconds delay);
  void finished(const result& outcome, std::size_t index, std::uint32_t attempts, std::chrono::nanoseconds at);
  void taken(const result& outcome, std::size_t index, std::chrono::nanoseconds final,
             std::chrono::nanoseconds ready);

  /// A lane has seen that many samples finish. They are added up only now: a shared count would cost each sample more
  /// than all its events.
  void add_finished(std::size_t samples) noexcept { finished_.fetch_add(samples, std::memory_order_relaxed); }

 private:
  template <class Event>
  void tell(void (batch_observer::*hook)(const Event&), const Event& event) noexcept {
    notify(engine_.options_.observer, hook_failures_, hook, event);
  }
  std::size_t limit_now() const noexcept;
  std::size_t in_flight() const noexcept;
  wait_event wait_of(const lane& self, lane_stage stage, std::chrono::nanoseconds at) const noexcept;
  attempt_event attempt_of(const lane& self) const noexcept;
  sample_event sample_of(const result& outcome, std::size_t index, std::uint32_t attempts,
                         std::chrono::nanoseconds at) const noexcept;

  engine& engine_;
  std::uint64_t number_ = 0;
  std::chrono::nanoseconds began_{};
  // Counts, ordering nothing.
  std::atomic<std::uint64_t> hook_failures_{0};
  std::atomic<std::size_t> finished_{0};
  std::atomic<std::size_t> in_flight_{0};  // only where there are gates
  std::size_t known_ = unlimited;          // how many samples there are
};

// ---- Implementation ----

template <class Types>
std::size_t batch_reporter<Types>::limit_now() const noexcept {
  const batch_options& options = engine_.options_;
  std::size_t limit = options.max_concurrency;
  if (options.limit) limit = std::min(limit, options.limit->limit());
  if (options.semaphore && !weighs) limit = std::min(limit, options.semaphore->limit());
  return limit;
}

/// Where nothing but the cap keeps a lane from its sample, that is as many as there are lanes.
template <class Types>
std::size_t batch_reporter<Types>::in_flight() const noexcept {
  if (engine_.needs_.gates) return in_flight_.load(std::memory_order_relaxed);
  return engine_.live_.load(std::memory_order_relaxed) & engine::live_mask;
}

template <class Types>
void batch_reporter<Types>::started() {
  number_ = next_batch_number();
  began_ = now_of(engine_.ex_);
  batch_info info;
  info.batch = number_;
  if constexpr (requires { engine_.source_.size_hint(); }) known_ = engine_.source_.size_hint().value_or(unlimited);
  info.samples = known_;
  info.limit = limit_now();
  info.at = began_;
  tell(&batch_observer::batch_started, info);
}

template <class Types>
void batch_reporter<Types>::ended() {
  batch_summary summary;
  summary.batch = number_;
  summary.finished = finished_.load(std::memory_order_relaxed);
  if (known_ != unlimited && known_ > summary.finished) summary.not_started = known_ - summary.finished;
  if (engine_.halted()) summary.stopped = meaning(engine_.why_halted());
  summary.hook_failures = hook_failures_.load(std::memory_order_relaxed);
  summary.at = now_of(engine_.ex_);
  summary.elapsed = summary.at - began_;
  tell(&batch_observer::batch_ended, summary);
}

template <class Types>
wait_event batch_reporter<Types>::wait_of(const lane& self, lane_stage stage,
                                          std::chrono::nanoseconds at) const noexcept {
  wait_event event;
  event.batch = number_;
  event.lane = &self;
  if (self.has_sample) event.index = self.index;
  event.what = waits_for(stage);
  event.in_flight = in_flight();
  event.limit = limit_now();
  event.at = at;
  return event;
}

template <class Types>
void batch_reporter<Types>::wait_started(lane& self, lane_stage stage) {
  self.wait_began = now_of(engine_.ex_);
  tell(&batch_observer::wait_started, wait_of(self, stage, self.wait_began));
}

template <class Types>
void batch_reporter<Types>::wait_ended(lane& self, lane_stage stage) {
  wait_event event = wait_of(self, stage, now_of(engine_.ex_));
  event.waited = event.at - self.wait_began;
  self.waited_for[static_cast<std::size_t>(event.what)] += event.waited;
  tell(&batch_observer::wait_ended, event);
}

template <class Types>
attempt_event batch_reporter<Types>::attempt_of(const lane& self) const noexcept {
  attempt_event event;
  event.batch = number_;
  event.lane = &self;
  event.index = self.index;
  event.attempt = self.attempts;
  event.hedge = self.sample != &self.cell;
  event.in_flight = self.in_flight_then;
  event.limit = limit_now();
  event.waited_for_input = self.waited_for[0];
  event.waited_for_permits = self.waited_for[1];
  event.waited_for_rate = self.waited_for[2];
  return event;
}

template <class Types>
void batch_reporter<Types>::attempt_started(lane& self) {
  self.observed = true;
  if (engine_.needs_.gates) in_flight_.fetch_add(1, std::memory_order_relaxed);
  self.in_flight_then = in_flight();
  attempt_event event = attempt_of(self);
  event.at = self.started;
  tell(&batch_observer::attempt_started, event);
}

template <class Types>
void batch_reporter<Types>::attempt_ended(lane& self) {
  if (!std::exchange(self.observed, false)) return;  // its sample could not be read
  if (engine_.needs_.gates) in_flight_.fetch_sub(1, std::memory_order_relaxed);
  attempt_event event = attempt_of(self);
  for (std::chrono::nanoseconds& each : self.waited_for) each = std::chrono::nanoseconds::zero();
  event.late = self.timed_out;
  event.failure = self.target ? failure_in(*self.target) : errc::exception;
  event.at = self.ended;
  event.ran = self.ended - self.started;
  tell(&batch_observer::attempt_ended, event);
}

template <class Types>
void batch_reporter<Types>::retried(const lane& self, std::chrono::nanoseconds delay) {
  tell(&batch_observer::sample_retried,
       retry_event{number_, self.index, self.attempts, failure_in(*self.slot), self.ended, delay});
}

template <class Types>
sample_event batch_reporter<Types>::sample_of(const result& outcome, std::size_t index, std::uint32_t attempts,
                                              std::chrono::nanoseconds at) const noexcept {
  sample_event event;
  event.batch = number_;
  event.index = index;
  event.attempts = attempts;
  event.failure = failure_in(outcome);
  event.at = at;
  return event;
}

template <class Types>
void batch_reporter<Types>::finished(const result& outcome, std::size_t index, std::uint32_t attempts,
                                     std::chrono::nanoseconds at) {
  tell(&batch_observer::sample_finished, sample_of(outcome, index, attempts, at));
}

/// From outside the engine: the consumer of a stream takes a result, which it could have had since `ready`.
template <class Types>
void batch_reporter<Types>::taken(const result& outcome, std::size_t index, std::chrono::nanoseconds final,
                                  std::chrono::nanoseconds ready) {
  sample_event event = sample_of(outcome, index, 0, now_of(engine_.ex_));
  event.waited_for_turn = ready - final;
  event.waited_for_consumer = event.at - ready;
  tell(&batch_observer::sample_taken, event);
}

}  // namespace cobatch::detail
