// SPDX-License-Identifier: BSL-1.0
#pragma once

// The asynchronous source of a predict_stream, filled by a thread that reads from a broker.

#include <cstddef>
#include <deque>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <utility>

#include <cobatch/cobatch.hpp>

namespace production {

/// Jobs wait, and run. `Job` is cheap to copy. Any thread may call anything; next() is the stream's.
template <class Job>
class work_queue {
 public:
  void push(Job job) {
    {
      const std::lock_guard lock(mutex_);
      waiting_.push_back(std::move(job));
    }
    signals_.release();
  }
  /// Forgets what has not started, and says how much that was.
  std::size_t drop_waiting() {
    const std::lock_guard lock(mutex_);
    return std::exchange(waiting_, {}).size();  // next() finds signals too many, and asks again
  }
  /// The stream ends once it has what waits.
  void close() {
    {
      const std::lock_guard lock(mutex_);
      closed_ = true;
    }
    signals_.release();
  }

  cobatch::task<std::optional<Job>> next() {
    for (;;) {
      auto signal = co_await signals_.acquire();
      (void)signal.detach();  // a signal is used once
      const std::lock_guard lock(mutex_);
      if (!waiting_.empty()) {
        std::optional<Job> first(std::move(waiting_.front()));
        waiting_.pop_front();
        running_.emplace(given_++, *first);
        co_return first;
      }
      if (closed_) co_return std::nullopt;
    }
  }

  /// The job of one of the stream's items. The stream counts what it got from next(), and so does this.
  Job finished(std::size_t index) {
    const std::lock_guard lock(mutex_);
    return std::move(running_.extract(index).mapped());
  }

 private:
  std::mutex mutex_;  // guards all but the signals
  std::deque<Job> waiting_;
  std::unordered_map<std::size_t, Job> running_;
  std::size_t given_ = 0;
  bool closed_ = false;
  cobatch::async_semaphore signals_{0};  // one for each job, one for the end
};

}  // namespace production
