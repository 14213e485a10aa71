#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <stop_token>
#include <utility>

#include <cobatch/batch_options.hpp>
#include <cobatch/detail/atomic.hpp>
#include <cobatch/detail/config.hpp>
#include <cobatch/detail/histogram.hpp>
#include <cobatch/detail/mutex.hpp>
#include <cobatch/engine/lane.hpp>
#include <cobatch/engine/types.hpp>

namespace cobatch::inline COBATCH_ABI::detail {

/// Two attempts of the same sample, guarded by the lock of attempt_watch.
template <class Types>
struct hedge_pair {
  batch_lane<Types>* runners[2];  // the first attempt and the second; null once it has ended
  std::uint8_t inside = 2;        // who has not ended or still writes
  bool won = false;               // a value is there
  std::uint32_t attempts = 0;     // calls of predict, as far as they have ended

  batch_lane<Types>* other(const batch_lane<Types>* self) const noexcept {
    return runners[0] == self ? runners[1] : runners[0];
  }
};

/// How time finds attempts that are in flight: those that have a timeout, and those that may be doubled ("The Tail at
/// Scale", Dean and Barroso, 2013). An attempt writes when it began into its lane, see batch_lane::since; the
/// timekeeper looks through the lanes when something can be due. The lock is for what it finds.
template <class Types>
class attempt_watch {
  using lane = batch_lane<Types>;
  using time = std::chrono::nanoseconds;

 public:
  explicit attempt_watch(const batch_options& options) noexcept
      : options_(options), hedges_(options.hedge.delay != no_timeout || options.hedge.quantile > 0) {}

  // -- by the lane --
  void begins(lane& self) noexcept {
    // Sequentially consistent, like the looks of the timekeeper and alarm_'s `dormant`: the lane writes this and then
    // reads that, the timekeeper the other way round; one of them sees the other.
    self.since.store(self.started.count() * 4 | (self.pair ? lane::doubled : 0));
  }
  /// Nobody finds it any more.
  void ended(lane& self) {
    const std::int64_t before = self.since.exchange(lane::idle, std::memory_order_acq_rel);
    if (before == lane::looked_at) const std::lock_guard wait(mutex_);
  }
  /// How long it took. True: how long attempts take is known from now on.
  bool record(time ran) {
    if (options_.hedge.quantile <= 0) return false;
    const std::lock_guard lock(mutex_);
    guarded([&] { latencies_.record(ran.count()); }, [] {});
    return latencies_.count() == enough_latencies;
  }

  /// An attempt waits to be doubled, and there was no lane for it: the next one that is free takes it.
  bool wanted() const noexcept { return wanted_.load(); }
  void want(bool wanted) noexcept { wanted_.store(wanted); }

  /// The weight of the attempt that double_oldest() would double; 0: none is due.
  template <class Crew>
  std::size_t due_weight(Crew& crew, time now, double started_samples) {
    const std::lock_guard lock(mutex_);
    const found oldest = oldest_due(crew, now, started_samples);
    if (!oldest.which || !look_at(*oldest.which, oldest.since)) return 0;
    const std::size_t weight = oldest.which->weight;
    put_back(*oldest.which, oldest.since);
    return weight;
  }
  /// Lets `twin`, a lane that has all it needs for a sample of its weight, make a second attempt of the one that has
  /// been in flight longest, if that is due and weighs as much.
  template <class Crew>
  bool double_oldest(Crew& crew, lane& twin, time now, double started_samples);

  /// The one that is due will not be doubled.
  template <class Crew>
  void leave_oldest(Crew& crew, time now, double started_samples) {
    const std::lock_guard lock(mutex_);
    const found first = oldest_due(crew, now, started_samples);
    if (first.which && look_at(*first.which, first.since)) put_back(*first.which, first.since | lane::doubled);
  }

  struct pair_end {
    bool writes;  // its outcome goes to the slot
    std::stop_source loser{std::nostopstate};
  };
  /// One of two attempts has ended.
  pair_end end_attempt(lane& self, bool has_value);
  /// And has written. True: it was the last one; self.sample.attempts counts both.
  bool leave_pair(lane& self);
  bool lost_already(const lane& twin) {
    const std::lock_guard lock(mutex_);
    return twin.pair->won;
  }

  // -- by the timekeeper --
  /// Stops attempts whose time is up: `stop(source)`, under no lock. When the next one that is in flight is due, or
  /// no_timeout.
  template <class Crew, class Stop>
  time expire(Crew& crew, time now, Stop&& stop);
  template <class Crew>
  time next_hedge(Crew& crew, time now, double started_samples);
  time hedge_delay() {
    const std::lock_guard lock(mutex_);
    return delay();
  }
  bool hedges() const noexcept { return hedges_; }

 private:
  static constexpr std::uint64_t enough_latencies = 20;  // before a quantile of them means something

  time delay() const noexcept {
    const hedge_policy& hedge = options_.hedge;
    if (hedge.quantile <= 0 || latencies_.count() < enough_latencies) return hedge.delay;
    return time(latencies_.quantile(hedge.quantile));
  }
  bool may_double(double started_samples) const noexcept {
    return static_cast<double>(made_ + 1) <= options_.hedge.max_extra * started_samples;
  }

  static constexpr time began_at(std::int64_t since) noexcept { return time(since >> 2); }

  struct found {
    lane* which = nullptr;
    std::int64_t since = no_timeout.count();
  };
  /// Under the lock: the attempt that may be doubled and began first.
  template <class Crew>
  found oldest(Crew& crew) {
    found first;
    crew.each_lane([&](lane& each) {
      const std::int64_t since = each.since.load();  // see begins()
      if (since > lane::looked_at && (since & lane::doubled) == 0 && since < first.since) first = {&each, since};
    });
    return first;
  }
  template <class Crew>
  found oldest_due(Crew& crew, time now, double started_samples) {
    const found first = oldest(crew);
    const bool due = first.which && later(began_at(first.since), delay()) <= now && may_double(started_samples);
    return due ? first : found{};
  }
  /// Under the lock. True: until put_back() the attempt is not over, or waits for the lock.
  static bool look_at(lane& self, std::int64_t since) {
    return self.since.compare_exchange_strong(since, lane::looked_at, std::memory_order_acq_rel);
  }
  static void put_back(lane& self, std::int64_t since) {
    std::int64_t expected = lane::looked_at;
    // release: pairs with the exchange in ended().
    self.since.compare_exchange_strong(expected, since, std::memory_order_release, std::memory_order_relaxed);
  }

  const batch_options& options_;
  const bool hedges_;
  atomic<bool> wanted_{false};
  mutex mutex_;     // guards what follows, and all pairs
  histogram latencies_;  // of attempts, for hedge_policy::quantile
  std::size_t made_ = 0;
};

// ---- Implementation ----

template <class Types>
template <class Crew>
bool attempt_watch<Types>::double_oldest(Crew& crew, lane& twin, time now, double started_samples) {
  std::unique_ptr<hedge_pair<Types>> pair;
  guarded([&] { pair = std::make_unique<hedge_pair<Types>>(); }, [] {});
  if (!pair) return false;
  const std::lock_guard lock(mutex_);
  const found slow = oldest_due(crew, now, started_samples);
  if (!slow.which || !look_at(*slow.which, slow.since)) return false;
  const bool fits = slow.which->weight == twin.weight;
  if (fits) {
    ++made_;
    pair->runners[0] = slow.which;
    pair->runners[1] = &twin;
    twin.sample = slow.which->sample;
    slow.which->pair = twin.pair = pair.release();
  }
  put_back(*slow.which, fits ? slow.since | lane::doubled : slow.since);
  return fits;
}

template <class Types>
auto attempt_watch<Types>::end_attempt(lane& self, bool has_value) -> pair_end {
  const std::lock_guard lock(mutex_);
  hedge_pair<Types>& pair = *self.pair;
  lane* const other = pair.other(&self);
  pair.runners[pair.runners[0] == &self ? 0 : 1] = nullptr;
  pair.attempts = std::max(pair.attempts, self.sample.attempts);
  pair_end end{!pair.won && (has_value || !other)};
  if (end.writes && has_value) {
    pair.won = true;
    if (other && other->stop.stop_possible()) {
      other->stop_used = true;
      end.loser = other->stop;
    }
  }
  return end;
}

template <class Types>
bool attempt_watch<Types>::leave_pair(lane& self) {
  std::unique_ptr<hedge_pair<Types>> last;
  const std::lock_guard lock(mutex_);
  hedge_pair<Types>& pair = *std::exchange(self.pair, nullptr);
  if (--pair.inside != 0) return false;
  self.sample.attempts = pair.attempts;
  last.reset(&pair);
  return true;
}

template <class Types>
template <class Crew, class Stop>
auto attempt_watch<Types>::expire(Crew& crew, time now, Stop&& stop) -> time {
  time next = no_timeout;
  crew.each_lane([&](lane& each) {
    const std::int64_t since = each.since.load();  // see begins()
    if (since <= lane::looked_at || (since & lane::stopped) != 0) return;
    const time due = later(began_at(since), options_.timeout);
    if (due > now) {
      next = std::min(next, due);
      return;
    }
    std::stop_source source{std::nostopstate};
    {
      const std::lock_guard lock(mutex_);
      if (!look_at(each, since)) return;
      each.stop_used = true;
      source = each.stop;
      put_back(each, since | lane::stopped);
    }
    stop(source);
  });
  return next;
}

template <class Types>
template <class Crew>
auto attempt_watch<Types>::next_hedge(Crew& crew, time now, double started_samples) -> time {
  const std::lock_guard lock(mutex_);
  const found first = oldest(crew);
  if (!first.which) return no_timeout;
  // One that may not be doubled for want of budget is looked at again when something else is due.
  const time due = later(began_at(first.since), delay());
  return due <= now && !may_double(started_samples) ? no_timeout : due;
}

}  // namespace cobatch::detail
