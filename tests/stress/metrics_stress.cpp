// SPDX-License-Identifier: BSL-1.0
// Batches on two pools report to all observers at once, while another thread reads what they have seen.
#include <cobatch/metrics.hpp>

#include <atomic>
#include <cstdint>
#include <numeric>
#include <sstream>
#include <thread>
#include <vector>

#include <cobatch/batch_predict.hpp>
#include <cobatch/in_flight.hpp>
#include <cobatch/log_observer.hpp>
#include <cobatch/observer.hpp>
#include <cobatch/progress_bar.hpp>
#include <cobatch/sync_wait.hpp>
#include <cobatch/task.hpp>
#include <cobatch/thread_pool.hpp>
#include <cobatch/trace.hpp>

#include "support/catch.hpp"
#include "support/effort.hpp"
#include "support/json.hpp"

using namespace std::chrono_literals;

TEST_CASE("metrics stress: batches report to every observer while others read them") {
  const auto rounds = static_cast<std::size_t>(effort(40));
  std::vector<int> samples(2000);
  std::iota(samples.begin(), samples.end(), 0);

  cobatch::batch_metrics metrics;
  cobatch::trace_recorder trace("stress", 10'000);
  cobatch::in_flight_recorder in_flight;
  std::ostringstream shown, logged;
  cobatch::progress_bar bar(0, shown, {.style = cobatch::progress_style::draws, .redraw = 1us});
  cobatch::stream_log log(logged, {.least = cobatch::log_level::debug, .per_second = 1000});
  cobatch::observers all(metrics, trace, in_flight, bar, log);

  std::atomic<bool> over{false};
  std::uint64_t seen = 0;
  bool monotone = true;
  std::thread reader([&] {
    while (!over.load()) {
      const auto now = metrics.snapshot();
      monotone = monotone && now.samples >= seen && now.latency.count() <= now.attempts;
      seen = now.samples;
      std::ostringstream ignored;
      in_flight.dump(ignored);
      trace.write_chrome(ignored);
      bar.draw();
    }
  });
  const auto run = [&] {
    cobatch::thread_pool pool(2);
    const auto predict = [&](int x) -> cobatch::task<int> {
      if (x % 16 == 0) co_await pool.schedule();
      if (x % 100 == 0) throw x;
      co_return x;
    };
    for (std::size_t i = 0; i < rounds; ++i) {
      cobatch::sync_wait(cobatch::batch_predict(pool, samples, predict, {.max_concurrency = 16, .observer = &all}));
    }
  };
  std::thread first(run), second(run);
  first.join();
  second.join();
  over = true;
  reader.join();

  CHECK(monotone);
  const auto end = metrics.snapshot();
  const std::uint64_t expected = 2 * rounds * samples.size();
  CHECK(end.samples == expected);
  CHECK(end.attempts == expected);
  CHECK(end.latency.count() == expected);
  CHECK(end.failed_with(cobatch::errc::exception) == 2 * rounds * 20);
  CHECK(end.in_flight == 0);
  CHECK(end.active_batches == 0);
  CHECK(end.hook_failures == 0);
  CHECK(trace.recorded() + trace.dropped() == expected);
  std::ostringstream chrome, dump;
  trace.write_chrome(chrome);
  CHECK(json_checker::accepts(chrome.str()));
  in_flight.dump(dump);
  CHECK(dump.str() == "no batch is active\n");
}
