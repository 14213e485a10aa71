#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <exception>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include <cobatch/detail/config.hpp>

/// Where outcomes are written while a batch runs: slots that never move.

namespace cobatch::detail {

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
  explicit counted_results(std::size_t size) : size_(size) { slots_.reserve(size); }

  /// Makes room for the samples below `end`; false: there are not so many. One thread at a time. The memory is there:
  /// it throws only what making an unstarted slot throws.
  bool grow(std::size_t end) {
    if (end > size_) return false;
    if constexpr (MakeUnstarted::any_will_do) {
      if (slots_.size() < end) MakeUnstarted()(slots_, end);
    } else {
      while (slots_.size() < end) MakeUnstarted()(slots_);
    }
    return true;
  }

  /// All at once: for an error type of the user's, whose constructor must not run under our lock.
  void grow_all() { grow(size_); }

  Result* slot(std::size_t index) noexcept { return slots_.data() + index; }
  std::size_t size() const noexcept { return slots_.size(); }

  std::vector<Result> take() {
    grow_all();
    return std::move(slots_);
  }

 private:
  std::size_t size_;
  std::vector<Result> slots_;
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

  std::vector<Result> take() {
    std::vector<Result> all;
    all.reserve(size_);
    for (std::vector<Result>& block : blocks_) {
      for (Result& each : block) {
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
    return static_cast<std::size_t>(std::bit_width(index / first_block + 1)) - 1;
  }
  static constexpr std::size_t first_of(std::size_t block) noexcept {
    return first_block * ((std::size_t{1} << block) - 1);
  }

  std::size_t size_ = 0;
  std::array<std::vector<Result>, 48> blocks_;
};

}  // namespace cobatch::detail
