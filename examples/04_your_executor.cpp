// The same batch on a thread pool of your own, adapted in two ways. The library asks an executor for one thing only: to
// resume a coroutine handle, later, on one of its threads.
#include <condition_variable>
#include <coroutine>
#include <cstdio>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include <cobatch/cobatch.hpp>

// ---- Yours: it knows nothing of coroutines ----

class my_pool {
 public:
  explicit my_pool(std::size_t threads) {
    for (std::size_t i = 0; i < threads; ++i) threads_.emplace_back([this] { work(); });
  }
  ~my_pool() {  // runs what is queued, then ends
    {
      const std::lock_guard lock(mutex_);
      ending_ = true;
    }
    changed_.notify_all();
    for (std::thread& each : threads_) each.join();
  }

  void post(std::function<void()> job) {
    {
      const std::lock_guard lock(mutex_);
      jobs_.push_back(std::move(job));
    }
    changed_.notify_one();
  }

  std::size_t size() const { return threads_.size(); }

 private:
  void work() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return ending_ || !jobs_.empty(); });
      if (jobs_.empty()) return;
      const std::function<void()> job = std::move(jobs_.front());
      jobs_.pop_front();
      lock.unlock();
      job();
      lock.lock();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> jobs_;  // guarded by mutex_
  bool ending_ = false;                     // guarded by mutex_
  std::vector<std::thread> threads_;        // last: the threads use all of the above
};

// ---- The second way: a type of your own ----

class my_executor {
 public:
  explicit my_executor(my_pool& pool) : pool_(pool) {}
  void execute(std::coroutine_handle<> handle) { pool_.post(handle); }  // a handle is callable: calling it resumes
  std::size_t concurrency() const { return pool_.size(); }              // optional: how many it resumes at once

 private:
  my_pool& pool_;
};

// ---- The batch is the same on every executor ----

template <cobatch::executor Executor>
bool run(const char* name, Executor& executor) {
  const std::vector<int> samples{1, 2, 3, 4, 5, 6, 7, 8};
  const auto predict = [&](int x) -> cobatch::task<int> {
    co_await cobatch::schedule(executor);  // goes on behind what else is queued there
    co_return x* x;
  };
  const auto results = cobatch::sync_wait(cobatch::batch_predict(executor, samples, predict, {.max_concurrency = 3}));

  bool all_right = true;
  std::printf("%s:", name);
  for (std::size_t i = 0; i < samples.size(); ++i) {
    all_right = all_right && results[i] && *results[i] == samples[i] * samples[i];
    std::printf(" %d", results[i].value_or(-1));
  }
  std::printf("\n");
  return all_right;
}

int main() {
  my_pool pool(2);  // outlives the executors, and those outlive their batches

  // The first way: from any "run this function" to an executor in one line.
  cobatch::function_executor posting([&](auto job) { pool.post(job); }, pool.size());
  my_executor mine(pool);

  const bool first = run("function_executor", posting);
  const bool second = run("a type of your own", mine);
  return first && second ? 0 : 1;
}
