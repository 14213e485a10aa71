#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace cobatch::detail {

/// Samples between two attempts: first they sleep, then they are ready, in the order in which they woke.
///
/// Entry has `due` (when it wakes) and `next`. No lock of its own; nothing in here runs code of the user's: entries are
/// made and destroyed outside.
template <class Entry>
class retry_queue {
 public:
  using time = std::chrono::nanoseconds;

  retry_queue() = default;
  retry_queue(const retry_queue&) = delete;
  retry_queue& operator=(const retry_queue&) = delete;
  ~retry_queue() {
    for (Entry* const each : sleeping_) delete each;
    while (std::unique_ptr<Entry> each = pop_ready()) each.reset();
  }

  /// True: it is the next to wake. Throws std::bad_alloc, then nothing was taken.
  bool push(std::unique_ptr<Entry>& entry) {
    sleeping_.push_back(entry.get());
    Entry* const taken = entry.release();
    taken->order = pushed_++;
    std::push_heap(sleeping_.begin(), sleeping_.end(), wakes_later);
    return sleeping_.front() == taken;
  }

  /// Makes ready what is due; how many.
  std::size_t wake(time now) {
    std::size_t woken = 0;
    for (; !sleeping_.empty() && sleeping_.front()->due <= now; ++woken) {
      std::pop_heap(sleeping_.begin(), sleeping_.end(), wakes_later);
      append(sleeping_.back());
      sleeping_.pop_back();
    }
    return woken;
  }

  /// When the next one is due, or `never`.
  time next_due(time never) const noexcept { return sleeping_.empty() ? never : sleeping_.front()->due; }

  std::unique_ptr<Entry> pop_ready() noexcept {
    Entry* const first = first_;
    if (first) {
      first_ = first->next;
      if (!first_) last_ = nullptr;
    }
    return std::unique_ptr<Entry>(first);
  }

  bool empty() const noexcept { return sleeping_.empty() && !first_; }

  template <class Visit>
  void each(Visit&& visit) const {
    for (const Entry* const asleep : sleeping_) visit(*asleep);
    for (const Entry* ready = first_; ready; ready = ready->next) visit(*ready);
  }

  void swap(retry_queue& other) noexcept {
    sleeping_.swap(other.sleeping_);
    std::swap(first_, other.first_);
    std::swap(last_, other.last_);
  }

 private:
  static bool wakes_later(const Entry* a, const Entry* b) noexcept {
    return a->due != b->due ? a->due > b->due : a->order > b->order;
  }

  void append(Entry* entry) noexcept {
    entry->next = nullptr;
    (last_ ? last_->next : first_) = entry;
    last_ = entry;
  }

  std::vector<Entry*> sleeping_;  // a heap, the next to wake in front
  Entry* first_ = nullptr;        // the ready ones
  Entry* last_ = nullptr;
  std::uint64_t pushed_ = 0;
};

}  // namespace cobatch::detail
