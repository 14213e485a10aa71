#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <iosfwd>
#include <limits>
#include <ostream>
#include <queue>
#include <string>
#include <utility>
#include <vector>

#include <cobatch/detail/abi.hpp>
#include <cobatch/detail/atomic.hpp>
#include <cobatch/detail/cache_line.hpp>
#include <cobatch/detail/current_executor.hpp>
#include <cobatch/detail/mutex.hpp>
#include <cobatch/detail/saturating.hpp>
#include <cobatch/detail/text.hpp>
#include <cobatch/error.hpp>
#include <cobatch/metrics_snapshot.hpp>
#include <cobatch/observer.hpp>

namespace cobatch::inline COBATCH_ABI {

/// Records attempts and writes them as a Chrome trace, which https://ui.perfetto.dev and chrome://tracing open.
///
///     trace_recorder trace;  ... {.observer = &trace};  trace.write_chrome(file);
///
/// Each batch is a process; each row of it one place for a sample in flight, each slice on it one attempt, or what it
/// waited for before it; two counters show what is in flight and the limit.
///
/// Memory: 112 bytes for each attempt that has ended, for the first `max_attempts` of them (22 MB by default); later
/// ones are counted, and the trace says how many are missing.
/// Thread safety: hooks on any thread; write_chrome() at any time, with what has ended by then.
class trace_recorder : public batch_observer {
 public:
  explicit trace_recorder(std::string name = "cobatch", std::size_t max_attempts = 200'000)
      : name_(std::move(name)), max_attempts_(max_attempts) {}
  trace_recorder(const trace_recorder&) = delete;
  trace_recorder& operator=(const trace_recorder&) = delete;

  /// Writes one JSON object. Complexity: it sorts the attempts. Allocates: as much as the text is long.
  void write_chrome(std::ostream& os) const;

  /// How many attempts are in the trace, and how many came when it was full.
  std::size_t recorded() const noexcept { return std::min(seen(), max_attempts_); }
  std::size_t dropped() const noexcept { return seen() - recorded(); }

  inline void batch_started(const batch_info& event) override;
  inline void attempt_ended(const attempt_event& event) override;
  inline void batch_ended(const batch_summary& event) override;

 private:
  static constexpr std::size_t shard_count = 16;
  struct shard {
    mutable detail::mutex mutex;  // guards attempts
    std::vector<attempt_event> attempts;
    detail::line_gap gap;
  };
  struct batch_times {
    batch_info info;
    std::chrono::nanoseconds ended = std::chrono::nanoseconds::max();
  };
  class writer;

  std::size_t seen() const noexcept { return seen_.load(std::memory_order_relaxed); }

  const std::string name_;
  const std::size_t max_attempts_;
  detail::atomic<std::size_t> seen_{0};  // counts; the attempts themselves pass through the mutexes
  std::array<shard, shard_count> shards_;
  mutable detail::mutex mutex_;  // guards batches_
  std::vector<batch_times> batches_;
};

static_assert(sizeof(attempt_event) <= 112, "then trace_recorder's documentation is wrong");

// ---- Implementation ----

inline void trace_recorder::batch_started(const batch_info& event) {
  const std::lock_guard lock(mutex_);
  if (batches_.size() < max_attempts_) batches_.push_back({event});
}

inline void trace_recorder::attempt_ended(const attempt_event& event) {
  if (seen_.fetch_add(1, std::memory_order_relaxed) >= max_attempts_) return;
  shard& own = shards_[detail::this_thread_number() % shard_count];
  const std::lock_guard lock(own.mutex);
  own.attempts.push_back(event);
}

inline void trace_recorder::batch_ended(const batch_summary& event) {
  const std::lock_guard lock(mutex_);
  for (std::size_t i = batches_.size(); i-- != 0;) {
    if (batches_[i].info.batch == event.batch) {
      batches_[i].ended = event.at;
      return;
    }
  }
}

class trace_recorder::writer {
 public:
  explicit writer(const trace_recorder& from) : name_(from.name_) {
    for (const shard& each : from.shards_) {
      const std::lock_guard lock(each.mutex);
      attempts_.insert(attempts_.end(), each.attempts.begin(), each.attempts.end());
    }
    {
      const std::lock_guard lock(from.mutex_);
      batches_ = from.batches_;
    }
    std::sort(attempts_.begin(), attempts_.end(), [](const attempt_event& a, const attempt_event& b) {
      return std::pair(a.batch, first_moment(a)) < std::pair(b.batch, first_moment(b));
    });
    origin_ = std::chrono::nanoseconds::max();
    for (const batch_times& each : batches_) origin_ = std::min(origin_, each.info.at);
    for (const attempt_event& each : attempts_) origin_ = std::min(origin_, first_moment(each));
  }

  detail::text write(std::size_t dropped) {
    out_.add("{\"displayTimeUnit\":\"ms\",\"otherData\":{\"name\":").json(name_);
    out_.add(",\"dropped_attempts\":", dropped, "},\"traceEvents\":[");
    for (const batch_times& each : batches_) {
      const attempt_event key{.batch = each.info.batch};
      const auto [begin, end] =
          std::equal_range(attempts_.begin(), attempts_.end(), key,
                           [](const attempt_event& a, const attempt_event& b) { return a.batch < b.batch; });
      batch(each, begin, end);
    }
    out_.add("\n]}\n");
    return std::move(out_);
  }

 private:
  using iterator = std::vector<attempt_event>::const_iterator;

  static std::chrono::nanoseconds started(const attempt_event& of) {
    return detail::saturating_difference(of.at, of.ran);
  }
  static std::chrono::nanoseconds first_moment(const attempt_event& of) {
    std::chrono::nanoseconds first = started(of);
    for (const auto waited : {of.waited_for_input, of.waited_for_permits, of.waited_for_rate}) {
      first = detail::saturating_difference(first, waited);
    }
    return first;
  }

  /// Up to its arguments, which the caller closes.
  detail::text& event(const char* phase, std::uint64_t process, std::uint64_t thread) {
    out_.add(std::exchange(comma_, ","), "\n{\"ph\":\"", phase, "\",\"pid\":", process, ",\"tid\":", thread);
    return out_;
  }
  /// In microseconds, as the format wants it.
  void time(const char* name, std::chrono::nanoseconds at) {
    out_.add(",\"", name, "\":").fixed(static_cast<double>(at.count()) / 1000, 3);
  }
  void slice(std::uint64_t process, std::uint64_t row, std::chrono::nanoseconds from, std::chrono::nanoseconds length) {
    event("X", process, row);
    time("ts", detail::saturating_difference(from, origin_));
    time("dur", length);
  }
  void counter(std::uint64_t process, const char* name, std::chrono::nanoseconds at, std::size_t value) {
    event("C", process, 0);
    time("ts", detail::saturating_difference(at, origin_));
    out_.add(",\"name\":\"", name, "\",\"args\":{\"", name, "\":", value, "}}");
  }
  void row_name(std::uint64_t process, std::uint64_t row, const std::string& name) {
    event("M", process, row).add(",\"name\":\"thread_name\",\"args\":{\"name\":").json(name).add("}}");
    event("M", process, row).add(",\"name\":\"thread_sort_index\",\"args\":{\"sort_index\":", row, "}}");
  }

  void batch(const batch_times& of, iterator begin, iterator end) {
    const std::uint64_t process = of.info.batch;
    event("M", process, 0).add(",\"name\":\"process_name\",\"args\":{\"name\":");
    out_.json(detail::text().add(name_, ": batch ", process).str()).add("}}");
    std::chrono::nanoseconds ended = of.ended;
    if (ended == std::chrono::nanoseconds::max()) {
      ended = of.info.at;
      for (iterator each = begin; each != end; ++each) ended = std::max(ended, each->at);
    }
    slice(process, 0, of.info.at, detail::saturating_difference(ended, of.info.at));
    out_.add(",\"name\":\"batch\",\"cat\":\"batch\",\"args\":{");
    if (of.info.samples != std::numeric_limits<std::size_t>::max()) out_.add("\"samples\":", of.info.samples);
    out_.add("}}");
    row_name(process, 0, "batch");
    attempts(process, begin, end);
    counters(process, begin, end);
  }

  /// Each on the lowest row that is free: then there are as many rows as were ever in flight at once.
  void attempts(std::uint64_t process, iterator begin, iterator end) {
    using busy = std::pair<std::chrono::nanoseconds, std::uint64_t>;
    std::priority_queue<busy, std::vector<busy>, std::greater<>> rows;
    std::priority_queue<std::uint64_t, std::vector<std::uint64_t>, std::greater<>> free;
    std::uint64_t last_row = 0;
    for (; begin != end; ++begin) {
      const attempt_event& each = *begin;
      while (!rows.empty() && rows.top().first <= first_moment(each)) {
        free.push(rows.top().second);
        rows.pop();
      }
      if (free.empty()) {
        free.push(++last_row);
        row_name(process, last_row, "lane " + std::to_string(last_row));
      }
      const std::uint64_t row = free.top();
      free.pop();
      rows.emplace(each.at, row);
      std::chrono::nanoseconds at = first_moment(each);
      for (const auto& [name, waited] :
           {std::pair("input", each.waited_for_input), std::pair("permits", each.waited_for_permits),
            std::pair("rate", each.waited_for_rate)}) {
        if (waited.count() <= 0) continue;
        slice(process, row, at, waited);
        out_.add(",\"name\":\"wait for ", name, "\",\"cat\":\"wait\"}");
        at = detail::saturating_sum(at, waited);
      }
      slice(process, row, started(each), each.ran);
      out_.add(",\"name\":\"sample ", each.index, "\",\"cat\":\"attempt\"");
      if (!each.succeeded()) out_.add(",\"cname\":\"terrible\"");
      out_.add(",\"args\":{\"sample\":", each.index, ",\"attempt\":", each.attempt, ",\"outcome\":\"",
               name_of(each.failure), "\"");
      if (each.hedge) out_.add(",\"hedge\":true");
      if (each.late) out_.add(",\"late\":true");
      out_.add("}}");
    }
  }

  void counters(std::uint64_t process, iterator begin, iterator end) {
    struct change {
      std::chrono::nanoseconds at;
      bool starts;
      std::size_t limit;
    };
    std::vector<change> changes;
    for (iterator each = begin; each != end; ++each) {
      changes.push_back({started(*each), true, each->limit});
      changes.push_back({each->at, false, each->limit});
    }
    std::sort(changes.begin(), changes.end(), [](const change& a, const change& b) { return a.at < b.at; });
    std::size_t limit = std::numeric_limits<std::size_t>::max();
    std::int64_t running = 0;
    for (std::size_t i = 0; i < changes.size(); ++i) {
      running += changes[i].starts ? 1 : -1;
      if (i + 1 < changes.size() && changes[i + 1].at == changes[i].at) continue;
      counter(process, "in flight", changes[i].at, static_cast<std::size_t>(std::max<std::int64_t>(running, 0)));
      // An attempt's limit is that of its end.
      if (!changes[i].starts && std::exchange(limit, changes[i].limit) != changes[i].limit) {
        counter(process, "limit", changes[i].at, changes[i].limit);
      }
    }
  }

  const std::string& name_;
  std::vector<attempt_event> attempts_;
  std::vector<batch_times> batches_;
  std::chrono::nanoseconds origin_{};
  detail::text out_;
  const char* comma_ = "";
};

inline void trace_recorder::write_chrome(std::ostream& os) const {
  os << writer(*this).write(dropped()).str();
}

}  // namespace cobatch
