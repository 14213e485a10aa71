#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <coroutine>
#include <cstddef>
#include <cstdint>

namespace cobatch::detail {

/// One worker's queue: a ring of fixed size, first in, first out, from which other workers steal.
///
/// Only its owner pushes; owner and thieves take from the head by compare-and-swap. The lower half of head_ is the
/// position of the oldest handle. Every change makes head_ larger, by 1 for each handle taken and by 2^32 for one that
/// the owner takes back at the other end, so that it does not come to the same value again (before 2^64): a slot can
/// be read before it is claimed, and if anything was claimed in the meantime the swap fails.
class work_ring {
 public:
  static constexpr std::uint32_t capacity = 256;

  /// Before anything else: there are no thieves, every call comes from the owner. Saves it the interlocked
  /// operations.
  void never_stolen_from() noexcept { solo_ = true; }

  /// Owner: appends; false if it is full.
  bool push(std::coroutine_handle<> handle) noexcept { return push(&handle, 1); }

  /// Owner: appends all, or nothing and false.
  bool push(const std::coroutine_handle<>* handles, std::size_t count) noexcept {
    const std::uint32_t tail = tail_.load(std::memory_order_relaxed);
    // acquire: pairs with the release of whoever claimed the slots that are about to be overwritten.
    const std::uint32_t size = tail - position(head_.load(std::memory_order_acquire));
    if (size + count > capacity) return false;
    for (std::uint32_t i = 0; i < count; ++i) {
      slots_[(tail + i) % capacity].store(handles[i].address(), std::memory_order_relaxed);
    }
    set_tail(tail + static_cast<std::uint32_t>(count));
    return true;
  }

  /// Owner: how many more it can push; others only make it more.
  std::size_t room() const noexcept {
    return capacity - (tail_.load(std::memory_order_relaxed) - position(head_.load(std::memory_order_relaxed)));
  }

  /// Owner: the oldest, null if there is none.
  std::coroutine_handle<> pop() noexcept {
    std::uint64_t head = head_.load(std::memory_order_relaxed);
    const std::uint32_t tail = tail_.load(std::memory_order_relaxed);
    while (position(head) != tail) {
      void* const address = slots_[position(head) % capacity].load(std::memory_order_relaxed);
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
    if (slots_[(tail - 1) % capacity].load(std::memory_order_relaxed) != handle.address()) return false;
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
  };

  /// A thief: moves the older half, rounded up, but no more than Most, to `taken`; how many.
  ///
  /// Few handles are left to their owner, who will come to them sooner than they could move to another core, unless
  /// two looks with at least `pause` nanoseconds between them show that it does not get that far.
  template <std::size_t Most>
  std::size_t steal(std::array<std::coroutine_handle<>, Most>& taken, glance& seen, std::int64_t now) noexcept {
    // acquire: the tail read next is no older than this head.
    const std::uint64_t head = head_.load(std::memory_order_acquire);
    const std::uint32_t size = size_behind(head);
    if (size >= plenty) return take(taken, half);
    if (seen.ring == this) {
      if (size > 0 && now - seen.at < pause) return 0;
      seen.ring = nullptr;  // one ring is watched at a time, so that each gets its turn
      // Anything taken back counts as if it had come to all of them.
      if (size > 0 && head - seen.head < size) return take(taken, half);
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
  static constexpr std::uint64_t retraction = std::uint64_t{1} << 32;
  static constexpr std::uint32_t plenty = 8;
  static constexpr std::int64_t pause = 2000;  // ns; about what it costs to move a coroutine and what it works on
  enum share : bool { half, one };

  static constexpr std::uint32_t position(std::uint64_t head) noexcept { return static_cast<std::uint32_t>(head); }

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
      for (std::uint32_t i = 0; i < count; ++i) {
        taken[i] = std::coroutine_handle<>::from_address(
            slots_[(position(head) + i) % capacity].load(std::memory_order_relaxed));
      }
      // release: as in pop(). acquire: the tail read next is no older than this head.
      if (head_.compare_exchange_strong(head, head + count, std::memory_order_acq_rel, std::memory_order_acquire)) {
        return count;
      }
    }
  }

  // Counts what was taken, at either end. Written by owner and thieves.
  alignas(64) std::atomic<std::uint64_t> head_{0};
  // The position behind the newest. Written by the owner, seq_cst: it publishes the slots, and a worker about to sleep
  // sees it.
  alignas(64) std::atomic<std::uint32_t> tail_{0};
  // Written by the owner, read by whoever may then fail to claim; published by tail_, given back by head_.
  alignas(64) std::array<std::atomic<void*>, capacity> slots_{};
  bool solo_ = false;
};

}  // namespace cobatch::detail
