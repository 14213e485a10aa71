// SPDX-License-Identifier: BSL-1.0
// Of everything a little, for the warnings that it gives to who includes cobatch as if it were theirs.
#include <cobatch/cobatch.hpp>

#include <chrono>
#include <cstddef>
#include <optional>
#include <span>
#include <sstream>
#include <vector>

namespace {

using namespace std::chrono_literals;

COBATCH_COROUTINES_BEGIN  // GCC warns of the coroutines here as well
cobatch::task<int> everything(cobatch::thread_pool& pool) {
  const std::vector<int> samples{1, 2, 3};
  cobatch::batch_metrics metrics;
  cobatch::async_semaphore semaphore(2);
  cobatch::rate_limiter rate(1000, 10);
  cobatch::adaptive_limit limit;
  const cobatch::batch_options options{.max_concurrency = 2,
                                       .semaphore = &semaphore,
                                       .limit = &limit,
                                       .timeout = 1s,
                                       .retry = {.max_attempts = 2},
                                       .hedge = {.delay = 1s},
                                       .rate = &rate,
                                       .observer = &metrics};
  const auto predict = [&pool](int x) -> cobatch::task<int> {
    co_await pool.schedule_after(1us);
    co_return x;
  };
  const auto plain = [](int x) { return x; };
  auto all = co_await cobatch::batch_predict(pool, samples, predict, options);
  auto more = co_await cobatch::batch_predict(pool, samples, plain);

  auto stream = cobatch::predict_stream(pool, samples, predict, options);
  for (;;) {
    auto item = co_await stream.next();
    if (!item) break;
    all.push_back(std::move(item->result));
  }

  const auto model = [](std::span<const int> batch) { return std::vector<int>(batch.begin(), batch.end()); };
  const auto key = [](int x) { return static_cast<std::size_t>(x); };
  auto keyed = cobatch::bucketed(model, key);
  auto many = co_await cobatch::batch_predict_many(pool, samples, model);
  auto some = co_await cobatch::batch_predict_many(pool, samples, keyed);
  cobatch::micro_batcher<int, int> batcher(pool, keyed);
  auto one = co_await batcher.predict(1);
  co_await batcher.close();
  std::ostringstream text;
  metrics.write_prometheus(text, "service");
  metrics.write_summary(text);
  co_return static_cast<int>(all.size() + more.size() + many.size() + some.size()) + (one ? 1 : 0);
}
COBATCH_COROUTINES_END

}  // namespace

int count_of_everything();
int count_of_everything() {
  cobatch::thread_pool pool(2);
  return cobatch::sync_wait(everything(pool));
}
