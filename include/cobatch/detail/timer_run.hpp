#pragma once

#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <utility>

#include <cobatch/detail/config.hpp>

namespace cobatch::inline COBATCH_ABI::detail {

/// The life of one timer; every transition happens under the lock of the executor that owns the queue.
///
///     idle ──add()──> queued ──take_due()──> elapsed
///      │                │
///      │                └─stop()──> stopped, in the queue and due at once ──take_due()──> stopped, taken
///      └────stop()──> stopped, and add() refuses it: the coroutine does not suspend
///
/// Only take_due() removes a timer, and whoever called it owns the resumption. A stop() that comes later changes
/// nothing.
enum class timer_state : unsigned char { idle, queued, elapsed, stopped };

/// One sleeping coroutine; lives in its awaiter, that is, in the coroutine's own frame.
struct timer_node {
  static constexpr std::size_t unlinked = std::numeric_limits<std::size_t>::max();

  bool linked() const noexcept { return position != unlinked; }

  std::coroutine_handle<> handle;
  std::size_t position = unlinked;  // in the heap or run; changes under the owner's lock also while others are added
  std::uint32_t shard = 0;          // of an owner with several queues: which; set before anyone else knows the node
  std::uint8_t run = 0;             // the run it is in, counted from 1; 0: the heap
  timer_state state = timer_state::idle;
};

/// A timer in its queue.
struct timer_entry {
  std::int64_t deadline;
  std::uint64_t sequence;  // in the order in which they were set
  timer_node* node;        // null: it was taken out of the middle of a run

  friend bool before(const timer_entry& a, const timer_entry& b) noexcept {
    return a.deadline != b.deadline ? a.deadline < b.deadline : a.sequence < b.sequence;
  }
};

/// Timers that were set in the order of their deadlines: a queue, in which every operation is O(1) and touches one
/// place. What is taken out of its middle leaves a hole; there are never many more holes than timers.
class timer_run {
 public:
  bool empty() const noexcept { return begin_ == end_; }
  const timer_entry& at(std::size_t position) const noexcept { return entries_[position & mask()]; }
  const timer_entry& front() const noexcept { return entries_[begin_ & mask()]; }
  /// Whether this deadline comes last. Requires: not empty.
  bool fits(std::int64_t deadline) const noexcept { return back().deadline <= deadline; }
  const timer_entry& back() const noexcept { return entries_[(end_ - 1) & mask()]; }

  /// Appends; false if there is no memory for it.
  bool push(const timer_entry& entry) noexcept {
    if (end_ - begin_ == capacity_ && !grow()) return false;
    place(end_, entry);
    ++end_;
    return true;
  }

  /// Removes the entry at this position, wherever that is.
  void erase(std::size_t position) noexcept {
    entries_[position & mask()].node = nullptr;
    ++holes_;
    // Neither end is a hole.
    for (; begin_ != end_ && front().node == nullptr; ++begin_) --holes_;
    for (; begin_ != end_ && back().node == nullptr; --end_) --holes_;
    if (holes_ > 64 && holes_ > (end_ - begin_) / 2) close_holes();
  }

 private:
  std::size_t mask() const noexcept { return capacity_ - 1; }

  void place(std::size_t position, const timer_entry& entry) noexcept {
    entries_[position & mask()] = entry;
    entry.node->position = position;
  }

  void close_holes() noexcept {
    std::size_t kept = begin_;
    for (std::size_t i = begin_; i != end_; ++i) {
      const timer_entry entry = entries_[i & mask()];
      if (entry.node != nullptr) place(kept++, entry);
    }
    end_ = kept;
    holes_ = 0;
  }

  bool grow() noexcept {
    return guarded(
        [&] {
          const std::size_t larger = capacity_ == 0 ? 16 : 2 * capacity_;
          auto entries = std::make_unique<timer_entry[]>(larger);
          for (std::size_t i = begin_; i != end_; ++i) entries[i & (larger - 1)] = entries_[i & mask()];
          entries_ = std::move(entries);
          capacity_ = larger;
          return true;
        },
        [] { return false; });
  }

  std::unique_ptr<timer_entry[]> entries_;
  std::size_t capacity_ = 0;  // zero or a power of two
  std::size_t begin_ = 0;     // both count up, and wrap round
  std::size_t end_ = 0;
  std::size_t holes_ = 0;
};

}  // namespace cobatch::detail
