// SPDX-License-Identifier: BSL-1.0
// Events made by hand, and observers that write down what they are told.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include <cobatch/observer.hpp>

/// Tells an observer of a batch as an engine would, with times that the test chooses.
class teller {
 public:
  using nanoseconds = std::chrono::nanoseconds;

  explicit teller(cobatch::batch_observer& to, std::size_t limit = SIZE_MAX, std::size_t samples = SIZE_MAX)
      : batch(cobatch::detail::next_batch_number()), to_(to), limit_(limit) {
    to_.batch_started({batch, samples, limit, now});
  }

  /// One sample with one attempt that ends now.
  void sample(std::size_t index, nanoseconds ran, std::size_t in_flight = 1, cobatch::errc failure = {}) {
    attempt(index, ran, in_flight, failure);
    finish(index, failure);
  }
  void attempt(std::size_t index, nanoseconds ran, std::size_t in_flight = 1, cobatch::errc failure = {},
               std::uint32_t number = 1) {
    cobatch::attempt_event event = waits;
    event.batch = batch;
    event.lane = this;
    event.index = index;
    event.attempt = number;
    event.in_flight = in_flight;
    event.limit = limit_;
    event.at = now - ran;
    to_.attempt_started(event);
    event.at = now;
    event.ran = ran;
    event.failure = failure;
    event.late = failure == cobatch::errc::timed_out;
    to_.attempt_ended(event);
  }
  void retry(std::size_t index, std::uint32_t attempts, cobatch::errc failure, nanoseconds delay) {
    to_.sample_retried({batch, index, attempts, failure, now, delay});
  }
  void finish(std::size_t index, cobatch::errc failure = {}, std::uint32_t attempts = 1) {
    to_.sample_finished({batch, index, attempts, failure, now, {}, {}});
  }
  void taken(std::size_t index, nanoseconds turn, nanoseconds consumer) {
    to_.sample_taken({batch, index, 1, {}, now, turn, consumer});
  }
  void end() { to_.batch_ended({batch, 0, 0, {}, 0, now, now}); }

  const std::uint64_t batch;
  nanoseconds now = std::chrono::seconds(100);
  cobatch::attempt_event waits;  // what each attempt has waited for

 private:
  cobatch::batch_observer& to_;
  std::size_t limit_;
};

/// Writes down the names of hooks and, for samples, their index: "attempt_started 3".
class scribe : public cobatch::batch_observer {
 public:
  void batch_started(const cobatch::batch_info& event) override { infos.push_back(event), write("batch_started"); }
  void wait_started(const cobatch::wait_event& event) override { waits.push_back(event), write("wait_started"); }
  void wait_ended(const cobatch::wait_event& event) override { waits.push_back(event), write("wait_ended"); }
  void attempt_started(const cobatch::attempt_event& event) override {
    write("attempt_started", event.index, event, starts);
  }
  void attempt_ended(const cobatch::attempt_event& event) override { write("attempt_ended", event.index, event, ends); }
  void sample_retried(const cobatch::retry_event& event) override {
    write("sample_retried", event.index, event, retries);
  }
  void sample_finished(const cobatch::sample_event& event) override {
    write("sample_finished", event.index, event, finished);
  }
  void sample_taken(const cobatch::sample_event& event) override { write("sample_taken", event.index, event, taken); }
  void batch_ended(const cobatch::batch_summary& event) override { summaries.push_back(event), write("batch_ended"); }

  std::vector<std::string> lines;
  std::vector<cobatch::batch_info> infos;
  std::vector<cobatch::wait_event> waits;
  std::vector<cobatch::attempt_event> starts, ends;
  std::vector<cobatch::retry_event> retries;
  std::vector<cobatch::sample_event> finished, taken;
  std::vector<cobatch::batch_summary> summaries;

 private:
  void write(const char* hook) {
    const std::lock_guard lock(mutex_);
    lines.emplace_back(hook);
  }
  template <class Event>
  void write(const char* hook, std::size_t index, const Event& event, std::vector<Event>& to) {
    const std::lock_guard lock(mutex_);
    to.push_back(event);
    lines.push_back(std::string(hook) + ' ' + std::to_string(index));
  }
  std::mutex mutex_;
};
