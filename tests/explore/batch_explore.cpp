// The batch: claims, hungry flag, leftovers, and the count of lanes and holders to the end.

#include <cobatch/batch_predict.hpp>

#include <vector>

#include "scenario.hpp"

namespace x = cobatch_explore;

namespace {

explored::fire_and_forget run_batch(explored::executor& ex, auto& samples, auto& predict,
                                    cobatch::batch_options options) {
  co_await cobatch::schedule(ex);
  const auto results = co_await cobatch::batch_predict(ex, samples, predict, options);
  std::size_t i = 0;
  for (const auto& each : results) {
    x::check(each.has_value(), "an outcome is an error");
    if (each.has_value()) x::check(*each == 2 * samples[i], "an outcome is another sample's");
    ++i;
  }
  x::check(i == samples.size(), "there are not as many outcomes as samples");
  ex.close();
}

/// Suspends, and is resumed by the executor, or by a thread that is not the executor's.
struct later {
  explored::executor* ex;
  int sample;
  bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> handle) const { ex->execute(handle); }
  int await_resume() const noexcept { return 2 * sample; }
};
struct elsewhere {
  x::channel* server;
  int sample;
  bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> handle) const { server->push(handle.address()); }
  int await_resume() const noexcept { return 2 * sample; }
};

}  // namespace

SCENARIO("batch: two workers, samples that end at once", .stale = 1) {
  explored::executor ex(2);
  const std::vector<int> samples{1, 2, 3};
  auto predict = [](int sample) {
    x::let_pass(50'000);
    return 2 * sample;
  };
  run_batch(ex, samples, predict, {});
  x::threads({[&] { ex.work(); }, [&] { ex.work(); }});
}

SCENARIO("batch: two workers, samples that suspend", .stale = 1) {
  explored::executor ex(2);
  const std::vector<int> samples{1, 2, 3};
  auto predict = [&](int sample) {
    x::let_pass(50'000);
    return later{&ex, sample};
  };
  run_batch(ex, samples, predict, {.max_concurrency = 2});
  x::threads({[&] { ex.work(); }, [&] { ex.work(); }});
}

SCENARIO("batch: some samples suspend, some do not, one lane", .stale = 1) {
  explored::executor ex(2);
  const std::vector<int> samples{1, 2, 3};
  struct sometimes : later {
    bool await_ready() const noexcept { return sample % 2 == 0; }
  };
  auto predict = [&](int sample) {
    x::let_pass(50'000);
    return sometimes{{&ex, sample}};
  };
  run_batch(ex, samples, predict, {.max_concurrency = 1});
  x::threads({[&] { ex.work(); }, [&] { ex.work(); }});
}

SCENARIO("batch: samples are resumed by a foreign thread", .stale = 1) {
  explored::executor ex(1);
  x::channel server;
  const std::vector<int> samples{1, 2, 3};
  auto predict = [&](int sample) { return elsewhere{&server, sample}; };
  run_batch(ex, samples, predict, {.max_concurrency = 2});
  x::threads({[&] { ex.work(); }, [&] { explored::serve(server, 3); }});
}

SCENARIO("batch: foreign thread, two workers", .stale = 0) {
  explored::executor ex(2);
  x::channel server;
  const std::vector<int> samples{1, 2};
  auto predict = [&](int sample) { return elsewhere{&server, sample}; };
  run_batch(ex, samples, predict, {.max_concurrency = 2});
  x::threads({[&] { ex.work(); }, [&] { ex.work(); }, [&] { explored::serve(server, 2); }});
}

SCENARIO("batch: a stop from outside", .stale = 0) {
  explored::executor ex(2);
  const std::vector<int> samples{1, 2, 3};
  std::stop_source stop;
  int settled = 0;
  const auto run = [&]() -> explored::fire_and_forget {
    co_await cobatch::schedule(ex);
    auto predict = [&](int sample) { return later{&ex, sample}; };
    const auto results = co_await cobatch::batch_predict(ex, samples, predict, {.max_concurrency = 2, .stop = stop});
    for (const auto& each : results) {
      const bool fine = each.has_value() || each.error().code == cobatch::errc::not_started ||
                        each.error().code == cobatch::errc::cancelled;
      x::check(fine, "an outcome that a stop does not explain");
      ++settled;
    }
    ex.close();
  };
  run();
  x::threads({[&] { ex.work(); }, [&] { ex.work(); }, [&] { stop.request_stop(); }});
  x::check(settled == 3, "there are not as many outcomes as samples");
}

SCENARIO("batch: two batches share a semaphore", .stale = 0) {
  explored::executor ex(2);
  cobatch::async_semaphore semaphore(1);
  const std::vector<int> samples{1, 2};
  x::atomic<int> left{2};
  const auto run = [&](auto& values) -> explored::fire_and_forget {
    co_await cobatch::schedule(ex);
    auto predict = [&](int sample) { return later{&ex, sample}; };
    const auto results = co_await cobatch::batch_predict(ex, values, predict, {.semaphore = &semaphore});
    for (const auto& each : results) x::check(each.has_value(), "an outcome is an error");
    if (left.fetch_sub(1) == 1) ex.close();
  };
  run(samples);
  run(samples);
  x::threads({[&] { ex.work(); }, [&] { ex.work(); }});
  x::check(semaphore.available() == 1, "a permit is lost");
}
