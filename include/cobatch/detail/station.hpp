#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include <cobatch/detail/cache_line.hpp>

namespace cobatch::detail {

/// Sample numbers [begin, end).
struct index_range {
  std::size_t begin = 0;
  std::size_t end = 0;

  std::size_t size() const noexcept { return end - begin; }
  bool empty() const noexcept { return begin == end; }
};

/// What enter() and leave() and the marks below move through.
///
///     free ──enter──> busy ──leave──> free             by whoever pumps here: one thread at a time
///                     busy ──ask(wanted)──> busy|wanted      by another pump: "share, or take over a parked lane"
///                     busy ──ask(last_check)──> busy|last_check   by a pump that saw no lane alive but this one busy
///                     busy|marks ──take_marks──> busy        by the owner, who then answers them
///
/// leave() succeeds on an unmarked station only, so no mark is ever lost: either ask() sees the station busy and its
/// owner sees the mark before it goes, or ask() fails and the asker knows that the station has been left.
/// enter() (acquire) pairs with leave() (release): the range travels with the station.
/// ask() and take_marks() are acquire-release: what the asker did before is seen by the owner who answers.
class alignas(cache_line) station {
 public:
  enum mark : std::uint8_t { wanted = 2, last_check = 4 };

  /// True: the calling pump owns the station now.
  bool enter() noexcept {
    std::uint8_t expected = free;
    return state_.load(std::memory_order_relaxed) == free &&
           state_.compare_exchange_strong(expected, busy, std::memory_order_acquire, std::memory_order_relaxed);
  }

  /// Owner only. True: left, and nothing of the engine may be touched any more. False: there are marks to answer.
  bool leave() noexcept {
    std::uint8_t expected = busy;
    return state_.compare_exchange_strong(expected, free, std::memory_order_release, std::memory_order_relaxed);
  }

  /// Owner only: one relaxed load, for the hot loop.
  bool marked() const noexcept { return state_.load(std::memory_order_relaxed) != busy; }

  /// Owner only: the marks since the last call.
  std::uint8_t take_marks() noexcept {
    return static_cast<std::uint8_t>(state_.exchange(busy, std::memory_order_acq_rel) & ~busy);
  }

  /// Any pump. True: the station is busy and its owner will see the mark. False: it is free.
  bool ask(mark what) noexcept {
    std::uint8_t seen = state_.load(std::memory_order_acquire);
    while ((seen & busy) != 0) {
      if ((seen & what) != 0) return true;
      if (state_.compare_exchange_weak(seen, static_cast<std::uint8_t>(seen | what), std::memory_order_acq_rel,
                                       std::memory_order_acquire)) {
        return true;
      }
    }
    return false;
  }

  index_range range;  ///< claimed for this station and not yet started; the owner's alone

 private:
  static constexpr std::uint8_t free = 0, busy = 1;

  std::atomic<std::uint8_t> state_{free};
};

}  // namespace cobatch::detail
