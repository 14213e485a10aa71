// Predicts that wait: how close a batch of sleepers comes to the time that the sleeping alone takes.

#include <cobatch/cobatch.hpp>

#include <chrono>
#include <cstddef>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <support/asio.hpp>
#include <support/by_hand.hpp>
#include <support/measure.hpp>
#include <support/samples.hpp>

namespace bench {
namespace {

using cobatch::batch_predict;
using cobatch::run_loop;
using cobatch::sync_wait;
using cobatch::task;
using cobatch::thread_pool;
using namespace std::chrono_literals;

struct sleepers {
  std::size_t samples, limit;
  std::chrono::microseconds each;

  double ideal() const {
    return static_cast<double>((samples + limit - 1) / limit) * std::chrono::duration<double>(each).count();
  }
};

template <class Executor>
auto sleeping(Executor& ex, std::chrono::microseconds delay) {
  return [&ex, delay](int x) -> task<int> {
    co_await ex.schedule_after(delay);
    co_return x * 2;
  };
}

/// A job whose report compares the time of its runs with the ideal.
template <class Run>
auto timed_job(const sleepers& work, Run run) {
  auto seconds = std::make_shared<std::vector<double>>();
  return job{[=, run = std::move(run)] {
               const auto begin = std::chrono::steady_clock::now();
               auto all = run();
               seconds->push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
               return all;
             },
             doubles(work.samples),
             [=](benchmark::State& state) {
               // Without those of the warm-up and of the counting of allocations.
               double sum = 0;
               const auto runs = static_cast<std::size_t>(state.iterations());
               for (std::size_t i = seconds->size() - runs; i < seconds->size(); ++i) sum += (*seconds)[i];
               state.counters["wall_over_ideal"] = sum / static_cast<double>(runs) / work.ideal();
             }};
}

/// One coroutine for each sample and a semaphore, by hand.
task<results> gather(thread_pool& pool, const std::vector<int>& samples, sleepers work) {
  results all(samples.size());
  cobatch::async_semaphore permits(work.limit);
  group ended(samples.size());
  const auto predict = sleeping(pool, work.each);
  const auto one = [&](int x, result& slot) -> detached {
    co_await pool.schedule();
    {
      const cobatch::permit permit = co_await permits.acquire();
      try {
        slot.emplace(co_await predict(x));
      } catch (...) {
        slot = caught();
      }
    }
    ended.end();
  };
  for (std::size_t i = 0; i < samples.size(); ++i) one(samples[i], all[i]);
  co_await ended;
  co_return all;
}

#if COBATCH_BENCH_ASIO
results asio_gather(asio::thread_pool& pool, const std::vector<int>& samples, sleepers work) {
  results all(samples.size());
  asio_semaphore permits(pool.get_executor(), work.limit);
  const auto one = [&](int x, result& slot) -> asio::awaitable<void> {
    co_await acquire(permits);
    asio::steady_timer timer(co_await asio::this_coro::executor, work.each);
    co_await timer.async_wait(asio::use_awaitable);
    slot.emplace(x * 2);
    release(permits);
  };
  asio_run_all(pool, samples.size(), [&](std::size_t i) { return one(samples[i], all[i]); });
  return all;
}
#endif

void add_sleepers(const std::string& name, const sleepers& work, measures wanted, std::vector<std::size_t> pools,
                  bool peers) {
  wanted.samples = work.samples;
  add(name + "run_loop/batch_predict", wanted, [=](std::size_t n) {
    return timed_job({n, work.limit, work.each}, [=, samples = numbers(n), loop = std::make_unique<run_loop>()] {
      return loop->run(batch_predict(*loop, samples, sleeping(*loop, work.each), {.max_concurrency = work.limit}));
    });
  });
  for (const std::size_t threads : pools) {
    const std::string with = name + "pool_" + std::to_string(threads);
    add(with + "/batch_predict", wanted, [=](std::size_t n) {
      return timed_job({n, work.limit, work.each}, [=, samples = numbers(n),
                                                    pool = std::make_unique<thread_pool>(threads)] {
        return sync_wait(batch_predict(*pool, samples, sleeping(*pool, work.each), {.max_concurrency = work.limit}));
      });
    });
    if (!peers) continue;
    add(with + "/semaphore_by_hand", wanted, [=](std::size_t n) {
      return timed_job({n, work.limit, work.each},
                       [=, samples = numbers(n), pool = std::make_unique<thread_pool>(threads)] {
                         return sync_wait(gather(*pool, samples, {n, work.limit, work.each}));
                       });
    });
#if COBATCH_BENCH_ASIO
    add(with + "/asio_semaphore", wanted, [=](std::size_t n) {
      return timed_job({n, work.limit, work.each},
                       [=, samples = numbers(n), pool = std::make_unique<asio::thread_pool>(threads)] {
                         return asio_gather(*pool, samples, {n, work.limit, work.each});
                       });
    });
#endif
  }
}

}  // namespace

void add_benchmarks() {
  add_sleepers("timer/20000_of_1ms_limit_1000/", {20'000, 1000, 1ms},
               {.runs = 5, .result_size = sizeof(result), .memory = true}, {1, 2}, true);
  add_sleepers("timer/20_of_100ms_limit_5/", {20, 5, 100ms}, {.runs = 1, .warm_up = false, .allocations = false}, {1},
               false);
  add_sleepers("timer/100000_of_200ms_at_once/", {100'000, 100'000, 200ms},
               {.runs = 1, .warm_up = false, .allocations = false, .result_size = sizeof(result), .memory = true}, {2},
               true);
}

}  // namespace bench
