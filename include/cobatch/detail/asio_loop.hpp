#pragma once

#include <chrono>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>

#include <cobatch/detail/asio_net.hpp>
#include <cobatch/detail/config.hpp>
#include <cobatch/detail/current_executor.hpp>
#include <cobatch/detail/handle_queue.hpp>
#include <cobatch/detail/mutex.hpp>
#include <cobatch/detail/punctual_wait.hpp>
#include <cobatch/detail/timer_queue.hpp>

namespace cobatch::inline COBATCH_ABI::detail {

/// What an asio_executor does, apart from it because what it has posted may outlive it.
///
/// One turn is posted for each handle, and takes the oldest. All sleepers share one timer of Asio's, which is set for the
/// earliest of them, or not at all.
template <class Executor>
class asio_loop : public std::enable_shared_from_this<asio_loop<Executor>> {
 public:
  using nanoseconds = timer_queue::nanoseconds;

  asio_loop(executor_ref owner, Executor executor) : owner_(owner), executor_(std::move(executor)) {
    alarm_.emplace(executor_);
  }

  const Executor& executor() const noexcept { return executor_; }

  bool execute(std::coroutine_handle<> handle) {
    const std::lock_guard lock(mutex_);
    if (closed_) return false;
    ready_.reserve_more(timers_.size() + 1);
    post_turn();  // first, as it may throw; the turn waits for the lock
    ready_.push(handle);
    return true;
  }

  bool add_timer(timer_node& node, nanoseconds delay) {
    const nanoseconds deadline = timer_queue::deadline_after(steady_now(), delay);
    const std::lock_guard lock(mutex_);
    if (closed_) return false;
    ready_.reserve_more(timers_.size() + 1);
    if (!timers_.add(node, deadline)) return false;
    try {
      set_alarm();
    } catch (...) {
      timers_.erase(node);
      throw;
    }
    return true;
  }

  void stop_timer(timer_node& node) noexcept {
    const std::lock_guard lock(mutex_);
    if (timers_.stop(node)) wake(timer_queue::immediately);
  }

  void erase_timer(timer_node& node) noexcept {
    const std::lock_guard lock(mutex_);
    if (!node.linked()) return;
    timers_.erase(node);
    clear_alarm();
  }

  /// No more of it: whatever waits goes on here.
  void close() noexcept {
    std::unique_lock lock(mutex_);
    closed_ = true;
    alarm_.reset();
    while (timer_node* const node = timers_.take_stopped()) ready_.push(node->handle);
    while (!ready_.empty()) {
      const std::coroutine_handle<> next = ready_.pop();
      lock.unlock();
      resume(next);
      lock.lock();
    }
  }

 private:
  struct turn;
  struct rung;

  void resume(std::coroutine_handle<> handle) noexcept {
    const executor_scope scope(owner_);
    handle.resume();  // the executor may be gone, *this is not: whoever calls holds it
  }

  void take_turn() noexcept {
    std::unique_lock lock(mutex_);
    --turns_;
    if (ready_.empty()) return;  // closed
    const std::coroutine_handle<> next = ready_.pop();
    post_missing_turns();
    lock.unlock();
    resume(next);
  }

  // -- Requires: mutex_ is held --

  /// Posts what must have its turn; may throw, and has then posted nothing.
  void post_turn() {
    const posting here(this);
    net::post(executor_, turn{this->shared_from_this()});
    ++turns_;
  }

  /// For those that had to be queued though there was no memory to post a turn: the next one makes up for it.
  void post_missing_turns() noexcept {
    guarded(
        [&] {
          while (turns_ < ready_.size()) post_turn();
        },
        [] {});
  }

  /// Those whose time has come go on. There is room in ready_ for all that sleep.
  void wake(nanoseconds now) noexcept {
    while (timer_node* const node = timers_.take_due(now)) ready_.push(node->handle);
    post_missing_turns();
    clear_alarm();
  }

  void set_alarm() {
    const nanoseconds earliest = timers_.earliest();
    if (earliest >= alarm_at_) return;
    const posting here(this);
    alarm_->expires_at(steady_time(earliest));
    alarm_at_ = timer_queue::never;
    alarm_->async_wait(rung(this->shared_from_this(), ++alarm_number_));
    alarm_at_ = earliest;
  }

  /// With nobody asleep it would only keep run() from returning. One that comes too early does no harm.
  void clear_alarm() noexcept {
    if (!timers_.empty() || alarm_at_ == timer_queue::never || !alarm_) return;
    alarm_at_ = timer_queue::never;
    guarded([&] { alarm_->cancel(); }, [] {});
  }

  void rang(std::uint64_t number) noexcept {
    const std::lock_guard lock(mutex_);
    if (closed_) return;
    if (number == alarm_number_) alarm_at_ = timer_queue::never;
    wake(steady_now());
    guarded([&] { set_alarm(); }, [&] { wake(timer_queue::never - 1); });  // no memory: too early rather than never
  }

  /// While it lives, what this thread destroys was not posted.
  class posting {
   public:
    explicit posting(const asio_loop* loop) noexcept : outer_(std::exchange(posting_, loop)) {}
    posting(const posting&) = delete;
    posting& operator=(const posting&) = delete;
    ~posting() { posting_ = outer_; }

   private:
    const asio_loop* outer_;
  };
  static inline thread_local constinit const asio_loop* posting_ = nullptr;

  /// What is posted. Destroyed without having been called, and not because posting it failed: the context is going.
  struct posted {
    explicit posted(std::shared_ptr<asio_loop> self) noexcept : loop(std::move(self)) {}
    posted(posted&&) noexcept = default;
    posted& operator=(posted&&) = delete;
    ~posted() {
      if (loop && posting_ != loop.get()) loop->close();
    }
    std::shared_ptr<asio_loop> loop;
  };

  using clock = std::chrono::steady_clock;
  using timer = net::basic_waitable_timer<clock, net::wait_traits<clock>, Executor>;

  const executor_ref owner_;
  const Executor executor_;

  mutex mutex_;  // guards everything below
  handle_queue ready_;
  timer_queue timers_;
  std::size_t turns_ = 0;                      // posted, and not called yet
  std::optional<timer> alarm_;                 // until it is closed
  nanoseconds alarm_at_ = timer_queue::never;  // when it is set for
  std::uint64_t alarm_number_ = 0;             // of the last time that it was set
  bool closed_ = false;
};

template <class Executor>
struct asio_loop<Executor>::turn : posted {
  using posted::posted;
  void operator()() noexcept {
    const std::shared_ptr<asio_loop> self = std::move(this->loop);
    self->take_turn();
  }
};

template <class Executor>
struct asio_loop<Executor>::rung : posted {
  rung(std::shared_ptr<asio_loop> self, std::uint64_t which) noexcept : posted(std::move(self)), number(which) {}
  template <class ErrorCode>
  void operator()(const ErrorCode&) noexcept {
    const std::shared_ptr<asio_loop> self = std::move(this->loop);
    self->rang(number);
  }
  std::uint64_t number;
};

}  // namespace cobatch::detail
