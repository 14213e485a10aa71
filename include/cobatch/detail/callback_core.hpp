#pragma once

#include <coroutine>
#include <cstdint>

#include <cobatch/detail/abi.hpp>
#include <cobatch/detail/atomic.hpp>
#include <cobatch/detail/current_executor.hpp>
#include <cobatch/detail/frame_pool.hpp>
#include <cobatch/detail/waiter.hpp>

namespace cobatch::inline COBATCH_ABI::detail {

/// The meeting of one coroutine that waits and of all copies of the callback that it waits for, whoever comes first.
///
/// One word is the whole state: how many callbacks there are, and four marks that are only ever set.
///
///     claimed    somebody writes the outcome, or has written it: the first call of a callback, the end of the last one
///                without a call, or the exception of initiate; nobody else ever does
///     settled    the outcome is there
///     suspended  the coroutine can be resumed
///     left       the coroutine is gone, or has its outcome
///
///     settle():  sets settled; where suspended stood and left did not, it resumes the coroutine
///     suspend(): sets suspended; where settled stood, the coroutine is not suspended
///
/// Both are one fetch-or on the same word, so exactly one of them finds the other's mark. Whoever finds no callback
/// left and `left` set, be it with the last callback or with the mark, deletes the whole.
class callback_core : public pooled_frame {
 public:
  callback_core(const callback_core&) = delete;
  callback_core& operator=(const callback_core&) = delete;

  void prepare(std::coroutine_handle<> awaiting) noexcept {
    waiter_.handle = awaiting;
    waiter_.executor = current_executor();
  }

  // relaxed: a copy is made of one that keeps this alive.
  void add_callback() noexcept { word_.fetch_add(one_callback, std::memory_order_relaxed); }

  /// True, once: the caller is to write the outcome and then to settle(). relaxed: settle() publishes.
  bool claim() noexcept { return (word_.fetch_or(claimed, std::memory_order_relaxed) & claimed) == 0; }

  /// The outcome is written. The caller holds a callback, and so *this, but the callback's own object may be gone.
  void settle() noexcept {
    // release: the outcome, for suspend() or whoever the executor lets run. acquire: the handle, from suspend().
    const std::uint32_t before = word_.fetch_or(settled, std::memory_order_acq_rel);
    if ((before & (suspended | left)) != suspended) return;
    waiter_list ready;
    ready.push_back(waiter_);
    resume_all(ready);
  }

  /// True: suspended, the coroutine will be resumed, or already was. False: the outcome is there.
  bool suspend() noexcept {
    // release: the handle. acquire: the outcome. Both pair with settle().
    return (word_.fetch_or(suspended, std::memory_order_acq_rel) & settled) == 0;
  }

  enum class dropped : unsigned char { one, last, unanswered };

  /// Takes one callback away, unless it is the last one and was not called: then it still counts, and the caller is to
  /// claim() and settle() first. `last`: the caller deletes *this.
  dropped drop_callback() noexcept {
    std::uint32_t word = word_.load(std::memory_order_relaxed);
    for (;;) {
      const bool is_last = word / one_callback == 1;
      if (is_last && (word & claimed) == 0) return dropped::unanswered;
      // release: what this callback did with *this. acquire, for whoever deletes it: what all others did.
      if (word_.compare_exchange_weak(word, word - one_callback, std::memory_order_acq_rel,
                                      std::memory_order_relaxed)) {
        return is_last && (word & left) != 0 ? dropped::last : dropped::one;
      }
    }
  }

  /// The coroutine is gone, or has what it wants. True: the caller deletes *this.
  bool leave() noexcept {
    if (waiter_.linked()) [[unlikely]]
      waiter_.unlink();  // destroyed by a coroutine that the same call resumed before it
    // As in drop_callback().
    return word_.fetch_or(left, std::memory_order_acq_rel) / one_callback == 0;
  }

 protected:
  callback_core() noexcept = default;
  ~callback_core() = default;

 private:
  static constexpr std::uint32_t claimed = 1, settled = 2, suspended = 4, left = 8, one_callback = 16;

  atomic<std::uint32_t> word_{0};
  waiter waiter_;  // written before suspend(), read after it
};

}  // namespace cobatch::detail
