#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <set>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include <cobatch/error.hpp>
#include <cobatch/expected.hpp>
#include <cobatch/simulation.hpp>
#include <cobatch/task.hpp>

#include "support/lifetimes.hpp"

/// A batch model on a simulation: doubles numbers, takes its time, and throws if one of them is poisonous.
class batch_model {
 public:
  explicit batch_model(cobatch::simulation& sim) : sim_(&sim) {}

  std::chrono::nanoseconds per_call{0};
  std::chrono::nanoseconds per_sample{0};
  std::set<int> poison;
  std::set<int> refused;       // the model itself says no to these, and throws nothing
  std::ptrdiff_t missing = 0;  // results that are left out
  gauge running;
  std::size_t calls = 0;
  std::size_t largest = 0;
  std::vector<std::pair<cobatch::simulation::time_point, int>> started;  // every sample of every call
  std::string log;  // "1000: 1 2, 2000: 3": when each call began, in microseconds, and with what

  using results = std::vector<cobatch::expected<int, cobatch::error>>;

  cobatch::task<results> predict(std::span<const int> samples) {
    const auto visit = running.enter();
    ++calls;
    largest = std::max(largest, samples.size());
    const auto now = sim_->now();
    if (!log.empty()) log += ", ";
    log += std::to_string(now.time_since_epoch() / std::chrono::microseconds(1)) + ":";
    for (const int each : samples) {
      log += " " + std::to_string(each);
      started.emplace_back(now, each);
    }
    if (per_call + per_sample > per_call.zero()) {
      co_await sim_->schedule_after(per_call + per_sample * static_cast<int>(samples.size()));
    }
    results all;
    for (const int each : samples) {
      if (poison.contains(each)) throw std::runtime_error("poison " + std::to_string(each));
      if (refused.contains(each)) {
        all.emplace_back(cobatch::unexpect, cobatch::errc::timed_out);
      } else {
        all.emplace_back(2 * each);
      }
    }
    if (missing > 0) all.erase(all.end() - missing, all.end());
    co_return all;
  }

  /// What a batcher gets; always of the same type.
  auto callable() {
    return [this](std::span<const int> samples) { return predict(samples); };
  }

 private:
  cobatch::simulation* sim_;
};
