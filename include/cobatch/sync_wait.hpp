#pragma once

#include <utility>

#include <cobatch/detail/abi.hpp>
#include <cobatch/detail/awaitable.hpp>
#include <cobatch/detail/condition_variable.hpp>
#include <cobatch/detail/driver.hpp>
#include <cobatch/detail/mutex.hpp>
#include <cobatch/detail/waiter.hpp>
#include <cobatch/executor.hpp>

namespace cobatch::inline COBATCH_ABI {

/// Awaits from a plain function: starts `awaitable` on this thread, blocks the thread until it is done, and returns
/// its result (void, a reference, or a value moved out) or rethrows its exception.
///
/// Errors: std::system_error with errc::would_deadlock, with nothing started, where this thread runs the loop of a
/// run_loop, a thread_pool or a simulation, be it through another executor: what it would wait for might need this very
/// thread. Use co_await there. The threads of executors of your own are not recognised.
/// Allocates: one coroutine frame.
template <detail::awaitable Awaitable>
detail::driven_result<Awaitable> sync_wait(Awaitable&& awaitable);

// ---- Implementation ----

namespace detail {

class blocking_end final : public driver_end {
 public:
  void driver_ended() noexcept override {
    const std::lock_guard lock(mutex_);
    ended_ = true;
    // Under the lock: the waiting thread cannot leave wait() and destroy the condition variable before the unlock.
    changed_.notify_one();
  }

  void wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return ended_; });
  }

 private:
  detail::mutex mutex_;
  detail::condition_variable changed_;
  bool ended_ = false;  // guarded by mutex_
};

}  // namespace detail

template <detail::awaitable Awaitable>
detail::driven_result<Awaitable> sync_wait(Awaitable&& awaitable) {
  detail::require_blockable_thread("sync_wait");
  detail::outcome<detail::driven_result<Awaitable>> result;
  detail::blocking_end end;
  const detail::own_trampoline trampoline;
  auto driver = detail::drive(static_cast<Awaitable&&>(awaitable), result);
  if (!driver.start(result, end)) end.wait();
  return result.take();
}

}  // namespace cobatch
