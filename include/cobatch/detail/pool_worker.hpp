#pragma once

#include <algorithm>
#include <array>
#include <coroutine>
#include <cstddef>
#include <memory>
#include <span>

#include <cobatch/detail/abi.hpp>
#include <cobatch/detail/brief_mutex.hpp>
#include <cobatch/detail/cache_line.hpp>
#include <cobatch/detail/polling_pace.hpp>
#include <cobatch/detail/pool_shard.hpp>
#include <cobatch/detail/sleeping_workers.hpp>
#include <cobatch/detail/thread.hpp>
#include <cobatch/detail/timer_queue.hpp>
#include <cobatch/detail/work_ring.hpp>

namespace cobatch::inline COBATCH_ABI::detail {

/// One thread of a thread_pool: its queues, and how it comes by work that is not in its own ring.
///
/// The functions are for its own thread. Of the data others use the ring, the shard, `visited` and `sleep`.
struct alignas(cache_line) pool_worker {
  using nanoseconds = timer_queue::nanoseconds;
  using all_workers = std::span<const std::unique_ptr<pool_worker>>;

  static constexpr std::size_t batch = 64;  // handles moved at once

  pool_worker(const void* owner, std::size_t number)
      : pool(owner), index(number), victim_(number), neighbour_(number) {}

  /// While busy: moves a batch of what is due or queued in the own shard to the ring, behind what is in it, and a little
  /// from one of the others, whose worker may be computing for long. Returns what is to be resumed at once because there
  /// is no room for it; mostly null.
  std::coroutine_handle<> take_shared(all_workers all, nanoseconds now) noexcept;

  /// With an empty ring: takes a batch from wherever there is something. The first of it is returned, the rest is in
  /// the ring.
  std::coroutine_handle<> find(all_workers all, nanoseconds now) noexcept;

  /// find() found nothing, but has seen handles somewhere, and will know whether they move if it looks again.
  bool wants_another_look() const noexcept { return glance_.open(); }

  work_ring ring;
  const void* const pool;
  polling_pace pace;
  const std::size_t index;
  nanoseconds spin_until = 0;  // the deadline for which it woke up a little early
  unsigned naps = 0;           // on watch, since it last found something
  detail::thread thread;

  line_gap gap_before_shard;
  pool_shard shard;
  // Held by a thread that is not the pool's while it is inside a call that has to do with this shard. What it hands
  // over may run and let somebody destroy the pool meanwhile: the destructor waits for it here.
  brief_mutex visited;

  sleeping_workers::sleeper sleep;

 private:
  std::size_t find_batch(all_workers all, nanoseconds now) noexcept;
  std::coroutine_handle<> keep_all_but_first(std::size_t count) noexcept;

  std::size_t victim_;     // where it stole last
  std::size_t neighbour_;  // at whose shard it looked last while it was busy
  work_ring::glance glance_;
  std::array<std::coroutine_handle<>, batch> taken_;  // on the way to here from elsewhere
};

// ---- Implementation ----

inline std::coroutine_handle<> pool_worker::take_shared(all_workers all, nanoseconds now) noexcept {
  if (shard.has_work(now)) {
    const std::size_t room = ring.make_room(batch);
    const std::size_t count = shard.take(taken_, std::min(batch, std::max<std::size_t>(room, 1)), now, false);
    if (room == 0) return count > 0 ? taken_[0] : nullptr;  // no memory for a larger ring
    ring.push(taken_.data(), count);
  }
  if (all.size() == 1) return nullptr;
  neighbour_ = neighbour_ + 1 < all.size() ? neighbour_ + 1 : 0;
  if (neighbour_ == index) return nullptr;
  pool_shard& other = all[neighbour_]->shard;
  if (other.has_work(now)) {
    const std::size_t most = std::min(batch / 4, ring.make_room(batch / 4));
    ring.push(taken_.data(), other.take(taken_, most, now, true));
  }
  return nullptr;
}

inline std::coroutine_handle<> pool_worker::find(all_workers all, nanoseconds now) noexcept {
  return keep_all_but_first(find_batch(all, now));
}

inline std::size_t pool_worker::find_batch(all_workers all, nanoseconds now) noexcept {
  const std::size_t caller = sleep.take_caller();
  if (caller != sleeping_workers::nobody) {
    pool_worker& asks = *all[caller];
    if (const std::size_t count = asks.ring.steal_one(taken_)) return count;
    if (asks.shard.has_queued()) {
      if (const std::size_t count = asks.shard.take(taken_, 1, now, true)) return count;
    }
  }
  if (shard.has_work(now)) {
    if (const std::size_t count = shard.take(taken_, batch, now, false)) return count;
  }
  if (all.size() == 1) return 0;
  for (std::size_t i = 0; i < all.size(); ++i) {
    victim_ = victim_ + 1 < all.size() ? victim_ + 1 : 0;
    if (victim_ == index) continue;
    pool_worker& victim = *all[victim_];
    if (victim.shard.has_work(now)) {
      if (const std::size_t count = victim.shard.take(taken_, batch, now, true)) return count;
    }
    if (const std::size_t count = victim.ring.steal(taken_, glance_, now)) return count;
  }
  return 0;
}

/// The ring has room for it.
inline std::coroutine_handle<> pool_worker::keep_all_but_first(std::size_t count) noexcept {
  if (count == 0) return nullptr;
  if (count > 1) ring.push(taken_.data() + 1, count - 1);
  return taken_[0];
}

}  // namespace cobatch::detail
