#pragma once

#include <coroutine>
#include <cstddef>
#include <exception>
#include <stop_token>
#include <utility>

#include <cobatch/batch_options.hpp>
#include <cobatch/detail/attempt.hpp>
#include <cobatch/detail/config.hpp>
#include <cobatch/detail/start_mark.hpp>
#include <cobatch/error.hpp>
#include <cobatch/observer.hpp>
#include <cobatch/rate_limiter.hpp>
#include <cobatch/semaphore.hpp>

/// What a sample's way awaits: its permits, and its predict. Whatever it waits for resumes the lane's own handle.
///
/// Engine has begin_wait(lane, what, stop&) and end_wait(lane, what); see one_wait.

namespace cobatch::inline COBATCH_ABI::detail {

/// What came of one of them.
enum class entry : unsigned char {
  passed,
  stopped,    ///< the batch is halted, or nobody needs it any more
  expired,    ///< queue_timeout
  too_heavy,  ///< more than the limit
};

/// A wait of a lane: starts `work`, and knows whether it has ended inside that call. False: suspended, and *this and the
/// lane may be gone.
template <class Lane, class Work, class Call>
bool start_wait(Lane& lane, Work& work, Call&& call) {
  start_mark mark(&lane);
  lane.mark = &mark;
  lane.at = Lane::stage::wait;
  return work.start(call, lane.handle()) || mark.finished();
}

/// `co_await` gives an entry; `into` then holds `weight` permits of `gate`.
template <class Engine, class Lane>
class [[nodiscard]] semaphore_gate {
 public:
  semaphore_gate(Engine& engine, Lane& lane, async_semaphore& gate, std::size_t weight, permit& into) noexcept
      : engine_(engine), lane_(lane), gate_(gate), weight_(weight), into_(into) {}
  semaphore_gate(const semaphore_gate&) = delete;
  semaphore_gate& operator=(const semaphore_gate&) = delete;
  ~semaphore_gate() {
    if (waits_) wait_.abandon();
  }

  bool await_ready() {
    if (into_) return true;
    auto taken = gate_.try_acquire(weight_);
    if (taken) into_ = std::move(*taken);
    return taken.has_value();
  }
  bool await_suspend(std::coroutine_handle<>) {
    std::stop_token stop;
    if (!engine_.begin_wait(lane_, wait_for::permits, stop)) {
      came_ = entry::stopped;
      return false;
    }
    waits_ = true;
    return !start_wait(lane_, wait_, [&] { return gate_.acquire(weight_, std::move(stop)); });
  }
  entry await_resume() {
    if (!std::exchange(waits_, false)) return came_;
    const bool expired = engine_.end_wait(lane_, wait_for::permits);
    wait_.resume([&](auto outcome) {
      if (outcome) {
        into_ = std::move(*outcome);
      } else {
        came_ = outcome.error().code == errc::cost_exceeds_capacity ? entry::too_heavy
                : expired                                           ? entry::expired
                                                                    : entry::stopped;
      }
    });
    return came_;
  }

 private:
  Engine& engine_;
  Lane& lane_;
  async_semaphore& gate_;
  std::size_t weight_;
  permit& into_;
  bool waits_ = false;
  entry came_ = entry::passed;
  attempt<decltype(std::declval<async_semaphore&>().acquire(1, std::stop_token()))> wait_;
};

/// The same for the tokens of a rate.
template <class Engine, class Lane, class Executor>
class [[nodiscard]] rate_gate {
 public:
  rate_gate(Engine& engine, Lane& lane, rate_limiter& rate, std::size_t cost, Executor& ex) noexcept
      : engine_(engine), lane_(lane), rate_(rate), cost_(cost), ex_(ex) {}
  rate_gate(const rate_gate&) = delete;
  rate_gate& operator=(const rate_gate&) = delete;
  ~rate_gate() {
    if (waits_) wait_.abandon();
  }

  bool await_ready() { return rate_.try_acquire(ex_, cost_); }
  bool await_suspend(std::coroutine_handle<>) {
    std::stop_token stop;
    if (!engine_.begin_wait(lane_, wait_for::rate, stop)) {
      came_ = entry::stopped;
      return false;
    }
    waits_ = true;
    return guarded([&] { return !start_wait(lane_, wait_, [&] { return rate_.acquire(ex_, cost_, std::move(stop)); }); },
                   [&] {
                     // No timer, no more samples.
                     waits_ = false;
                     engine_.end_wait(lane_, wait_for::rate);
                     engine_.wait_failed();
                     came_ = entry::stopped;
                     return false;
                   });
  }
  entry await_resume() {
    if (!std::exchange(waits_, false)) return came_;
    came_ = engine_.end_wait(lane_, wait_for::rate) ? entry::expired : entry::stopped;
    guarded(
        [&] {
          wait_.resume([&](bool granted) {
            if (granted) came_ = entry::passed;
          });
        },
        [&] { engine_.wait_failed(); });
    return came_;
  }

 private:
  Engine& engine_;
  Lane& lane_;
  rate_limiter& rate_;
  std::size_t cost_;
  Executor& ex_;
  bool waits_ = false;
  entry came_ = entry::passed;
  attempt<decltype(std::declval<rate_limiter&>().acquire(std::declval<Executor&>(), std::size_t{1},
                                                         std::stop_token()))> wait_;
};

/// Awaits one call of predict; the outcome goes to lane.target.
template <class Engine, class Lane>
class [[nodiscard]] predict_call {
 public:
  predict_call(Engine& engine, Lane& lane) noexcept : engine_(engine), lane_(lane) {}
  predict_call(const predict_call&) = delete;
  predict_call& operator=(const predict_call&) = delete;

  bool await_ready() const noexcept { return false; }
  bool await_suspend(std::coroutine_handle<>) {
    auto& here = *lane_.loop;
    here.mark.reopen(&lane_);
    lane_.mark = &here.mark;
    lane_.at = Lane::stage::attempt;
    lane_.waited = false;
    const auto state = engine_.begin(lane_, here.mark);
    if (state == Engine::begun::suspended && !here.mark.finished()) return true;  // *this may be gone
    suspended_ = false;
    ready_ = state != Engine::begun::settled;
    return false;
  }
  void await_resume() {
    lane_.at = Lane::stage::idle;
    lane_.waited = suspended_;
    if (ready_) engine_.collect(lane_);
  }

 private:
  Engine& engine_;
  Lane& lane_;
  bool suspended_ = true;
  bool ready_ = true;
};

}  // namespace cobatch::detail
