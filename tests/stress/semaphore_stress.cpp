#include <cobatch/semaphore.hpp>

#include <atomic>
#include <condition_variable>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <stop_token>
#include <thread>
#include <utility>
#include <vector>

#include <cobatch/executor.hpp>

#include "support/catch.hpp"
#include "support/started.hpp"

using cobatch::async_semaphore;
using cobatch::permit;

namespace {

// Under ThreadSanitizer, which is some ten times slower, a tenth of the work.
#if defined(__SANITIZE_THREAD__)
constexpr int share = 10;
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
constexpr int share = 10;
#else
constexpr int share = 1;
#endif
#else
constexpr int share = 1;
#endif

// The plainest executor of several threads that there is.
class plain_pool {
 public:
  explicit plain_pool(std::size_t threads) {
    for (std::size_t i = 0; i < threads; ++i) {
      threads_.emplace_back([this] { work(); });
    }
  }
  plain_pool(const plain_pool&) = delete;
  plain_pool& operator=(const plain_pool&) = delete;
  ~plain_pool() {
    {
      const std::lock_guard lock(mutex_);
      ending_ = true;
    }
    changed_.notify_all();
    for (std::thread& each : threads_) each.join();
  }

  void execute(std::coroutine_handle<> handle) {
    {
      const std::lock_guard lock(mutex_);
      ready_.push_back(handle);
    }
    changed_.notify_one();
  }

 private:
  void work() {
    const cobatch::detail::executor_scope scope(cobatch::detail::ref(*this));
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return ending_ || !ready_.empty(); });
      if (ready_.empty()) return;
      const std::coroutine_handle<> next = ready_.front();
      ready_.pop_front();
      lock.unlock();
      next.resume();
      lock.lock();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::coroutine_handle<>> ready_;
  bool ending_ = false;
  std::vector<std::thread> threads_;
};

void wait_for(const std::atomic<int>& count, int value) {
  for (int now; (now = count.load()) != value;) count.wait(now);
}

// The last thing a coroutine does: its frame may be destroyed by whoever waits for it only when it has
// suspended.
class leave {
 public:
  explicit leave(std::atomic<int>& left) : left_(&left) {}
  bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<>) const noexcept {
    std::atomic<int>* const left = left_;  // from the increment on *this may be gone
    left->fetch_add(1);
    left->notify_all();
  }
  void await_resume() const noexcept {}

 private:
  std::atomic<int>* left_;
};

template <class F>
void in_threads(int n, F f) {
  std::vector<std::thread> threads;
  for (int i = 0; i < n; ++i) threads.emplace_back([&f, i] { f(i); });
  for (std::thread& each : threads) each.join();
}

}  // namespace

TEST_CASE("semaphore: of one permit it is a mutex for coroutines on four threads") {  // [E1]
  constexpr int rounds = 5000;
  async_semaphore semaphore(1);
  int value = 0;
  std::atomic<int> left = 0;
  plain_pool pool(4);
  const auto add = [&](int difference) -> started {
    co_await cobatch::schedule(pool);
    for (int i = 0; i < rounds; ++i) {
      const permit held = co_await semaphore.acquire();
      value += difference;
    }
    co_await leave(left);
  };
  const started up = add(+1);
  const started down = add(-1);
  wait_for(left, 2);
  CHECK(value == 0);
  CHECK(semaphore.available() == 1);
}

TEST_CASE("semaphore: who finds a permit given back may destroy it, though its giver has not returned yet") {
  for (int round = 0; round < 3000 / share; ++round) {
    auto semaphore = std::make_unique<async_semaphore>(2);
    auto held = semaphore->try_acquire(2);
    semaphore->set_limit(1);  // below use: what is given back is counted under the mutex
    std::thread giver([&held] { held->release(); });
    while (!semaphore->try_acquire()) std::this_thread::yield();
    semaphore.reset();
    giver.join();
  }
}

TEST_CASE("semaphore: 16 threads of 10 coroutines each never hold more permits than there are") {  // [E2]
  constexpr int limit = 5;
  constexpr int rounds = 10'000 / share;
  async_semaphore semaphore(limit);
  std::atomic<int> holders = 0;
  std::atomic<int> most = 0;
  std::atomic<int> left = 0;
  const auto hold = [&](bool long_enough_to_be_met) {
    const int now = holders.fetch_add(1) + 1;
    if (long_enough_to_be_met) std::this_thread::yield();
    for (int before = most.load(); before < now && !most.compare_exchange_weak(before, now);) {}
    holders.fetch_sub(1);
  };
  const auto worker = [&](unsigned seed) -> started {
    std::minstd_rand random(seed + 1);
    for (int i = 0; i < rounds; ++i) {
      if (random() % 4 == 0) {
        if (const std::optional<permit> held = semaphore.try_acquire()) hold(random() % 16 == 0);
      } else {
        const permit held = co_await semaphore.acquire();
        hold(random() % 16 == 0);
      }
    }
    co_await leave(left);
  };
  std::mutex mutex;
  std::vector<started> workers;
  in_threads(16, [&](int thread) {
    for (int i = 0; i < 10; ++i) {
      started one = worker(static_cast<unsigned>(thread * 10 + i));
      const std::lock_guard lock(mutex);
      workers.push_back(std::move(one));
    }
  });
  wait_for(left, 160);
  CHECK(most <= limit);
  CHECK(semaphore.available() == limit);
  CHECK(semaphore.waiting() == 0);
}

TEST_CASE("semaphore: of 100,000 signals each wakes one consumer, then a stop ends all of them") {  // [E4]
  constexpr int signals = 100'000 / share;
  async_semaphore semaphore(0);
  std::stop_source stop;
  std::atomic<int> received = 0;
  std::atomic<int> left = 0;
  plain_pool pool(3);
  const auto consumer = [&]() -> started {
    co_await cobatch::schedule(pool);
    for (;;) {
      auto result = co_await semaphore.acquire(1, stop.get_token());
      if (!result.has_value()) break;
      (void)result->detach();
      received.fetch_add(1);
      received.notify_all();
    }
    co_await leave(left);
  };
  std::vector<started> consumers;
  for (int i = 0; i < 16; ++i) consumers.push_back(consumer());
  std::thread([&] {
    for (int i = 0; i < signals; ++i) semaphore.release();
  }).join();
  wait_for(received, signals);
  CHECK(left == 0);
  stop.request_stop();
  wait_for(left, 16);
  CHECK(received == signals);
  CHECK(semaphore.available() == 0);
  CHECK(semaphore.waiting() == 0);
}

TEST_CASE("semaphore: a stop that races a release loses no permit") {  // [C10]
  constexpr int rounds = 10'000 / share;
  for (const bool on_executor : {false, true}) {
    plain_pool pool(1);
    for (int round = 0; round < rounds; ++round) {
      async_semaphore semaphore(0);
      std::stop_source stop;
      std::atomic<int> survivors = 0;
      std::atomic<int> left = 0;
      const auto waiter = [&](std::stop_token token) -> started {
        if (on_executor) co_await cobatch::schedule(pool);
        auto result = co_await semaphore.acquire(1, std::move(token));
        if (result.has_value()) {
          (void)result->detach();
          survivors.fetch_add(1);
        }
        co_await leave(left);
      };
      const started stopped = waiter(stop.get_token());
      const started other = waiter(std::stop_token());
      std::thread releaser([&] { semaphore.release(2); });
      stop.request_stop();
      releaser.join();
      wait_for(left, 2);
      REQUIRE(survivors + static_cast<int>(semaphore.available()) == 2);
      REQUIRE(semaphore.waiting() == 0);
    }
  }
}

TEST_CASE("semaphore: acquires, stops and moving limits from many threads strand nobody and lose nothing") {
  constexpr int threads = 6;
  constexpr int per_thread = 2000 / share;
  for (const bool on_executor : {false, true}) {
    for (unsigned seed = 1; seed <= 3; ++seed) {
      INFO("seed " << seed << ", on an executor: " << on_executor);
      async_semaphore semaphore(3);
      std::atomic<int> left = 0;
      std::atomic<int> ended = 0;
      std::deque<std::stop_source> sources(threads * per_thread);
      std::optional<plain_pool> pool;
      if (on_executor) pool.emplace(2);
      const auto worker = [&](std::stop_token token, unsigned weight) -> started {
        if (pool) co_await cobatch::schedule(*pool);
        {
          auto result = co_await semaphore.acquire(weight, std::move(token));
          if (result.has_value() && pool && weight % 2 == 1) co_await cobatch::schedule(*pool);
          ended.fetch_add(1);
        }
        co_await leave(left);
      };
      std::mutex mutex;
      std::vector<started> workers;
      in_threads(threads, [&](int thread) {
        std::minstd_rand random(seed * 100 + static_cast<unsigned>(thread));
        for (int i = 0; i < per_thread; ++i) {
          const auto id = static_cast<std::size_t>(thread * per_thread + i);
          started one = worker(sources[id].get_token(), random() % 4);
          {
            const std::lock_guard lock(mutex);
            workers.push_back(std::move(one));
          }
          switch (random() % 6) {
            case 0:
              semaphore.set_limit(random() % 5);
              break;
            case 1:
              sources[static_cast<std::size_t>(random()) % (id + 1)].request_stop();
              break;
            case 2:
              (void)semaphore.try_acquire(random() % 3);
              break;
            case 3:
              sources[id].request_stop();
              break;
            default:
              break;
          }
        }
      });
      semaphore.set_limit(4);
      wait_for(left, threads * per_thread);
      CHECK(ended == threads * per_thread);
      CHECK(semaphore.available() == 4);
      CHECK(semaphore.waiting() == 0);
    }
  }
}

TEST_CASE("semaphore: whoever is granted the last permit may destroy it while the releaser returns") {
  constexpr int rounds = 10'000 / share;
  for (int round = 0; round < rounds; ++round) {
    auto semaphore = std::make_unique<async_semaphore>(0);
    const auto last = [&]() -> started {
      permit held = co_await semaphore->acquire(2);
      (void)held.detach();
      semaphore.reset();
    };
    async_semaphore& shared = *semaphore;
    std::thread one([&] { shared.release(); });
    const started waiter = last();
    shared.release();
    one.join();
    REQUIRE(waiter.done());
  }
}
