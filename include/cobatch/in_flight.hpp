#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <ostream>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include <cobatch/detail/abi.hpp>
#include <cobatch/detail/mutex.hpp>
#include <cobatch/detail/text.hpp>
#include <cobatch/error.hpp>
#include <cobatch/metrics_snapshot.hpp>
#include <cobatch/observer.hpp>

namespace cobatch::inline COBATCH_ABI {

/// For a batch that hangs: knows what is in flight, since when, and what it waits for.
///
///     in_flight_recorder stuck;  ... {.observer = &stuck};
///     stuck.dump(std::cerr);   // from another thread, a signal-driven task, a debugger
///
/// Thread safety: dump() on any thread at any time, also while all others are blocked.
/// Complexity: a lock and a hash table's entry for each attempt. Allocates: one entry for each sample in flight.
class in_flight_recorder : public batch_observer {
 public:
  in_flight_recorder() = default;
  in_flight_recorder(const in_flight_recorder&) = delete;
  in_flight_recorder& operator=(const in_flight_recorder&) = delete;

  /// Writes a line for each batch, and one for each of its samples and waits, the oldest first, at most `most` for each
  /// batch.
  void dump(std::ostream& os, std::size_t most = 50) const {
    dump_at(os,
            std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()),
            most);
  }
  /// The same for an executor with a clock of its own: `now` is its time since its epoch.
  void dump_at(std::ostream& os, std::chrono::nanoseconds now, std::size_t most = 50) const;

  inline void batch_started(const batch_info& event) override;
  inline void wait_started(const wait_event& event) override;
  void wait_ended(const wait_event& event) override { erase(event.lane); }
  inline void attempt_started(const attempt_event& event) override;
  void attempt_ended(const attempt_event& event) override { erase(event.lane); }
  inline void sample_retried(const retry_event& event) override;
  inline void sample_finished(const sample_event& event) override;
  inline void batch_ended(const batch_summary& event) override;

 private:
  enum class doing : std::uint8_t { runs, waits_for_input, waits_for_permits, waits_for_rate, sleeps };
  struct entry {
    std::uint64_t batch = 0;
    std::size_t index = wait_event::no_sample;
    std::uint32_t attempt = 0;
    doing what = doing::runs;
    std::chrono::nanoseconds since{};
    std::chrono::nanoseconds until{};  // where it sleeps
  };
  struct batch_state {
    batch_info info;
    std::size_t finished = 0;
    std::size_t limit = std::numeric_limits<std::size_t>::max();
  };
  static constexpr std::size_t shard_count = 16;
  struct shard {
    mutable detail::mutex mutex;  // guards lanes
    std::unordered_map<const void*, entry> lanes;
  };

  shard& shard_of(const void* lane) noexcept { return shards_[std::hash<const void*>()(lane) / 64 % shard_count]; }
  void put(const void* lane, const entry& what) {
    shard& here = shard_of(lane);
    const std::lock_guard lock(here.mutex);
    here.lanes.insert_or_assign(lane, what);
  }
  void erase(const void* lane) {
    shard& here = shard_of(lane);
    const std::lock_guard lock(here.mutex);
    here.lanes.erase(lane);
  }

  std::array<shard, shard_count> shards_;
  mutable detail::mutex mutex_;  // guards all below
  std::map<std::uint64_t, batch_state> batches_;
  std::map<std::pair<std::uint64_t, std::size_t>, entry> sleeping_;
};

// ---- Implementation ----

inline void in_flight_recorder::batch_started(const batch_info& event) {
  const std::lock_guard lock(mutex_);
  batches_[event.batch] = {event, 0, event.limit};
}

inline void in_flight_recorder::wait_started(const wait_event& event) {
  constexpr std::array kinds{doing::waits_for_input, doing::waits_for_permits, doing::waits_for_rate};
  put(event.lane, {event.batch, event.index, 0, kinds[static_cast<std::size_t>(event.what)], event.at, {}});
}

inline void in_flight_recorder::attempt_started(const attempt_event& event) {
  put(event.lane, {event.batch, event.index, event.attempt, doing::runs, event.at, {}});
  const std::lock_guard lock(mutex_);
  if (event.attempt > 1) sleeping_.erase({event.batch, event.index});
  if (const auto found = batches_.find(event.batch); found != batches_.end()) found->second.limit = event.limit;
}

inline void in_flight_recorder::sample_retried(const retry_event& event) {
  const std::lock_guard lock(mutex_);
  sleeping_[{event.batch, event.index}] = {event.batch,   event.index, event.attempts + 1,
                                           doing::sleeps, event.at,    event.at + event.delay};
}

inline void in_flight_recorder::sample_finished(const sample_event& event) {
  const std::lock_guard lock(mutex_);
  sleeping_.erase({event.batch, event.index});
  if (const auto found = batches_.find(event.batch); found != batches_.end()) ++found->second.finished;
}

inline void in_flight_recorder::batch_ended(const batch_summary& event) {
  const std::lock_guard lock(mutex_);
  batches_.erase(event.batch);
}

inline void in_flight_recorder::dump_at(std::ostream& os, std::chrono::nanoseconds now, std::size_t most) const {
  std::vector<entry> all;
  for (const shard& each : shards_) {
    const std::lock_guard lock(each.mutex);
    for (const auto& [lane, what] : each.lanes) all.push_back(what);
  }
  std::map<std::uint64_t, batch_state> batches;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [key, what] : sleeping_) all.push_back(what);
    batches = batches_;
  }
  std::sort(all.begin(), all.end(), [](const entry& a, const entry& b) {
    return std::tuple(a.batch, a.since, a.index) < std::tuple(b.batch, b.since, b.index);
  });
  detail::text out;
  if (batches.empty()) out.add("no batch is active\n");
  for (const auto& [number, batch] : batches) {
    const auto here = [wanted = number](const entry& each) { return each.batch == wanted; };
    const auto begin = std::find_if(all.begin(), all.end(), here);
    const auto end = std::find_if_not(begin, all.end(), here);
    const auto running = std::count_if(begin, end, [](const entry& each) { return each.what == doing::runs; });
    out.add("batch ", number, ": ", batch.finished);
    if (batch.info.samples != std::numeric_limits<std::size_t>::max()) out.add(" of ", batch.info.samples);
    out.add(" finished after ").duration(now - batch.info.at).add(", ", running, " in flight");
    if (batch.limit != std::numeric_limits<std::size_t>::max()) out.add(", limit ", batch.limit);
    out.add("\n");
    std::size_t lines = 0;
    for (auto each = begin; each != end; ++each) {
      if (lines++ == most) {
        out.add("  ... and ", end - each, " more\n");
        break;
      }
      out.add("  ");
      if (each->index != wait_event::no_sample) {
        out.add("sample ", each->index);
      } else {
        out.add("the next sample");
      }
      if (each->attempt != 0) out.add(", attempt ", each->attempt);
      switch (each->what) {
        case doing::runs:
          out.add(": in predict");
          break;
        case doing::waits_for_input:
          out.add(": waits for the input");
          break;
        case doing::waits_for_permits:
          out.add(": waits for permits");
          break;
        case doing::waits_for_rate:
          out.add(": waits for the rate limiter");
          break;
        case doing::sleeps:
          if (each->until > now) {
            out.add(": sleeps, for another ").duration(each->until - now).add(",");
          } else {
            out.add(": waits for its next turn");
          }
          break;
      }
      out.add(" since ").duration(now - each->since).add("\n");
    }
  }
  os << out.str();
}

}  // namespace cobatch
