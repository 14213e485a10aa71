#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <utility>
#include <vector>

#include <cobatch/detail/config.hpp>
#include <cobatch/detail/start_mark.hpp>
#include <cobatch/detail/timer_queue.hpp>
#include <cobatch/detail/waiter.hpp>

/// Who waits for a batch, and which batch is due: micro_batcher without threads, time or types.

namespace cobatch::inline COBATCH_ABI::detail {

struct micro_batch_limits {
  static constexpr std::size_t none = std::numeric_limits<std::size_t>::max();

  std::size_t samples;  // in a batch
  std::size_t cost;     // of a batch
  std::size_t waiting;  // samples that wait
  std::int64_t delay;   // how long one waits for others
  std::size_t batches;  // that run at a time
};

/// Where a sample is. Written under the batcher's mutex.
///
///     outside ──push()──> queued ──fill()──> formed ──start()──> running ──its result──> settled
///        │                   └───────────────┴──stop, deadline, no executor──> settled
///        └──stop──> stopped: it will not be queued
///
/// Who is in a micro_batch_inbox is still outside.
enum class batch_stage : unsigned char { outside, stopped, queued, formed, running, settled };

/// Why a sample is settled.
enum class batch_outcome : unsigned char {
  result,
  cancelled,
  expired,
  closed,
  full,
  too_costly,
  executor_stopped,
  no_memory
};

class batch_group;

/// One sample's caller; the sample itself lives in a type derived from it.
class batch_waiter : public waiter {
 public:
  /// By which the deadline finds its waiter.
  struct deadline_node : timer_node {
    explicit deadline_node(batch_waiter& owner) noexcept : waiter(&owner) {}
    batch_waiter* waiter;
  };
  static constexpr std::int64_t not_stamped = timer_queue::immediately;

  batch_waiter() noexcept : deadline(*this) {}

  std::int64_t arrival = not_stamped;
  std::int64_t expires = timer_queue::never;
  deadline_node deadline;
  std::size_t key = 0;
  std::size_t cost = 1;
  std::size_t index = 0;         // in its batch, once that runs
  batch_group* group = nullptr;  // where it is while queued, formed or running
  batch_waiter* link = nullptr;  // in an inbox: to who came before; taken out of it: to who came next
  start_mark* mark = nullptr;    // of the call that queues it
  batch_stage stage = batch_stage::outside;
  batch_outcome outcome = batch_outcome::result;
  bool urgent = false;
};

/// A pointer that is not null, as the compiler cannot know: what it points to is counted elsewhere.
template <class T>
constexpr T* known(T* pointer) noexcept {
  if (!pointer) __builtin_unreachable();
  return pointer;
}

/// Samples that are, or may come to be, in one batch.
class batch_group {
 public:
  void add(batch_waiter& waiter) noexcept {
    list.push_back(waiter);
    waiter.group = this;
    ++count;
    cost += waiter.cost;
    urgent += waiter.urgent;
  }
  void remove(batch_waiter& waiter) noexcept {
    waiter.unlink();
    waiter.group = nullptr;
    --count;
    cost -= waiter.cost;
    urgent -= waiter.urgent;
  }
  void give_all_to(waiter_list& others) noexcept {
    others.splice_back(list);
    count = cost = urgent = 0;
  }
  batch_waiter* first() noexcept { return static_cast<batch_waiter*>(list.first()); }
  batch_waiter* after(batch_waiter& waiter) noexcept { return static_cast<batch_waiter*>(list.after(&waiter)); }

  waiter_list list;  // in the order in which they came
  std::size_t key = 0;
  std::size_t count = 0;
  std::size_t cost = 0;
  std::size_t urgent = 0;  // how many cannot wait for others
};

/// All that wait, by key, and their deadlines. Its owner locks.
///
/// A bucket is *ready* when a batch of its samples should start as soon as it can: it is *full* (as large as a batch
/// may be, or it has one that cannot wait), or its oldest sample has waited for `delay`. A bucket whose last sample
/// leaves is forgotten; the memory of a few is kept for the next keys.
/// Complexity: O(log keys) for a sample, keys being those for which somebody waits; O(log n) with a deadline. `Less`
/// compares keys.
template <class Less = std::less<std::size_t>>
class micro_batch_queue {
 public:
  using nanoseconds = timer_queue::nanoseconds;

  explicit micro_batch_queue(const micro_batch_limits& limits, Less less = {}) : limits_(limits), buckets_(less) {
    spare_.reserve(most_spare);
  }

  const micro_batch_limits& limits() const noexcept { return limits_; }
  /// How many wait in buckets.
  std::size_t waiting() const noexcept { return waiting_; }
  /// How many keys they have.
  std::size_t keys() const noexcept { return buckets_.size(); }

  /// Queues one that is outside. May throw std::bad_alloc, and has then changed nothing.
  void push(batch_waiter& waiter) {
    bucket& into = bucket_for(waiter);
    const auto undo = [&] {
      if (waiter.deadline.linked()) deadlines_.erase(waiter.deadline);
      if (into.count == 0) forget(into);
      throw_bad_alloc();
    };
    guarded(
        [&] {
          if (waiter.expires != timer_queue::never) deadlines_.add(waiter.deadline, waiter.expires);
          if (!into.full.linked() && is_full(into, waiter)) put(full_, into.full, oldest(into, waiter));
        },
        undo);
    into.add(waiter);
    waiter.stage = batch_stage::queued;
    ++waiting_;
  }

  /// Takes one out that is queued or formed.
  void leave(batch_waiter& waiter) noexcept {
    batch_group& from = *known(waiter.group);
    if (waiter.deadline.linked()) deadlines_.erase(waiter.deadline);
    if (waiter.stage == batch_stage::queued) {
      const bool was_first = from.first() == &waiter;
      --waiting_;
      from.remove(waiter);
      sort(static_cast<bucket&>(from), was_first);
    } else {
      from.remove(waiter);
    }
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
    if (buckets_.empty()) return nullptr;
    batch_waiter* const first = known(buckets_.begin()->second.first());
    leave(*first);
    return first;
  }

  /// Whether fill_ready() would find something.
  bool ready(nanoseconds now, bool all_are) const noexcept {
    return !full_.empty() || (waiting_ > 0 && (all_are || waiting_ >= limits_.waiting || due() <= now));
  }

  /// Adds to `batch`, which is empty, as many as there is room for of the bucket among those that are ready whose
  /// oldest sample is the oldest.
  void fill_ready(batch_group& batch, nanoseconds now, bool all_are) noexcept {
    const bool oldest_is = all_are || waiting_ >= limits_.waiting || due() <= now;
    bucket& from = bucket::of(*known((oldest_is ? by_age_ : full_).take_due(timer_queue::never - 1)));
    batch.key = from.key;
    move(from, batch);
  }

  /// Adds to `batch` the oldest of its key, as many as there is room for.
  void fill(batch_group& batch) noexcept {
    if (batch.count == limits_.samples) return;
    if (const auto found = buckets_.find(batch.key); found != buckets_.end()) move(found->second, batch);
  }

  /// From here on nobody leaves `batch`.
  void start(batch_group& batch) noexcept {
    for (batch_waiter* each = batch.first(); each; each = batch.after(*each)) {
      each->stage = batch_stage::running;
      if (each->deadline.linked()) deadlines_.erase(each->deadline);
    }
  }

  /// When there will be something to do if nothing else happens; buckets that become ready count only with `batches`.
  nanoseconds next_event(bool batches) const noexcept {
    const nanoseconds next = deadlines_.earliest();
    if (!batches || waiting_ == 0) return next;
    return std::min(next, ready(timer_queue::immediately, false) ? timer_queue::immediately : due());
  }

 private:
  struct bucket : batch_group {
    struct order : timer_node {
      bucket* owner = nullptr;
    };
    static bucket& of(timer_node& node) noexcept { return *static_cast<order&>(node).owner; }

    bucket() noexcept { age.owner = full.owner = this; }
    order age;   // in by_age_, always
    order full;  // in full_, while it is
  };
  using buckets = std::map<std::size_t, bucket, Less>;
  static constexpr std::size_t most_spare = 16;

  /// When the oldest of all has waited for `delay`. Requires: somebody waits.
  nanoseconds due() const noexcept { return timer_queue::deadline_after(by_age_.earliest(), limits_.delay); }

  bool is_full(const batch_group& all) const noexcept {
    return all.count >= limits_.samples || all.cost >= limits_.cost || all.urgent > 0;
  }
  bool is_full(const batch_group& all, const batch_waiter& with) const noexcept {
    return all.count + 1 >= limits_.samples || all.cost + with.cost >= limits_.cost || with.urgent;
  }
  static nanoseconds oldest(batch_group& all, const batch_waiter& otherwise) noexcept {
    return all.count > 0 ? known(all.first())->arrival : otherwise.arrival;
  }

  bucket& bucket_for(const batch_waiter& waiter) {
    if (latest_ && latest_->key == waiter.key) return *latest_;
    auto place = buckets_.lower_bound(waiter.key);
    if (place == buckets_.end() || buckets_.key_comp()(waiter.key, place->first)) {
      if (spare_.empty()) {
        place = buckets_.try_emplace(place, waiter.key);
      } else {
        spare_.back().key() = waiter.key;
        place = buckets_.insert(place, std::move(spare_.back()));
        spare_.pop_back();
      }
      bucket& made = place->second;
      made.key = waiter.key;
      guarded([&] { put(by_age_, made.age, waiter.arrival); },
              [&] {
                buckets_.erase(place);
                throw_bad_alloc();
              });
    }
    latest_ = &place->second;
    return *latest_;
  }

  void move(bucket& from, batch_group& batch) noexcept {
    while (batch_waiter* const next = from.first()) {
      if (batch.count == limits_.samples || next->cost > limits_.cost - batch.cost) break;
      from.remove(*next);
      batch.add(*next);
      next->stage = batch_stage::formed;
      --waiting_;
    }
    sort(from, true);
  }

  /// After some have left `changed`.
  void sort(bucket& changed, bool other_first) noexcept {
    if (changed.count == 0) return forget(changed);
    const bool full = is_full(changed);
    if (!other_first && full == changed.full.linked()) return;
    take_out(changed);
    // There is room: it has just been in both, or is no more in full_.
    const nanoseconds first = known(changed.first())->arrival;
    put(by_age_, changed.age, first);
    if (full) put(full_, changed.full, first);
  }

  void forget(bucket& empty) noexcept {
    take_out(empty);
    if (latest_ == &empty) latest_ = nullptr;
    const auto place = buckets_.find(empty.key);
    if (spare_.size() < most_spare) {
      spare_.push_back(buckets_.extract(place));
    } else {
      buckets_.erase(place);
    }
  }

  void take_out(bucket& from) noexcept {
    if (from.age.linked()) by_age_.erase(from.age);
    if (from.full.linked()) full_.erase(from.full);
  }
  static void put(timer_queue& into, timer_node& node, nanoseconds arrival) {
    node.state = timer_state::idle;
    into.add(node, arrival);
  }

  micro_batch_limits limits_;
  buckets buckets_;  // none is empty
  std::vector<typename buckets::node_type> spare_;
  bucket* latest_ = nullptr;  // where the last one was queued
  timer_queue by_age_;        // buckets by the arrival of their oldest; time only orders them
  timer_queue full_;
  timer_queue deadlines_;  // of those that are queued or formed
  std::size_t waiting_ = 0;
};

}  // namespace cobatch::detail
