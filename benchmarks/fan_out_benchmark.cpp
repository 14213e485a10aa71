// What it costs to fan one predict out over many samples, beside the other ways of doing the same.

#include <cobatch/cobatch.hpp>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <future>
#include <memory>
#include <semaphore>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#if COBATCH_BENCH_HAS_TBB
#include <tbb/blocked_range.h>
#include <tbb/global_control.h>
#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>
#endif

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
using cobatch::inline_executor;
using cobatch::run_loop;
using cobatch::sync_wait;
using cobatch::task;
using cobatch::thread_pool;

constexpr std::size_t limit = 64;

std::string on_pool(std::size_t threads) {
  return "pool_" + std::to_string(threads);
}

// ---- By hand, on cobatch's own task, executors and semaphore ----

/// No fan-out, no cap: one coroutine awaits one sample after another.
template <class Predict>
task<results> plain_loop(const std::vector<int>& samples, Predict predict) {
  results all;
  all.reserve(samples.size());
  for (const int x : samples) {
    try {
      all.emplace_back(co_await predict(x));
    } catch (...) {
      all.push_back(caught());
    }
  }
  co_return all;
}

/// So many coroutines that take the next sample from a shared counter.
template <class Predict>
task<results> pullers(thread_pool& pool, const std::vector<int>& samples, Predict predict) {
  results all(samples.size());
  std::atomic<std::size_t> next{0};
  group ended(limit);
  const auto pull = [&]() -> detached {
    co_await pool.schedule();
    for (std::size_t i = 0; (i = next.fetch_add(1, std::memory_order_relaxed)) < samples.size();) {
      try {
        all[i].emplace(co_await predict(samples[i]));
      } catch (...) {
        all[i] = caught();
      }
    }
    ended.end();
  };
  for (std::size_t i = 0; i < limit; ++i) pull();
  co_await ended;
  co_return all;
}

/// A coroutine for each sample, all at once, and a semaphore that lets so many through.
template <class Predict>
task<results> gather(thread_pool& pool, const std::vector<int>& samples, Predict predict) {
  results all(samples.size());
  async_semaphore permits(limit);
  group ended(samples.size());
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

/// A predict that goes once round the pool's queue.
auto rescheduling(thread_pool& pool) {
  return [&pool](int x) -> task<int> {
    co_await pool.schedule();
    co_return x * 2;
  };
}

// ---- A trivial coroutine, and one that reschedules itself ----

void add_coroutine() {
  const std::string name = "fan_out/coroutine/";
  const measures fast{.samples = scaled(1'000'000), .result_size = sizeof(result), .memory = true};
  measures slow = fast;
  slow.runs = 2;

  add(name + "inline/batch_predict", fast, [](std::size_t n) {
    return job{[samples = numbers(n)] {
                 inline_executor ex;
                 return sync_wait(batch_predict(ex, samples, twice, {.max_concurrency = limit}));
               },
               doubles(n)};
  });
  add(name + "run_loop/batch_predict", fast, [](std::size_t n) {
    return job{[samples = numbers(n), loop = std::make_unique<run_loop>()] {
                 return loop->run(batch_predict(*loop, samples, twice, {.max_concurrency = limit}));
               },
               doubles(n)};
  });
  add(name + "run_loop/plain_loop", fast, [](std::size_t n) {
    return job{
        [samples = numbers(n), loop = std::make_unique<run_loop>()] { return loop->run(plain_loop(samples, twice)); },
        doubles(n)};
  });
  for (const std::size_t threads : {1u, 2u}) {
    add(name + on_pool(threads) + "/batch_predict", fast, [threads](std::size_t n) {
      return job{[samples = numbers(n), pool = std::make_unique<thread_pool>(threads)] {
                   return sync_wait(batch_predict(*pool, samples, twice, {.max_concurrency = limit}));
                 },
                 doubles(n)};
    });
    add(name + on_pool(threads) + "/pullers", fast, [threads](std::size_t n) {
      return job{[samples = numbers(n), pool = std::make_unique<thread_pool>(threads)] {
                   return sync_wait(pullers(*pool, samples, twice));
                 },
                 doubles(n)};
    });
    add(name + on_pool(threads) + "/semaphore_by_hand", slow, [threads](std::size_t n) {
      return job{[samples = numbers(n), pool = std::make_unique<thread_pool>(threads)] {
                   return sync_wait(gather(*pool, samples, twice));
                 },
                 doubles(n)};
    });
  }
}

void add_reschedule() {
  const std::string name = "fan_out/reschedule/";
  const measures fast{.samples = scaled(1'000'000), .runs = 3, .result_size = sizeof(result), .memory = true};
  measures slow = fast;
  slow.runs = 1;
  add(name + "run_loop/batch_predict", fast, [](std::size_t n) {
    return job{[samples = numbers(n), loop = std::make_unique<run_loop>()] {
                 const auto predict = [&loop](int x) -> task<int> {
                   co_await loop->schedule();
                   co_return x * 2;
                 };
                 return loop->run(batch_predict(*loop, samples, predict, {.max_concurrency = limit}));
               },
               doubles(n)};
  });
  for (const std::size_t threads : {1u, 2u}) {
    add(name + on_pool(threads) + "/batch_predict", fast, [threads](std::size_t n) {
      return job{[samples = numbers(n), pool = std::make_unique<thread_pool>(threads)] {
                   return sync_wait(batch_predict(*pool, samples, rescheduling(*pool), {.max_concurrency = limit}));
                 },
                 doubles(n)};
    });
    add(name + on_pool(threads) + "/pullers", fast, [threads](std::size_t n) {
      return job{[samples = numbers(n), pool = std::make_unique<thread_pool>(threads)] {
                   return sync_wait(pullers(*pool, samples, rescheduling(*pool)));
                 },
                 doubles(n)};
    });
    add(name + on_pool(threads) + "/semaphore_by_hand", slow, [threads](std::size_t n) {
      return job{[samples = numbers(n), pool = std::make_unique<thread_pool>(threads)] {
                   return sync_wait(gather(*pool, samples, rescheduling(*pool)));
                 },
                 doubles(n)};
    });
  }
}

// ---- The same with what others offer ----

/// A thread for each sample, at most so many alive.
results with_std_async(const std::vector<int>& samples) {
  results all(samples.size());
  std::counting_semaphore<> permits(limit);
  std::vector<std::future<void>> futures;
  futures.reserve(samples.size());
  for (std::size_t i = 0; i < samples.size(); ++i) {
    permits.acquire();
    futures.push_back(std::async(std::launch::async, [&, i] {
      try {
        all[i].emplace(samples[i] * 2);
      } catch (...) {
        all[i] = caught();
      }
      permits.release();
    }));
  }
  for (const std::future<void>& each : futures) each.wait();
  return all;
}

void add_std_async() {
  add("fan_out/coroutine/threads/std_async",
      {.samples = scaled(10'000), .runs = 1, .result_size = sizeof(result), .memory = true},
      [](std::size_t n) { return job{[samples = numbers(n)] { return with_std_async(samples); }, doubles(n)}; });
}

#if COBATCH_BENCH_ASIO
asio::awaitable<int> asio_twice(int x) {
  co_return x * 2;
}
asio::awaitable<int> asio_rescheduled_twice(int x) {
  co_await asio::post(asio::use_awaitable);
  co_return x * 2;
}

template <class Predict>
results asio_gather(asio::thread_pool& pool, const std::vector<int>& samples, Predict predict) {
  results all(samples.size());
  asio_semaphore permits(pool.get_executor(), limit);
  const auto one = [&](int x, result& slot) -> asio::awaitable<void> {
    co_await acquire(permits);
    try {
      slot.emplace(co_await predict(x));
    } catch (...) {
      slot = caught();
    }
    release(permits);
  };
  asio_run_all(pool, samples.size(), [&](std::size_t i) { return one(samples[i], all[i]); });
  return all;
}

template <class Predict>
results asio_pullers(asio::thread_pool& pool, const std::vector<int>& samples, Predict predict) {
  results all(samples.size());
  std::atomic<std::size_t> next{0};
  const auto pull = [&]() -> asio::awaitable<void> {
    for (std::size_t i = 0; (i = next.fetch_add(1, std::memory_order_relaxed)) < samples.size();) {
      try {
        all[i].emplace(co_await predict(samples[i]));
      } catch (...) {
        all[i] = caught();
      }
    }
  };
  asio_run_all(pool, limit, [&](std::size_t) { return pull(); });
  return all;
}
#endif

void add_asio() {
#if COBATCH_BENCH_ASIO
  const auto add_all = [](const std::string& name, auto predict, bool memory) {
    for (const std::size_t threads : {1u, 2u}) {
      add(name + on_pool(threads) + "/asio_pullers", {.samples = scaled(300'000), .runs = 1}, [=](std::size_t n) {
        return job{[=, samples = numbers(n), pool = std::make_unique<asio::thread_pool>(threads)] {
                     return asio_pullers(*pool, samples, predict);
                   },
                   doubles(n)};
      });
      add(name + on_pool(threads) + "/asio_semaphore",
          {.samples = scaled(200'000), .runs = 1, .result_size = sizeof(result), .memory = memory}, [=](std::size_t n) {
            return job{[=, samples = numbers(n), pool = std::make_unique<asio::thread_pool>(threads)] {
                         return asio_gather(*pool, samples, predict);
                       },
                       doubles(n)};
          });
    }
  };
  add_all("fan_out/coroutine/", asio_twice, true);
  add_all("fan_out/reschedule/", asio_rescheduled_twice, false);
#endif
}

// ---- A plain callable ----

void add_callable() {
  const std::string name = "fan_out/callable/";
  const measures wanted{.samples = scaled(10'000'000), .runs = 2};
  constexpr auto times_two = [](int x) { return x * 2; };
  add(name + "threads_1/for_loop", wanted, [=](std::size_t n) {
    return job{[=, samples = numbers(n)] {
                 results all;
                 all.reserve(samples.size());
                 for (const int x : samples) {
                   try {
                     all.emplace_back(times_two(x));
                   } catch (...) {
                     all.push_back(caught());
                   }
                 }
                 return all;
               },
               doubles(n)};
  });
  add(name + "threads_1/batch_predict_run_loop", wanted, [=](std::size_t n) {
    return job{[=, samples = numbers(n), loop = std::make_unique<run_loop>()] {
                 return loop->run(batch_predict(*loop, samples, times_two, {.max_concurrency = limit}));
               },
               doubles(n)};
  });
  for (const std::size_t threads : {1u, 2u}) {
    const std::string with = name + "threads_" + std::to_string(threads);
    add(with + "/batch_predict", wanted, [=](std::size_t n) {
      return job{[=, samples = numbers(n), pool = std::make_unique<thread_pool>(threads)] {
                   return sync_wait(batch_predict(*pool, samples, times_two, {.max_concurrency = limit}));
                 },
                 doubles(n)};
    });
#if COBATCH_BENCH_HAS_TBB
    const auto parallel_for = [=](tbb::task_arena& arena, const std::vector<int>& samples, results& all) {
      arena.execute([&] {
        tbb::parallel_for(tbb::blocked_range<std::size_t>(0, samples.size()), [&](const auto& range) {
          for (std::size_t i = range.begin(); i != range.end(); ++i) {
            try {
              all[i].emplace(times_two(samples[i]));
            } catch (...) {
              all[i] = caught();
            }
          }
        });
      });
    };
    add(with + "/tbb_parallel_for", wanted, [=](std::size_t n) {
      return job{[=, samples = numbers(n), arena = std::make_unique<tbb::task_arena>(static_cast<int>(threads))] {
                   results all(samples.size());
                   parallel_for(*arena, samples, all);
                   return all;
                 },
                 doubles(n)};
    });
    // The slots are there already: half of the memory traffic.
    add(with + "/tbb_parallel_for_into_given_slots", wanted, [=](std::size_t n) {
      auto all = std::make_shared<results>(n);
      return job{[=, samples = numbers(n), arena = std::make_unique<tbb::task_arena>(static_cast<int>(threads))] {
                   parallel_for(*arena, samples, *all);
                   return all;
                 },
                 [n](const std::shared_ptr<results>& given) { return are_doubles(*given, n); }};
    });
#endif
  }
}

// ---- Computing, of even and of uneven cost ----

using computed = std::vector<cobatch::expected<std::uint32_t, cobatch::error>>;

struct costs {
  std::vector<std::uint32_t> microseconds;
  std::array<std::vector<std::uint32_t>, 2> schedule = list_schedule(microseconds);
  std::vector<std::uint32_t> right{};  // what each sample comes to
};

std::uint32_t compute_sample(const costs& work, std::uint32_t i) {
  return compute(i, work.microseconds[i] * turns_per_microsecond());
}

/// One in `every` samples costs `more` microseconds, the others one.
std::vector<std::uint32_t> uneven(std::size_t samples, std::size_t every, std::uint32_t more) {
  std::vector<std::uint32_t> all(samples, 1);
  for (std::size_t i = 0; i < samples; i += every) all[i + i / every * 37 % every] = more;
  return all;
}

/// With `fan_out(samples, predict)`. The ideal is measured right before each run, on two bare threads.
template <class Make>
void add_compute(const std::string& name, std::vector<std::uint32_t> microseconds, Make make) {
  const std::size_t samples = microseconds.size();
  auto work = std::make_shared<costs>(costs{std::move(microseconds)});
  auto wall = std::make_shared<std::vector<double>>(), ideal = std::make_shared<std::vector<double>>();
  add(name, {.samples = samples, .runs = 1, .warm_up = false, .allocations = false}, [=](std::size_t n) {
    if (work->right.empty()) {
      work->right.resize(samples);
      run_lists(work->schedule, [&](std::uint32_t i) { work->right[i] = compute_sample(*work, i); });
    }
    std::vector<std::uint32_t> indices(n);
    std::iota(indices.begin(), indices.end(), 0u);
    return job{[=, fan_out = make()] {
                 const auto begin = std::chrono::steady_clock::now();
                 auto all = fan_out(indices, [&](std::uint32_t i) { return compute_sample(*work, i); });
                 wall->push_back(seconds_since(begin));
                 return all;
               },
               [=](const computed& all) {
                 for (std::size_t i = 0; i < all.size(); ++i) {
                   if (!all[i] || *all[i] != work->right[i]) return false;
                 }
                 return true;
               },
               [=](benchmark::State& state) {
                 state.counters["wall_over_ideal"] = median(*wall) / median(*ideal);
                 wall->clear();
                 ideal->clear();
               },
               [=] {
                 ideal->push_back(run_lists(
                     work->schedule, [&](std::uint32_t i) { benchmark::DoNotOptimize(compute_sample(*work, i)); }));
               }};
  });
}

void add_computing() {
  const std::size_t many = scaled(200'000);
  const std::size_t fewer = scaled(50'000);
  const std::vector<std::uint32_t> even(many, 1);
  const std::vector<std::uint32_t> mixed = uneven(fewer, 100, 100);
  std::vector<std::uint32_t> heavy_last = mixed, heavy_first = mixed;
  std::sort(heavy_last.begin(), heavy_last.end());
  std::sort(heavy_first.rbegin(), heavy_first.rend());

  const auto add_shapes = [&](const std::string& who, auto make) {
    add_compute("fan_out/compute/even/" + who, even, make);
    add_compute("fan_out/compute/uneven/" + who, mixed, make);
    add_compute("fan_out/compute/heavy_first/" + who, heavy_first, make);
    add_compute("fan_out/compute/heavy_last/" + who, heavy_last, make);
  };
  add_shapes("batch_predict", [] {
    return [pool = std::make_unique<thread_pool>(2)](const std::vector<std::uint32_t>& samples, auto work) {
      return sync_wait(batch_predict(*pool, samples, work, {.max_concurrency = limit}));
    };
  });
  add_shapes("batch_predict_of_coroutines", [] {
    return [pool = std::make_unique<thread_pool>(2)](const std::vector<std::uint32_t>& samples, auto work) {
      const auto predict = [&work](std::uint32_t i) -> task<std::uint32_t> { co_return work(i); };
      return sync_wait(batch_predict(*pool, samples, predict, {.max_concurrency = limit}));
    };
  });
#if COBATCH_BENCH_HAS_TBB
  add_shapes("tbb_parallel_for", [] {
    return [arena = std::make_unique<tbb::task_arena>(2)](const std::vector<std::uint32_t>& samples, auto work) {
      computed all(samples.size());
      arena->execute([&] {
        tbb::parallel_for(tbb::blocked_range<std::size_t>(0, samples.size()), [&](const auto& range) {
          for (std::size_t i = range.begin(); i != range.end(); ++i) all[i].emplace(work(samples[i]));
        });
      });
      return all;
    };
  });
#endif
}

}  // namespace

void add_benchmarks() {
  add_coroutine();
  add_reschedule();
  add_std_async();
  add_asio();
  add_callable();
  add_computing();
}

}  // namespace bench
