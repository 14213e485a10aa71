#pragma once

#include <algorithm>
#include <chrono>
#include <coroutine>
#include <cstddef>
#include <stop_token>
#include <utility>

#include <cobatch/detail/abi.hpp>
#include <cobatch/engine/batch_engine.hpp>

namespace cobatch::inline COBATCH_ABI::detail {

// How a batch begins, what it does because of the time, and how it ends.

template <class Types>
template <class Predict>
batch_engine<Types>::batch_engine(executor_type& ex, source& samples, Predict& predict, sink_type& sink,
                                  const batch_options& options, std::stop_token stop)
    : crew(names::weighs ? options.max_concurrency : std::min(options.max_concurrency, options.max_weight)),
      ex_(ex),
      predict_(std::addressof(predict)),
      calls_(calls_of<Predict>()),
      source_(samples),
      sink_(sink),
      options_(options),
      needs_(options, stop.stop_possible(), calls_.takes_token),
      shelves_(source::indexed ? std::min<std::size_t>({concurrency_of(ex), options.max_concurrency,
                                                        samples.size_hint().value_or(unlimited), 64})
                               : 1),
      reader_(*this),
      share_(options_, source::indexed ? samples.size_hint() : std::nullopt),
      backoff_(options_.retry),
      watch_(options_),
      report_(ex, options_, head, needs_.gates),
      user_stop_(std::move(stop)) {
  if (names::weighs && options.max_weight != unlimited) weights_.emplace(options.max_weight);
}

template <class Types>
batch_engine<Types>::~batch_engine() {
  abandon();
  if (timekeeper_) timekeeper_.destroy();
}

template <class Types>
void batch_engine<Types>::abandon() noexcept {
  user_link_.reset();
  if (head.nobody() || std::exchange(abandoned_, true)) return;
  // Those that wait for permits go before those that have some and give them back.
  this->each_lane([](lane& each) {
    if (each.at == stage::wait) each.end_way();
  });
  this->each_lane([](lane& each) {
    each.abandon();
    each.end_way();
    if (each.pair && --each.pair->inside == 0) delete each.pair;
    each.pair = nullptr;
    each.limit_permit.release();
    each.shared_permit.release();
    each.weight_permit.release();
  });
  reader_.abandon(sink_);
  if constexpr (!source::indexed) {
    // One that two attempts share is given back once.
    portion all;
    const auto collect = [&](item_type* item) {
      if (item && std::exchange(item->slot, nullptr)) all.push(*item);
    };
    this->each_lane([&](lane& each) { collect(each.sample.item); });
    retries_.drain([&](const sample_type& each) { collect(each.item); });
    this->each_rest([&](portion& rest) {
      while (!rest.empty()) collect(&rest.pop());
    });
    reader_.take(all);
    while (!all.empty()) sink_.unreserve(all.pop());
  }
}

template <class Types>
void batch_engine<Types>::start(std::size_t workers) {
  constexpr std::size_t most = 1024;
  const std::size_t room = names::weighs ? options_.max_concurrency : std::min(options_.max_concurrency, options_.max_weight);
  workers = std::clamp<std::size_t>(std::min({workers, concurrency_of(ex_), room, most}), 1, most);
  // A stream may be started again, after there was no memory: what is there stays.
  if (needs_.tokens && !attempts_stop_.stop_possible()) {
    attempts_stop_ = new_stop_source();
    attempts_token_ = attempts_stop_.get_token();
  }
  if constexpr (source::awaited) reading_stop_ = new_stop_source();
  if (needs_.gates) wait_.make();
  reader_.prepare();
  if constexpr (names::has_timers) {
    if (needs_.clock && !timekeeper_) {
      alarm_.make();
      timekeeper_ = timekeeper<batch_engine>::of(*this).handle();
    }
  }
  this->prepare(workers);
  if (options_.observer) report_.started(source_.size_hint(), sink_.window());
  // From here on nothing throws.
  if (Types::can_pause) {
    head.add_holder();
    input_counted_.store(true);
  }
  if (user_stop_.stop_possible()) user_link_.emplace(user_stop_, on_user_stop{this});
  if constexpr (names::has_timers) {
    if (needs_.clock) {
      if (options_.deadline != no_timeout) deadline_ = later(now_of(ex_), options_.deadline);
      alarm_.expect_timekeeper(true);
      if (!execute(timekeeper_)) {
        std::exchange(timekeeper_, nullptr).destroy();
        alarm_.expect_timekeeper(false);
        refused();
      }
    }
  }
  if constexpr (requires { static_cast<std::size_t>(ex_.idle()); }) {
    // One for a thread that idles later, if it does before we are done here.
    workers = std::min(workers, 1 + std::max<std::size_t>(idle_threads(), 1));
  }
  this->begin_work(workers);
}

// ---- Halting ----

/// No sample starts any more. By who is counted.
template <class Types>
void batch_engine<Types>::halt_once(halt why) noexcept {
  halt expected = halt::none;
  if (!why_.compare_exchange_strong(expected, why)) return;
  std::stop_source waits = needs_.gates ? wait_.take(true) : std::stop_source(std::nostopstate);
  std::stop_source reading = reading_stop_;
  if (needs_.clock) alarm_.wake();  // what sleeps will not be tried again
  waits.request_stop();
  reading.request_stop();
}

/// The same, and what is in flight is asked to stop. Runs the stop callbacks of predicts.
template <class Types>
void batch_engine<Types>::request_stop(halt why) {
  halt unasked = halt::none;
  if (!asked_.compare_exchange_strong(unasked, why)) return;
  halt expected = halt::none;
  const bool first = why_.compare_exchange_strong(expected, why);
  // Whoever is resumed by one of these may end the batch: *this is not touched any more.
  std::stop_source attempts = attempts_stop_;
  std::stop_source reading = reading_stop_;
  std::stop_source sleep = needs_.clock ? alarm_.take() : std::stop_source(std::nostopstate);
  std::stop_source waits = first && needs_.gates ? wait_.take(true) : std::stop_source(std::nostopstate);
  sleep.request_stop();
  waits.request_stop();
  reading.request_stop();
  attempts.request_stop();
}

template <class Types>
void batch_engine<Types>::count_failure() {
  const std::size_t most = options_.max_failures;
  if (most == unlimited || asked_.load(std::memory_order_relaxed) != halt::none) return;
  if (failures_.fetch_add(1, std::memory_order_relaxed) + 1 >= most) request_stop(halt::failures);
}

/// What a failure is called: after a stop was asked for, that is the reason of the stop.
template <class Types>
errc batch_engine<Types>::reason(bool timed_out) const noexcept {
  if (timed_out) return errc::timed_out;
  const halt asked = asked_.load(std::memory_order_relaxed);
  if (asked == halt::none) return errc::exception;
  return asked == halt::closed ? errc::cancelled : meaning(asked);
}

// ---- Time ----

template <class Types>
void batch_engine<Types>::look(loop& here) {
  const time now = now_of(ex_);
  here.pace.look(now);
  if constexpr (Types::can_pause) {
    hand_over(here);
    if (cheap_.load(std::memory_order_relaxed) != here.pace.cheap()) {
      cheap_.store(here.pace.cheap(), std::memory_order_relaxed);
    }
  }
  if (deadline_ <= now && deadline_ != no_timeout && !halted()) request_stop(halt::deadline);
  if (this->most_workers() == 1 || source_.exhausted() || halted()) return;
  if (!source::indexed && here.pace.cheap()) return;
  const bool owed = owes_worker_.load(std::memory_order_relaxed) && owes_worker_.exchange(false, std::memory_order_relaxed);
  if (owed || idle_threads() != 0) this->start_worker();
}

template <class Types>
void batch_engine<Types>::hand_over(loop& here) {
  if (here.finished != 0) report_.add_finished(std::exchange(here.finished, 0));
  sink_.hand_over(here.done);
}

/// Does what is due. How long to sleep then; zero or less: the batch has ended.
template <class Types>
auto batch_engine<Types>::expire() -> time {
  // First, so that whoever begins something from here on is either seen or sees it.
  alarm_.go_dormant();
  // Then what it will sleep with, so that whoever wakes it from here on wakes it.
  if (!alarm_.prepare_sleep()) return time::zero();
  const time now = now_of(ex_);
  if (deadline_ <= now && deadline_ != no_timeout) request_stop(halt::deadline);
  time next_timeout = no_timeout;
  if (needs_.watches && needs_.timeouts && needs_.tokens) {
    next_timeout = watch_.expire(*this, now, [](std::stop_source& late) { late.request_stop(); });
  }
  if (needs_.gates && wait_.deadline() <= now) wait_.expire(now).request_stop();
  if (needs_.hedges && !halted()) start_due_hedges(now);
  if (needs_.retries) {
    if (halted()) {
      give_up_sleepers(false);
    } else {
      for (std::size_t woken = retries_.wake(now); woken > 0 && head.below_cap(); --woken) {
        this->start_worker_from_outside();
      }
    }
  }
  if (alarm_.is_over()) return time::zero();
  const time next = next_event(now, next_timeout);
  const time pause = next == no_timeout ? no_timeout : std::max(next - now, time(1));
  return std::min(pause, alarm_.longest_sleep());
}

/// Whatever begins later is due no earlier than this, or wakes the timekeeper.
///
/// While attempts come and go, nobody needs to wake it: none that begins later can be due before a full delay from now.
/// But once it has looked in vain it goes dormant until it is woken: a batch that hangs must not look alive to a
/// simulation.
template <class Types>
auto batch_engine<Types>::next_event(time now, time next_timeout) -> time {
  time next = deadline_ > now && why_halted() != halt::deadline ? deadline_ : no_timeout;
  if (needs_.gates) next = std::min(next, wait_.deadline());
  if (needs_.retries) next = std::min(next, retries_.next_due());
  time from_now = no_timeout;
  bool waits = needs_.gates && wait_.deadline() != no_timeout;
  bool told = false;  // of what begins next, as looking after each delay would be too often
  const auto look_after = [&](time delay) {
    if (delay < shortest_look) {
      told = true;
    } else {
      from_now = std::min(from_now, later(now, delay));
    }
  };
  const auto consider = [&](time delay, time due) {
    if (due != no_timeout) {
      next = std::min(next, due);
      waits = true;
    } else {
      look_after(delay);
    }
  };
  if (needs_.watches && needs_.timeouts && needs_.tokens) consider(options_.timeout, next_timeout);
  if (options_.queue_timeout != no_timeout && needs_.gates) look_after(options_.queue_timeout);
  if (needs_.hedges && !halted() && !watch_.wanted()) {
    consider(watch_.hedge_delay(), watch_.next_hedge(*this, now, samples_started()));
  }
  const bool in_vain_again = !waits && looked_in_vain_;
  looked_in_vain_ = !waits;
  if (!in_vain_again && !told) alarm_.stay_awake();
  return in_vain_again ? next : std::min(next, from_now);
}

/// The batch is halted: what sleeps is not tried again, its last error stands.
template <class Types>
void batch_engine<Types>::give_up_sleepers(bool counted) {
  std::size_t given_up = 0;
  typename sink_type::handful done;
  retries_.drain([&](const sample_type& sample) {
    ++given_up;
    if (options_.observer) {
      report_.add_finished(1);
      report_.finished(sample, now_of(ex_));
    }
    sink_.settled(done, sample);
  });
  sink_.hand_over(done);
  bool last = false;
  for (; given_up > 0; --given_up) {
    if (counted) {
      head.drop_spare_holder();
    } else {
      last = head.drop_holder();
    }
  }
  if (last) over();
}

/// A lane for each attempt that is due to be doubled; at the cap, the next lane that is free takes it, ahead of new
/// samples.
template <class Types>
void batch_engine<Types>::start_due_hedges(time now) {
  if (!head.add_holder_unless_over()) return;
  bool kept_others_out = false;  // by the lane it took, from what they must then be shown again
  while (watch_.due_weight(*this, now, samples_started()) != 0) {
    watch_.want(true);
    lane* const twin = this->take_lane();
    if (!twin) break;
    watch_.want(false);
    const bool doubled = double_oldest(*twin);
    if (doubled) {
      twin->comes_home = true;
      twin->mark = nullptr;
      if (!execute(twin->handle())) {
        refused();
        this->resumed(*twin);
      }
    } else {
      part_with(*twin);
      this->drop_lane(*twin);
      watch_.leave_oldest(*this, now, samples_started());  // no permit: not this one
      kept_others_out = true;
    }
  }
  if (kept_others_out) return this->start_worker_with_holder();
  if (head.drop_holder()) over();
}

/// A lane that looks for work takes over an attempt that waits to be doubled.
template <class Types>
bool batch_engine<Types>::take_hedge(lane& self) {
  watch_.want(false);
  const bool taken = double_oldest(self);
  alarm_.wake();  // it looks who is due next
  return taken;
}

/// The lane gets the second attempt of the sample that has been in flight longest, if it is due and all it needs is to
/// be had at once.
template <class Types>
bool batch_engine<Types>::double_oldest(lane& twin) {
  const time now = now_of(ex_);
  const std::size_t weight = watch_.due_weight(*this, now, samples_started());
  if (weight == 0 || halted()) return false;
  bool equipped = true;
  const auto take = [&](permit& into, async_semaphore& gate, std::size_t n) {
    if (into || !equipped) return;
    if (auto taken = gate.try_acquire(n)) {
      into = std::move(*taken);
    } else {
      equipped = false;
    }
  };
  if (options_.limit) take(twin.limit_permit, adaptive_access::semaphore(*options_.limit), 1);
  if (weights_) take(twin.weight_permit, *weights_, weight);
  if (options_.semaphore) take(twin.shared_permit, *options_.semaphore, names::weighs ? weight : 1);
  // Its token must be a fresh one before the other attempt can win, and stop it.
  if (equipped && twin.stop_used && needs_.tokens) {
    guarded([&] { twin.renew_stop(attempts_stop()); }, [&] { equipped = false; });
  }
  if constexpr (names::has_timers) {
    equipped = equipped && (!options_.rate || options_.rate->try_acquire(ex_, weight));
  }
  twin.weight = weight;
  if (equipped && !halted() && watch_.double_oldest(*this, twin, now, samples_started())) {
    twin.is_twin = true;
    return true;
  }
  twin.weight_permit.release();  // its next sample may weigh more
  if (names::weighs) twin.shared_permit.release();
  return false;
}

// ---- The end ----

/// Nobody is counted any more.
template <class Types>
void batch_engine<Types>::over() {
  if (needs_.clock) {
    std::stop_source wake = alarm_.end();
    if (!alarm_.one_end()) {
      wake.request_stop();  // *this may be gone
      return;
    }
  }
  finish();
}

/// Its timers may be gone before the batch is: then what sleeps has nobody else to end it.
template <class Types>
void batch_engine<Types>::timekeeper_ended() {
  timekeeper_ = nullptr;
  alarm_.timekeeper_gone();
  if (needs_.retries && halted()) give_up_sleepers(false);
  if (alarm_.one_end()) finish();
}

template <class Types>
void batch_engine<Types>::finish() {
  if (options_.observer) report_.ended(why_halted());
  sink_.complete();  // *this may be gone
}

}  // namespace cobatch::detail
