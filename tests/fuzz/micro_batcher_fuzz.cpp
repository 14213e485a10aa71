// SPDX-License-Identifier: BSL-1.0
// The micro-batcher: the bytes are its options and its callers.
#include <cobatch/micro_batcher.hpp>

#include <array>
#include <chrono>
#include <cstddef>
#include <functional>
#include <optional>
#include <span>
#include <stdexcept>
#include <stop_token>
#include <vector>

#include "fuzz/bytes.hpp"
#include "support/script.hpp"

using cobatch::errc;
using std::chrono::milliseconds;

namespace {

struct plan {
  int comes = 0, stops = 0, patience = 0;
  bool poison = false;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  bytes from(data, size);
  cobatch::micro_batch_options options;
  options.max_batch_size = static_cast<std::size_t>(from.pick(1, 5));
  options.max_delay = milliseconds(from.pick(0, 6));
  options.max_concurrent_batches = static_cast<std::size_t>(from.pick(1, 3));
  if (from.pick(0, 1)) options.max_queue = static_cast<std::size_t>(from.pick(1, 6));
  options.isolate_failures = from.pick(0, 1) != 0;
  const int takes = from.pick(0, 5);
  const int closes = from.pick(0, 3) == 0 ? from.pick(1, 30) : 0;
  cobatch::simulation sim(static_cast<std::uint64_t>(from.pick(0, 255)));
  std::vector<plan> plans;
  while (!from.empty() && plans.size() < 40) {
    plan& each = plans.emplace_back();
    each.comes = from.pick(0, 20);
    const int kind = from.pick(0, 15);
    each.poison = kind == 0;
    if (kind == 1 || kind == 2) each.stops = from.pick(1, 20);
    if (kind == 3 || kind == 4) each.patience = from.pick(1, 20);
  }
  std::size_t running = 0;
  std::vector<int> given(plans.size()), ends(plans.size());
  const auto model = [&](std::span<const int> samples) -> cobatch::task<std::vector<int>> {
    demand(++running <= options.max_concurrent_batches, "too many calls at a time");
    demand(!samples.empty() && samples.size() <= options.max_batch_size, "the size of a batch");
    const std::vector<int> own(samples.begin(), samples.end());
    co_await sim.schedule_after(milliseconds(takes));
    demand(std::equal(own.begin(), own.end(), samples.begin()), "the samples changed during the call");
    --running;
    std::vector<int> results;
    for (const int each : own) {
      if (plans[static_cast<std::size_t>(each)].poison) throw std::runtime_error("poison");
      ++given[static_cast<std::size_t>(each)];
      results.push_back(each + 1000);
    }
    co_return results;
  };
  cobatch::micro_batcher<int, int> batcher(sim, model, options);
  bool closed = false;
  const auto caller = [&](int who) -> cobatch::task<void> {
    const plan& own = plans[static_cast<std::size_t>(who)];
    co_await sim.schedule_after(milliseconds(own.comes));
    std::stop_source stop;
    const std::stop_token token = stop.get_token();
    const auto stopping = [&]() -> cobatch::task<int> {
      if (own.stops) {
        co_await sim.schedule_after(milliseconds(own.stops));
        stop.request_stop();
      }
      co_return 0;
    };
    const auto asking = [&]() -> cobatch::task<int> {
      const bool was_closed = closed;
      auto asked = batcher.predict(
          who, token, own.patience ? std::chrono::nanoseconds(milliseconds(own.patience)) : cobatch::no_timeout);
      const auto result = co_await asked;
      ++ends[static_cast<std::size_t>(who)];
      if (result) {
        demand(*result == who + 1000, "another one's value");
        demand(!own.poison, "a value of poison");
        co_return 0;
      }
      switch (result.error().code) {
        case errc::exception:
          demand(own.poison || !options.isolate_failures, "a failure that is another one's");
          break;
        case errc::cancelled:
          demand(own.stops != 0, "cancelled, and nobody stopped it");
          break;
        case errc::deadline_exceeded:
          demand(own.patience != 0, "a deadline that nobody set");
          break;
        case errc::queue_full:
          demand(options.max_queue != cobatch::unlimited, "a queue without a limit is full");
          break;
        case errc::closed:
          demand(closed || was_closed, "it is not closed");
          break;
        default:
          demand(false, "an outcome that nothing explains");
      }
      co_return 0;
    };
    const std::array<std::function<cobatch::task<int>()>, 2> both{asking, stopping};
    const auto start = [](const std::function<cobatch::task<int>()>& each) { return each(); };
    auto all = cobatch::batch_predict(sim, both, start);
    const auto results = co_await std::move(all);
    for (const auto& each : results) demand(each.has_value(), "a caller threw");
  };
  std::vector<side_job> jobs;
  for (int who = 0; who < static_cast<int>(plans.size()); ++who)
    jobs.emplace_back([&caller, who] { return caller(who); });
  const auto closing = [&]() -> cobatch::task<void> {
    if (closes) co_await sim.schedule_after(milliseconds(closes));
    if (!closes) co_await sim.schedule_after(std::chrono::seconds(10));
    closed = true;
    co_await batcher.close();
    demand(running == 0 && batcher.waiting() == 0, "closed, and something goes on");
  };
  jobs.emplace_back(closing);
  run_together(sim, jobs);
  for (const int each : ends) demand(each == 1, "a caller has not exactly one end");
  return 0;
}
