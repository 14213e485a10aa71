// SPDX-License-Identifier: BSL-1.0
// The rate limiter: the bytes are who comes when, for how much, and who is stopped.
#include <cobatch/rate_limiter.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <stop_token>
#include <vector>

#include "fuzz/bytes.hpp"
#include "support/script.hpp"

using std::chrono::milliseconds;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  bytes from(data, size);
  const double per_second = from.pick(1, 50) * 10;
  const double burst = from.pick(1, 5);
  cobatch::simulation sim(static_cast<std::uint64_t>(from.pick(0, 255)));
  cobatch::rate_limiter limiter(per_second, burst);
  struct plan {
    int comes = 0, cost = 1, stops = 0;
  };
  std::vector<plan> plans;
  while (!from.empty() && plans.size() < 60) {
    plan& each = plans.emplace_back();
    each.comes = from.pick(0, 60);
    each.cost = from.pick(0, 7);
    if (from.pick(0, 5) == 0) each.stops = from.pick(1, 60);
  }
  struct start {
    double at, cost;
  };
  std::vector<start> starts;
  std::vector<int> queue;  // in the order in which they asked
  std::size_t ends = 0;
  std::vector<side_job> jobs;
  std::vector<std::stop_source> stops(plans.size());
  for (std::size_t i = 0; i < plans.size(); ++i) {
    const plan own = plans[i];
    const int who = static_cast<int>(i);
    jobs.emplace_back([&, own, who]() -> side_job::result_type {
      return [](auto& s, auto& l, auto& started, auto& asked, auto& ended, plan mine, int me,
                std::stop_token token) -> cobatch::task<void> {
        co_await s.schedule_after(milliseconds(mine.comes));
        asked.push_back(me);
        const bool granted = co_await l.acquire(s, mine.cost, token);
        ++ended;
        const auto at = std::find(asked.begin(), asked.end(), me);
        if (granted)
          started.push_back({std::chrono::duration<double>(s.now().time_since_epoch()).count(), mine.cost * 1.0});
        demand(granted || mine.stops != 0, "not granted, and nobody stopped it");
        asked.erase(at);
      }(sim, limiter, starts, queue, ends, own, who, stops[static_cast<std::size_t>(who)].get_token());
    });
    if (own.stops) {
      jobs.emplace_back([&, own, who]() -> side_job::result_type {
        return [](auto& s, auto& stop, plan mine) -> cobatch::task<void> {
          co_await s.schedule_after(milliseconds(mine.stops));
          stop.request_stop();
        }(sim, stops[static_cast<std::size_t>(who)], own);
      });
    }
  }
  run_together(sim, jobs);
  demand(ends == plans.size(), "somebody has no end");
  demand(limiter.waiting() == 0, "somebody waits");
  // Whatever has started before a moment was paid for by then, but for the debt of the one that started last.
  for (std::size_t last = 0; last < starts.size(); ++last) {
    for (std::size_t first = 0; first <= last; ++first) {
      double paid = 0;
      for (std::size_t i = first; i < last; ++i) paid += starts[i].cost;
      const double time = starts[last].at - starts[first].at;
      demand(paid <= burst + time * per_second + 1e-6 || starts[last].cost == 0, "faster than the rate");
    }
  }
  return 0;
}
