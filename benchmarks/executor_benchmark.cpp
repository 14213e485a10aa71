// What the pieces under a batch cost: a turn round a queue, work from another thread, an awaited task, a batch's start.

#include <cobatch/cobatch.hpp>

#include <atomic>
#include <condition_variable>
#include <coroutine>
#include <cstddef>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <support/asio.hpp>
#include <support/by_hand.hpp>
#include <support/measure.hpp>
#include <support/samples.hpp>

namespace bench {
namespace {

using cobatch::batch_predict;
using cobatch::inline_executor;
using cobatch::run_loop;
using cobatch::sync_wait;
using cobatch::task;
using cobatch::thread_pool;

auto equals(std::size_t wanted) {
  return [wanted](std::size_t counted) { return counted == wanted; };
}

std::string on_pool(std::size_t threads) {
  return "pool_" + std::to_string(threads);
}

/// A floor for a queue between threads: a mutex, a deque, a condition variable, one thread.
class plain_queue {
 public:
  void execute(std::coroutine_handle<> handle) {
    {
      const std::lock_guard lock(mutex_);
      handles_.push_back(handle);
    }
    changed_.notify_one();
  }
  ~plain_queue() {
    {
      const std::lock_guard lock(mutex_);
      ended_ = true;
    }
    changed_.notify_one();
    thread_.join();
  }

 private:
  void work() {
    for (;;) {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return ended_ || !handles_.empty(); });
      if (handles_.empty()) return;
      const std::coroutine_handle<> next = handles_.front();
      handles_.pop_front();
      lock.unlock();
      next.resume();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::coroutine_handle<>> handles_;
  bool ended_ = false;
  std::thread thread_{[this] { work(); }};
};

// ---- A turn round the queue ----

template <class Executor>
task<std::size_t> turns(Executor& ex, std::size_t count) {
  co_await cobatch::schedule(ex);
  std::size_t done = 0;
  for (; done < count; ++done) co_await cobatch::schedule(ex);
  co_return done;
}

template <class Executor>
task<std::size_t> turns_of_many(Executor& ex, std::size_t coroutines, std::size_t each) {
  std::atomic<std::size_t> done{0};
  group ended(coroutines);
  const auto one = [&]() -> detached {
    for (std::size_t i = 0; i < each; ++i) co_await cobatch::schedule(ex);
    done.fetch_add(each, std::memory_order_relaxed);
    ended.end();
  };
  for (std::size_t i = 0; i < coroutines; ++i) one();
  co_await ended;
  co_return done.load();
}

void add_turns() {
  const measures one{.samples = scaled(1'000'000), .runs = 2};
  constexpr std::size_t many = 64;
  add("executor/schedule/1_coroutine/run_loop", one, [](std::size_t n) {
    return job{[n, loop = std::make_unique<run_loop>()] { return loop->run(turns(*loop, n)); }, equals(n)};
  });
  add("executor/schedule/64_coroutines/run_loop", one, [](std::size_t n) {
    return job{[n, loop = std::make_unique<run_loop>()] { return loop->run(turns_of_many(*loop, many, n / many)); },
               equals(n / many * many)};
  });
  add("executor/schedule/64_coroutines/plain_queue", {.samples = one.samples, .runs = 1}, [](std::size_t n) {
    return job{
        [n, queue = std::make_unique<plain_queue>()] { return sync_wait(turns_of_many(*queue, many, n / many)); },
        equals(n / many * many)};
  });
  for (const std::size_t threads : {1u, 2u}) {
    add("executor/schedule/1_coroutine/" + on_pool(threads), one, [=](std::size_t n) {
      return job{[n, pool = std::make_unique<thread_pool>(threads)] { return sync_wait(turns(*pool, n)); }, equals(n)};
    });
    add("executor/schedule/64_coroutines/" + on_pool(threads), one, [=](std::size_t n) {
      return job{[n, pool = std::make_unique<thread_pool>(threads)] {
                   return sync_wait(turns_of_many(*pool, many, n / many));
                 },
                 equals(n / many * many)};
    });
#if COBATCH_BENCH_ASIO
    const measures slow{.samples = scaled(300'000), .runs = 1};
    const auto add_asio = [&](const std::string& name, std::size_t coroutines) {
      add(name, slow, [=](std::size_t n) {
        return job{[=, pool = std::make_unique<asio::thread_pool>(threads)] {
                     std::atomic<std::size_t> done{0};
                     const auto turn = [&]() -> asio::awaitable<void> {
                       for (std::size_t i = 0; i < n / coroutines; ++i) co_await asio::post(asio::use_awaitable);
                       done.fetch_add(n / coroutines, std::memory_order_relaxed);
                     };
                     asio_run_all(*pool, coroutines, [&](std::size_t) { return turn(); });
                     return done.load();
                   },
                   equals(n / coroutines * coroutines)};
      });
    };
    add_asio("executor/schedule/1_coroutine/asio_" + on_pool(threads), 1);
    add_asio("executor/schedule/64_coroutines/asio_" + on_pool(threads), many);
#endif
  }
}

// ---- Work from a thread that is not the executor's ----

/// A coroutine that counts each of its resumptions; done() blocks until they are so many.
class resumptions {
 public:
  resumptions() : frame_(body(*this).frame) {}
  resumptions(const resumptions&) = delete;
  resumptions& operator=(const resumptions&) = delete;
  ~resumptions() { frame_.destroy(); }

  std::coroutine_handle<> handle() const { return frame_; }
  std::size_t count() const { return count_.load(std::memory_order_acquire); }

 private:
  struct coroutine {
    struct promise_type {
      coroutine get_return_object() noexcept { return {std::coroutine_handle<promise_type>::from_promise(*this)}; }
      std::suspend_always initial_suspend() const noexcept { return {}; }
      std::suspend_always final_suspend() const noexcept { return {}; }
      void return_void() const noexcept {}
      void unhandled_exception() const noexcept {}
    };
    std::coroutine_handle<> frame;
  };
  struct counted {
    resumptions& self;
    bool await_ready() const noexcept { return false; }
    // Here it is suspended: whoever reads the new count may hand it over again.
    void await_suspend(std::coroutine_handle<>) const noexcept { self.count_.fetch_add(1, std::memory_order_release); }
    void await_resume() const noexcept {}
  };
  static coroutine body(resumptions& self) {
    for (;;) co_await counted{self};
  }

  std::coroutine_handle<> frame_;
  std::atomic<std::size_t> count_{0};
};

/// Hands `each` coroutines over, as fast as it can, then waits for them all; again and again.
template <class Executor>
std::size_t hand_over(Executor& ex, std::size_t count) {
  constexpr std::size_t each = 1000;
  std::vector<resumptions> coroutines(each);
  const std::size_t rounds = count / each;
  for (std::size_t round = 1; round <= rounds; ++round) {
    for (const resumptions& one : coroutines) ex.execute(one.handle());
    for (const resumptions& one : coroutines) {
      while (one.count() != round) std::this_thread::yield();
    }
  }
  return rounds * each;
}

/// One coroutine to and fro: each handing over wakes a sleeping thread.
template <class Executor>
std::size_t wake_ups(Executor& ex, std::size_t count) {
  const resumptions one;
  for (std::size_t i = 1; i <= count; ++i) {
    ex.execute(one.handle());
    while (one.count() != i) std::this_thread::yield();
  }
  return count;
}

void add_from_outside() {
  const measures many{.samples = scaled(200'000), .runs = 1};
  const measures few{.samples = scaled(10'000), .runs = 1};
  const auto add_both = [&](const std::string& who, auto make) {
    add("executor/execute_from_outside/1000_at_once/" + who, many,
        [make](std::size_t n) { return job{[n, ex = make()] { return hand_over(*ex, n); }, equals(n / 1000 * 1000)}; });
    add("executor/execute_from_outside/one_by_one/" + who, few,
        [make](std::size_t n) { return job{[n, ex = make()] { return wake_ups(*ex, n); }, equals(n)}; });
  };
  add_both("plain_queue", [] { return std::make_unique<plain_queue>(); });
  for (const std::size_t threads : {1u, 2u}) {
    add_both(on_pool(threads), [threads] { return std::make_unique<thread_pool>(threads); });
#if COBATCH_BENCH_ASIO
    struct asio_pool {
      explicit asio_pool(std::size_t size) : pool(size) {}
      void execute(std::coroutine_handle<> handle) {
        asio::post(pool, [handle] { handle.resume(); });
      }
      asio::thread_pool pool;
    };
    add_both("asio_" + on_pool(threads), [threads] { return std::make_unique<asio_pool>(threads); });
#endif
  }
}

// ---- A task awaited ----

[[gnu::noinline]] int plain_twice(int x) {
  return x * 2;
}

/// A task as it would be without the pool of frames: its frame comes from the heap.
class heap_task {
 public:
  struct promise_type {
    heap_task get_return_object() { return heap_task(std::coroutine_handle<promise_type>::from_promise(*this)); }
    std::suspend_always initial_suspend() const noexcept { return {}; }
    struct back {
      bool await_ready() const noexcept { return false; }
      std::coroutine_handle<> await_suspend(std::coroutine_handle<promise_type> self) const noexcept {
        return self.promise().continuation;
      }
      void await_resume() const noexcept {}
    };
    back final_suspend() const noexcept { return {}; }
    void return_value(int x) noexcept { value = x; }
    [[noreturn]] void unhandled_exception() const noexcept { std::terminate(); }
    std::coroutine_handle<> continuation;
    int value = 0;
  };
  explicit heap_task(std::coroutine_handle<promise_type> frame) : frame_(frame) {}
  heap_task(heap_task&& other) noexcept : frame_(std::exchange(other.frame_, nullptr)) {}
  heap_task& operator=(heap_task&&) = delete;
  ~heap_task() {
    if (frame_) frame_.destroy();
  }
  bool await_ready() const noexcept { return false; }
  std::coroutine_handle<> await_suspend(std::coroutine_handle<> awaiting) noexcept {
    frame_.promise().continuation = awaiting;
    return frame_;
  }
  int await_resume() const noexcept { return frame_.promise().value; }

 private:
  std::coroutine_handle<promise_type> frame_;
};

heap_task heap_twice(int x) {
  co_return x * 2;
}

void add_tasks() {
  const measures wanted{.samples = scaled(3'000'000), .runs = 2};
  const auto right = [](std::size_t n) {
    return [n](long long sum) { return sum == static_cast<long long>(n) * static_cast<long long>(n - 1); };
  };
  add("executor/await/task", wanted, [=](std::size_t n) {
    return job{[n] {
                 const auto sum = [n]() -> task<long long> {
                   long long all = 0;
                   for (std::size_t i = 0; i < n; ++i) all += co_await twice(static_cast<int>(i));
                   co_return all;
                 };
                 return sync_wait(sum());
               },
               right(n)};
  });
  add("executor/await/task_from_the_heap_by_symmetric_transfer", wanted, [=](std::size_t n) {
    return job{[n] {
                 const auto sum = [n]() -> task<long long> {
                   long long all = 0;
                   for (std::size_t i = 0; i < n; ++i) all += co_await heap_twice(static_cast<int>(i));
                   co_return all;
                 };
                 return sync_wait(sum());
               },
               right(n)};
  });
  add("executor/await/plain_function", wanted, [=](std::size_t n) {
    return job{[n] {
                 long long all = 0;
                 for (std::size_t i = 0; i < n; ++i) all += plain_twice(static_cast<int>(i));
                 return all;
               },
               right(n)};
  });
}

// ---- A batch of few ----

/// Batch after batch, from a coroutine that lives on the executor; counts the results that are right.
template <class Executor>
task<std::size_t> batches(Executor& ex, std::size_t count, const std::vector<int>& samples) {
  std::size_t right = 0;
  co_await cobatch::schedule(ex);
  for (std::size_t i = 0; i < count; ++i) {
    const results all = co_await batch_predict(ex, samples, twice, {.max_concurrency = 64});
    if (are_doubles(all, samples.size())) ++right;
  }
  co_return right;
}

task<std::size_t> loops(std::size_t count, const std::vector<int>& samples) {
  std::size_t right = 0;
  for (std::size_t i = 0; i < count; ++i) {
    results all;
    all.reserve(samples.size());
    for (const int x : samples) {
      try {
        all.emplace_back(co_await twice(x));
      } catch (...) {
        all.push_back(caught());
      }
    }
    if (are_doubles(all, samples.size())) ++right;
  }
  co_return right;
}

void add_batches() {
  for (const std::size_t size : {1u, 10u}) {
    const std::string name = "executor/batch_of_" + std::to_string(size) + "/";
    const measures wanted{.samples = scaled(50'000), .runs = 1};
    add(name + "plain_loop", wanted, [=](std::size_t n) {
      return job{[=, samples = numbers(size)] { return sync_wait(loops(n, samples)); }, equals(n)};
    });
    add(name + "inline", wanted, [=](std::size_t n) {
      return job{[=, samples = numbers(size)] {
                   inline_executor ex;
                   return sync_wait(batches(ex, n, samples));
                 },
                 equals(n)};
    });
    add(name + "run_loop", wanted, [=](std::size_t n) {
      return job{[=, samples = numbers(size), loop = std::make_unique<run_loop>()] {
                   return loop->run(batches(*loop, n, samples));
                 },
                 equals(n)};
    });
    for (const std::size_t threads : {1u, 2u}) {
      add(name + on_pool(threads), wanted, [=](std::size_t n) {
        return job{[=, samples = numbers(size), pool = std::make_unique<thread_pool>(threads)] {
                     return sync_wait(batches(*pool, n, samples));
                   },
                   equals(n)};
      });
    }
  }
}

}  // namespace

void add_benchmarks() {
  add_turns();
  add_from_outside();
  add_tasks();
  add_batches();
}

}  // namespace bench
