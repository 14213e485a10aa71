#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <iosfwd>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>

#include <cobatch/detail/abi.hpp>
#include <cobatch/detail/as_size.hpp>
#include <cobatch/detail/atomic.hpp>
#include <cobatch/detail/cache_line.hpp>
#include <cobatch/detail/current_executor.hpp>
#include <cobatch/detail/histogram.hpp>
#include <cobatch/detail/mutex.hpp>
#include <cobatch/detail/saturating.hpp>
#include <cobatch/detail/thread.hpp>
#include <cobatch/error.hpp>
#include <cobatch/metrics_snapshot.hpp>
#include <cobatch/observer.hpp>

namespace cobatch::inline COBATCH_ABI {

/// Counts what batches do: `batch_metrics metrics; ... {.observer = &metrics}; metrics.write_summary(std::cout);`
///
/// All batches that one of these observes at the same time should run on executors with the same clock.
///
/// Thread safety: all members may be called from any thread at any time, also while batches run. A snapshot() does not
/// stop them: what happens meanwhile may be counted in part.
/// Errors: where there is no memory, an attempt's latency is not counted, and the batch counts a failed hook.
/// Complexity: a hook writes to memory of its own thread, with no lock and no read-modify-write.
/// Allocates: 32 KB for each thread that reports.
class batch_metrics : public batch_observer {
 public:
  batch_metrics() : shard_count_(count_of_shards()), shards_(std::make_unique<shard[]>(shard_count_ + 1)) {}
  batch_metrics(const batch_metrics&) = delete;
  batch_metrics& operator=(const batch_metrics&) = delete;

  /// What was counted until now.
  metrics_snapshot snapshot() const;

  /// See metrics_snapshot.
  void write_prometheus(std::ostream& os, std::string_view prefix = "cobatch",
                        std::span<const metric_label> labels = {}) const {
    snapshot().write_prometheus(os, prefix, labels);
  }
  void write_json(std::ostream& os) const { snapshot().write_json(os); }
  void write_summary(std::ostream& os) const { snapshot().write_summary(os); }
  bottleneck slowed_by() const { return snapshot().slowed_by(); }
  std::string advice() const { return snapshot().advice(); }

  inline void batch_started(const batch_info& event) override;
  inline void attempt_started(const attempt_event& event) override;
  inline void attempt_ended(const attempt_event& event) override;
  inline void sample_retried(const retry_event& event) override;
  inline void sample_finished(const sample_event& event) override;
  inline void sample_taken(const sample_event& event) override;
  inline void batch_ended(const batch_summary& event) override;

 private:
  static constexpr std::size_t outcome_count = std::tuple_size_v<decltype(metrics_snapshot::outcomes)>;
  static constexpr std::size_t level_count = std::tuple_size_v<decltype(metrics_snapshot::load)>;

  // Written by one thread at a time, read by snapshot(). Orders nothing: a snapshot may come between any two of them.
  template <class T>
  class own {
   public:
    explicit constexpr own(T value = {}) noexcept : value_(value) {}
    void operator+=(T more) noexcept {
      if constexpr (std::is_same_v<T, std::int64_t>) {
        *this = detail::saturating_sum(get(), more);
      } else {
        *this = get() + more;
      }
    }
    void operator=(T value) noexcept { value_.store(value, std::memory_order_relaxed); }
    T get() const noexcept { return value_.load(std::memory_order_relaxed); }

   private:
    detail::atomic<T> value_;
  };
  using count = own<std::uint64_t>;
  using time = own<std::int64_t>;
  using buckets = std::array<count, detail::histogram::bucket_count>;

  struct level {
    count attempts;
    own<double> in_flight, latency, squared_latency;
  };

  // Belongs to one thread, from its first report on, whose mark is in `owner`. The last one of all is for whoever came
  // when no other was left; it is guarded by mutex_. A mark is the address of something thread-local: when its thread
  // has ended, another one may get the same and inherit the shard.
  struct shard {
    ~shard() { delete latencies.load(std::memory_order_relaxed); }

    detail::atomic<const void*> owner{nullptr};  // set once, by its owner, who alone needs to see it
    detail::atomic<buckets*> latencies{
        nullptr};  // set once by the owner (release); read (acquire) by snapshot(), and by heirs
    count started, ended, hedges, late, retries, taken, at_limit, straight;
    time running, waited_for_input, waited_for_permits, waited_for_rate, backed_off, waited_for_turn,
        waited_for_consumer, consumer_behind;
    own<const void*> running_lane{nullptr};  // of the attempt that started last, if none has ended since
    own<std::size_t> running_index, peak;
    count shortest{~std::uint64_t{0}}, longest;
    time latest;
    time latest_attempt;  // that has ended; `limit` is from then
    own<std::size_t> limit{std::numeric_limits<std::size_t>::max()};
    std::array<count, outcome_count> outcomes;
    std::array<level, level_count> load;
    detail::line_gap gap;
  };

  static std::size_t count_of_shards() noexcept {
    return std::bit_ceil(std::clamp<std::size_t>(2 * detail::thread::hardware_concurrency(), 8, 256));
  }

  /// report(shard) with a shard that nobody else writes to.
  template <class Report>
  void write(Report&& report) {
    const void* const self = &detail::this_thread_number_plus_one;
    shard& here = shards_[detail::this_thread_number() & (shard_count_ - 1)];
    if (here.owner.load(std::memory_order_relaxed) == self) [[likely]]
      return report(here);
    write_elsewhere(self, report);
  }
  template <class Report>
  void write_elsewhere(const void* self, Report& report);

  const std::size_t shard_count_;
  const std::unique_ptr<shard[]> shards_;

  time last_taken_{std::numeric_limits<std::int64_t>::min()};  // written by whoever takes; orders nothing

  mutable detail::mutex mutex_;  // guards all below, which changes only when a batch begins or ends, and the last shard
  std::uint64_t batches_ = 0, active_ = 0, not_started_ = 0, hook_failures_ = 0;
  std::size_t window_ = 0;
  std::size_t first_limit_ = std::numeric_limits<std::size_t>::max();
  std::chrono::nanoseconds since_{};   // a batch has been active without a break
  std::chrono::nanoseconds before_{};  // the time in which one was active, until then
};

// ---- Implementation ----

template <class Report>
void batch_metrics::write_elsewhere(const void* self, Report& report) {
  for (std::size_t i = 0; i < shard_count_; ++i) {
    shard& here = shards_[(detail::this_thread_number() + i) & (shard_count_ - 1)];
    const void* owner = here.owner.load(std::memory_order_relaxed);
    if (owner == self) return report(here);
    if (!owner && here.owner.compare_exchange_strong(owner, self, std::memory_order_relaxed)) return report(here);
  }
  const std::lock_guard lock(mutex_);
  report(shards_[shard_count_]);
}

inline void batch_metrics::batch_started(const batch_info& event) {
  const std::lock_guard lock(mutex_);
  ++batches_;
  if (active_++ == 0) since_ = event.at;
  first_limit_ = event.limit;
  window_ = event.window;
}

inline void batch_metrics::attempt_started(const attempt_event& event) {
  write([&](shard& here) {
    here.started += 1;
    here.running_lane = event.lane;
    here.running_index = event.index;
    if (here.peak.get() < event.in_flight) here.peak = event.in_flight;
  });
}

inline void batch_metrics::attempt_ended(const attempt_event& event) {
  write([&](shard& here) {
    here.ended += 1;
    if (here.running_lane.get() == event.lane && here.running_index.get() == event.index && event.lane != nullptr) {
      here.straight += 1;
    }
    here.running_lane = nullptr;
    if (event.hedge) here.hedges += 1;
    if (event.late) here.late += 1;
    here.running += event.ran.count();
    if (event.waited_for_input.count() != 0) here.waited_for_input += event.waited_for_input.count();
    if (event.waited_for_permits.count() != 0) here.waited_for_permits += event.waited_for_permits.count();
    if (event.waited_for_rate.count() != 0) here.waited_for_rate += event.waited_for_rate.count();
    if (here.latest.get() < event.at.count()) here.latest = event.at.count();
    if (here.latest_attempt.get() < event.at.count()) here.latest_attempt = event.at.count();
    here.limit = event.limit;
    if (event.limit != std::numeric_limits<std::size_t>::max() && event.in_flight * 10 >= event.limit * 9)
      here.at_limit += 1;

    const auto latency = static_cast<std::uint64_t>(std::max<std::int64_t>(event.ran.count(), 0));
    // What fails at once says nothing about how fast the server is.
    if (event.succeeded() || event.late) {
      const std::size_t at = detail::as_size(std::bit_width(std::max<std::size_t>(event.in_flight, 1) - 1));
      level& load = here.load[std::min(at, level_count - 1)];
      const auto value = static_cast<double>(latency);
      load.attempts += 1;
      load.in_flight += static_cast<double>(event.in_flight);
      load.latency += value;
      load.squared_latency += value * value;
    }
    if (here.shortest.get() > latency) here.shortest = latency;
    if (here.longest.get() < latency) here.longest = latency;
    buckets* latencies = here.latencies.load(std::memory_order_acquire);
    if (!latencies) [[unlikely]] {
      latencies = std::make_unique<buckets>().release();
      here.latencies.store(latencies, std::memory_order_release);
    }
    (*latencies)[detail::histogram::bucket_of(latency)] += 1;
  });
}

inline void batch_metrics::sample_retried(const retry_event& event) {
  write([&](shard& here) {
    here.retries += 1;
    here.backed_off += event.delay.count();
  });
}

inline void batch_metrics::sample_finished(const sample_event& event) {
  write([&](shard& here) { here.outcomes[std::min(static_cast<std::size_t>(event.failure), outcome_count - 1)] += 1; });
}

inline void batch_metrics::sample_taken(const sample_event& event) {
  write([&](shard& here) {
    here.taken += 1;
    if (here.latest.get() < event.at.count()) here.latest = event.at.count();
    // Takes follow each other, whatever their thread, so this adds up to the time in which a result lay ready. Several
    // consumers at once may count some of it twice.
    const std::chrono::nanoseconds last(last_taken_.get());
    last_taken_ = event.at.count();
    const auto since_last = std::max<std::int64_t>(detail::saturating_difference(event.at, last).count(), 0);
    here.consumer_behind += std::clamp<std::int64_t>(event.waited_for_consumer.count(), 0, since_last);
    here.waited_for_turn += event.waited_for_turn.count();
    here.waited_for_consumer += event.waited_for_consumer.count();
  });
}

inline void batch_metrics::batch_ended(const batch_summary& event) {
  const std::lock_guard lock(mutex_);
  not_started_ += event.not_started;
  hook_failures_ += event.hook_failures;
  if (active_ != 0 && --active_ == 0) {
    before_ = detail::saturating_sum(before_, detail::saturating_difference(event.at, since_));
  }
}

inline metrics_snapshot batch_metrics::snapshot() const {
  using std::chrono::nanoseconds;
  metrics_snapshot all;
  const auto add = [](nanoseconds& sum, const time& more) {
    sum = detail::saturating_sum(sum, nanoseconds(more.get()));
  };
  std::uint64_t ended = 0;
  nanoseconds latest{}, latest_attempt{};
  std::size_t limit = std::numeric_limits<std::size_t>::max();
  for (std::size_t i = 0; i <= shard_count_; ++i) {
    const shard& each = shards_[i];
    // What has ended before what has started: no attempt counts as ended only.
    ended += each.ended.get();
    all.hedges += each.hedges.get();
    all.late += each.late.get();
    all.retries += each.retries.get();
    all.taken += each.taken.get();
    all.at_limit += each.at_limit.get();
    all.straight += each.straight.get();
    if (each.started.get() != 0) ++all.threads;
    all.peak_in_flight = std::max(all.peak_in_flight, each.peak.get());
    add(all.running, each.running);
    add(all.waited_for_input, each.waited_for_input);
    add(all.waited_for_permits, each.waited_for_permits);
    add(all.waited_for_rate, each.waited_for_rate);
    add(all.backed_off, each.backed_off);
    add(all.waited_for_turn, each.waited_for_turn);
    add(all.waited_for_consumer, each.waited_for_consumer);
    add(all.consumer_behind, each.consumer_behind);
    for (std::size_t k = 0; k < outcome_count; ++k) all.outcomes[k] += each.outcomes[k].get();
    for (std::size_t k = 0; k < level_count; ++k) {
      all.load[k].count += each.load[k].attempts.get();
      all.load[k].in_flight += each.load[k].in_flight.get();
      all.load[k].latency += each.load[k].latency.get();
      all.load[k].squared_latency += each.load[k].squared_latency.get();
    }
    if (const buckets* const latencies = each.latencies.load(std::memory_order_acquire)) {
      all.latency.counts_.add([&](std::size_t k) { return (*latencies)[k].get(); },
                              static_cast<double>(each.running.get()), each.shortest.get(), each.longest.get());
    }
    latest = std::max(latest, nanoseconds(each.latest.get()));
    if (nanoseconds(each.latest_attempt.get()) > latest_attempt) {
      latest_attempt = nanoseconds(each.latest_attempt.get());
      limit = each.limit.get();
    }
  }
  for (std::size_t i = 0; i <= shard_count_; ++i) all.attempts += shards_[i].started.get();
  for (const std::uint64_t outcome : all.outcomes) all.samples += outcome;
  all.succeeded = all.outcomes[0];
  all.failed = all.samples - all.succeeded;
  all.in_flight = all.attempts - std::min(all.attempts, ended);
  const std::lock_guard lock(mutex_);
  all.batches = batches_;
  all.active_batches = active_;
  all.not_started = not_started_;
  all.hook_failures = hook_failures_;
  all.window = window_;
  all.limit = latest_attempt > nanoseconds::zero() ? limit : first_limit_;
  const nanoseconds now_active = active_ == 0 ? nanoseconds::zero() : detail::saturating_difference(latest, since_);
  all.elapsed = detail::saturating_sum(before_, std::max(now_active, nanoseconds::zero()));
  return all;
}

}  // namespace cobatch
