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
/// Only its owner pushes; owner and thieves take from the head by compare-and-swap. head_ and tail_ count up forever
/// (64 bits: no ABA), so that a slot can be read before it is claimed: if another one claimed it, the swap fails.
class work_ring {
 public:
  static constexpr std::size_t capacity = 256;

  /// Before anything else: there are no thieves, every call comes from the owner. Saves it the interlocked
  /// operations.
  void never_stolen_from() noexcept { solo_ = true; }

  /// Owner: appends; false if it is full.
  bool push(std::coroutine_handle<> handle) noexcept { return push(&handle, 1); }

  /// Owner: appends all, or nothing and false.
  bool push(const std::coroutine_handle<>* handles, std::size_t count) noexcept {
    const std::uint64_t tail = tail_.load(std::memory_order_relaxed);
    // acquire: pairs with the release of whoever claimed the slots that are about to be overwritten.
    if (tail + count - head_.load(std::memory_order_acquire) > capacity) return false;
    for (std::size_t i = 0; i < count; ++i) {
      slots_[(tail + i) % capacity].store(handles[i].address(), std::memory_order_relaxed);
    }
    if (solo_) {
      tail_.store(tail + count, std::memory_order_relaxed);
    } else {
      tail_.store(tail + count);
    }
    return true;
  }

  /// Owner: how many more it can push; others only make it more.
  std::size_t room() const noexcept {
    const std::uint64_t head = head_.load(std::memory_order_relaxed);
    return capacity - static_cast<std::size_t>(tail_.load(std::memory_order_relaxed) - head);
  }

  /// Owner: the oldest, null if there is none.
  std::coroutine_handle<> pop() noexcept {
    std::uint64_t head = head_.load(std::memory_order_relaxed);
    const std::uint64_t tail = tail_.load(std::memory_order_relaxed);
    while (head != tail) {
      void* const address = slots_[head % capacity].load(std::memory_order_relaxed);
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

  /// What a thief remembers of a single item that it left to its owner.
  struct lone_item {
    const work_ring* ring = nullptr;
    std::uint64_t position = 0;
  };

  /// A thief: moves the older half, rounded up, but no more than Most, to `taken`; how many. A single item is left to
  /// its owner, who is likely just about to take it, unless `lone` shows that it was there already when the thief
  /// last looked.
  template <std::size_t Most>
  std::size_t steal(std::array<std::coroutine_handle<>, Most>& taken, lone_item& lone) noexcept {
    const bool watched = lone.ring == this;
    // acquire: the tail read next is no older than this head.
    std::uint64_t head = head_.load(std::memory_order_acquire);
    const std::uint64_t size = tail_.load(std::memory_order_acquire) - head;
    if (size == 1 && !(watched && lone.position == head)) {
      // One ring is watched at a time, and given up as soon as it moves, so that each gets its turn.
      if (watched) {
        lone.ring = nullptr;
      } else if (lone.ring == nullptr) {
        lone = {this, head};
      }
      return 0;
    }
    if (watched) lone.ring = nullptr;
    return take_half(taken, head);
  }

  /// Owner: moves the older half as steal() does.
  template <std::size_t Most>
  std::size_t take_half(std::array<std::coroutine_handle<>, Most>& taken) noexcept {
    return take_half(taken, head_.load(std::memory_order_relaxed));
  }

  /// Anyone, before it sleeps: sequentially consistent with push(), see thread_pool::park.
  bool empty() const noexcept {
    const std::uint64_t head = head_.load();
    return tail_.load() == head;
  }

 private:
  template <std::size_t Most>
  std::size_t take_half(std::array<std::coroutine_handle<>, Most>& taken, std::uint64_t head) noexcept {
    for (;;) {
      // acquire: pairs with the store in push(); the slots, and the frames behind them, are as their owner left them.
      const std::uint64_t size = tail_.load(std::memory_order_acquire) - head;
      const std::uint64_t count = std::min<std::uint64_t>(size - size / 2, Most);
      if (count == 0) return 0;
      for (std::uint64_t i = 0; i < count; ++i) {
        taken[i] = std::coroutine_handle<>::from_address(slots_[(head + i) % capacity].load(std::memory_order_relaxed));
      }
      // release: as in pop(). acquire: the tail read next is no older than this head.
      if (head_.compare_exchange_strong(head, head + count, std::memory_order_acq_rel, std::memory_order_acquire)) {
        return static_cast<std::size_t>(count);
      }
    }
  }

  // Counts what was taken. Written by owner and thieves.
  alignas(64) std::atomic<std::uint64_t> head_{0};
  // Counts what was pushed. Written by the owner, seq_cst: it publishes the slots, and a worker about to sleep sees
  // it.
  alignas(64) std::atomic<std::uint64_t> tail_{0};
  // Written by the owner, read by whoever may then fail to claim; published by tail_, given back by head_.
  alignas(64) std::array<std::atomic<void*>, capacity> slots_{};
  bool solo_ = false;
};

}  // namespace cobatch::detail
