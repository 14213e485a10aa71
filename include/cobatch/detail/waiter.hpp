#pragma once

#include <coroutine>
#include <utility>

#include <cobatch/detail/abi.hpp>
#include <cobatch/detail/current_executor.hpp>

/// Suspended coroutines in lists that cost no memory of their own, and how they go on.

namespace cobatch::inline COBATCH_ABI::detail {

class waiter_list;

/// A suspended coroutine as a link of a list; lives in the frame of the coroutine itself.
///
/// A list has no lock: it belongs to whoever owns it, a mutex or a stack frame.
class waiter {
 public:
  constexpr waiter() noexcept = default;
  waiter(const waiter&) = delete;
  waiter& operator=(const waiter&) = delete;

  bool linked() const noexcept { return next_ != nullptr; }

  /// Takes a linked waiter out of whichever list it is in.
  void unlink() noexcept {
    previous_->next_ = next_;
    next_->previous_ = previous_;
    next_ = nullptr;
  }

  std::coroutine_handle<> handle;
  executor_ref executor;  ///< where the handle goes on; empty: where it is resumed

 private:
  friend waiter_list;
  waiter* previous_ = nullptr;
  waiter* next_ = nullptr;  // null: in no list
};

/// Waiters in the order in which they came.
class waiter_list {
 public:
  constexpr waiter_list() noexcept { clear(); }
  waiter_list(const waiter_list&) = delete;
  waiter_list& operator=(const waiter_list&) = delete;

  bool empty() const noexcept { return ring_.next_ == &ring_; }
  /// The one that came first, null where there is none.
  waiter* first() noexcept { return after(&ring_); }
  /// The one behind `each`, null where that is the last.
  waiter* after(waiter* each) noexcept { return each->next_ == &ring_ ? nullptr : each->next_; }

  void push_back(waiter& last) noexcept {
    last.previous_ = ring_.previous_;
    last.next_ = &ring_;
    ring_.previous_->next_ = &last;
    ring_.previous_ = &last;
  }

  waiter* pop_front() noexcept {
    waiter* const popped = first();
    if (popped != nullptr) popped->unlink();
    return popped;
  }

  /// Appends all of `other`, which is empty then.
  void splice_back(waiter_list& other) noexcept {
    if (other.empty()) return;
    other.ring_.next_->previous_ = ring_.previous_;
    other.ring_.previous_->next_ = &ring_;
    ring_.previous_->next_ = other.ring_.next_;
    ring_.previous_ = other.ring_.previous_;
    other.clear();
  }

 private:
  constexpr void clear() noexcept { ring_.previous_ = ring_.next_ = &ring_; }

  waiter ring_;  // the link between the last and the first
};

/// The list that the outermost resume_all() of this thread works off where a waiter has no executor, else
/// null.
inline thread_local constinit waiter_list* this_thread_trampoline = nullptr;

/// A call of execute() in resume_all() that this thread is in; the innermost links to those around it. A resume_all()
/// that finds one for its own executor knows that this executor resumes at once, inside execute().
struct hand_over {
  executor_ref executor = {};
  hand_over* outer = nullptr;
  waiter_list late = {};  // those of the same executor that became ready inside the call
};
inline thread_local constinit hand_over* this_thread_hand_over = nullptr;

/// The call of execute() on `executor` that this thread is in, null where there is none.
inline hand_over* hand_over_to(const executor_ref& executor) noexcept {
  hand_over* each = this_thread_hand_over;
  while (each != nullptr && each->executor != executor) each = each->outer;
  return each;
}

/// Lets every waiter in `ready` go on, in order: each on its executor; one that has none, or whose executor
/// refuses it, here, once all others are on theirs. Call it under no lock: any code may run inside it.
///
/// Resumed here, a coroutine may itself make others ready: they queue up, and the outermost call on this thread
/// resumes them, so that a chain of any length runs on a flat stack. So do those of an executor that resumes at
/// once, for the call that is just handing over to that executor. A waiter stays linked until its very turn: one that
/// is destroyed by a coroutine resumed before it takes itself out.
inline void resume_all(waiter_list& ready) noexcept {
  if (ready.empty()) return;
  waiter_list here;
  hand_over call;
  call.outer = this_thread_hand_over;
  while (waiter* const each = ready.pop_front()) {
    if (!each->executor) {
      here.push_back(*each);
    } else if (hand_over* const same = hand_over_to(each->executor)) {
      same->late.push_back(*each);
    } else {
      call.executor = each->executor;
      this_thread_hand_over = &call;
      const bool taken = call.executor.execute(each->handle);
      this_thread_hand_over = call.outer;
      if (!taken) here.push_back(*each);
      // Taken by its executor: it may already run on another thread, and *each may be gone.
      ready.splice_back(call.late);
    }
  }
  if (here.empty()) return;
  if (this_thread_trampoline != nullptr) {
    this_thread_trampoline->splice_back(here);
    return;
  }
  this_thread_trampoline = &here;
  while (waiter* const each = here.pop_front()) each->handle.resume();
  this_thread_trampoline = nullptr;
}

/// For a function that blocks this thread until something is done: while it lives, whoever becomes ready goes on here
/// and not in an outer resume_all(), which itself waits for that function to return.
class own_trampoline {
 public:
  own_trampoline() noexcept
      : outer_(std::exchange(this_thread_trampoline, nullptr)),
        outer_call_(std::exchange(this_thread_hand_over, nullptr)) {}
  own_trampoline(const own_trampoline&) = delete;
  own_trampoline& operator=(const own_trampoline&) = delete;
  ~own_trampoline() {
    this_thread_trampoline = outer_;
    this_thread_hand_over = outer_call_;
  }

 private:
  waiter_list* outer_;
  hand_over* outer_call_;
};

}  // namespace cobatch::detail
