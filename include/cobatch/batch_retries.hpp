#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <type_traits>
#include <utility>

#include <cobatch/batch_lane.hpp>
#include <cobatch/batch_options.hpp>
#include <cobatch/batch_types.hpp>
#include <cobatch/detail/config.hpp>
#include <cobatch/detail/random.hpp>
#include <cobatch/detail/retry_queue.hpp>
#include <cobatch/error.hpp>
#include <cobatch/executor.hpp>
#include <cobatch/observer.hpp>

namespace cobatch::detail {

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

/// Samples whose attempt failed and that will be tried again: they sleep without a lane, and queue again at the tail.
template <class Types>
class batch_retries {
  using names = batch_types<Types>;
  using engine = batch_engine<Types>;
  using lane = batch_lane<Types>;
  using cell_type = typename names::cell;
  using error_type = typename names::error_type;
  static constexpr bool has_timers = names::has_timers;

  struct retry_entry {
    std::chrono::nanoseconds due;
    std::uint64_t order = 0;
    retry_entry* next = nullptr;
    std::size_t index;
    typename names::result* slot;
    void* room;
    std::uint32_t attempts;
    cell_type cell;
  };

 public:
  batch_retries(engine& owner, const batch_options& options) : engine_(owner) {
    if (options.retry.max_attempts > 1 && options.retry.jitter) seed_ = seed_or_random(options.retry.seed);
  }

  bool retry(lane& self, cell_type& cell);

  /// Entries that take() could have.
  bool any_ready() const noexcept { return ready_.load() != 0; }
  bool take(lane& self);

  // -- under the engine's lock --
  bool empty() const noexcept { return queue_.empty(); }
  std::chrono::nanoseconds next_due() const noexcept { return queue_.next_due(no_timeout); }

  /// How many have woken, for each of which there should be a lane.
  std::size_t wake(std::chrono::nanoseconds now) {
    const std::size_t woken = queue_.wake(now);
    ready_.fetch_add(woken);
    return woken;
  }

  /// The batch is halted: what sleeps is not tried again, its last error stands. False: nothing sleeps. Unlocks
  /// meanwhile; whoever calls it sees to it that the batch cannot end before it is done.
  bool give_up(std::unique_lock<std::mutex>& lock);

 private:
  bool worth_retrying(const lane& self) const;
  std::chrono::nanoseconds backoff(const lane& self) const;

  engine& engine_;
  std::uint64_t seed_ = 0;
  std::atomic<std::size_t> made_{0};  // a count, ordering nothing
  // Entries in queue_ that may be taken. seq_cst: the timekeeper first counts and then looks for room for a lane, a
  // lane that goes first gives its room back and then looks here; one of them sees the other.
  std::atomic<std::size_t> ready_{0};
  retry_queue<retry_entry> queue_;  // guarded by the engine's mutex
};

// ---- Implementation ----

template <class Types>
bool batch_retries<Types>::give_up(std::unique_lock<std::mutex>& lock) {
  if (queue_.empty()) return false;
  {
    retry_queue<retry_entry> dropped;
    dropped.swap(queue_);
    ready_.store(0);
    lock.unlock();
    dropped.each([&](const retry_entry& each) {
      if (engine_.options_.observer) {
        engine_.reporter_.finished(*each.slot, each.index, each.attempts, now_of(engine_.ex_));
        engine_.reporter_.add_finished(1);
      }
      engine_.sink_.settled(each.slot, each.index, each.room);
    });
  }
  lock.lock();
  return true;
}

/// A sample whose time to be tried again has come.
template <class Types>
bool batch_retries<Types>::take(lane& self) {
  while (ready_.load() != 0) {
    std::unique_ptr<retry_entry> entry;
    {
      const std::lock_guard lock(engine_.mutex_);
      entry = queue_.pop_ready();
      if (entry) ready_.fetch_sub(1);
    }
    if (!entry) return false;
    self.index = entry->index;
    self.slot = self.target = entry->slot;
    self.room = entry->room;
    self.attempts = entry->attempts;
    std::destroy_at(&self.cell);
    const auto move = [&] {
      std::construct_at(&self.cell, std::move(entry->cell));
      return true;
    };
    const auto without = [&] {
      std::construct_at(&self.cell);
      return false;
    };
    self.has_sample = guarded(move, without);
    if (self.has_sample) return true;
    engine_.note_end(self);
    engine_.halting_.count_failure();  // its last error stands
    engine_.sample_final(self);
  }
  return false;
}

/// True: the sample sleeps and comes back; until then its last error stands in its slot.
template <class Types>
bool batch_retries<Types>::retry(lane& self, cell_type& cell) {
  const retry_policy& policy = engine_.options_.retry;
  if (engine_.halted() || self.attempts >= policy.max_attempts || !worth_retrying(self)) return false;
  const double made = static_cast<double>(made_.fetch_add(1, std::memory_order_relaxed) + 1);
  const auto give_up = [&] {
    made_.fetch_sub(1, std::memory_order_relaxed);
    return false;
  };
  const double started = static_cast<double>(engine_.samples_started_.load(std::memory_order_relaxed));
  if (made > policy.budget * started) return give_up();

  const std::chrono::nanoseconds delay = has_timers ? backoff(self) : std::chrono::nanoseconds::zero();
  const bool at_once = delay <= std::chrono::nanoseconds::zero();
  // An entry that need not sleep is due at the beginning of time.
  const std::chrono::nanoseconds due = at_once ? std::chrono::nanoseconds::min() : later(now_of(engine_.ex_), delay);
  const auto make = [&] {
    return std::make_unique<retry_entry>(
        retry_entry{due, 0, nullptr, self.index, self.slot, self.room, self.attempts, std::move(cell)});
  };
  std::unique_ptr<retry_entry> entry = guarded(make, [] { return std::unique_ptr<retry_entry>(); });
  if (!entry) return give_up();
  // Before anybody can take it up again.
  if (engine_.options_.observer) engine_.reporter_.retried(self, at_once ? std::chrono::nanoseconds::zero() : delay);
  bool is_next = false;
  {
    const std::lock_guard lock(engine_.mutex_);
    is_next = guarded([&] { return queue_.push(entry); }, [] { return false; });
    if (!entry && at_once) ready_.fetch_add(queue_.wake(due));
  }
  if (entry) return give_up();
  if (is_next && !at_once) engine_.clock_.wake();
  return true;
}

template <class Types>
bool batch_retries<Types>::worth_retrying(const lane& self) const {
  if (!engine_.options_.retry.retry_if) return true;
  if constexpr (std::is_same_v<error_type, error>) {
    return engine_.options_.retry.retry_if(self.slot->error());
  } else {
    const errc why = self.timed_out ? errc::timed_out : errc::exception;
    return engine_.options_.retry.retry_if(error(why, {}, self.attempts));
  }
}

template <class Types>
std::chrono::nanoseconds batch_retries<Types>::backoff(const lane& self) const {
  const retry_policy& policy = engine_.options_.retry;
  if (policy.initial_backoff == std::chrono::nanoseconds::zero()) return asked_delay(self.slot->error());
  double length = static_cast<double>(policy.initial_backoff.count()) * std::pow(policy.multiplier, self.attempts - 1);
  length = std::min(length, static_cast<double>(policy.max_backoff.count()));
  if (policy.jitter) length *= unit_interval(mix(seed_ ^ mix(self.index * 0x100 + self.attempts)));
  const std::chrono::nanoseconds own(static_cast<std::int64_t>(length));
  return std::max(own, asked_delay(self.slot->error()));
}

}  // namespace cobatch::detail
