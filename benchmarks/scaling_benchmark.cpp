// How each kind of work gets on with more threads: one row each, one column per number of threads.
//
//   scaling_benchmark                  1, 2, 4 and so on, up to the machine's hardware threads
//   scaling_benchmark 1 8 24           these
//   --csv=FILE                         also as comma-separated values, for benchmarks/plot
//   --only=TEXT                        the rows whose name (first column of the CSV) holds TEXT
//   --quick                            a tenth of the samples, fewer runs
//   --patient                          a cell that other programs disturb is measured again, up to 60 times; the calmest counts
//
// A program of its own, without Google Benchmark, so that it can be built anywhere and carried to many cores:
//
//   g++ -std=c++20 -O3 -DNDEBUG -static -pthread -I include -I benchmarks benchmarks/scaling_benchmark.cpp -o scaling
//
// Every run's result is checked, outside the time; wrong results end the program. The results are new memory in each run,
// as they are for a user, so the first touch of their pages is in the times (but for `trivial/into`).

#include <cobatch/cobatch.hpp>
#if __has_include(<cobatch/batch_predict_into.hpp>)
#include <cobatch/batch_predict_into.hpp>
#endif

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <ranges>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include <support/by_hand.hpp>
#include <support/compute.hpp>
#include <support/samples.hpp>
#include <support/scaling.hpp>
#include <support/statistics.hpp>

namespace bench {
namespace {

using namespace cobatch;  // batch_predict_into, too, where there is one
using namespace std::chrono_literals;

constexpr std::size_t limit = 64;

// ---- What the rows share ----

std::shared_ptr<thread_pool> pool_of(std::size_t threads) {
  return std::make_shared<thread_pool>(threads);
}

/// What one turn of compute() takes right now, on a thread that is alone.
double seconds_per_turn() {
  const std::uint64_t turns = turns_per_microsecond() * 1'000;
  std::vector<double> seconds(7);
  for (std::uint32_t i = 0; i < seconds.size(); ++i) {
    const auto begin = std::chrono::steady_clock::now();
    volatile std::uint32_t end = compute(i, turns);
    (void)end;
    seconds[i] = seconds_since(begin) / static_cast<double>(turns);
  }
  return median(seconds);
}

/// So many turns for each sample, on so many threads.
double ideal_of(double turns, std::size_t samples, std::size_t threads) {
  return seconds_per_turn() * turns * static_cast<double>(samples) / static_cast<double>(std::min(threads, cores()));
}

std::uint64_t turns_of(std::chrono::nanoseconds time) {
  return std::max<std::uint64_t>(1, turns_per_microsecond() * static_cast<std::uint64_t>(time.count()) / 1'000);
}

/// A predict that computes so many turns.
auto computing(std::uint64_t turns) {
  return [turns](int x) -> task<std::uint32_t> { co_return compute(static_cast<std::uint32_t>(x), turns); };
}

/// All values there, and some of them compared: computing all again would take longer than the batch.
auto computed(std::size_t count, std::function<std::uint64_t(int)> turns) {
  return [count, turns = std::move(turns)](const auto& all) {
    if (all.size() != count) return false;
    if (!std::ranges::all_of(all, [](const auto& each) { return each.has_value(); })) return false;
    for (std::size_t i = 0; i < count; i += count / 13 + 1) {
      const int x = static_cast<int>(i);
      if (*all[i] != compute(static_cast<std::uint32_t>(x), turns(x))) return false;
    }
    return true;
  };
}

auto equals(long long expected_value) {
  return [expected_value](long long value) { return value == expected_value; };
}

/// `work(first, last)` on so many bare threads, each with an equal share of 0 to count.
template <class Work>
void on_bare_threads(std::size_t threads, std::size_t count, const Work& work) {
  std::vector<std::thread> running;
  for (std::size_t t = 0; t < threads; ++t) {
    running.emplace_back([&work, first = count * t / threads, last = count * (t + 1) / threads] { work(first, last); });
  }
  for (std::thread& each : running) each.join();
}

/// One batch over the numbers from 0, awaited by the thread that has no other work.
template <class Predict>
auto one_batch(std::size_t samples, std::size_t threads, Predict predict, batch_options options) {
  return [=, pool = pool_of(threads), in = numbers(samples)] {
    return sync_wait(batch_predict(*pool, in, predict, options));
  };
}

// ---- Computing ----

void add_computing(table& all) {
  const std::uint64_t ten_us = turns_of(10us);
  const auto ten_us_each = computed(65, [=](int) { return ten_us; });
  all.add({.name = "few/10us",
           .title = "65 samples of 10 us [us]",
           .shown = unit::us_per_batch,
           .goal = "<= 130; 250 at 24, 64",
           .samples = 65,
           .runs = 51,
           .beyond_cores = true},
          [=](std::size_t n, std::size_t threads) {
            return batch_job{one_batch(n, threads, computing(ten_us), {}), ten_us_each};
          });
  all.add({.name = "few/10us_awaited_on_the_pool",
           .title = "the same, awaited on the pool [us]",
           .shown = unit::us_per_batch,
           .goal = "<= 130; 250 at 24, 64",
           .samples = 65,
           .runs = 51,
           .beyond_cores = true},
          [=](std::size_t n, std::size_t threads) {
            return batch_job{[pool = pool_of(threads), in = numbers(n), predict = computing(ten_us)] {
                               const auto on_the_pool = [&]() -> task<std::vector<expected<std::uint32_t, error>>> {
                                 co_await pool->schedule();
                                 co_return co_await batch_predict(*pool, in, predict);
                               };
                               return sync_wait(on_the_pool());
                             },
                             ten_us_each};
          });

  const std::uint64_t light = turns_of(140ns), heavy = 100 * light;
  const auto uneven = [=](int x) { return x % 100 == 50 ? heavy : light; };
  all.add({.name = "compute/uneven",
           .title = "1 in 100 costs 100 x, wall over ideal",
           .shown = unit::wall_over_ideal,
           .goal = "<= 1.1",
           .samples = 400'000},
          [=](std::size_t n, std::size_t threads) {
            const auto predict = [uneven](int x) -> task<std::uint32_t> {
              co_return compute(static_cast<std::uint32_t>(x), uneven(x));
            };
            const double mean = 0.99 * static_cast<double>(light) + 0.01 * static_cast<double>(heavy);
            return batch_job{one_batch(n, threads, predict, {.max_concurrency = limit}), computed(n, uneven),
                             ideal_of(mean, n, threads)};
          });

  const std::uint64_t even = turns_of(1'400ns);
  const auto even_each = [=](int) { return even; };
  all.add({.name = "compute/even",
           .title = "1.4 us of computing, wall over ideal",
           .shown = unit::wall_over_ideal,
           .goal = "<= 1.06",
           .samples = 400'000},
          [=](std::size_t n, std::size_t threads) {
            return batch_job{one_batch(n, threads, computing(even), {.max_concurrency = limit}), computed(n, even_each),
                             ideal_of(static_cast<double>(even), n, threads)};
          });
  all.add({.name = "compute/even_bare_threads",
           .title = "  on bare threads, an equal share each",
           .shown = unit::wall_over_ideal,
           .samples = 400'000},
          [=](std::size_t n, std::size_t threads) {
            return batch_job{[=] {
                               std::vector<expected<std::uint32_t, error>> out(n);
                               on_bare_threads(threads, n, [&](std::size_t i, std::size_t last) {
                                 for (; i < last; ++i) out[i] = compute(static_cast<std::uint32_t>(i), even);
                               });
                               return out;
                             },
                             computed(n, even_each), ideal_of(static_cast<double>(even), n, threads)};
          });
}

// ---- Trivial predicts: what is measured is cobatch ----

template <class Pool>
concept can_predict_into = requires(Pool& pool, const std::vector<int>& in, results& out, batch_options options) {
  batch_predict_into(pool, in, out, twice, options);
};

/// Only where there is a batch_predict_into.
template <class Pool>
void add_into(table& all) {
  if constexpr (can_predict_into<Pool>) {
    all.add({.name = "trivial/into", .title = "the same, into outcomes of the caller", .goal = "<= 1.5"},
            [](std::size_t n, std::size_t threads) {
              return batch_job{
                  [pool = std::make_shared<Pool>(threads), in = numbers(n), out = std::make_shared<results>(n)] {
                    (void)sync_wait(batch_predict_into(*pool, in, *out, twice, {.max_concurrency = limit}));
                    return out;
                  },
                  [n](const std::shared_ptr<results>& out) {
                    const bool right = are_doubles(*out, n);
                    std::ranges::fill(*out, result(0));
                    return right;
                  }};
            });
  }
}

/// A million leaves: each node is a batch of ten.
task<std::uint64_t> skynet(thread_pool& pool, std::uint64_t first, std::uint64_t leaves) {
  if (leaves == 1) co_return first;
  const std::uint64_t share = leaves / 10;
  const auto child = [&pool, share](std::uint64_t from) { return skynet(pool, from, share); };
  std::array<std::uint64_t, 10> firsts{};
  for (std::size_t i = 0; i < firsts.size(); ++i) firsts[i] = first + i * share;
  const auto sums = co_await batch_predict(pool, firsts, child);
  std::uint64_t sum = 0;
  for (const auto& each : sums) sum += each.value_or(0);
  co_return sum;
}

void add_trivial(table& all) {
  all.add({.name = "trivial/coroutine", .title = "trivial coroutine, limit 64", .goal = "<= 3"},
          [](std::size_t n, std::size_t threads) {
            return batch_job{one_batch(n, threads, twice, {.max_concurrency = limit}),
                             [n](const results& out) { return are_doubles(out, n); }};
          });
  add_into<thread_pool>(all);
  all.add({.name = "trivial/by_hand", .title = "  by hand: bare threads, one shared counter"}, [](std::size_t n,
                                                                                                  std::size_t threads) {
    return batch_job{[threads, in = numbers(n)] {
                       results out(in.size());
                       std::atomic<std::size_t> next{0};
                       on_bare_threads(threads, threads, [&](std::size_t, std::size_t) {
                         for (std::size_t i = 0; (i = next.fetch_add(1, std::memory_order_relaxed)) < in.size();) {
                           out[i] = sync_wait(twice(in[i]));
                         }
                       });
                       return out;
                     },
                     [n](const results& out) { return are_doubles(out, n); }};
  });
  all.add({.name = "trivial/reschedules", .title = "reschedules once, limit 64", .goal = "<= 8"},
          [](std::size_t n, std::size_t threads) {
            auto pool = pool_of(threads);
            const auto predict = [on = pool.get()](int x) -> task<int> {
              co_await on->schedule();
              co_return x * 2;
            };
            return batch_job{[=, in = numbers(n)] {
                               return sync_wait(batch_predict(*pool, in, predict, {.max_concurrency = limit}));
                             },
                             [n](const results& out) { return are_doubles(out, n); }};
          });
  all.add({.name = "nested/skynet",
           .title = "skynet: a tree of batches of 10, a leaf",
           .goal = "T = 1 <= 60, 16 <= 8",
           .runs = 3},
          [](std::size_t n, std::size_t threads) {
            return batch_job{[=, pool = pool_of(threads)] { return sync_wait(skynet(*pool, 0, n)); },
                             equals(static_cast<long long>(n) * static_cast<long long>(n - 1) / 2)};
          });
  all.add({.name = "nested/thousand", .title = "1,000 batches of 1,000 inside one, limit 16", .goal = "<= 1.5"},
          [](std::size_t n, std::size_t threads) {
            return batch_job{
                [pool = pool_of(threads), outer = numbers(n / 1'000), inner = numbers(1'000)] {
                  const auto predict = [&](int) -> task<int> {
                    const results out = co_await batch_predict(*pool, inner, twice, {.max_concurrency = 16});
                    co_return are_doubles(out, inner.size()) ? 1 : 0;
                  };
                  return sync_wait(batch_predict(*pool, outer, predict, {.max_concurrency = 16}));
                },
                [n](const results& out) {
                  return out.size() == n / 1'000 &&
                         std::ranges::all_of(out, [](const result& each) { return each.value_or(0) == 1; });
                }};
          });
}

// ---- Waiting ----

/// A count on a line of each thread's own, so that what is measured does not wait for the counting.
class spread_counter {
 public:
  void add() noexcept {
    static std::atomic<std::size_t> threads{0};
    thread_local const std::size_t own = threads.fetch_add(1, std::memory_order_relaxed);
    // Threads may share a line after many others have come and gone: hence no plain store. Release: pairs with sum().
    counts_[own % counts_.size()].count.fetch_add(1, std::memory_order_release);
  }
  std::size_t sum() const noexcept {
    std::size_t all = 0;
    for (const line& each : counts_) all += each.count.load(std::memory_order_acquire);
    return all;
  }

 private:
  struct alignas(64) line {
    std::atomic<std::size_t> count{0};
  };
  std::array<line, 256> counts_;
};

detached count_on(thread_pool& pool, spread_counter& resumed) {
  co_await pool.schedule();
  resumed.add();
}

void add_waiting(table& all) {
  all.add(
      {.name = "wait/sleepers",
       .title = "200,000 sleep 1 ms, limit 10,000, over ideal",
       .shown = unit::wall_over_ideal,
       .goal = "T = 1 <= 1.8, else 1.15",
       .samples = 200'000},
      [](std::size_t n, std::size_t threads) {
        constexpr std::size_t at_once = 10'000;
        auto pool = pool_of(threads);
        const auto predict = [on = pool.get()](int x) -> task<int> {
          co_await on->schedule_after(1ms);
          co_return x * 2;
        };
        return batch_job{
            [=, in = numbers(n)] { return sync_wait(batch_predict(*pool, in, predict, {.max_concurrency = at_once})); },
            [n](const results& out) { return are_doubles(out, n); }, static_cast<double>(n / at_once) * 1e-3};
      });
  all.add({.name = "wait/semaphore",
           .title = "a semaphore of 4, 64 coroutines, over a turn",
           .goal = "<= 250",
           .samples = 192'000},
          [](std::size_t n, std::size_t threads) {
            return batch_job{[=, pool = pool_of(threads), callers = numbers(64)] {
                               async_semaphore permits(4);
                               const auto caller = [&](int) -> task<int> {
                                 int turns = 0;
                                 for (; turns < static_cast<int>(n / 64); ++turns) {
                                   const permit one = co_await permits.acquire();
                                   co_await pool->schedule();
                                 }
                                 co_return turns;
                               };
                               return sync_wait(batch_predict(*pool, callers, caller));
                             },
                             [n](const results& out) {
                               return out.size() == 64 && std::ranges::all_of(out, [n](const result& each) {
                                        return each.value_or(0) == static_cast<int>(n / 64);
                                      });
                             }};
          });
  all.add(
      {.name = "wait/posted", .title = "handles posted by T/2 threads outside", .goal = "<= 120", .samples = 400'000},
      [](std::size_t n, std::size_t threads) {
        return batch_job{[=, pool = pool_of(threads)] {
                           spread_counter resumed;
                           on_bare_threads(std::max<std::size_t>(1, threads / 2), n,
                                           [&](std::size_t i, std::size_t last) {
                                             for (; i < last; ++i) count_on(*pool, resumed);
                                           });
                           while (resumed.sum() < n) std::this_thread::sleep_for(20us);
                           return static_cast<long long>(resumed.sum());
                         },
                         equals(static_cast<long long>(n))};
      });
}

// ---- Streams ----

template <class Predict>
task<std::uint64_t> sum_of_stream(thread_pool& pool, std::size_t count, const Predict& predict) {
  co_await pool.schedule();
  auto stream = predict_stream(pool, std::views::iota(0, static_cast<int>(count)), predict, {.max_concurrency = limit});
  std::uint64_t sum = 0;
  while (const auto item = co_await stream.next()) sum += static_cast<std::uint64_t>(item->result.value_or(0));
  co_return sum;
}

void add_streams(table& all) {
  all.add({.name = "stream/trivial",
           .title = "a stream over iota, limit 64",
           .goal = "never above T = 1",
           .samples = 300'000},
          [](std::size_t n, std::size_t threads) {
            return batch_job{[=, pool = pool_of(threads)] { return sync_wait(sum_of_stream(*pool, n, twice)); },
                             equals(static_cast<long long>(n) * static_cast<long long>(n - 1))};
          });
  const std::uint64_t turns = turns_of(1us);
  all.add({.name = "stream/1us",
           .title = "  with 1 us of computing, wall over ideal",
           .shown = unit::wall_over_ideal,
           .goal = "<= 1.18",
           .samples = 200'000},
          [=](std::size_t n, std::size_t threads) {
            std::uint64_t sum = 0;
            for (std::size_t i = 0; i < n; ++i) sum += compute(static_cast<std::uint32_t>(i), turns);
            return batch_job{[=, pool = pool_of(threads), predict = computing(turns)] {
                               return sync_wait(sum_of_stream(*pool, n, predict));
                             },
                             [sum](std::uint64_t value) { return value == sum; },
                             ideal_of(static_cast<double>(turns), n, threads)};
          });
}

// ---- Options, and the micro-batcher ----

/// What owns a micro_batcher must close it.
struct batched_model {
  explicit batched_model(std::size_t threads) : pool(threads) {}
  batched_model(const batched_model&) = delete;
  batched_model& operator=(const batched_model&) = delete;
  ~batched_model() { sync_wait(batcher.close()); }

  static std::vector<int> predict_many(std::span<const int> batch) {
    std::vector<int> all;
    all.reserve(batch.size());
    for (const int x : batch) all.push_back(x * 2);
    return all;
  }

  thread_pool pool;
  micro_batcher<int, int> batcher{
      pool, predict_many, {.max_batch_size = 64, .max_delay = 1ms, .max_concurrent_batches = 16}};
};

void add_options(table& all) {
  all.add({.name = "options/timeout_and_retry",
           .title = "a timeout and three attempts allowed, none fails",
           .goal = "T = 1 <= 60, 16 <= 8"},
          [](std::size_t n, std::size_t threads) {
            return batch_job{
                one_batch(n, threads, twice, {.max_concurrency = limit, .timeout = 1s, .retry = {.max_attempts = 3}}),
                [n](const results& out) { return are_doubles(out, n); }};
          });
  all.add({.name = "options/metrics", .title = "metrics on", .goal = "T = 1 <= 60, 16 <= 6"},
          [](std::size_t n, std::size_t threads) {
            auto metrics = std::make_shared<batch_metrics>();
            return batch_job{one_batch(n, threads, twice, {.max_concurrency = limit, .observer = metrics.get()}),
                             [n, metrics](const results& out) {
                               return are_doubles(out, n) && metrics->snapshot().succeeded % n == 0;
                             }};
          });
  all.add({.name = "micro_batch/free_model",
           .title = "micro_batcher, 1,024 callers, batches of 64",
           .goal = "T = 1 <= 120, 16 <= 60",
           .samples = 300'000},
          [](std::size_t n, std::size_t threads) {
            return batch_job{[model = std::make_shared<batched_model>(threads), in = numbers(n)] {
                               const auto predict = [&](int x) { return model->batcher.predict(x); };
                               return sync_wait(batch_predict(model->pool, in, predict, {.max_concurrency = 1'024}));
                             },
                             [n](const results& out) { return are_doubles(out, n); }};
          });
  all.add({.name = "options/shared_semaphore", .title = "a shared semaphore of 64, trivial", .goal = "<= 4"},
          [](std::size_t n, std::size_t threads) {
            auto permits = std::make_shared<async_semaphore>(64);
            return batch_job{
                one_batch(n, threads, twice, {.semaphore = permits.get()}),
                [n, permits](const results& out) { return are_doubles(out, n) && permits->available() == 64; }};
          });
}

}  // namespace
}  // namespace bench

int main(int argc, char** argv) {
  return bench::run_table(std::span(argv, static_cast<std::size_t>(argc)).subspan(1), [](bench::table& all) {
    bench::add_computing(all);
    bench::add_trivial(all);
    bench::add_waiting(all);
    bench::add_streams(all);
    bench::add_options(all);
  });
}
