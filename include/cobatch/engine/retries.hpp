#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include <cobatch/batch_options.hpp>
#include <cobatch/detail/atomic.hpp>
#include <cobatch/detail/config.hpp>
#include <cobatch/detail/mutex.hpp>
#include <cobatch/detail/random.hpp>
#include <cobatch/engine/types.hpp>
#include <cobatch/error.hpp>

namespace cobatch::inline COBATCH_ABI::detail {

/// How long the error itself asks to wait before the next attempt.
template <class Error>
std::chrono::nanoseconds asked_delay(const Error& why) {
  if constexpr (requires { std::chrono::nanoseconds(why.retry_after()); }) {
    return std::chrono::nanoseconds(why.retry_after());
  } else {
    return std::chrono::nanoseconds::zero();
  }
}
inline std::chrono::nanoseconds asked_delay([[maybe_unused]] const error& why) {
#if COBATCH_EXCEPTIONS
  if (why.exception) {
    try {
      std::rethrow_exception(why.exception);
    } catch (const retry_later& later) {
      return later.retry_after();
    } catch (...) {
    }
  }
#endif
  return std::chrono::nanoseconds::zero();
}

/// The time between two attempts: exponential, with full jitter, on top of what the server asks for.
class backoff_policy {
 public:
  explicit backoff_policy(const retry_policy& policy)
      : policy_(policy),
        seed_(policy.max_attempts > 1 && policy.jitter ? seed_or_random(policy.seed) : std::uint64_t{0}) {}

  std::chrono::nanoseconds after(std::uint32_t attempts, std::size_t index, std::chrono::nanoseconds asked) const {
    const auto own = [&] {
      if (policy_.initial_backoff <= std::chrono::nanoseconds::zero()) return std::chrono::nanoseconds::zero();
      double length =
          static_cast<double>(policy_.initial_backoff.count()) * std::pow(policy_.multiplier, attempts - 1);
      length = std::min(length, static_cast<double>(std::max<std::int64_t>(policy_.max_backoff.count(), 0)));
      if (policy_.jitter) length *= unit_interval(mix(seed_ ^ mix(index * 0x100 + attempts)));
      // The largest number of nanoseconds is no double: what reaches it is for ever.
      return length >= static_cast<double>(no_timeout.count()) ? no_timeout
                                                               : std::chrono::nanoseconds(static_cast<std::int64_t>(length));
    };
    if (asked <= std::chrono::nanoseconds::zero()) return own();
    // Those that were all told the same must not all come back at the same moment.
    return policy_.jitter ? later(asked, own()) : std::max(asked, own());
  }

 private:
  const retry_policy& policy_;
  std::uint64_t seed_;
};

/// Samples between two attempts: first they sleep, then they are ready, in the order in which they woke. Each of them
/// is a holder of its batch, and stays one until somebody has taken it. Runs no code of the user's.
///
/// Sample is trivially copyable.
template <class Sample>
class retry_queue {
 public:
  using time = std::chrono::nanoseconds;

  enum class pushed : unsigned char { no_memory, ready, sleeps, is_next };

  /// is_next: it is the next to wake. A time of zero or less has come.
  pushed push(const Sample& sample, time due, bool at_once) {
    const std::lock_guard lock(mutex_);
    return guarded(
        [&] {
          make_room_for_ready();
          if (at_once) {
            ready_.push_back(sample);
            ready_count_.fetch_add(1);
            return pushed::ready;
          }
          sleeping_.push_back(entry{due, pushed_++, sample});
          std::push_heap(sleeping_.begin(), sleeping_.end(), wakes_later);
          return sleeping_.front().sample.index == sample.index ? pushed::is_next : pushed::sleeps;
        },
        [] { return pushed::no_memory; });
  }

  /// Makes ready what is due; how many.
  std::size_t wake(time now) {
    const std::lock_guard lock(mutex_);
    std::size_t woken = 0;
    while (!sleeping_.empty() && sleeping_.front().due <= now) {
      ready_.push_back(sleeping_.front().sample);  // there is room, see push()
      std::pop_heap(sleeping_.begin(), sleeping_.end(), wakes_later);
      sleeping_.pop_back();
      ++woken;
    }
    ready_count_.fetch_add(woken);
    return woken;
  }

  /// When the next one is due, or no_timeout.
  time next_due() const {
    const std::lock_guard lock(mutex_);
    return sleeping_.empty() ? no_timeout : sleeping_.front().due;
  }

  bool any_ready() const noexcept { return ready_count_.load() != 0; }
  bool take(Sample& into) {
    if (!any_ready()) return false;
    const std::lock_guard lock(mutex_);
    if (first_ready_ == ready_.size()) return false;
    into = ready_[first_ready_++];
    ready_count_.fetch_sub(1);
    return true;
  }

  /// All of them, for who gives them up: `visit(sample)` each, under no lock.
  template <class Visit>
  void drain(Visit&& visit) {
    std::vector<entry> sleeping;
    std::vector<Sample> ready;
    std::size_t first = 0;
    {
      const std::lock_guard lock(mutex_);
      sleeping.swap(sleeping_);
      ready.swap(ready_);
      first = std::exchange(first_ready_, 0);
      ready_count_.store(0);
    }
    for (; first < ready.size(); ++first) visit(ready[first]);
    for (const entry& each : sleeping) visit(each.sample);
  }

 private:
  struct entry {
    time due;
    std::uint64_t order;
    Sample sample;
  };
  static bool wakes_later(const entry& a, const entry& b) noexcept {
    return a.due != b.due ? a.due > b.due : a.order > b.order;
  }
  /// For one more than are there, those that sleep included: to wake needs no memory.
  void make_room_for_ready() {
    if (first_ready_ == ready_.size()) {
      ready_.clear();
      first_ready_ = 0;
    }
    std::size_t wanted = ready_.size() + sleeping_.size() + 1;
    if (wanted <= ready_.capacity()) return;
    // Those that were taken make room, where they are the half at least.
    if (first_ready_ >= ready_.size() - first_ready_) {
      ready_.erase(ready_.begin(), ready_.begin() + static_cast<std::ptrdiff_t>(first_ready_));
      wanted -= std::exchange(first_ready_, 0);
    }
    if (wanted > ready_.capacity()) ready_.reserve(std::max(wanted, 2 * ready_.capacity()));
  }

  mutable mutex mutex_;      // guards all but the count, which is written under it
  std::vector<entry> sleeping_;   // a heap, the next to wake in front
  std::vector<Sample> ready_;     // from first_ready_ on
  std::size_t first_ready_ = 0;
  std::uint64_t pushed_ = 0;
  atomic<std::size_t> ready_count_{0};  // work that was put down, see head_count
};

}  // namespace cobatch::detail
