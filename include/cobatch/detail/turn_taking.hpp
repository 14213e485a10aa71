#pragma once

#include <cstdint>

#include <cobatch/detail/abi.hpp>
#include <cobatch/detail/atomic.hpp>
#include <cobatch/detail/spin_pause.hpp>

namespace cobatch::inline COBATCH_ABI::detail {

/// One at a time, by turns that are tried and not waited for; nobody who found it taken is forgotten.
///
///     open ──enter──> taken ──leave──> open
///                     taken ──ask──> wanted ──leave──> open, and who leaves starts who asked
///
/// Who asks has first put down what its successor may need, and who leaves looks here before it looks for that: all of
/// it is sequentially consistent, so one of them sees the other. To ask again where somebody has asked is no more than
/// a load.
class turn_taking {
 public:
  /// `patience`: how many looks it is worth.
  bool enter(int patience = 1) noexcept {
    for (;;) {
      std::uint8_t expected = open;
      if (state_.load(std::memory_order_relaxed) == open && state_.compare_exchange_strong(expected, taken)) return true;
      if (--patience <= 0) return false;
      spin_pause();
    }
  }
  /// A hint: one relaxed load.
  bool is_taken() const noexcept { return state_.load(std::memory_order_relaxed) != open; }
  /// True: somebody asked in the meantime.
  bool leave() noexcept { return state_.exchange(open) == wanted; }
  /// True: who has the turn will see it. False: it is open.
  bool ask() noexcept {
    std::uint8_t seen = state_.load();
    return seen == wanted || (seen == taken && (state_.compare_exchange_strong(seen, wanted) || seen == wanted));
  }

 private:
  static constexpr std::uint8_t open = 0, taken = 1, wanted = 2;

  atomic<std::uint8_t> state_{open};
};

}  // namespace cobatch::detail
