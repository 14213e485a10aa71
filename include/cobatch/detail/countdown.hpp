#pragma once

#include <cstddef>
#include <utility>

#include <cobatch/detail/atomic.hpp>
#include <cobatch/detail/config.hpp>

namespace cobatch::inline COBATCH_ABI::detail {

/// Counts those that have not ended, and one for who waits for them until it does. Whoever brings the count to zero calls
/// back, once, and nothing can be added any more.
///
///     n > 0 ──add_one──> n + 1
///     n > 0 ──one_ended──> n - 1        at 0: calls back; *this may be gone
template <class Callback>
class countdown {
 public:
  explicit countdown(std::size_t count = 0) noexcept : left_(count + 1) {}

  /// Those that have not ended, and the one.
  std::size_t left() const noexcept { return left_.load(); }
  /// False: it is over.
  bool add_one() noexcept {
    std::size_t seen = left_.load();
    while (seen != 0) {
      if (left_.compare_exchange_weak(seen, seen + 1)) return true;
    }
    return false;
  }
  /// By who waits, before it gives up its one.
  void tells(Callback done) noexcept { done_ = std::move(done); }
  void one_ended() noexcept {
    // acq_rel: the last one has seen what all others wrote.
    if (left_.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
    const Callback done = std::move(done_);
    done();  // *this may be gone
  }

 private:
  atomic<std::size_t> left_;
  Callback done_;
};

}  // namespace cobatch::detail
