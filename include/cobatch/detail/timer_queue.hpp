#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include <cobatch/detail/abi.hpp>
#include <cobatch/detail/timer_run.hpp>

namespace cobatch::inline COBATCH_ABI::detail {

/// Timers by deadline. Equal deadlines are taken in the order in which they were set.
///
/// Most programs sleep for few different times, so that most timers are set in the order in which they elapse: those
/// go to one of a few runs, where they cost next to nothing however many there are. All others go to a 4-ary heap.
///
/// Complexity: add, stop, erase and take_due O(log n), O(1) for timers in a run (erase: on average); earliest O(1). The
/// arrays grow, nothing else is allocated.
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

  bool empty() const noexcept { return size_ == 0; }
  std::size_t size() const noexcept { return size_; }

  /// The first deadline; never, if there is none.
  nanoseconds earliest() const noexcept {
    const timer_entry* const found = first();
    return found != nullptr ? found->deadline : never;
  }

  /// Queues an idle timer; false if it was stopped before. May throw std::bad_alloc, and has then changed nothing; not
  /// where there were as many timers before.
  bool add(timer_node& node, nanoseconds deadline) {
    if (node.state != timer_state::idle) return false;
    // Room for all of them: neither stop() can fail, nor can add() after an erase().
    if (heap_.capacity() <= size_) heap_.reserve(std::max<std::size_t>(16, 2 * size_));
    const timer_entry added{deadline, next_sequence_, &node};
    if (const std::size_t run = choose_run(deadline); run < runs_.size() && runs_[run].push(added)) {
      node.run = static_cast<std::uint8_t>(run + 1);
    } else {
      push(added);
    }
    ++next_sequence_;
    ++size_;
    node.state = timer_state::queued;
    return true;
  }

  /// Makes a timer that has not been taken a stopped one, due at once; true if it is in the queue.
  bool stop(timer_node& node) noexcept {
    if (node.state == timer_state::idle) node.state = timer_state::stopped;
    if (node.state != timer_state::queued) return false;
    node.state = timer_state::stopped;
    timer_entry changed = node.run != 0 ? runs_[node.run - 1u].at(node.position) : heap_[node.position];
    changed.deadline = immediately;
    if (node.run != 0) {
      remove(node);
      push(changed);
    } else {
      sift_up(node.position, changed);
    }
    return true;
  }

  /// Removes a timer whose coroutine is destroyed while it sleeps.
  void erase(timer_node& node) noexcept {
    remove(node);
    node.position = timer_node::unlinked;
    --size_;
  }

  /// Removes the first timer whose deadline has come, null if there is none.
  timer_node* take_due(nanoseconds now) noexcept {
    const timer_entry* const found = first();
    if (found == nullptr || found->deadline > now || found->deadline == never) return nullptr;
    timer_node* const node = found->node;
    erase(*node);
    if (node->state == timer_state::queued) node->state = timer_state::elapsed;
    return node;
  }

  /// Removes any timer and makes it a stopped one; null if there is none.
  timer_node* take_stopped() noexcept {
    const timer_entry* const found = first();
    if (found == nullptr) return nullptr;
    timer_node* const node = found->node;
    erase(*node);
    node->state = timer_state::stopped;
    return node;
  }

 private:
  static constexpr std::size_t parent(std::size_t index) noexcept { return (index - 1) / 4; }

  const timer_entry* first() const noexcept {
    const timer_entry* found = heap_.empty() ? nullptr : &heap_.front();
    for (const timer_run& run : runs_) {
      if (!run.empty() && (found == nullptr || before(run.front(), *found))) found = &run.front();
    }
    return found;
  }

  /// The run that ends with the latest deadline that is not later than this one; an empty one if there is none such;
  /// past the last if there is no empty one either.
  std::size_t choose_run(nanoseconds deadline) const noexcept {
    std::size_t chosen = runs_.size();
    for (std::size_t i = 0; i < runs_.size(); ++i) {
      if (runs_[i].empty()) {
        if (chosen == runs_.size()) chosen = i;
      } else if (runs_[i].fits(deadline) &&
                 (chosen == runs_.size() || runs_[chosen].empty() || runs_[chosen].fits(runs_[i].back().deadline))) {
        chosen = i;
      }
    }
    return chosen;
  }

  void remove(timer_node& node) noexcept {
    if (node.run != 0) {
      runs_[node.run - 1u].erase(node.position);
      node.run = 0;
    } else {
      remove_from_heap(node.position);
    }
  }

  // ---- The heap ----

  void push(const timer_entry& added) {
    heap_.push_back(added);
    sift_up(heap_.size() - 1, added);
  }

  void remove_from_heap(std::size_t hole) noexcept {
    const timer_entry last = heap_.back();
    heap_.pop_back();
    if (hole == heap_.size()) return;
    if (hole > 0 && before(last, heap_[parent(hole)])) {
      sift_up(hole, last);
    } else {
      sift_down(hole, last);
    }
  }

  void place(std::size_t index, const timer_entry& item) noexcept {
    heap_[index] = item;
    item.node->position = index;
  }

  void sift_up(std::size_t index, const timer_entry item) noexcept {
    while (index > 0 && before(item, heap_[parent(index)])) {
      place(index, heap_[parent(index)]);
      index = parent(index);
    }
    place(index, item);
  }

  void sift_down(std::size_t index, const timer_entry item) noexcept {
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

  std::array<timer_run, 4> runs_;
  std::vector<timer_entry> heap_;
  std::size_t size_ = 0;
  std::uint64_t next_sequence_ = 0;
};

}  // namespace cobatch::detail
