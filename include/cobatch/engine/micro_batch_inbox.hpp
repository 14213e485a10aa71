#pragma once

#include <cstdint>
#include <utility>

#include <cobatch/detail/abi.hpp>
#include <cobatch/detail/atomic.hpp>
#include <cobatch/engine/micro_batch_queue.hpp>

namespace cobatch::inline COBATCH_ABI::detail {

/// Where newcomers of some threads wait until somebody looks: a list to which anybody pushes without a lock.
///
/// Who finds nobody on the way sends one: a *look*, which goes to the executor, behind all that is ready there. Whoever
/// comes before it arrives only pushes, with one compare-exchange, and touches nothing of the batcher after it: its
/// sample may have its result, and the batcher be gone, before push() returns.
///
///     idle     nobody is in it
///     coming   nobody is in it, and a look is on its way
///     filled   the address of the newest, from which the others hang; a look is on its way
///     closed   nobody is in it, or ever will be; there may be a look on its way
///
///     idle ──push()──> coming ──the same push()──> filled ──push()──> filled     on any thread
///     filled ──take()──> coming                     this and the next two under the batcher's mutex
///     filled, coming ──take_all(), by the look──> idle
///     idle, coming, filled ──close()──> closed
class micro_batch_inbox {
 public:
  /// False: it is closed. `first(waiter)` is called if it may become the oldest here; `claimed()`, before anybody else
  /// can see the waiter, if the caller must send the look, also where it turns out to be closed.
  template <class First, class Claimed>
  bool push(batch_waiter& waiter, First&& first, Claimed&& claimed) noexcept {
    word seen = word_.load(std::memory_order_relaxed);
    for (;;) {
      if (seen == closed) return false;
      if (seen == idle) {
        // acquire: pairs with the release in take_all(): what the look before has left is ours.
        if (!word_.compare_exchange_weak(seen, coming, std::memory_order_acquire, std::memory_order_relaxed)) continue;
        claimed();
        seen = coming;
      }
      if (seen == coming) first(waiter);
      waiter.link = list_of(seen);
      // release: pairs with the acquire of who takes the list.
      if (word_.compare_exchange_weak(seen, reinterpret_cast<word>(&waiter), std::memory_order_release,
                                      std::memory_order_relaxed)) {
        return true;  // the waiter and *this may be gone
      }
    }
  }

  bool is_closed() const noexcept { return word_.load(std::memory_order_relaxed) == closed; }

  /// All that are in it: the oldest, from which the others hang, or null.
  batch_waiter* take() noexcept {
    if (list_of(word_.load(std::memory_order_relaxed)) == nullptr) return nullptr;
    return oldest_of(word_.exchange(coming, std::memory_order_acq_rel));
  }
  batch_waiter* take_all() noexcept { return oldest_of(word_.exchange(idle, std::memory_order_acq_rel)); }

  struct contents {
    batch_waiter* oldest;
    bool look_comes;
  };
  contents close() noexcept {
    const word seen = word_.exchange(closed, std::memory_order_acq_rel);
    return {oldest_of(seen), seen != idle};
  }

 private:
  using word = std::uintptr_t;
  static constexpr word idle = 0;
  static constexpr word coming = 1;
  static constexpr word closed = 2;

  static batch_waiter* list_of(word seen) noexcept {
    return seen > closed ? reinterpret_cast<batch_waiter*>(seen) : nullptr;
  }
  static batch_waiter* oldest_of(word seen) noexcept {
    batch_waiter* oldest = nullptr;
    for (batch_waiter* each = list_of(seen); each != nullptr;) {
      batch_waiter* const before = std::exchange(each->link, oldest);
      oldest = std::exchange(each, before);
    }
    return oldest;
  }

  atomic<word> word_{idle};
};

}  // namespace cobatch::detail
