// What a permit costs: alone, in a crowd, and between two batches.

#include <cobatch/cobatch.hpp>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <memory>
#include <optional>
#include <semaphore>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <support/asio.hpp>
#include <support/by_hand.hpp>
#include <support/compute.hpp>
#include <support/measure.hpp>
#include <support/samples.hpp>
#include <support/statistics.hpp>

namespace bench {
namespace {

using cobatch::async_semaphore;
using cobatch::batch_predict;
using cobatch::permit;
using cobatch::sync_wait;
using cobatch::task;
using cobatch::thread_pool;

/// For the checks of jobs whose run counts what it has done.
auto equals(std::size_t wanted) {
  return [wanted](std::size_t counted) { return counted == wanted; };
}

// ---- Nobody else wants one ----

void add_uncontended() {
  const measures wanted{.samples = scaled(3'000'000), .runs = 3};
  add("semaphore/uncontended/acquire", wanted, [](std::size_t n) {
    return job{[n] {
                 async_semaphore permits(4);
                 const auto take = [&]() -> task<std::size_t> {
                   std::size_t taken = 0;
                   for (std::size_t i = 0; i < n; ++i) {
                     const permit held = co_await permits.acquire();
                     taken += held.weight();
                   }
                   co_return taken;
                 };
                 return sync_wait(take());
               },
               equals(n)};
  });
  add("semaphore/uncontended/try_acquire", wanted, [](std::size_t n) {
    return job{[n] {
                 async_semaphore permits(4);
                 std::size_t taken = 0;
                 for (std::size_t i = 0; i < n; ++i) {
                   if (const std::optional<permit> held = permits.try_acquire()) taken += held->weight();
                 }
                 return taken;
               },
               equals(n)};
  });
  add("semaphore/uncontended/std_counting_semaphore", wanted, [](std::size_t n) {
    return job{[n] {
                 std::counting_semaphore<> permits(4);
                 std::size_t taken = 0;
                 for (std::size_t i = 0; i < n; ++i) {
                   if (!permits.try_acquire()) continue;
                   ++taken;
                   permits.release();
                 }
                 return taken;
               },
               equals(n)};
  });
#if COBATCH_BENCH_ASIO
  measures slow = wanted;
  slow.samples /= 10;
  slow.runs = 1;
  add("semaphore/uncontended/asio_channel", slow, [](std::size_t n) {
    return job{[n, pool = std::make_unique<asio::thread_pool>(1)] {
                 asio_semaphore permits(pool->get_executor(), 4);
                 std::size_t taken = 0;
                 const auto take = [&]() -> asio::awaitable<void> {
                   for (std::size_t i = 0; i < n; ++i) {
                     co_await acquire(permits);
                     ++taken;
                     release(permits);
                   }
                 };
                 asio_run_all(*pool, 1, [&](std::size_t) { return take(); });
                 return taken;
               },
               equals(n)};
  });
#endif
}

// ---- 64 coroutines on two threads want one of 4 ----

constexpr std::size_t crowd = 64, few = 4;

/// How many hold a permit at once must never exceed what there is.
class holders {
 public:
  void enter() {
    if (now_.fetch_add(1, std::memory_order_relaxed) + 1 > few) too_many_.store(true, std::memory_order_relaxed);
  }
  void leave() { now_.fetch_sub(1, std::memory_order_relaxed); }
  bool never_too_many() const { return !too_many_.load(std::memory_order_relaxed); }

 private:
  std::atomic<std::size_t> now_{0};
  std::atomic<bool> too_many_{false};
};

/// With `held`, each permit is kept over a turn round the pool's queue; else it is given back at once.
template <bool held>
task<std::size_t> crowd_takes(thread_pool& pool, std::size_t each) {
  async_semaphore permits(few);
  holders inside;
  std::atomic<std::size_t> taken{0};
  group ended(crowd);
  const auto take = [&]() -> detached {
    co_await pool.schedule();
    for (std::size_t i = 0; i < each; ++i) {
      const permit mine = co_await permits.acquire();
      inside.enter();
      if constexpr (held) co_await pool.schedule();
      inside.leave();
    }
    taken.fetch_add(each, std::memory_order_relaxed);
    ended.end();
  };
  for (std::size_t i = 0; i < crowd; ++i) take();
  co_await ended;
  co_return inside.never_too_many() ? taken.load() : 0;
}

#if COBATCH_BENCH_ASIO
template <bool held>
std::size_t asio_crowd_takes(asio::thread_pool& pool, std::size_t each) {
  asio_semaphore permits(pool.get_executor(), few);
  holders inside;
  std::atomic<std::size_t> taken{0};
  const auto take = [&]() -> asio::awaitable<void> {
    for (std::size_t i = 0; i < each; ++i) {
      co_await acquire(permits);
      inside.enter();
      if constexpr (held) co_await asio::post(asio::use_awaitable);
      inside.leave();
      release(permits);
    }
    taken.fetch_add(each, std::memory_order_relaxed);
  };
  asio_run_all(pool, crowd, [&](std::size_t) { return take(); });
  return inside.never_too_many() ? taken.load() : 0;
}
#endif

template <bool held>
std::size_t threads_take(std::size_t each) {
  std::counting_semaphore<few> permits(few);
  holders inside;
  std::atomic<std::size_t> taken{0};
  std::vector<std::jthread> threads;
  for (std::size_t i = 0; i < crowd; ++i) {
    threads.emplace_back([&] {
      for (std::size_t k = 0; k < each; ++k) {
        permits.acquire();
        inside.enter();
        if constexpr (held) std::this_thread::yield();
        inside.leave();
        permits.release();
      }
      taken.fetch_add(each, std::memory_order_relaxed);
    });
  }
  threads.clear();
  return inside.never_too_many() ? taken.load() : 0;
}

template <bool held>
void add_contended(const std::string& name) {
  const measures wanted{.samples = scaled(64 * 10'000), .runs = 2};
  measures slow = wanted;
  slow.samples /= 5;
  slow.runs = 1;
  add(name + "async_semaphore", wanted, [](std::size_t n) {
    return job{[n, pool = std::make_unique<thread_pool>(2)] { return sync_wait(crowd_takes<held>(*pool, n / crowd)); },
               equals(n / crowd * crowd)};
  });
  add(name + "std_counting_semaphore_and_threads", slow,
      [](std::size_t n) { return job{[n] { return threads_take<held>(n / crowd); }, equals(n / crowd * crowd)}; });
#if COBATCH_BENCH_ASIO
  add(name + "asio_channel", slow, [](std::size_t n) {
    return job{[n, pool = std::make_unique<asio::thread_pool>(2)] { return asio_crowd_takes<held>(*pool, n / crowd); },
               equals(n / crowd * crowd)};
  });
#endif
}

// ---- One semaphore, two batches ----

struct shared_outcome {
  results first, second;
  std::size_t other_had_done = 0;  // when the first of the two was done
};

/// How much of each batch is done. Each thread counts on a cache line of its own: what is measured is the semaphore.
class tally {
 public:
  void count(std::size_t which) noexcept {
    static std::atomic<std::size_t> threads{0};
    static thread_local const std::size_t thread = threads.fetch_add(1) % most;
    std::atomic<std::size_t>& mine = lines_[thread].done[which];
    mine.store(mine.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
  }
  std::size_t done(std::size_t which) const noexcept {
    std::size_t sum = 0;
    for (const line& each : lines_) sum += each.done[which].load(std::memory_order_relaxed);
    return sum;
  }

 private:
  static constexpr std::size_t most = 64;  // each run has two threads
  struct alignas(64) line {
    std::atomic<std::size_t> done[2]{};
  };
  line lines_[most];
};

/// Two batches of the same kind at once.
template <class Predict>
task<shared_outcome> two_batches(thread_pool& pool, async_semaphore& shared, const std::vector<int>& samples,
                                 Predict predict) {
  const auto done = std::make_unique<tally>();
  std::atomic<std::size_t> other_had_done{0};
  results outcomes[2];
  group ended(2);
  const auto one = [&](std::size_t which) -> detached {
    co_await pool.schedule();
    const auto counted = [&, which](int x) -> task<int> {
      co_await predict(pool);
      done->count(which);
      co_return x * 2;
    };
    outcomes[which] = co_await batch_predict(pool, samples, counted, {.max_concurrency = 64, .semaphore = &shared});
    std::size_t nobody = 0;
    other_had_done.compare_exchange_strong(nobody, done->done(1 - which));
    ended.end();
  };
  one(0);
  one(1);
  co_await ended;
  co_return shared_outcome{std::move(outcomes[0]), std::move(outcomes[1]), other_had_done.load()};
}

/// Each run is two batches at once, after one of them alone.
template <class Predict>
void add_shared(const std::string& name, std::size_t permits, Predict predict) {
  struct seen {
    std::vector<double> cost, share;
  };
  auto all_seen = std::make_shared<seen>();
  const std::size_t samples = scaled(1'000'000);
  add(name, {.samples = 2 * samples, .runs = 1, .warm_up = false}, [=](std::size_t) {
    struct state {
      thread_pool pool{2};
      std::vector<int> samples;
      double alone = 0;
    };
    auto mine = std::make_shared<state>();
    mine->samples = numbers(samples);
    return job{[=] {
                 async_semaphore shared(permits);
                 const auto begin = std::chrono::steady_clock::now();
                 shared_outcome both = sync_wait(two_batches(mine->pool, shared, mine->samples, predict));
                 all_seen->cost.push_back(seconds_since(begin) / 2 / mine->alone);
                 all_seen->share.push_back(static_cast<double>(both.other_had_done) / static_cast<double>(samples));
                 return both;
               },
               [=](const shared_outcome& both) {
                 return are_doubles(both.first, samples) && are_doubles(both.second, samples);
               },
               [=](benchmark::State& bench) {
                 bench.counters["cost_over_alone"] = median(all_seen->cost);
                 bench.counters["share_of_the_other"] = median(all_seen->share);
                 *all_seen = {};
               },
               [=] {
                 async_semaphore shared(permits);
                 const auto done = std::make_unique<tally>();
                 const auto alone = [&](int x) -> task<int> {
                   co_await predict(mine->pool);
                   done->count(0);
                   co_return x * 2;
                 };
                 const auto begin = std::chrono::steady_clock::now();
                 const auto outcomes = sync_wait(
                     batch_predict(mine->pool, mine->samples, alone, {.max_concurrency = 64, .semaphore = &shared}));
                 mine->alone = seconds_since(begin);
                 benchmark::DoNotOptimize(outcomes.data());
               }};
  });
}

}  // namespace

void add_benchmarks() {
  add_uncontended();
  add_contended<true>("semaphore/contended/held_over_a_turn/");
  add_contended<false>("semaphore/contended/given_back_at_once/");
  constexpr auto turn = [](thread_pool& pool) { return pool.schedule(); };
  constexpr auto at_once = [](thread_pool&) { return std::suspend_never(); };
  add_shared("semaphore/shared_by_two_batches/rescheduling/4_permits", 4, turn);
  add_shared("semaphore/shared_by_two_batches/rescheduling/32_permits", 32, turn);
  add_shared("semaphore/shared_by_two_batches/trivial/1_permit", 1, at_once);
  add_shared("semaphore/shared_by_two_batches/trivial/4_permits", 4, at_once);
}

}  // namespace bench
