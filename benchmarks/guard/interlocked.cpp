// One piece of work, so many samples of it, on so many threads: `interlocked NAME SAMPLES THREADS`. What it takes of
// mutexes and of interlocked instructions is counted from outside, by interlocked.py; that needs no cores.
//
// Everything is awaited on the pool, so on one thread the counts come out the same every time (but for timers).

#include <cobatch/cobatch.hpp>
#if __has_include(<cobatch/batch_predict_into.hpp>)
#include <cobatch/batch_predict_into.hpp>
#endif

#include <dlfcn.h>
#include <pthread.h>
#include <time.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ranges>
#include <span>
#include <string_view>
#include <vector>

#include <support/samples.hpp>

namespace {

/// Under valgrind all that runs is some fifty times as slow, but not the clock: what goes by the clock (how much of the
/// input is claimed at a time, how many timers are due at once) would do it fifty times as often as it does in earnest.
constexpr std::int64_t clock_slowed_by = 50;
constexpr std::int64_t second = 1'000'000'000;

}  // namespace

/// Replaces the standard library's.
std::chrono::steady_clock::time_point std::chrono::steady_clock::now() noexcept {
  timespec time{};
  ::clock_gettime(CLOCK_MONOTONIC, &time);
  return time_point(std::chrono::nanoseconds((time.tv_sec * second + time.tv_nsec) / clock_slowed_by));
}

/// Replaces the system's: who waits, waits by the same clock.
extern "C" int pthread_cond_clockwait(pthread_cond_t* condition, pthread_mutex_t* mutex, clockid_t clock,
                                      const timespec* until) {
  static const auto system = reinterpret_cast<decltype(&pthread_cond_clockwait)>(
      ::dlsym(RTLD_NEXT, "pthread_cond_clockwait"));
  const std::int64_t slowed = (until->tv_sec * second + until->tv_nsec) * clock_slowed_by;
  const timespec real{slowed / second, slowed % second};
  return system(condition, mutex, clock, &real);
}

namespace {

using namespace cobatch;  // batch_predict_into, too, where there is one
using namespace std::chrono_literals;
using bench::twice;

constexpr std::size_t limit = 64;

template <class Predict>
task<bool> are_doubled(thread_pool& pool, const std::vector<int>& samples, Predict& predict, batch_options options) {
  co_await pool.schedule();
  const bench::results all = co_await batch_predict(pool, samples, predict, options);
  co_return bench::are_doubles(all, samples.size());
}

bool plain(thread_pool& pool, const std::vector<int>& samples) {
  return sync_wait(are_doubled(pool, samples, twice, {.max_concurrency = limit}));
}

template <class Pool>
concept can_predict_into = requires(Pool& pool, const std::vector<int>& in, bench::results& out,
                                    batch_options options) {
  batch_predict_into(pool, in, out, twice, options);
};

template <class Pool>
task<bool> doubled_into(Pool& pool, const std::vector<int>& samples) {
  co_await pool.schedule();
  bench::results out(samples.size());
  (void)co_await batch_predict_into(pool, samples, out, twice, {.max_concurrency = limit});
  co_return bench::are_doubles(out, samples.size());
}

/// Where there is no batch_predict_into, main() says so.
template <class Pool>
bool into(Pool& pool, const std::vector<int>& samples) {
  if constexpr (can_predict_into<Pool>) {
    return sync_wait(doubled_into(pool, samples));
  } else {
    std::puts("not there");
    std::exit(EXIT_SUCCESS);
  }
}

bool timeouts(thread_pool& pool, const std::vector<int>& samples) {
  return sync_wait(
      are_doubled(pool, samples, twice, {.max_concurrency = limit, .timeout = 1h, .retry = {.max_attempts = 3}}));
}

bool metrics(thread_pool& pool, const std::vector<int>& samples) {
  batch_metrics counted;
  return sync_wait(are_doubled(pool, samples, twice, {.max_concurrency = limit, .observer = &counted})) &&
         counted.snapshot().succeeded == samples.size();
}

bool reschedules(thread_pool& pool, const std::vector<int>& samples) {
  const auto predict = [&pool](int x) -> task<int> {
    co_await pool.schedule();
    co_return x * 2;
  };
  return sync_wait(are_doubled(pool, samples, predict, {.max_concurrency = limit}));
}

bool sleepers(thread_pool& pool, const std::vector<int>& samples) {
  const auto predict = [&pool](int x) -> task<int> {
    co_await pool.schedule_after(1ms);
    co_return x * 2;
  };
  return sync_wait(are_doubled(pool, samples, predict, {.max_concurrency = 1'000}));
}

task<long long> sum_of_stream(thread_pool& pool, std::size_t count) {
  co_await pool.schedule();
  auto stream = predict_stream(pool, std::views::iota(0, static_cast<int>(count)), twice, {.max_concurrency = limit});
  long long sum = 0;
  while (const auto item = co_await stream.next()) sum += item->result.value_or(-1);
  co_return sum;
}

bool stream(thread_pool& pool, const std::vector<int>& samples) {
  const auto n = static_cast<long long>(samples.size());
  return sync_wait(sum_of_stream(pool, samples.size())) == n * (n - 1);
}

bool micro_batch(thread_pool& pool, const std::vector<int>& samples) {
  const auto predict_many = [](std::span<const int> batch) {
    std::vector<int> all;
    all.reserve(batch.size());
    for (const int x : batch) all.push_back(x * 2);
    return all;
  };
  micro_batcher<int, int> batcher(pool, predict_many,
                                  {.max_batch_size = 64, .max_delay = 1ms, .max_concurrent_batches = 16});
  const auto predict = [&](int x) { return batcher.predict(x); };
  const bool right = sync_wait(are_doubled(pool, samples, predict, {.max_concurrency = 1'024}));
  sync_wait(batcher.close());
  return right;
}

constexpr struct {
  std::string_view name;
  bool (*run)(thread_pool&, const std::vector<int>&);
} works[] = {
    {"plain", plain},     {"into", into<thread_pool>},        {"timeouts", timeouts},
    {"metrics", metrics}, {"reschedules", reschedules},       {"sleepers", sleepers},
    {"stream", stream},   {"micro_batch", micro_batch},
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  for (const auto& work : works) {
    if (work.name != argv[1]) continue;
    const std::vector<int> samples = bench::numbers(std::strtoul(argv[2], nullptr, 10));
    thread_pool pool(std::strtoul(argv[3], nullptr, 10));
    return work.run(pool, samples) ? 0 : 3;
  }
  return 2;
}
