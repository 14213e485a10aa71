#pragma once

#include <coroutine>
#include <cstddef>
#include <memory>
#include <utility>

#include <cobatch/detail/abi.hpp>

namespace cobatch::inline COBATCH_ABI::detail {

/// A first-in-first-out queue of coroutine handles in one growing ring: no allocation once it is large enough.
class handle_queue {
 public:
  bool empty() const noexcept { return size_ == 0; }
  std::size_t size() const noexcept { return size_; }

  /// Appends; may throw std::bad_alloc, and has then changed nothing.
  void push(std::coroutine_handle<> handle) {
    if (size_ == capacity_) grow(size_ + 1);
    slot(size_) = handle;
    ++size_;
  }

  /// Room for `count` more: that many push() cannot throw.
  void reserve_more(std::size_t count) {
    if (capacity_ - size_ < count) grow(size_ + count);
  }

  /// The oldest handle, removed. Requires: not empty.
  std::coroutine_handle<> pop() noexcept {
    const std::coroutine_handle<> handle = slot(0);
    first_ = (first_ + 1) & (capacity_ - 1);
    --size_;
    return handle;
  }

  /// The handle at `index`, removed; the oldest takes its place. Requires: index < size().
  std::coroutine_handle<> pop_at(std::size_t index) noexcept {
    std::swap(slot(0), slot(index));
    return pop();
  }

  void swap(handle_queue& other) noexcept {
    std::swap(ring_, other.ring_);
    std::swap(capacity_, other.capacity_);
    std::swap(first_, other.first_);
    std::swap(size_, other.size_);
  }

 private:
  std::coroutine_handle<>& slot(std::size_t index) noexcept { return ring_[(first_ + index) & (capacity_ - 1)]; }

  void grow(std::size_t at_least) {
    std::size_t capacity = capacity_ == 0 ? 64 : capacity_;
    while (capacity < at_least) capacity *= 2;
    auto ring = std::make_unique<std::coroutine_handle<>[]>(capacity);
    for (std::size_t i = 0; i < size_; ++i) ring[i] = slot(i);
    ring_ = std::move(ring);
    capacity_ = capacity;
    first_ = 0;
  }

  std::unique_ptr<std::coroutine_handle<>[]> ring_;
  std::size_t capacity_ = 0;  // zero or a power of two
  std::size_t first_ = 0;
  std::size_t size_ = 0;
};

}  // namespace cobatch::detail
