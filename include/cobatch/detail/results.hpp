#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cobatch/detail/as_size.hpp>
#include <cobatch/detail/atomic.hpp>
#include <cobatch/detail/brief_mutex.hpp>
#include <cobatch/detail/config.hpp>
#include <cobatch/detail/mutex.hpp>

/// Where outcomes are written while a batch runs: slots that never move.

namespace cobatch::inline COBATCH_ABI::detail {

/// `slot = Result(arguments...)`, also for results that cannot be assigned. If it throws, the slot holds what it held.
///
/// Requires: a slot of a Result that may throw while it is moved holds an error.
template <class Result, class... Arguments>
void rewrite(Result& slot, Arguments&&... arguments) {
  if constexpr (std::is_nothrow_constructible_v<Result, Arguments...>) {
    std::destroy_at(&slot);
    std::construct_at(&slot, std::forward<Arguments>(arguments)...);
  } else {
    Result made(std::forward<Arguments>(arguments)...);
    if constexpr (std::is_nothrow_move_constructible_v<Result>) {
      std::destroy_at(&slot);
      std::construct_at(&slot, std::move(made));
    } else if constexpr (std::is_move_assignable_v<Result>) {
      slot = std::move(made);
    } else {
      typename Result::error_type before(std::move(slot.error()));
      std::destroy_at(&slot);
      guarded([&] { std::construct_at(&slot, std::move(made)); },
              [&] {
                std::construct_at(&slot, typename Result::unexpected_type(std::move(before)));
                std::rethrow_exception(std::current_exception());
              });
    }
  }
}

/// The same with a value. void: nothing but success.
template <class Value, class Result, class... Arguments>
void rewrite_value(Result& slot, Arguments&&... arguments) {
  if constexpr (std::is_void_v<Value> || std::is_nothrow_constructible_v<Value, Arguments...>) {
    slot.emplace(std::forward<Arguments>(arguments)...);
  } else {
    rewrite(slot, std::in_place, std::forward<Arguments>(arguments)...);
  }
}

/// For inputs of known length: the very vector that the user gets.
///
/// Slots are made as their samples are handed out, so that they are still in the cache when the outcomes arrive.
template <class Result, class MakeUnstarted>
class counted_results {
 public:
  explicit counted_results(std::size_t size) : size_(size) {
    slots_.reserve(size);
    first_ = slots_.data();
  }

  /// Makes room for the samples below `end`; false: there are not so many. One thread at a time. The memory is there:
  /// it throws only what making an unstarted slot throws.
  bool grow(std::size_t end) {
    if (end > size_) return false;
    if constexpr (MakeUnstarted::any_will_do) {
      if (slots_.size() < end) MakeUnstarted()(slots_, end);
    } else {
      while (slots_.size() < end) MakeUnstarted()(slots_);
    }
    made_.store(slots_.size(), std::memory_order_release);
    return true;
  }

  /// Room for the samples [begin, end), from any thread. Who has to wait for another one sees to its pages meanwhile.
  void make_room(std::size_t begin, std::size_t end) {
    if (made_.load(std::memory_order_acquire) >= end) return;
    std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock) {
      provide_pages(begin, end);
      lock.lock();
    }
    grow(end);
  }

  /// All at once: for an error type of the user's, whose constructor must not run under our lock.
  void grow_all() { grow(size_); }

  Result* slot(std::size_t index) noexcept { return first_ + index; }
  std::size_t size() const noexcept { return slots_.size(); }

  std::vector<Result> take() {
    grow_all();
    return std::move(slots_);
  }

 private:
  /// Lets the system provide the pages of [begin, end) that hold no slot yet: one that is new to the process costs a
  /// quarter of a microsecond. Writes nothing: another thread may be making slots there.
  void provide_pages([[maybe_unused]] std::size_t begin, [[maybe_unused]] std::size_t end) noexcept {
#if defined(__linux__) && defined(MADV_POPULATE_WRITE)
    constexpr std::size_t page = 4096, enough = 4;
    const auto first = reinterpret_cast<std::uintptr_t>(first_ + std::max(begin, made_.load(std::memory_order_relaxed)));
    const std::uintptr_t from = (first + page - 1) / page * page;
    const std::uintptr_t to = reinterpret_cast<std::uintptr_t>(first_ + end) / page * page;
    // Where the system cannot, pages come as they are written to.
    if (from + enough * page <= to) ::madvise(reinterpret_cast<void*>(from), to - from, MADV_POPULATE_WRITE);
#endif
  }

  std::size_t size_;
  std::vector<Result> slots_;  // guarded by mutex_
  Result* first_;              // of the memory that was reserved: it does not move
  // How many slots there are. Written under mutex_ (release); read by who claims samples (acquire).
  atomic<std::size_t> made_{0};
  brief_mutex mutex_;
};

/// For inputs of unknown length: blocks that double in size, moved into one vector at the end.
template <class Result, class MakeUnstarted, class MakeFailed>
class growing_results {
 public:
  growing_results() = default;
  growing_results(const growing_results&) = delete;
  growing_results& operator=(const growing_results&) = delete;

  /// One thread at a time. May throw std::bad_alloc, and what making an unstarted slot throws.
  bool grow(std::size_t end) {
    while (size_ < end) {
      std::vector<Result>& block = blocks_[block_of(size_)];
      if (block.capacity() == 0) block.reserve(first_block << block_of(size_));
      MakeUnstarted()(block);
      ++size_;
    }
    return true;
  }

  Result* slot(std::size_t index) noexcept {
    const std::size_t number = block_of(index);
    return blocks_[number].data() + (index - first_of(number));
  }
  std::size_t size() const noexcept { return size_; }

  std::vector<Result> take() { return take(size_); }
  /// The first so many.
  std::vector<Result> take(std::size_t count) {
    std::vector<Result> all;
    all.reserve(count);
    for (std::vector<Result>& block : blocks_) {
      for (Result& each : block) {
        if (all.size() == count) break;
        guarded([&] { all.push_back(std::move(each)); }, [&] { MakeFailed()(all); });
      }
      block = std::vector<Result>();
    }
    return all;
  }

 private:
  static constexpr std::size_t first_block = 64;

  // Block k holds first_block << k slots, from number first_block * (2^k - 1) on.
  static constexpr std::size_t block_of(std::size_t index) noexcept {
    return as_size(std::bit_width(index / first_block + 1)) - 1;
  }
  static constexpr std::size_t first_of(std::size_t block) noexcept {
    return first_block * ((std::size_t{1} << block) - 1);
  }

  std::size_t size_ = 0;
  std::array<std::vector<Result>, 48> blocks_;
};

}  // namespace cobatch::detail
