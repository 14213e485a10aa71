#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <stop_token>
#include <type_traits>
#include <utility>

#include <cobatch/adaptive_limit.hpp>
#include <cobatch/batch_lane.hpp>
#include <cobatch/batch_options.hpp>
#include <cobatch/batch_types.hpp>
#include <cobatch/detail/config.hpp>
#include <cobatch/detail/histogram.hpp>
#include <cobatch/detail/intrusive_list.hpp>
#include <cobatch/detail/results.hpp>
#include <cobatch/error.hpp>
#include <cobatch/executor.hpp>
#include <cobatch/expected.hpp>
#include <cobatch/semaphore.hpp>

namespace cobatch::detail {

/// Second attempts of samples that take long ("The Tail at Scale", Dean and Barroso, 2013): the first value wins.
///
/// A twin is a lane that runs another lane's sample. Both write into an outcome of their own; the one that has a value
/// first, or else ends last, moves it into the slot, and the last one to leave ends the sample. The lane that owns the
/// sample waits for its twin where it ends first (lane_stage::twin), for the twin's predict still refers to it.
template <class Types>
class batch_hedges {
  using names = batch_types<Types>;
  using engine = batch_engine<Types>;
  using lane = batch_lane<Types>;
  using source = typename names::source;
  using error_type = typename names::error_type;
  static constexpr bool has_timers = names::has_timers;
  static constexpr bool weighs = names::weighs;

 public:
  explicit batch_hedges(engine& owner) noexcept : engine_(owner) {}

  /// An attempt waits to be doubled, and has no lane: a hint.
  bool wanted() const noexcept { return wanted_.load(std::memory_order_relaxed); }
  bool take(lane& self);
  bool came_too_late(lane& twin);
  bool end_pair(lane& self);
  /// The outcome of one of two attempts. Where the user's own error type throws it has none, and the slot stays as it
  /// is.
  void make_own(lane& self, error why) {
    guarded([&] { self.own.emplace(unexpect, std::move(why)); }, [&] { self.own.reset(); });
  }

  // -- under the engine's lock --
  void watch(lane& self) { unhedged_.push_back(self); }
  bool unwatch(lane& self);
  void start_due(std::unique_lock<std::mutex>& lock, std::chrono::nanoseconds now);
  std::chrono::nanoseconds delay() const noexcept;
  list_link<hedge_tag>* oldest() noexcept { return unhedged_.first(); }

 private:
  static constexpr std::uint64_t enough_latencies = 20;  // before a quantile of them means something

  bool double_oldest(lane& twin);
  lane* oldest_due(std::chrono::nanoseconds now);

  engine& engine_;
  std::atomic<bool> wanted_{false};
  // Guarded by the engine's mutex.
  intrusive_list<hedge_tag> unhedged_;  // lanes whose attempt may still be doubled, the oldest first
  histogram latencies_;                 // of attempts, for hedge_policy::quantile
  std::size_t made_ = 0;
};

// ---- Implementation ----

/// The attempt has ended. True: how long attempts take is known from now on.
template <class Types>
bool batch_hedges<Types>::unwatch(lane& self) {
  list_link<hedge_tag>& hedgeable = self;
  if (hedgeable.linked()) unhedged_.erase(hedgeable);
  if (engine_.options_.hedge.quantile <= 0 || self.own) return false;
  guarded([&] { latencies_.record((self.ended - self.started).count()); }, [] {});
  return latencies_.count() == enough_latencies;
}

/// Lets `twin`, a lane without a sample, make a second attempt of the sample that has been in flight longest, if it is
/// due and all it needs is to be had at once. False: the lane is as it was.
template <class Types>
bool batch_hedges<Types>::double_oldest(lane& twin) {
  lane* slow = nullptr;
  std::chrono::nanoseconds began{};
  std::size_t weight = 1;
  {
    const std::chrono::nanoseconds now = now_of(engine_.ex_);
    const std::lock_guard lock(engine_.mutex_);
    slow = oldest_due(now);
    if (!slow) return false;
    began = slow->started;
    weight = slow->weight;
  }
  bool equipped = true;
  const auto take = [&](permit& into, async_semaphore& gate, std::size_t n) {
    if (into || !equipped) return;
    if (auto taken = gate.try_acquire(n)) {
      into = std::move(*taken);
    } else {
      equipped = false;
    }
  };
  const batch_options& options = engine_.options_;
  if (options.limit) take(twin.limit_permit, adaptive_access::semaphore(*options.limit), 1);
  if (async_semaphore* const weights = engine_.gates_.weights()) take(twin.weight_permit, *weights, weight);
  if (options.semaphore) take(twin.shared_permit, *options.semaphore, weighs ? weight : 1);
  std::unique_ptr<hedge_pair<lane>> pair;
  if (equipped) guarded([&] { pair = std::make_unique<hedge_pair<lane>>(); }, [] {});
  // Its token must be a fresh one before the other attempt can win, and stop it.
  if (pair && twin.stop_used && engine_.needs_.tokens) guarded([&] { twin.renew_stop(); }, [&] { pair.reset(); });
  if constexpr (has_timers) equipped = pair && (!options.rate || options.rate->try_acquire(engine_.ex_, weight));

  const std::lock_guard lock(engine_.mutex_);
  // It may have ended in the meantime, or be in flight again with another sample.
  const bool still_there = unhedged_.first() == static_cast<list_link<hedge_tag>*>(slow) && slow->started == began;
  if (!equipped || engine_.halted() || !still_there) {
    twin.weight_permit.release();  // its next sample may weigh more
    if (weighs) twin.shared_permit.release();
    return false;
  }
  unhedged_.erase(*unhedged_.first());
  ++made_;
  pair->runners[0] = slow;
  pair->runners[1] = &twin;
  twin.index = slow->index;
  twin.slot = slow->slot;
  twin.room = slow->room;
  twin.sample = slow->sample;
  twin.weight = weight;
  twin.attempts = slow->attempts;
  twin.has_sample = true;
  twin.step = admission_step::done;
  slow->pair = twin.pair = pair.release();
  return true;
}

/// Under the lock. Null if the oldest is not due, or none may be doubled any more.
template <class Types>
auto batch_hedges<Types>::oldest_due(std::chrono::nanoseconds now) -> lane* {
  while (auto* const oldest = unhedged_.first()) {
    lane& slow = *static_cast<lane*>(oldest);
    if (engine_.halted() || later(slow.started, delay()) > now) return nullptr;
    const double started = static_cast<double>(engine_.samples_started_.load(std::memory_order_relaxed));
    if (static_cast<double>(made_ + 1) <= engine_.options_.hedge.max_extra * started) return &slow;
    unhedged_.erase(*oldest);
  }
  return nullptr;
}

/// The timekeeper's part: a lane for each attempt that is due to be doubled; at the cap, the next lane that is free
/// takes it, ahead of new samples. Called and left with the lock held.
template <class Types>
void batch_hedges<Types>::start_due(std::unique_lock<std::mutex>& lock, std::chrono::nanoseconds now) {
  while (oldest_due(now)) {
    wanted_.store(true, std::memory_order_relaxed);
    lock.unlock();
    lane* const twin = engine_.new_lane();
    if (twin && !double_oldest(*twin)) wanted_.store(false, std::memory_order_relaxed);  // no permit: not this time
    // With a sample of its own now, or as just another lane.
    if (twin) engine_.launch(*twin);
    lock.lock();
    if (!twin) return;
    if (!wanted()) {
      if (auto* const oldest = unhedged_.first()) unhedged_.erase(*oldest);
    }
    wanted_.store(false, std::memory_order_relaxed);
  }
}

/// A lane that looks for work takes over an attempt that waits to be doubled.
template <class Types>
bool batch_hedges<Types>::take(lane& self) {
  if (!wanted() || self.has_sample || self.has_turn) return false;
  wanted_.store(false, std::memory_order_relaxed);
  const bool taken = double_oldest(self);
  engine_.clock_.wake();  // it looks who is due next
  return taken;
}

template <class Types>
std::chrono::nanoseconds batch_hedges<Types>::delay() const noexcept {
  const hedge_policy& hedge = engine_.options_.hedge;
  if (hedge.quantile <= 0 || latencies_.count() < enough_latencies) return hedge.delay;
  return std::chrono::nanoseconds(latencies_.quantile(hedge.quantile));
}

/// True: the other attempt has come to a value before this one began, which is therefore not made.
template <class Types>
bool batch_hedges<Types>::came_too_late(lane& twin) {
  {
    const std::lock_guard lock(engine_.mutex_);
    if (!twin.pair->won) return false;
  }
  make_own(twin, error(errc::not_started, {}, 0));
  engine_.note_end(twin);
  twin.has_sample = false;
  twin.step = admission_step::limit;
  end_pair(twin);
  return true;
}

/// The end of one of two attempts: the first value wins, the last one to leave ends the sample. False: the lane whose
/// sample the other one still uses waits for it.
template <class Types>
bool batch_hedges<Types>::end_pair(lane& self) {
  hedge_pair<lane>& pair = *self.pair;
  const bool has_value = self.own && self.own->has_value();
  std::stop_source loser{std::nostopstate};
  bool writes = false;
  {
    const std::lock_guard lock(engine_.mutex_);
    lane* const other = pair.other(&self);
    pair.runners[pair.runners[0] == &self ? 0 : 1] = nullptr;
    pair.attempts = std::max(pair.attempts, self.attempts);
    writes = !pair.won && (has_value || !other);
    if (writes && has_value) {
      pair.won = true;
      if (other && engine_.needs_.tokens) {
        other->stop_used = true;
        loser = other->stop;
      }
    }
  }
  if (writes && self.own) {
    guarded([&] { rewrite(*self.slot, std::move(*self.own)); },
            [&] { settle(self.slot, error(errc::exception, std::current_exception(), self.attempts)); });
  }
  self.own.reset();
  self.target = self.slot;
  engine_.gates_.give_way(self, true);
  loser.request_stop();

  lane* owner = nullptr;
  const bool owns = self.sample == &self.cell;
  if (owns && !source::indexed) self.shared_permit.release();
  {
    const std::lock_guard lock(engine_.mutex_);
    if (--pair.inside != 0) {
      self.pair = nullptr;
      if (!owns || source::indexed) {
        self.sample = &self.cell;
        return true;
      }
      self.stage = lane_stage::twin;
      pair.owner_waits = &self;
      return false;  // self may be gone
    }
    owner = pair.owner_waits;
    self.attempts = pair.attempts;
  }
  if constexpr (std::is_same_v<error_type, error>) {
    if (!self.slot->has_value()) self.slot->error().attempts = self.attempts;
  }
  delete std::exchange(self.pair, nullptr);
  self.sample = &self.cell;
  engine_.end_sample(self, owner ? owner->cell : self.cell);
  if (owner) engine_.launch(*owner);
  return true;
}

}  // namespace cobatch::detail
