#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>

#include <cobatch/detail/start_mark.hpp>
#include <cobatch/detail/timer_queue.hpp>
#include <cobatch/detail/waiter.hpp>

/// Who waits for a batch, and which batch is due: micro_batcher without threads, time or types.

namespace cobatch::detail {

struct micro_batch_limits {
  std::size_t samples;  // in a batch
  std::size_t cost;     // of a batch
  std::size_t waiting;  // samples that wait
  std::int64_t delay;   // how long one waits for others
};

/// Where a sample is. Written under the batcher's mutex.
///
///     outside ──push()──> queued ──fill()──> formed ──start()──> running ──its result──> settled
///        │                   └───────────────┴──stop, deadline, no executor──> settled
///        └──stop──> stopped: it will not be queued
enum class batch_stage : unsigned char { outside, stopped, queued, formed, running, settled };

/// Why a sample is settled.
enum class batch_outcome : unsigned char { result, cancelled, expired, closed, full, too_costly, executor_stopped };

class batch_waiter;

/// Samples that are, or may come to be, in one batch.
class batch_group {
 public:
  inline void add(batch_waiter& waiter) noexcept;
  inline void remove(batch_waiter& waiter) noexcept;
  inline batch_waiter* first() noexcept;
  inline batch_waiter* after(batch_waiter& waiter) noexcept;

  std::size_t key = 0;
  std::size_t count = 0;
  std::size_t cost = 0;
  std::size_t urgent = 0;  // how many cannot wait for others

 private:
  waiter_list list_;  // in the order in which they came
};

/// One sample's caller; the sample itself lives in a type derived from it.
class batch_waiter : public waiter {
 public:
  /// By which the deadline finds its waiter.
  struct deadline_node : timer_node {
    explicit deadline_node(batch_waiter& owner) noexcept : waiter(&owner) {}
    batch_waiter* waiter;
  };

  batch_waiter() noexcept : deadline(*this) {}

  std::int64_t arrival = 0;
  std::int64_t expires = timer_queue::never;
  deadline_node deadline;
  std::size_t key = 0;
  std::size_t cost = 1;
  std::size_t index = 0;         // in its batch, once that runs
  batch_group* group = nullptr;  // where it is while queued, formed or running
  start_mark* mark = nullptr;    // of the call that queued it
  batch_stage stage = batch_stage::outside;
  batch_outcome outcome = batch_outcome::result;
  bool urgent = false;
};

/// All that wait, by key, and their deadlines. Its owner locks.
///
/// A bucket is *ready* when a batch of its samples should start as soon as it can: it is as large as a batch may be,
/// its oldest sample has waited for `delay`, or nothing is gained by waiting.
/// Complexity: O(1) for each sample, and O(keys that waited at the same time); O(log n) with a deadline.
class micro_batch_queue {
 public:
  using nanoseconds = timer_queue::nanoseconds;

  explicit micro_batch_queue(const micro_batch_limits& limits) noexcept : limits_(limits) {}

  const micro_batch_limits& limits() const noexcept { return limits_; }
  /// How many wait in buckets.
  std::size_t waiting() const noexcept { return waiting_; }

  /// Queues one that is outside. May throw std::bad_alloc, and has then changed nothing.
  void push(batch_waiter& waiter) {
    batch_group& bucket = bucket_for(waiter.key);
    if (waiter.expires != timer_queue::never) deadlines_.add(waiter.deadline, waiter.expires);
    bucket.add(waiter);
    waiter.stage = batch_stage::queued;
    ++waiting_;
  }

  /// Takes one out that is queued or formed.
  void leave(batch_waiter& waiter) noexcept {
    if (waiter.stage == batch_stage::queued) --waiting_;
    waiter.group->remove(waiter);
    if (waiter.deadline.linked()) deadlines_.erase(waiter.deadline);
  }

  /// Takes one out whose deadline has come, null if there is none.
  batch_waiter* take_expired(nanoseconds now) noexcept {
    timer_node* const node = deadlines_.take_due(now);
    if (node == nullptr) return nullptr;
    batch_waiter* const expired = static_cast<batch_waiter::deadline_node*>(node)->waiter;
    leave(*expired);
    return expired;
  }

  /// Takes any one out, null if nobody waits.
  batch_waiter* take_any() noexcept {
    for (batch_group& bucket : buckets_) {
      if (batch_waiter* const first = bucket.first()) {
        leave(*first);
        return first;
      }
    }
    return nullptr;
  }

  /// The bucket among those that are ready whose oldest sample is the oldest, null if none is.
  batch_group* ready(nanoseconds now, bool all_are) noexcept {
    batch_group* oldest = nullptr;
    for (batch_group& bucket : buckets_) {
      if (bucket.count == 0 || !(all_are || due(bucket) <= now)) continue;
      if (!oldest || bucket.first()->arrival < oldest->first()->arrival) oldest = &bucket;
    }
    return oldest;
  }

  /// Adds to `batch` the oldest of its key, as many as there is room for.
  void fill(batch_group& batch) noexcept {
    batch_group* const bucket = find(batch.key);
    if (!bucket) return;
    while (batch_waiter* const next = bucket->first()) {
      if (batch.count == limits_.samples || next->cost > limits_.cost - batch.cost) break;
      bucket->remove(*next);
      batch.add(*next);
      next->stage = batch_stage::formed;
      --waiting_;
    }
  }

  /// From here on nobody leaves `batch`.
  void start(batch_group& batch) noexcept {
    for (batch_waiter* each = batch.first(); each; each = batch.after(*each)) {
      each->stage = batch_stage::running;
      if (each->deadline.linked()) deadlines_.erase(each->deadline);
    }
  }

  /// When there will be something to do if nothing else happens; buckets that become ready count only with `batches`.
  nanoseconds next_event(bool batches) noexcept {
    nanoseconds next = deadlines_.earliest();
    if (!batches) return next;
    for (batch_group& bucket : buckets_) {
      if (bucket.count > 0) next = std::min(next, due(bucket));
    }
    return next;
  }

 private:
  /// When `bucket`, which is not empty, is ready.
  nanoseconds due(batch_group& bucket) noexcept {
    const bool now = bucket.count >= limits_.samples || bucket.cost >= limits_.cost || bucket.urgent > 0 ||
                     waiting_ >= limits_.waiting;
    return now ? timer_queue::immediately : timer_queue::deadline_after(bucket.first()->arrival, limits_.delay);
  }

  batch_group* find(std::size_t key) noexcept {
    for (batch_group& bucket : buckets_) {
      if (bucket.count > 0 && bucket.key == key) return &bucket;
    }
    return nullptr;
  }

  batch_group& bucket_for(std::size_t key) {
    batch_group* bucket = find(key);
    if (bucket) return *bucket;
    for (batch_group& each : buckets_) {
      if (each.count == 0) bucket = &each;
    }
    if (!bucket) bucket = &buckets_.emplace_back();
    bucket->key = key;
    return *bucket;
  }

  micro_batch_limits limits_;
  std::deque<batch_group> buckets_;  // an empty one is reused for any key
  timer_queue deadlines_;            // of those that are queued or formed
  std::size_t waiting_ = 0;
};

// ---- Implementation ----

void batch_group::add(batch_waiter& waiter) noexcept {
  list_.push_back(waiter);
  waiter.group = this;
  ++count;
  cost += waiter.cost;
  urgent += waiter.urgent;
}

void batch_group::remove(batch_waiter& waiter) noexcept {
  waiter.unlink();
  waiter.group = nullptr;
  --count;
  cost -= waiter.cost;
  urgent -= waiter.urgent;
}

batch_waiter* batch_group::first() noexcept {
  return static_cast<batch_waiter*>(list_.first());
}
batch_waiter* batch_group::after(batch_waiter& waiter) noexcept {
  return static_cast<batch_waiter*>(list_.after(&waiter));
}

}  // namespace cobatch::detail
