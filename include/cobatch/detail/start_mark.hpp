#pragma once

#include <cobatch/detail/abi.hpp>

namespace cobatch::inline COBATCH_ABI::detail {

/// Recognises "finished inside my own resume() call" without an atomic.
///
/// Whoever starts or continues a coroutine from inside an await_suspend puts a mark on its stack first. A completion
/// that finds its own mark innermost on this thread is nested in that very call: it says finish() and unwinds,
/// and the caller goes on in a loop instead of on an ever deeper stack. Symmetric transfer would also keep the stack
/// flat, but it is no tail call without optimisation.
///
///     open ──finish()──> finished      both on one thread, strictly nested: no synchronisation
///
/// A completion on another thread, or under some other mark, does not match and resumes its continuation directly. Then
/// the caller finds its mark still open and must not touch what it started any more: it may be gone.
/// The owner remembers the address of its mark, which may dangle; it matches only where the innermost mark has this
/// address *and* names this owner, which no stale address can satisfy: a live mark names an owner that was started
/// under it, and a later owner at the same address has a later mark, or this one opened anew for it.
class start_mark {
 public:
  explicit start_mark(const void* owner) noexcept : owner_(owner), outer_(innermost_) { innermost_ = this; }
  start_mark(const start_mark&) = delete;
  start_mark& operator=(const start_mark&) = delete;
  ~start_mark() { innermost_ = outer_; }

  bool finished() const noexcept { return finished_; }

  /// Uncovers the mark below it, for a completion that may belong to that one; put_on() covers it again.
  void take_off() noexcept { innermost_ = outer_; }
  void put_on() noexcept { innermost_ = this; }

  /// For a mark that serves a loop: open again, now for `owner`.
  void reopen(const void* owner) noexcept {
    owner_ = owner;
    finished_ = false;
  }

  /// True if `mark`, which may dangle but not be null, is the innermost one of this thread and is there for `owner`; it
  /// is then finished.
  static bool finish(start_mark* mark, const void* owner) noexcept {
    start_mark* const innermost = innermost_;
    if (innermost != mark || innermost->owner_ != owner) return false;
    innermost->finished_ = true;
    return true;
  }

 private:
  static inline thread_local constinit start_mark* innermost_ = nullptr;

  const void* owner_;
  start_mark* outer_;
  bool finished_ = false;
};

}  // namespace cobatch::detail
