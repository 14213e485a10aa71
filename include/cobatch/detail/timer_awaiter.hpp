#pragma once

#include <chrono>
#include <coroutine>
#include <cstdint>
#include <optional>
#include <stop_token>
#include <utility>

#include <cobatch/detail/abi.hpp>
#include <cobatch/detail/timer_queue.hpp>

namespace cobatch::inline COBATCH_ABI::detail {

/// What schedule_after() of run_loop, thread_pool and simulation returns; see timer_state for the transitions.
///
/// Owner has, for its friend: execute(handle) -> bool; add_timer(node, delay) -> bool (false: stopped, do not
/// suspend); stop_timer(node); erase_timer(node), which does nothing if the node is not queued any more. The last
/// three take the owner's lock. An owner with several queues also has choose_shard() -> std::size_t.
template <class Owner>
class [[nodiscard]] timer_awaiter {
 public:
  timer_awaiter(Owner& owner, std::chrono::nanoseconds delay, std::stop_token token) noexcept
      : owner_(&owner), delay_(delay), token_(std::move(token)) {}

  // Movable until it is awaited.
  timer_awaiter(timer_awaiter&& other) noexcept
      : owner_(other.owner_), delay_(other.delay_), token_(std::move(other.token_)) {}
  timer_awaiter& operator=(timer_awaiter&&) = delete;

  ~timer_awaiter() {
    callback_.reset();  // waits for a stop callback that is running on another thread
    // Destroyed while it sleeps. The node itself may be read only under the owner's lock: other timers move it.
    if (sleeps_) owner_->erase_timer(node_);
  }

  bool await_ready() const noexcept { return false; }

  bool await_suspend(std::coroutine_handle<> handle) {
    if (delay_ <= std::chrono::nanoseconds::zero()) return yield(handle);
    node_.handle = handle;
    sleeps_ = true;
    // Before the callback, which looks for the node there.
    if constexpr (requires { owner_->choose_shard(); })
      node_.shard = static_cast<std::uint32_t>(owner_->choose_shard());
    // First the callback, then the queue: a stop between the two finds the timer idle, and add_timer() refuses it.
    if (token_.stop_possible()) callback_.emplace(token_, stopper{this});
    return owner_->add_timer(node_, delay_.count());  // if true, *this may be gone
  }

  bool await_resume() noexcept {
    callback_.reset();
    sleeps_ = false;
    return std::exchange(node_.state, timer_state::idle) == timer_state::elapsed;  // idle: it can be awaited again
  }

 private:
  struct stopper {
    timer_awaiter* self;
    // Once the timer is due the coroutine may be resumed at any moment; ~stop_callback waits for the end of this
    // call.
    void operator()() const noexcept { self->owner_->stop_timer(self->node_); }
  };

  bool yield(std::coroutine_handle<> handle) {
    if (!token_.stop_requested()) {
      node_.state = timer_state::elapsed;
      if (owner_->execute(handle)) return true;  // *this may be gone
    }
    node_.state = timer_state::stopped;
    return false;
  }

  Owner* owner_;
  std::chrono::nanoseconds delay_;
  std::stop_token token_;
  timer_node node_;
  bool sleeps_ = false;  // from await_suspend() to await_resume(); used by the coroutine that awaits alone
  std::optional<std::stop_callback<stopper>> callback_;
};

}  // namespace cobatch::detail
