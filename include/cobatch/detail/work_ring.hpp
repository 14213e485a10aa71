#pragma once

#include <algorithm>
#include <array>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include <cobatch/detail/atomic.hpp>
#include <cobatch/detail/config.hpp>

namespace cobatch::inline COBATCH_ABI::detail {

/// One worker's queue: a ring that grows, first in, first out, from which other workers steal.
///
/// Only its owner pushes; owner and thieves take from the head by compare-and-swap. The lower half of head_ is the
/// position of the oldest handle. Every change makes head_ larger, by 1 for each handle taken and by 2^32 for one that
/// the owner takes back at the other end, so that it does not come to the same value again (before 2^64): a slot can
/// be read before it is claimed, and if anything was claimed in the meantime the swap fails.
///
/// Where the ring is full the owner goes on with one twice as large, that has the same handles at the same positions.
/// The old one stays for thieves who are still reading it, and is not written any more: what they claim is right in
/// either. It is kept as long as the new one, so that all of them together are no more than twice what is needed.
class work_ring {
 public:
  static constexpr std::uint32_t first_capacity = 256;
  static constexpr std::uint32_t largest_capacity = std::uint32_t{1} << 30;

  work_ring() : rings_(std::make_unique<slots>(first_capacity)) { use(*rings_); }

  /// Before anything else: there are no thieves, every call comes from the owner. Saves it the interlocked
  /// operations.
  void never_stolen_from() noexcept { solo_ = true; }

  /// Owner: appends; false if there is no memory.
  bool push(std::coroutine_handle<> handle) noexcept { return push(&handle, 1); }

  /// Owner: appends all, or nothing and false.
  bool push(const std::coroutine_handle<>* handles, std::size_t count) noexcept {
    const std::uint32_t tail = tail_.load(std::memory_order_relaxed);
    // acquire: pairs with the release of whoever claimed the slots that are about to be overwritten.
    const std::uint32_t size = tail - position(head_.load(std::memory_order_acquire));
    if (size + count > own_mask_ + std::size_t{1} && !grow(tail - size, size, count)) [[unlikely]]
      return false;
    for (std::uint32_t i = 0; i < count; ++i) {
      own_slots_[(tail + i) & own_mask_].store(handles[i].address(), std::memory_order_relaxed);
    }
    set_tail(tail + static_cast<std::uint32_t>(count));
    return true;
  }

  /// Owner: makes sure that so many can be pushed, if there is memory; how many can be.
  std::size_t make_room(std::size_t wanted) noexcept {
    const std::uint32_t head = position(head_.load(std::memory_order_acquire));
    const std::uint32_t size = tail_.load(std::memory_order_relaxed) - head;
    if (size + wanted > own_mask_ + std::size_t{1}) grow(head, size, wanted);
    return own_mask_ + std::size_t{1} - size;
  }

  /// Owner: the oldest, null if there is none.
  std::coroutine_handle<> pop() noexcept {
    std::uint64_t head = head_.load(std::memory_order_relaxed);
    const std::uint32_t tail = tail_.load(std::memory_order_relaxed);
    while (position(head) != tail) {
      void* const address = own_slots_[position(head) & own_mask_].load(std::memory_order_relaxed);
      if (solo_) {
        head_.store(head + 1, std::memory_order_relaxed);
        return std::coroutine_handle<>::from_address(address);
      }
      // release: the slot was read before push() may overwrite it.
      if (head_.compare_exchange_weak(head, head + 1, std::memory_order_release, std::memory_order_relaxed)) {
        return std::coroutine_handle<>::from_address(address);
      }
    }
    return nullptr;
  }

  /// Owner: removes `handle` if it is the newest and nobody has stolen it; true if so.
  ///
  /// First the tail goes back by one. A thief that reads it from now on does not see the handle; one that read it
  /// before may still claim the handle with the head that it read before that. Then head_ grows by 2^32, and every
  /// such claim fails. Either that swap comes first, and the handle is the owner's: who reads the new head also sees
  /// the new tail. Or a thief's swap comes first, the head has passed the handle, and the tail is put right again.
  bool take_back(std::coroutine_handle<> handle) noexcept {
    const std::uint32_t tail = tail_.load(std::memory_order_relaxed);
    std::uint64_t head = head_.load(std::memory_order_relaxed);
    if (position(head) == tail) return false;
    if (own_slots_[(tail - 1) & own_mask_].load(std::memory_order_relaxed) != handle.address()) return false;
    set_tail(tail - 1);
    if (solo_) return true;
    while (position(head) != tail) {
      // release: publishes the new tail to whoever reads this head.
      if (head_.compare_exchange_weak(head, head + retraction, std::memory_order_release, std::memory_order_relaxed)) {
        return true;
      }
    }
    set_tail(tail);
    return false;
  }

  /// What a thief saw when it last looked at a ring that holds little.
  struct glance {
    const work_ring* ring = nullptr;
    std::uint64_t head = 0;
    std::int64_t at = 0;

    /// Whether it has still to be compared with another look.
    bool open() const noexcept { return ring != nullptr; }
  };

  /// The shortest time between two looks that are compared, in ns; about what it costs to move a coroutine and what it
  /// works on.
  static constexpr std::int64_t pause = 2000;

  /// A thief: moves the older half, rounded up, but no more than Most, to `taken`; how many.
  ///
  /// Few handles are left to their owner, who will come to them sooner than they could move to another core, unless
  /// two looks with at least `pause` between them show that it does not get that far. Looks that are far apart, as
  /// before and after a nap, show that only if it has come to none at all; else they are no measure of what it does now.
  template <std::size_t Most>
  std::size_t steal(std::array<std::coroutine_handle<>, Most>& taken, glance& seen, std::int64_t now) noexcept {
    // acquire: the tail read next is no older than this head.
    const std::uint64_t head = head_.load(std::memory_order_acquire);
    const std::uint32_t size = size_behind(head);
    if (size >= plenty) return take(taken, half);
    if (seen.ring == this) {
      const std::int64_t elapsed = now - seen.at;
      if (size > 0 && elapsed < pause) return 0;
      seen.ring = nullptr;  // one ring is watched at a time, so that each gets its turn
      if (size == 0) return 0;
      const bool far_apart = elapsed > 16 * pause;
      // Anything taken back counts as if it had come to all of them.
      const std::uint64_t done = head - seen.head;
      if (done < (far_apart ? 1 : size)) return take(taken, half);
      if (far_apart) seen = {this, head, now};
    } else if (size > 0 && seen.ring == nullptr) {
      seen = {this, head, now};
    }
    return 0;
  }

  /// A thief that was asked to: moves the oldest handle to `taken`; how many.
  template <std::size_t Most>
  std::size_t steal_one(std::array<std::coroutine_handle<>, Most>& taken) noexcept {
    return take(taken, one);
  }

  /// Anyone, before it sleeps: sequentially consistent with push(), see "Sleeping and waking" in thread_pool.hpp.
  bool empty() const noexcept {
    const std::uint32_t head = position(head_.load());
    return tail_.load() == head;
  }

 private:
  struct slots {
    explicit slots(std::uint32_t capacity)
        : mask(capacity - 1), places(std::make_unique<atomic<void*>[]>(capacity)) {}

    const std::uint32_t mask;
    // Written by the owner, read by whoever may then fail to claim; published by tail_, given back by head_.
    const std::unique_ptr<atomic<void*>[]> places;
    std::unique_ptr<slots> smaller;  // the ring before this one
  };

  static constexpr std::uint64_t retraction = std::uint64_t{1} << 32;
  static constexpr std::uint32_t plenty = 8;
  enum share : bool { half, one };

  static constexpr std::uint32_t position(std::uint64_t head) noexcept { return static_cast<std::uint32_t>(head); }

  /// Owner: replaces the ring, which holds `size` handles from `head` on, by one with room for `more`; false if it
  /// cannot.
  [[gnu::noinline]] bool grow(std::uint32_t head, std::uint32_t size, std::size_t more) noexcept {
    if (more > largest_capacity - size) return false;
    std::uint32_t capacity = own_mask_ + 1;
    while (capacity < size + more) capacity *= 2;
    return guarded(
        [&] {
          auto larger = std::make_unique<slots>(capacity);
          for (std::uint32_t i = head; i != head + size; ++i) {
            larger->places[i & larger->mask].store(own_slots_[i & own_mask_].load(std::memory_order_relaxed),
                                                   std::memory_order_relaxed);
          }
          larger->smaller = std::move(rings_);
          rings_ = std::move(larger);
          use(*rings_);
          return true;
        },
        [] { return false; });
  }

  void use(slots& ring) noexcept {
    own_slots_ = ring.places.get();
    own_mask_ = ring.mask;
    current_.store(&ring, std::memory_order_release);
  }

  void set_tail(std::uint32_t tail) noexcept {
    if (solo_) {
      tail_.store(tail, std::memory_order_relaxed);
    } else {
      tail_.store(tail);
    }
  }

  /// A thief: how many there are from this head on. Nonsense if the head is no longer that, which a swap then finds
  /// out; none while take_back() is about to learn that it came too late.
  std::uint32_t size_behind(std::uint64_t head) const noexcept {
    // acquire: pairs with the store in push(); the slots, and the frames behind them, are as their owner left them.
    const std::uint32_t size = tail_.load(std::memory_order_acquire) - position(head);
    return size == std::uint32_t(-1) ? 0 : size;
  }

  template <std::size_t Most>
  std::size_t take(std::array<std::coroutine_handle<>, Most>& taken, share wanted) noexcept {
    std::uint64_t head = head_.load(std::memory_order_acquire);  // as in steal()
    for (;;) {
      const std::uint32_t size = size_behind(head);
      const std::uint32_t count =
          std::min<std::uint32_t>(wanted == one ? std::min(size, 1u) : size - size / 2, std::uint32_t{Most});
      if (count == 0) return 0;
      // acquire: pairs with the release in use(). It is at least the ring that was current at that tail.
      const slots& from = *current_.load(std::memory_order_acquire);
      for (std::uint32_t i = 0; i < count; ++i) {
        taken[i] = std::coroutine_handle<>::from_address(
            from.places[(position(head) + i) & from.mask].load(std::memory_order_relaxed));
      }
      // release: as in pop(). acquire: the tail read next is no older than this head.
      if (head_.compare_exchange_strong(head, head + count, std::memory_order_acq_rel, std::memory_order_acquire)) {
        return count;
      }
    }
  }

  // Counts what was taken, at either end. Written by owner and thieves.
  alignas(64) atomic<std::uint64_t> head_{0};
  // The position behind the newest. Written by the owner, seq_cst: it publishes the slots, and a worker about to sleep
  // sees it.
  alignas(64) atomic<std::uint32_t> tail_{0};
  // The owner's: of the current ring.
  atomic<void*>* own_slots_ = nullptr;
  std::uint32_t own_mask_ = 0;
  bool solo_ = false;
  std::unique_ptr<slots> rings_;  // the current one, and behind it all that were before
  // Written by the owner, read by thieves: publishes what the ring was made of.
  alignas(64) atomic<const slots*> current_{nullptr};
};

}  // namespace cobatch::detail
