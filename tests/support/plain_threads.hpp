#pragma once

#include <condition_variable>
#include <coroutine>
#include <cstddef>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

/// Threads with one queue, as a user would write them: an executor that knows nothing of cobatch.
class plain_threads {
 public:
  explicit plain_threads(std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) threads_.emplace_back([this] { work(); });
  }
  plain_threads(const plain_threads&) = delete;
  plain_threads& operator=(const plain_threads&) = delete;
  ~plain_threads() {
    {
      const std::lock_guard lock(mutex_);
      ended_ = true;
    }
    changed_.notify_all();
    for (std::thread& each : threads_) each.join();
  }

  void execute(std::coroutine_handle<> handle) {
    const std::lock_guard lock(mutex_);
    queue_.push_back(handle);
    changed_.notify_one();  // under the lock: once the coroutine runs, these threads may be destroyed
  }
  std::size_t concurrency() const noexcept { return threads_.size(); }

  /// Whether the calling thread is one of these.
  bool here() const noexcept { return here_ == this; }

 private:
  void work() {
    here_ = this;
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return ended_ || !queue_.empty(); });
      if (queue_.empty()) return;
      const std::coroutine_handle<> next = queue_.front();
      queue_.pop_front();
      lock.unlock();
      next.resume();
      lock.lock();
    }
  }

  static inline thread_local const plain_threads* here_ = nullptr;

  std::mutex mutex_;  // guards queue_ and ended_
  std::condition_variable changed_;
  std::deque<std::coroutine_handle<>> queue_;
  bool ended_ = false;
  std::vector<std::thread> threads_;
};

/// `co_await hop_to(threads)` goes on on one of them.
inline auto hop_to(plain_threads& threads) noexcept {
  struct awaiter {
    plain_threads& threads;
    bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<> awaiting) const { threads.execute(awaiting); }
    void await_resume() const noexcept {}
  };
  return awaiter{threads};
}
