#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <exception>
#include <utility>

#include <cobatch/detail/config.hpp>
#include <cobatch/engine/batch_engine.hpp>

namespace cobatch::inline COBATCH_ABI::detail {

// A sample's way: where it comes from, what it must have before it starts, and what becomes of it.

// ---- The next sample ----

template <class Types>
index_range batch_engine<Types>::claim_indices(std::size_t most) {
  index_range got;
  if constexpr (source::indexed) {
    if (this->take_rest([&](portion& rest) {
          got = {rest.begin, rest.begin + std::min(most, rest.size())};
          rest.begin = got.end;
        })) {
      return got;
    }
    got = source_.claim_range(most, this->most_workers());
    if (!got.empty()) sink_.make_room(got);
  }
  return got;
}

template <class Types>
bool batch_engine<Types>::refill(loop& here, worker& self) {
  if constexpr (source::indexed) {
    self.portion = claim_indices(here.pace.claim());
    if (self.portion.empty() && !shelves_.steal(self.portion)) return false;
    return true;
  } else {
    return this->take_rest([&](portion& rest) { self.portion = std::exchange(rest, portion{}); });
  }
}

template <class Types>
auto batch_engine<Types>::pull([[maybe_unused]] loop& here, [[maybe_unused]] portion& to,
                               [[maybe_unused]] std::size_t most) -> step {
  claim answer = claim::exhausted;
  if constexpr (source::awaited) {
    answer = reader_.pull(to);
  } else if constexpr (!source::indexed) {
    if (source_.exhausted()) return step::none;
    constexpr int patience = 20;  // a turn of reading mostly takes less than starting another worker
    if (!source_.turn().enter(patience)) return step::elsewhere;
    const time asked = options_.observer ? now_of(ex_) : time::zero();
    answer = source_.pull(to, most, sink_, [&](item_type& item) { unreadable(item); });
    if (options_.observer && !to.empty()) to.first().waited = now_of(ex_) - asked;
    if (source_.turn().leave()) {
      // Not for samples that cost less than another worker.
      if (here.pace.cheap()) {
        owes_worker_.store(true, std::memory_order_relaxed);
      } else if (!source_.exhausted()) {
        this->start_worker();
      }
    }
  }
  switch (answer) {
    case claim::taken: return step::finished;
    case claim::elsewhere: return step::elsewhere;
    case claim::exhausted:
    case claim::no_room: break;
  }
  return step::none;
}

/// finished: there is one in self.sample.
template <class Types>
auto batch_engine<Types>::next_sample(loop& here, lane& self, worker* driver) -> step {
  self.is_twin = false;
  if (needs_.retries && retries_.take(self.sample)) {
    head.drop_spare_holder();
    self.target = self.sample.slot;
    return step::finished;
  }
  if constexpr (source::indexed) {
    std::size_t index = 0;
    if (driver) {
      if (driver->portion.empty() && !refill(here, *driver)) return step::none;
      index = driver->portion.begin++;
    } else if (!shelves_.take(index, this_thread_number(), [&](std::size_t most) { return claim_indices(most); },
                              [&] { return now_of(ex_); })) {
      return step::none;
    }
    self.sample = {index, sink_.made_slot(index), nullptr, 0};
  } else {
    portion one;
    portion& from = driver ? driver->portion : one;
    if (from.empty()) {
      if (driver) {
        refill(here, *driver);
      } else {
        this->take_rest([&](portion& rest) { one.push(rest.pop()); });
      }
    }
    if (from.empty()) {
      constexpr std::size_t most_ahead = 64;
      std::size_t most = driver ? here.pace.claim() : 1;
      if (!Types::can_pause) most = std::clamp<std::size_t>(most_ahead / this->most_workers(), 1, most);
      if (const step found = pull(here, from, most); found != step::finished) return found;
    }
    item_type& item = from.pop();
    self.sample = {item.index, item.slot, &item, 0};
    self.waited_for[static_cast<std::size_t>(wait_for::input)] += item.waited;
  }
  self.target = self.sample.slot;
  return step::finished;
}

/// Whether a worker that has no lane needs one.
template <class Types>
auto batch_engine<Types>::before_a_lane(loop& here, worker& self) -> step {
  if (halted()) return step::none;
  if (needs_.hedges && watch_.wanted()) return step::finished;
  if (needs_.gates && asking_.is_taken()) return anything_to_start(&self) ? step::queued : step::none;
  if (needs_.retries && retries_.any_ready()) return step::finished;
  if (!self.portion.empty() || refill(here, self)) return step::finished;
  if constexpr (!source::indexed) {
    if (reader_.any() || !source_.exhausted()) {
      return needs_.gates && waits_for_input(&self) ? step::elsewhere : step::finished;
    }
  }
  return step::none;
}

template <class Types>
bool batch_engine<Types>::work_visible() {
  if (needs_.retries && retries_.any_ready()) return true;
  if (needs_.hedges && watch_.wanted()) return true;
  if (this->any_rest()) return true;
  if constexpr (source::indexed) {
    return !source_.exhausted() || shelves_.any();
  } else {
    // What was not read yet need not be looked at: who leaves it has found no room for it, or somebody else reading.
    return reader_.any() || sink_.room_came();
  }
}

/// Before somebody who was counted goes; true: not yet. See head_count.
template <class Types>
bool batch_engine<Types>::last_look(loop& here, step why) {
  bool again = false;
  if (halted()) {
    if (needs_.retries) give_up_sleepers(true);
    if constexpr (!source::indexed) {
      portion left;
      while (this->take_rest([&](portion& rest) { left = std::exchange(rest, portion{}); })) give_up(here, left);
      if constexpr (source::awaited) {
        if (reader_.take(left)) give_up(here, left);
      }
    }
  } else if (why == step::queued) {
    again = !asking_.ask();
  } else if (why == step::elsewhere) {
    // Who has the turn may wait for an input: it does not look at anything else.
    if constexpr (!source::indexed) {
      again = !source_.turn().ask() || (needs_.retries && retries_.any_ready()) || this->any_rest();
    }
  } else {
    again = work_visible();
    // Whoever waits for a permit without a sample need not wait any more.
    if (!again && why == step::none && needs_.gates) wait_.take(false).request_stop();
  }
  if (Types::can_pause && (halted() || source_.exhausted()) && input_counted_.exchange(false)) head.drop_spare_holder();
  return again;
}

/// Samples that were read and will not be started.
template <class Types>
void batch_engine<Types>::give_up([[maybe_unused]] loop& here, [[maybe_unused]] portion& left) {
  if constexpr (!source::indexed) {
    const errc why = why_halted() == halt::executor ? errc::executor_stopped : errc::not_started;
    while (!left.empty()) {
      item_type& item = left.pop();
      const sample_type sample{item.index, item.slot, &item, 0};
      settle(sample.slot, error(why, {}, 0));
      if (sink_.drops_unstarted(sample.index)) {
        sink_.unreserve(item);
        continue;
      }
      if (options_.observer) {
        ++here.finished;
        report_.finished(sample, now_of(ex_));
      }
      sink_.settled(here.done, sample);
    }
    hand_over(here);
  }
}

// ---- A sample's way ----

/// One sample in a lane, or more where they do not suspend.
template <class Types>
auto batch_engine<Types>::drive(loop& here, lane& self, worker* driver) -> step {
  // Its permit may have been handed over since the attempt began.
  if (needs_.plain && !self.in_way && (self.at == stage::attempt || !needs_turn(self))) [[likely]] {
    return calls_.drive_plainly(*this, here, self, driver);
  }
  self.loop = &here;
  self.worker = driver;
  here.mark.reopen(&self);
  self.mark = &here.mark;
  const step said = self.drive();  // lost: self may be gone
  if (said == step::finished) {
    if (here.pace.tick()) look(here);
  }
  return said;
}

COBATCH_COROUTINES_BEGIN
/// The whole way of one sample after another, from top to bottom.
template <class Types>
typename batch_lane<Types>::way batch_engine<Types>::one_sample_after_another(batch_engine& e, lane& self) {
  const batch_options& options = e.options_;
  for (;;) {
    // -- What it must have before it starts: permits, itself, more permits, the rate. --
    if (!self.is_twin) {
      if (e.halted()) {
        co_await self.says(step::none);
        continue;
      }
      if (e.needs_.hedges && e.watch_.wanted()) e.take_hedge(self);
    }
    if (!self.is_twin) {
      if (e.needs_turn(self)) {
        if (!e.anything_to_start(self.worker)) {
          co_await self.says(step::none);
          continue;
        }
        if (e.waits_for_input(self.worker)) {
          co_await self.says(step::elsewhere);
          continue;
        }
        if (!e.asking_.enter()) {
          co_await self.says(step::queued);
          continue;
        }
        self.has_turn = true;
      }
      entry came = entry::passed;
      step found = step::none;
      bool has_sample = false;
      if (options.limit) {
        semaphore_gate<batch_engine, lane> gate(e, self, adaptive_access::semaphore(*options.limit), 1,
                                                self.limit_permit);
        came = co_await gate;
      }
      if (came == entry::passed && options.semaphore && !names::weighs) {
        semaphore_gate<batch_engine, lane> gate(e, self, *options.semaphore, 1, self.shared_permit);
        came = co_await gate;
      }
      if (came == entry::passed || (came == entry::expired && !source::awaited)) {
        found = e.next_sample(*self.loop, self, self.worker);
        has_sample = found == step::finished;
      }
      if (!has_sample) {
        e.leave_turn(self);
        if (came == entry::expired && !e.halted()) continue;  // no sample has waited
        co_await self.says(found);
        continue;
      }
      if (names::weighs && came == entry::passed && !e.weigh(self)) {
        co_await self.says(step::finished);
        continue;
      }
      self.has_sample = true;
      if (came == entry::passed && e.weights_) {
        semaphore_gate<batch_engine, lane> gate(e, self, *e.weights_, self.weight, self.weight_permit);
        came = co_await gate;
      }
      if (came == entry::passed && options.semaphore && names::weighs) {
        semaphore_gate<batch_engine, lane> gate(e, self, *options.semaphore, self.weight, self.shared_permit);
        came = co_await gate;
      }
      if constexpr (names::has_timers) {
        if (came == entry::passed && options.rate) {
          rate_gate<batch_engine, lane, executor_type> gate(e, self, *options.rate, self.weight, e.ex_);
          came = co_await gate;
        }
      }
      self.has_sample = false;
      e.leave_turn(self);
      if (came != entry::passed) {
        e.refuse(self, came);
        co_await self.says(step::finished);
        continue;
      }
    }

    // -- The attempt. --
    if (e.may_begin(self)) {
      predict_call<batch_engine, lane> attempt(e, self);
      co_await attempt;
      e.attempt_ended(self);
    }
    if (self.pair) {
      if (!e.end_pair(self)) {
        co_await self.says(step::finished);  // the other one ends the sample
        continue;
      }
    } else {
      e.give_way(self);
    }

    // -- Again, after a while; or its outcome is final. --
    if (!e.try_again(self)) e.sample_final(self);
    co_await self.says(step::finished);
  }
}
COBATCH_COROUTINES_END

/// Whether there is a sample that could be started in the loop of this worker, or of none.
template <class Types>
bool batch_engine<Types>::anything_to_start(const worker* here) {
  if (needs_.retries && retries_.any_ready()) return true;
  if (here && !here->portion.empty()) return true;
  if (this->any_rest()) return true;
  if constexpr (source::indexed) {
    return !source_.exhausted() || shelves_.any();
  } else {
    return reader_.any() || !source_.exhausted();
  }
}

/// Whether all that could be started is a sample for which the reader waits. Nobody takes a permit for it meanwhile: two
/// batches would hand one to and fro.
template <class Types>
bool batch_engine<Types>::waits_for_input([[maybe_unused]] const worker* here) {
  if constexpr (source::awaited) {
    if (reader_.any() || !source_.turn().is_taken()) return false;
    if (needs_.retries && retries_.any_ready()) return false;
    return !(here && !here->portion.empty()) && !this->any_rest();
  } else {
    return false;
  }
}

/// False: it has no weight, its cost() threw.
template <class Types>
bool batch_engine<Types>::weigh([[maybe_unused]] lane& self) {
  if constexpr (names::weighs) {
    const auto cost = [&] {
      const std::size_t asked = calls_.cost(*this, self);
      self.weight = std::max<std::size_t>(asked, 1);
      return true;
    };
    return guarded(cost, [&] {
      settle(self.sample.slot, error(errc::exception, std::current_exception(), self.sample.attempts));
      leave_turn(self);
      note_end(self);
      count_failure();
      sample_final(self);
      return false;
    });
  } else {
    return true;
  }
}

/// The sample comes to its end before its attempt.
template <class Types>
void batch_engine<Types>::refuse(lane& self, entry why) {
  sample_type& sample = self.sample;
  self.weight_permit.release();
  if (names::weighs) self.shared_permit.release();
  note_end(self);
  if (why == entry::stopped) {
    // Where it had been tried before, its last error stands.
    const errc unstarted = why_halted() == halt::executor ? errc::executor_stopped : errc::not_started;
    if (sample.attempts == 0) {
      settle(sample.slot, error(unstarted, {}, 0));
      if (sink_.drops_unstarted(sample.index)) {
        if constexpr (!source::indexed) sink_.unreserve(*std::exchange(sample.item, nullptr));
        return;
      }
    }
  } else {
    const errc code = why == entry::expired ? errc::queue_timed_out : errc::cost_exceeds_capacity;
    settle(sample.slot, error(code, {}, sample.attempts));
    count_failure();
  }
  sample_final(self);
}

template <class Types>
void batch_engine<Types>::leave_turn(lane& self) {
  // self is counted, so whoever is started is never the last.
  if (std::exchange(self.has_turn, false) && asking_.leave() && !halted()) this->start_worker();
}

/// False: a second attempt of a sample that will not be made.
template <class Types>
bool batch_engine<Types>::may_begin(lane& self) {
  if (!self.is_twin) return true;
  if (halted()) {
    make_own(self, error(reason(false), {}, self.sample.attempts));
  } else if (watch_.lost_already(self)) {
    make_own(self, error(errc::not_started, {}, 0));
  } else {
    return true;
  }
  note_end(self);
  return false;
}

}  // namespace cobatch::detail
