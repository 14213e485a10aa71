#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <stop_token>
#include <utility>
#include <vector>

#include <cobatch/detail/bell.hpp>
#include <cobatch/detail/brief_mutex.hpp>
#include <cobatch/detail/cache_line.hpp>
#include <cobatch/detail/config.hpp>
#include <cobatch/detail/current_executor.hpp>
#include <cobatch/detail/mutex.hpp>
#include <cobatch/detail/start_mark.hpp>
#include <cobatch/detail/waiter.hpp>
#include <cobatch/engine/micro_batch_inbox.hpp>
#include <cobatch/engine/micro_batch_queue.hpp>
#include <cobatch/engine/resume_in_bulk.hpp>

namespace cobatch::inline COBATCH_ABI::detail {

class micro_batch_core;

/// A place for one batch at a time. Its group is guarded by the core's mutex until the batch runs, then it is its own.
///
///     idle ──look()──> dispatched ──on the executor──> running ──the last result──> idle
///     idle ──look(), of whom is on the executor──> running
///     running ──on a foreign thread──> hopping ──on the executor──> running
class micro_batch_slot {
 public:
  enum class stage_type : unsigned char { idle, dispatched, running, hopping };

  explicit micro_batch_slot(micro_batch_core& owner) : core(&owner), bell_(*this) {}
  micro_batch_slot(const micro_batch_slot&) = delete;
  micro_batch_slot& operator=(const micro_batch_slot&) = delete;
  virtual ~micro_batch_slot() = default;

  std::coroutine_handle<> handle() const noexcept { return bell_.handle(); }
  inline void rung();  // for the bell

  micro_batch_core* core;
  batch_group group;
  stage_type stage = stage_type::idle;
  std::shared_ptr<micro_batch_core> keeps;  // while it is not idle
  micro_batch_slot* next = nullptr;         // idle, or to be dispatched

  // What is left of a batch: samples from `begin` on, in ranges that end at ends[0] > ends[1] > ...; the last is next.
  // A range that fails is cut in two, so there are never more than log2(batch) + 1.
  std::size_t begin = 0;
  std::size_t ranges = 0;
  std::array<std::size_t, 66> ends;

 private:
  bell<micro_batch_slot> bell_;
};

/// The queue, the slots and the clock of micro_batcher; what knows the types derives from it.
///
/// A sample comes into the inbox of its thread; into the queue itself if it has a deadline, which the timer may have to
/// know, or if max_queue is limited, where it must be known how many wait. A look takes all of an inbox into the queue.
/// Whoever changes something (a look, a slot that has become idle, the timer) calls look() under the mutex, which
/// decides what is to be done now, and perform() after it, which does it: resumes, dispatches, starts the timer. So
/// nothing of the user's runs under the mutex, and it is taken some three times for a batch, whatever its size.
///
/// Samples of one thread stay in their order. Of several threads' those of the inbox that is looked at first go first.
///
/// There is at most one timer, a coroutine. It sleeps until the first thing that will be due, and looks then; a
/// newcomer disturbs it only if its own deadline comes earlier. When its time has come it may find nothing to do, and
/// sleeps again, or ends.
///
///     off ──look()──> awake ──time_to_sleep()──> asleep ──time_to_sleep()──> asleep, or awake and on its way to off
///     asleep ──look(), that needs it earlier──> called ──time_to_sleep()──> asleep, or awake
///     awake ──timer_ended()──> off
///
/// The core outlives the batcher for as long as a look is on its way, a slot is not idle or the timer not off; each of
/// them keeps it.
class micro_batch_core : public std::enable_shared_from_this<micro_batch_core> {
 public:
  micro_batch_core(const micro_batch_core&) = delete;
  micro_batch_core& operator=(const micro_batch_core&) = delete;
  virtual ~micro_batch_core() = default;

  executor_ref executor() const noexcept { return executor_; }

  /// Queues a sample for `patience` at most. True: suspended, it will be resumed, or already was. False: it is settled.
  inline bool enqueue(batch_waiter& waiter, std::int64_t patience);
  /// Takes a sample out, if its batch does not run yet, and resumes it; one that has not queued yet will not.
  inline void stop(batch_waiter& waiter) noexcept;
  /// For a sample whose coroutine is destroyed while it waits.
  inline void abandon(batch_waiter& waiter) noexcept;
  /// How many samples wait.
  std::size_t waiting() noexcept {
    std::size_t count = 0;
    locked([&](errands& found) {
      receive_all(found);
      count = queue_.waiting();
    });
    return count;
  }

  /// Takes no more, and lets what waits run at once. True: `closer` will be resumed at the end of it.
  inline bool close(waiter& closer) noexcept;
  void abandon_close(waiter& closer) noexcept {
    const std::lock_guard lock(mutex_);
    if (closer.linked()) closer.unlink();
  }
  /// The batcher is gone.
  inline void detach() noexcept;

 protected:
  inline micro_batch_core(executor_ref executor, bulk_resumer resume, const micro_batch_limits& limits,
                          std::size_t concurrency);

  // -- of the executor --
  virtual std::int64_t now() const noexcept = 0;
  virtual void start_timer() = 0;  // a coroutine that calls the four functions for the timer
  // -- of the model --
  virtual std::unique_ptr<micro_batch_slot> make_slot() = 0;
  virtual void run(micro_batch_slot& slot) = 0;    // a batch begins
  virtual void go_on(micro_batch_slot& slot) = 0;  // on the executor again
  virtual void abandon_work(micro_batch_slot& slot) noexcept = 0;
  virtual void retire() noexcept = 0;  // drops predict_many

  // -- for the timer --
  /// Does what is due. How long to sleep now; 0: not at all, it is to end.
  inline std::int64_t time_to_sleep() noexcept;
  std::stop_token wake_up_call() const noexcept { return timer_stop_.get_token(); }
  /// May throw std::bad_alloc.
  inline void slept(bool elapsed);
  /// The last call; `failed`: something has thrown. *this may be gone.
  inline void timer_ended(bool failed) noexcept;

  // -- for batches --
  /// The first slot; there is always one.
  void make_first_slot() { add_slot(); }
  /// Samples of a running batch before `end` have their results.
  inline void deliver(micro_batch_slot& slot, std::size_t end) noexcept;
  /// All of them have. *this may be gone.
  inline void finish(micro_batch_slot& slot) noexcept;
  /// Goes on on the executor; false: it refuses.
  bool hop(micro_batch_slot& slot) noexcept {
    slot.stage = micro_batch_slot::stage_type::hopping;
    return executor_.execute(slot.handle());
  }

 private:
  friend micro_batch_slot;
  using slot_stage = micro_batch_slot::stage_type;
  enum class timer_stage : unsigned char { off, awake, asleep, called };

  /// What is to be done once the mutex is free. It knows all that this needs: the core may be gone by then.
  struct errands {
    bulk_resumer resume;
    waiter_list ready = {};    // batch_waiters
    waiter_list closers = {};  // to be resumed after them
    micro_batch_slot* slots = nullptr;
    micro_batch_slot** last_slot = &slots;
    std::stop_source timer_to_stop{std::nostopstate};
    micro_batch_core* timer_to_start = nullptr;        // is kept by it
    std::shared_ptr<micro_batch_core> keep = nullptr;  // dropped last
  };

  /// An inbox and the look that may be on its way to it, on lines of their own.
  struct desk {
    explicit desk(micro_batch_core& owner) : core(&owner), look(*this) {}
    void rung() { core->look_arrived(*this); }

    line_gap gap_before;
    micro_batch_inbox inbox;
    micro_batch_core* core;
    std::shared_ptr<micro_batch_core> keeps;  // written by who sends the look, emptied by that
    bell<desk> look;
    line_gap gap_behind;
  };

  /// `change(found)` under the mutex, and then what it found.
  template <class Change>
  void locked(Change&& change) noexcept {
    errands found{resume_};
    {
      const std::lock_guard lock(mutex_);
      change(found);
    }
    perform(found);
  }
  /// The same with a look. From its end on *this may be gone.
  template <class Change>
  void update(Change&& change) noexcept {
    const std::int64_t time = now();
    locked([&](errands& found) {
      change(found, time);
      look(time, found);
    });
  }

  // Under mutex_.
  inline void receive(batch_waiter* oldest, errands& found) noexcept;
  void receive_all(errands& found) noexcept {
    for (desk& each : desks_) receive(each.inbox.take(), found);
  }
  void receive_for_look(desk& at, errands& found) noexcept {
    if (closed_) {
      --active_;
    } else {
      receive(at.inbox.take_all(), found);
    }
  }
  inline void close_inboxes(errands& found) noexcept;
  inline void look(std::int64_t now, errands& found) noexcept;
  inline void look_at_the_time(bool slot_free, errands& found) noexcept;
  void expire(std::int64_t now, errands& found) noexcept {
    while (batch_waiter* const expired = queue_.take_expired(now)) settle(*expired, batch_outcome::expired, found);
  }
  /// An idle slot, a new one, or null.
  micro_batch_slot* take_slot() noexcept {
    // No memory for a new one: there is another one.
    if (!idle_ && slots_.size() < limits_.batches) guarded([&] { add_slot(); }, [] {});
    micro_batch_slot* const taken = idle_;
    if (taken) idle_ = taken->next;
    return taken;
  }
  void start(micro_batch_slot& slot) noexcept {
    slot.stage = slot_stage::running;
    queue_.start(slot.group);
  }
  void release(micro_batch_slot& slot, errands& found) noexcept {
    slot.stage = slot_stage::idle;
    slot.next = std::exchange(idle_, &slot);
    found.keep = std::move(slot.keeps);
    --active_;
  }
  /// For a waiter that has left its group.
  void settle(batch_waiter& waiter, batch_outcome outcome, errands& found) noexcept {
    waiter.stage = batch_stage::settled;
    waiter.outcome = outcome;
    found.ready.push_back(waiter);
    --inside_;
  }
  /// The executor takes nothing any more: nobody who waits will get a result.
  void settle_queue(errands& found) noexcept {
    while (batch_waiter* const queued = queue_.take_any()) settle(*queued, batch_outcome::executor_stopped, found);
  }
  void add_slot() {
    slots_.push_back(make_slot());
    slots_.back()->next = std::exchange(idle_, slots_.back().get());
  }

  // Under no lock.
  inline static void perform(errands& found) noexcept;
  inline bool enqueue_at_once(batch_waiter& waiter, desk& at);
  inline void look_arrived(desk& at);
  inline void slot_arrived(micro_batch_slot& slot);
  inline void slot_refused(micro_batch_slot& slot) noexcept;

  const executor_ref executor_;
  const bulk_resumer resume_;
  const micro_batch_limits limits_;
  std::deque<desk> desks_;  // their number is a power of two, and does not change
  line_gap gap_;

  brief_mutex mutex_;  // guards all that follows
  micro_batch_queue<> queue_;
  std::vector<std::unique_ptr<micro_batch_slot>> slots_;
  micro_batch_slot* idle_ = nullptr;
  std::size_t active_ = 0;  // slots that are not idle, the timer, and, once it is closed, looks on their way
  std::size_t inside_ = 0;  // samples that are queued, formed or running
  waiter_list closers_;
  std::stop_source timer_stop_;  // written by the timer, which may read it without the lock
  std::shared_ptr<micro_batch_core> timer_keeps_;
  std::int64_t wakes_at_ = timer_queue::never;  // the timer, while it is asleep
  timer_stage timer_ = timer_stage::off;
  bool closed_ = false;
  bool no_timers_ = false;  // the executor has no more: nobody waits for others
};

// ---- Implementation ----

void micro_batch_slot::rung() {
  core->slot_arrived(*this);
}

micro_batch_core::micro_batch_core(executor_ref executor, bulk_resumer resume, const micro_batch_limits& limits,
                                   std::size_t concurrency)
    : executor_(executor), resume_(resume), limits_(limits), queue_(limits) {
  const std::size_t desks = std::bit_ceil(std::min<std::size_t>(concurrency, 64));
  while (desks_.size() < desks) desks_.emplace_back(*this);
}

// ---- Samples come and leave ----

bool micro_batch_core::enqueue(batch_waiter& waiter, std::int64_t patience) {
  desk& at = desks_[this_thread_number() & (desks_.size() - 1)];
  const auto refuse = [&](batch_outcome why) {
    waiter.outcome = at.inbox.is_closed() ? batch_outcome::closed : why;
    return false;
  };
  if (waiter.cost > limits_.cost) return refuse(batch_outcome::too_costly);
  if (patience <= 0) return refuse(batch_outcome::expired);
  if (patience != timer_queue::never) {
    waiter.arrival = now();
    waiter.expires = timer_queue::deadline_after(waiter.arrival, patience);
    waiter.urgent = patience <= limits_.delay && waiter.expires != timer_queue::never;
  }
  if (waiter.expires != timer_queue::never || limits_.waiting != micro_batch_limits::none) {
    return enqueue_at_once(waiter, at);
  }
  start_mark mark(&waiter);
  bool sends = false;
  const auto stamp = [this](batch_waiter& first) {
    if (first.arrival == batch_waiter::not_stamped) first.arrival = now();
  };
  const auto prepare_look = [&] {
    sends = true;
    waiter.mark = &mark;
    at.keeps = shared_from_this();
  };
  const bool pushed = at.inbox.push(waiter, stamp, prepare_look);
  // Unless we send the look, which keeps them, *this and the desk may be gone; so may the waiter, if the mark is open.
  if (sends && !at.core->executor_.execute(at.look.handle())) {
    const std::shared_ptr<micro_batch_core> keep = std::move(at.keeps);
    keep->update([&](errands& found, std::int64_t) {
      keep->receive_for_look(at, found);
      keep->settle_queue(found);
    });
  }
  if (!pushed) waiter.outcome = batch_outcome::closed;
  return pushed && !mark.finished();
}

/// Where it matters how many wait, or when the timer wakes.
bool micro_batch_core::enqueue_at_once(batch_waiter& waiter, desk& at) {
  start_mark mark(&waiter);
  waiter.mark = &mark;
  if (waiter.arrival == batch_waiter::not_stamped) waiter.arrival = now();
  enum class answer : unsigned char { queued, refused, no_memory };
  answer came = answer::refused;
  locked([&](errands& found) {
    receive(at.inbox.take(), found);  // those who came before it
    expire(waiter.arrival, found);    // and who does not wait any more
    if (waiter.stage == batch_stage::stopped) {
      waiter.outcome = batch_outcome::cancelled;
    } else if (closed_) {
      waiter.outcome = batch_outcome::closed;
    } else if (queue_.waiting() >= limits_.waiting) {
      waiter.outcome = batch_outcome::full;
    } else {
      const auto push = [&] {
        queue_.push(waiter);
        ++inside_;
        return answer::queued;
      };
      came = guarded(push, [] { return answer::no_memory; });
      look(waiter.arrival, found);
    }
  });
  if (came == answer::no_memory) throw_bad_alloc();
  return came == answer::queued && !mark.finished();
}

/// From an inbox to the queue.
void micro_batch_core::receive(batch_waiter* oldest, errands& found) noexcept {
  std::int64_t arrival = timer_queue::immediately;
  while (oldest) {
    batch_waiter& each = *oldest;
    oldest = std::exchange(each.link, nullptr);
    // Only the first one looks at the clock: the others came while its look was on its way.
    if (each.arrival == batch_waiter::not_stamped) each.arrival = arrival;
    arrival = each.arrival;
    ++inside_;
    if (each.stage == batch_stage::stopped) {
      settle(each, batch_outcome::cancelled, found);
    } else {
      guarded([&] { queue_.push(each); }, [&] { settle(each, batch_outcome::no_memory, found); });
    }
  }
}

void micro_batch_core::stop(batch_waiter& waiter) noexcept {
  locked([&](errands& found) {
    if (waiter.stage == batch_stage::outside) waiter.stage = batch_stage::stopped;
    receive_all(found);
    if (waiter.stage != batch_stage::queued && waiter.stage != batch_stage::formed) return;
    queue_.leave(waiter);
    settle(waiter, batch_outcome::cancelled, found);
  });
}

void micro_batch_core::abandon(batch_waiter& waiter) noexcept {
  locked([&](errands& found) {
    receive_all(found);
    if (waiter.stage == batch_stage::queued || waiter.stage == batch_stage::formed) {
      queue_.leave(waiter);
      --inside_;
    } else if (waiter.stage == batch_stage::running) {
      waiter.group->remove(waiter);
      --inside_;
    } else if (waiter.linked()) {
      waiter.unlink();  // settled, and next to be resumed by this very thread
    }
    waiter.stage = batch_stage::settled;
  });
}

// ---- The end ----

/// Those who are in them were before the end, and are let in.
void micro_batch_core::close_inboxes(errands& found) noexcept {
  if (std::exchange(closed_, true)) return;
  for (desk& each : desks_) {
    const auto contents = each.inbox.close();
    if (contents.look_comes) ++active_;
    receive(contents.oldest, found);
  }
}

bool micro_batch_core::close(waiter& closer) noexcept {
  bool ended = false;
  const std::int64_t time = now();
  locked([&](errands& found) {
    close_inboxes(found);
    look(time, found);
    ended = active_ == 0 && inside_ == 0;
    if (!ended) closers_.push_back(closer);
  });
  return !ended;
}

void micro_batch_core::detach() noexcept {
  micro_batch_slot* abandoned = nullptr;
  locked([&](errands& found) {
    close_inboxes(found);
    if (inside_ > 0 || !closers_.empty()) {
      fail("a micro_batcher was destroyed while a coroutine waits in it: co_await its close() first");
    }
    look_at_the_time(false, found);
    for (const auto& each : slots_) {
      // Its callers were destroyed while they waited; it waits for something that they will not see.
      if (each->stage == slot_stage::running) each->next = std::exchange(abandoned, each.get());
    }
  });
  for (; abandoned; abandoned = abandoned->next) {
    abandon_work(*abandoned);
    abandoned->keeps.reset();  // the batcher itself still keeps *this
  }
  retire();
}

// ---- What is to be done ----

/// Who leaves, which batches start, and when to look again.
void micro_batch_core::look(std::int64_t now, errands& found) noexcept {
  expire(now, found);
  const bool all_are_due = closed_ || no_timers_;
  bool slot_free = true;
  while (queue_.ready(now, all_are_due)) {
    micro_batch_slot* const slot = take_slot();
    if (!slot) {
      slot_free = false;
      break;
    }
    queue_.fill_ready(slot->group, now, all_are_due);
    slot->stage = slot_stage::dispatched;
    slot->keeps = shared_from_this();
    slot->next = nullptr;
    *std::exchange(found.last_slot, &slot->next) = slot;
    ++active_;
  }
  look_at_the_time(slot_free && (idle_ || slots_.size() < limits_.batches), found);
  if (closed_ && active_ == 0 && inside_ == 0) found.closers.splice_back(closers_);
}

void micro_batch_core::look_at_the_time(bool slot_free, errands& found) noexcept {
  const std::int64_t next = no_timers_ ? timer_queue::never : queue_.next_event(slot_free && !closed_);
  if (timer_ == timer_stage::awake) {
    wakes_at_ = next;
  } else if (timer_ == timer_stage::off && next != timer_queue::never) {
    timer_ = timer_stage::awake;
    timer_keeps_ = shared_from_this();
    found.timer_to_start = this;
    ++active_;
  } else if (timer_ == timer_stage::asleep && (next < wakes_at_ || (next == timer_queue::never && closed_))) {
    timer_ = timer_stage::called;
    found.timer_to_stop = timer_stop_;
  }
}

void micro_batch_core::perform(errands& found) noexcept {
  for (waiter* next = found.ready.first(); next;) {
    auto& each = static_cast<batch_waiter&>(*next);
    next = found.ready.after(next);
    // Settled inside the very call that queues it: it goes on there.
    if (each.mark && start_mark::finish(each.mark, &each)) each.unlink();
  }
  found.resume(found.ready);
  resume_all(found.closers);
  while (found.slots) {
    micro_batch_slot& slot = *found.slots;
    found.slots = slot.next;
    if (!slot.core->executor_.execute(slot.handle())) slot.core->slot_refused(slot);
    // Taken: the slot may run, or have run, on another thread.
  }
  if (found.timer_to_stop.stop_possible()) found.timer_to_stop.request_stop();
  if (micro_batch_core* const core = found.timer_to_start) {
    guarded([&] { core->start_timer(); }, [&] { core->timer_ended(true); });
  }
}

// ---- Looks and batches ----

/// On the executor, as slot_arrived().
void micro_batch_core::look_arrived(desk& at) {
  const std::shared_ptr<micro_batch_core> keep = std::move(at.keeps);
  const std::int64_t time = now();
  micro_batch_slot* begins = nullptr;
  locked([&](errands& found) {
    receive_for_look(at, found);
    look(time, found);
    begins = found.slots;
    if (!begins) return;
    found.slots = begins->next;  // the first batch may as well run here
    start(*begins);
  });
  if (begins) run(*begins);
}

void micro_batch_core::slot_arrived(micro_batch_slot& slot) {
  if (slot.stage == slot_stage::hopping) {
    slot.stage = slot_stage::running;
    return go_on(slot);
  }
  bool begins = false;
  update([&](errands& found, std::int64_t time) {
    receive_all(found);
    expire(time, found);
    queue_.fill(slot.group);  // those who came while it was on its way
    begins = slot.group.count > 0;
    if (begins) {
      start(slot);
    } else {
      release(slot, found);
    }
  });
  if (begins) run(slot);
}

void micro_batch_core::slot_refused(micro_batch_slot& slot) noexcept {
  update([&](errands& found, std::int64_t) {
    while (batch_waiter* const formed = slot.group.first()) {
      queue_.leave(*formed);
      settle(*formed, batch_outcome::executor_stopped, found);
    }
    settle_queue(found);
    release(slot, found);
  });
}

void micro_batch_core::deliver(micro_batch_slot& slot, std::size_t end) noexcept {
  locked([&](errands& found) {
    for (batch_waiter* first = slot.group.first(); first && first->index < end; first = slot.group.first()) {
      slot.group.remove(*first);
      settle(*first, batch_outcome::result, found);
    }
  });
}

void micro_batch_core::finish(micro_batch_slot& slot) noexcept {
  update([&](errands& found, std::int64_t) {
    for (batch_waiter* each = slot.group.first(); each; each = slot.group.after(*each)) {
      each->stage = batch_stage::settled;
    }
    inside_ -= slot.group.count;
    slot.group.give_all_to(found.ready);
    release(slot, found);
  });
}

// ---- The timer ----

std::int64_t micro_batch_core::time_to_sleep() noexcept {
  const std::int64_t time = now();
  std::int64_t pause = 0;
  locked([&](errands& found) {
    timer_ = timer_stage::awake;
    receive_all(found);
    look(time, found);
    if (wakes_at_ == timer_queue::never) return;
    pause = wakes_at_ > time ? wakes_at_ - time : 1;
    timer_ = timer_stage::asleep;
  });
  return pause;
}

void micro_batch_core::slept(bool elapsed) {
  const bool called = timer_stop_.stop_requested();
  std::stop_source fresh{std::nostopstate};
  if (called) fresh = std::stop_source();
  const std::lock_guard lock(mutex_);
  if (called) timer_stop_.swap(fresh);
  no_timers_ = no_timers_ || (!elapsed && !called);
}

void micro_batch_core::timer_ended(bool failed) noexcept {
  const std::int64_t time = now();
  locked([&](errands& found) {
    found.keep = std::move(timer_keeps_);
    timer_ = timer_stage::off;
    --active_;
    const bool had_none = no_timers_;
    no_timers_ = had_none || failed;
    look(time, found);
    no_timers_ = had_none;  // there was no memory for one: what waits runs now, and the next may wait again
  });
}

}  // namespace cobatch::detail
