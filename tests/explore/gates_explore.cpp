// What a sample must have before it starts, and those who give and take it elsewhere: shared semaphores, weights, rates,
// the time that a sample may wait; and a batch that is halted meanwhile.

#include <cobatch/batch_predict.hpp>
#include <cobatch/rate_limiter.hpp>
#include <cobatch/task.hpp>

#include <chrono>
#include <stdexcept>
#include <vector>

#include "scenario.hpp"

namespace x = cobatch_explore;
using namespace std::chrono_literals;
using cobatch::errc;
using explored::timed_executor;

namespace {

struct tally {
  int values = 0, queue_timed_out = 0, not_started = 0, cancelled = 0, others = 0;
  int all() const { return values + queue_timed_out + not_started + cancelled + others; }

  template <class Results>
  void count(const Results& results) {
    for (const auto& each : results) {
      if (each.has_value()) {
        ++values;
      } else {
        switch (each.error().code) {
          case errc::queue_timed_out:
            ++queue_timed_out;
            break;
          case errc::not_started:
            ++not_started;
            break;
          case errc::cancelled:
            ++cancelled;
            break;
          default:
            ++others;
        }
      }
    }
  }
};

template <class Executor, class Predict>
explored::fire_and_forget run(Executor& ex, const std::vector<int>& samples, Predict& predict,
                              cobatch::batch_options options, tally& count, x::atomic<int>& left) {
  co_await cobatch::schedule(ex);
  const auto results = co_await cobatch::batch_predict(ex, samples, predict, options);
  count.count(results);
  if (left.fetch_sub(1) == 1) ex.close();
}

}  // namespace

SCENARIO("gates: a permit that a foreign thread holds", .stale = 0) {
  explored::executor ex(2);
  cobatch::async_semaphore semaphore(1);
  auto held = semaphore.try_acquire();
  const std::vector<int> samples{1, 2};
  auto predict = [](int sample) { return sample; };
  tally count;
  x::atomic<int> left{1};
  run(ex, samples, predict, {.semaphore = &semaphore}, count, left);
  x::threads({[&] { ex.work(); }, [&] { ex.work(); }, [&] { held->release(); }});
  x::check(count.values == 2, "not one outcome each");
  x::check(semaphore.available() == 1 && semaphore.waiting() == 0, "permits are lost, or made");
}

SCENARIO("gates: a stop while a sample waits for its permit", .stale = 0) {
  explored::executor ex(1);
  cobatch::async_semaphore semaphore(1);
  auto held = semaphore.try_acquire();
  std::stop_source stop;
  const std::vector<int> samples{1, 2};
  auto predict = [](int sample) { return sample; };
  tally count;
  x::atomic<int> left{1};
  run(ex, samples, predict, {.semaphore = &semaphore, .stop = stop}, count, left);
  x::threads({[&] { ex.work(); }, [&] { held->release(); }, [&] { stop.request_stop(); }});
  x::check(count.all() == 2 && count.others == 0, "not one outcome each");
  x::check(semaphore.available() == 1 && semaphore.waiting() == 0, "permits are lost, or made");
}

SCENARIO("gates: the time for its permit is up while it is granted", .stale = 0) {
  timed_executor ex(1);
  cobatch::async_semaphore semaphore(1);
  auto held = semaphore.try_acquire();
  const std::vector<int> samples{1, 2};
  auto predict = [](int sample) { return sample; };
  tally count;
  x::atomic<int> left{1};
  run(ex, samples, predict, {.semaphore = &semaphore, .queue_timeout = 1ms}, count, left);
  x::threads({[&] { ex.work(); }, [&] { held->release(); }});
  x::check(count.all() == 2 && count.others == 0, "not one outcome each");
  x::check(semaphore.available() == 1 && semaphore.waiting() == 0, "permits are lost, or made");
}

SCENARIO("gates: weights of samples that end elsewhere", .stale = 0) {
  explored::executor ex(2);
  x::channel server;
  const std::vector<int> samples{1, 2, 1};
  auto predict = cobatch::weighted(
      [&](int sample) -> cobatch::task<int> {
        co_await explored::handed_to{&server};
        co_return sample;
      },
      [](int sample) { return sample; });
  tally count;
  x::atomic<int> left{1};
  run(ex, samples, predict, {.max_concurrency = 2, .max_weight = 2}, count, left);
  x::threads({[&] { ex.work(); }, [&] { ex.work(); }, [&] { explored::serve(server, 3); }});
  x::check(count.values == 3, "not one outcome each");
}

SCENARIO("gates: the first failure halts the batch", .stale = 0) {
  explored::executor ex(2);
  x::channel server;
  const std::vector<int> samples{1, 2, 3};
  auto predict = [&](int sample) -> cobatch::task<int> {
    co_await explored::handed_to{&server};
    if (sample == 1) throw std::runtime_error("the first one fails");
    co_return sample;
  };
  tally count;
  x::atomic<int> left{1};
  const auto whole = [&]() -> explored::fire_and_forget {
    co_await cobatch::schedule(ex);
    const auto results =
        co_await cobatch::batch_predict(ex, samples, predict, {.max_concurrency = 2, .max_failures = 1});
    count.count(results);
    server.close();
    ex.close();
  };
  whole();
  x::threads({[&] { ex.work(); }, [&] { ex.work(); }, [&] { explored::serve(server, 3); }});
  x::check(count.all() == 3, "not one outcome each");
}

SCENARIO("gates: a rate, two batches", .stale = 0) {
  timed_executor ex(2);
  cobatch::rate_limiter rate(1000.0, 1);
  const std::vector<int> samples{1, 2};
  auto predict = [](int sample) { return sample; };
  tally first, second;
  x::atomic<int> left{2};
  run(ex, samples, predict, {.rate = &rate}, first, left);
  run(ex, samples, predict, {.rate = &rate}, second, left);
  x::threads({[&] { ex.work(); }, [&] { ex.work(); }});
  x::check(first.values == 2 && second.values == 2, "not one outcome each");
}

SCENARIO("gates: two batches, two lanes each, one permit", .stale = 0) {
  explored::executor ex(2);
  cobatch::async_semaphore semaphore(1);
  const std::vector<int> samples{1, 2};
  auto predict = [&](int sample) -> cobatch::task<int> {
    co_await cobatch::schedule(ex);
    co_return sample;
  };
  tally first, second;
  x::atomic<int> left{2};
  run(ex, samples, predict, {.max_concurrency = 2, .semaphore = &semaphore}, first, left);
  run(ex, samples, predict, {.max_concurrency = 2, .semaphore = &semaphore}, second, left);
  x::threads({[&] { ex.work(); }, [&] { ex.work(); }});
  x::check(first.values == 2 && second.values == 2, "not one outcome each");
  x::check(semaphore.available() == 1 && semaphore.waiting() == 0, "permits are lost, or made");
}
