#pragma once

#include <atomic>
#include <cstdint>

namespace cobatch::detail {

/// Lets one lane of a batch at a time look for permits, and forgets nobody who found it taken.
///
///     open ──enter──> taken ──leave──> open
///                     taken ──ask──> wanted ──leave──> open, and the leaver starts another pump
///
/// So a batch keeps at most one waiter in a shared semaphore, however large its own cap is. A pump that finds the
/// turnstile taken first gives its lane back, if it has one, and then asks: whoever leaves afterwards can have that
/// lane. enter() is acquire and leave() release: what one holder did is seen by the next.
///
/// Who asks first gives its lane back and then looks here; who leaves first looks here and then for room for a lane. All
/// of it is sequentially consistent, so one of them sees the other. To ask again where somebody has asked is no more
/// than a load: all who find it taken share the cache line.
class turnstile {
 public:
  bool enter() noexcept {
    std::uint8_t expected = open;
    return state_.compare_exchange_strong(expected, taken, std::memory_order_acquire, std::memory_order_relaxed);
  }

  /// A hint: one relaxed load.
  bool is_taken() const noexcept { return state_.load(std::memory_order_relaxed) != open; }

  /// True: somebody asked in the meantime; start another pump.
  bool leave() noexcept { return state_.exchange(open) == wanted; }

  /// True: the holder will see it. False: it is open.
  bool ask() noexcept {
    std::uint8_t seen = state_.load();
    return seen == wanted || (seen == taken && (state_.compare_exchange_strong(seen, wanted) || seen == wanted));
  }

 private:
  static constexpr std::uint8_t open = 0, taken = 1, wanted = 2;

  std::atomic<std::uint8_t> state_{open};
};

}  // namespace cobatch::detail
