#pragma once

#include <algorithm>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace cobatch::detail {

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
  std::size_t shard = 0;            // of an owner with several queues: which; set before anyone else knows the node
  std::size_t position = unlinked;  // in the heap; changes under the owner's lock also while others are added
  timer_state state = timer_state::idle;
};

/// Timers by deadline: a 4-ary heap. Equal deadlines are taken in the order in which they were set.
///
/// Complexity: add, stop, erase and take_due O(log n); earliest O(1). The heap's array grows, nothing else is
/// allocated.
/// Thread safety: none, its owner locks.
class timer_queue {
 public:
  using nanoseconds = std::int64_t;                                              // since the owner's epoch
  static constexpr nanoseconds never = std::numeric_limits<nanoseconds>::max();  // such a deadline does not come
  static constexpr nanoseconds immediately = std::numeric_limits<nanoseconds>::min();

  /// now + delay, or never where that is too far away.
  static constexpr nanoseconds deadline_after(nanoseconds now, nanoseconds delay) noexcept {
    return delay > never - std::max<nanoseconds>(now, 0) ? never : now + delay;
  }

  bool empty() const noexcept { return heap_.empty(); }
  std::size_t size() const noexcept { return heap_.size(); }

  /// The first deadline; never, if there is none.
  nanoseconds earliest() const noexcept { return heap_.empty() ? never : heap_.front().deadline; }

  /// Queues an idle timer; false if it was stopped before. May throw std::bad_alloc, and has then changed nothing.
  bool add(timer_node& node, nanoseconds deadline) {
    if (node.state != timer_state::idle) return false;
    heap_.push_back(entry{deadline, next_sequence_, &node});
    ++next_sequence_;
    node.state = timer_state::queued;
    sift_up(heap_.size() - 1, heap_.back());
    return true;
  }

  /// Makes a timer that has not been taken a stopped one, due at once; true if it is in the queue.
  bool stop(timer_node& node) noexcept {
    if (node.state == timer_state::idle) node.state = timer_state::stopped;
    if (node.state != timer_state::queued) return false;
    node.state = timer_state::stopped;
    entry changed = heap_[node.position];
    changed.deadline = immediately;
    sift_up(node.position, changed);
    return true;
  }

  /// Removes a timer whose coroutine is destroyed while it sleeps.
  void erase(timer_node& node) noexcept {
    const std::size_t hole = node.position;
    node.position = timer_node::unlinked;
    const entry last = heap_.back();
    heap_.pop_back();
    if (hole == heap_.size()) return;
    if (hole > 0 && before(last, heap_[parent(hole)])) {
      sift_up(hole, last);
    } else {
      sift_down(hole, last);
    }
  }

  /// Removes the first timer whose deadline has come, null if there is none.
  timer_node* take_due(nanoseconds now) noexcept {
    if (heap_.empty()) return nullptr;
    const nanoseconds deadline = heap_.front().deadline;
    if (deadline > now || deadline == never) return nullptr;
    timer_node* const node = heap_.front().node;
    erase(*node);
    if (node->state == timer_state::queued) node->state = timer_state::elapsed;
    return node;
  }

  /// Removes any timer and makes it a stopped one; null if there is none.
  timer_node* take_stopped() noexcept {
    if (heap_.empty()) return nullptr;
    timer_node* const node = heap_.front().node;
    erase(*node);
    node->state = timer_state::stopped;
    return node;
  }

 private:
  struct entry {
    nanoseconds deadline;
    std::uint64_t sequence;
    timer_node* node;
  };

  static bool before(const entry& a, const entry& b) noexcept {
    return a.deadline != b.deadline ? a.deadline < b.deadline : a.sequence < b.sequence;
  }
  static constexpr std::size_t parent(std::size_t index) noexcept { return (index - 1) / 4; }

  void place(std::size_t index, const entry& item) noexcept {
    heap_[index] = item;
    item.node->position = index;
  }

  void sift_up(std::size_t index, const entry item) noexcept {
    while (index > 0 && before(item, heap_[parent(index)])) {
      place(index, heap_[parent(index)]);
      index = parent(index);
    }
    place(index, item);
  }

  void sift_down(std::size_t index, const entry item) noexcept {
    for (;;) {
      const std::size_t first = 4 * index + 1;
      if (first >= heap_.size()) break;
      std::size_t least = first;
      const std::size_t end = std::min(first + 4, heap_.size());
      for (std::size_t child = first + 1; child < end; ++child) {
        if (before(heap_[child], heap_[least])) least = child;
      }
      if (!before(heap_[least], item)) break;
      place(index, heap_[least]);
      index = least;
    }
    place(index, item);
  }

  std::vector<entry> heap_;
  std::uint64_t next_sequence_ = 0;
};

}  // namespace cobatch::detail
