#pragma once

#include <array>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <mutex>
#include <stop_token>
#include <utility>
#include <vector>

#include <cobatch/detail/bell.hpp>
#include <cobatch/detail/config.hpp>
#include <cobatch/detail/current_executor.hpp>
#include <cobatch/detail/micro_batch_queue.hpp>
#include <cobatch/detail/start_mark.hpp>
#include <cobatch/detail/waiter.hpp>

namespace cobatch::detail {

class micro_batch_core;

/// A place for one batch at a time. Its group is guarded by the core's mutex until the batch runs, then it is its own.
///
///     idle ──formed──> dispatched ──on the executor──> running ──the last result──> idle, or dispatched again
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
  start_mark* mark = nullptr;               // of the call of predict_many
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
/// Whoever changes something (a newcomer, a slot that has become idle, the timer) calls look() under the mutex, which
/// decides what is to be done now, and perform() after it, which does it: resumes, dispatches, starts the timer. So
/// nothing of the user's runs under the mutex.
///
/// There is at most one timer. It sleeps until the first thing that will be due, and looks then; a newcomer disturbs it
/// only if its own deadline comes earlier. When its time has come it may find nothing to do, and sleeps again, or ends.
///
/// It is long because it is one state machine, whose transitions are to be read together.
///
/// The core outlives the batcher for as long as a slot is dispatched or the timer sleeps; each of them keeps it.
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

  /// Takes no more, and lets what waits run at once. True: `closer` will be resumed at the end of it.
  inline bool close(waiter& closer);
  inline void abandon_close(waiter& closer) noexcept;

  /// The batcher is gone.
  inline void detach() noexcept;

  std::size_t waiting() {
    const std::lock_guard lock(mutex_);
    return queue_.waiting();
  }

 protected:
  micro_batch_core(executor_ref executor, const micro_batch_limits& limits, std::size_t max_slots)
      : executor_(executor), max_slots_(max_slots), queue_(limits), alarm_{this}, bell_(alarm_) {}

  // -- of the executor --
  virtual std::int64_t now() const noexcept = 0;
  virtual bool start_timer(std::int64_t delay, std::stop_token stop, std::coroutine_handle<> then) = 0;
  virtual bool end_timer() = 0;
  // -- of the model --
  virtual std::unique_ptr<micro_batch_slot> make_slot() = 0;
  virtual void run(micro_batch_slot& slot) = 0;      // a batch begins
  virtual void go_on(micro_batch_slot& slot) = 0;    // on the executor again
  virtual void resumed(micro_batch_slot& slot) = 0;  // what predict_many returned has ended
  virtual void abandon_work(micro_batch_slot& slot) noexcept = 0;
  virtual void retire() noexcept = 0;  // drops predict_many

  /// The first slot; there is always one.
  void make_first_slot() { add_slot(); }

  /// Samples of a running batch before `end` have their results.
  inline void deliver(micro_batch_slot& slot, std::size_t end) noexcept;
  /// All of them have.
  inline void finish(micro_batch_slot& slot) noexcept;
  /// Goes on on the executor; false: it refuses.
  bool hop(micro_batch_slot& slot) noexcept {
    slot.stage = micro_batch_slot::stage_type::hopping;
    return executor_.execute(slot.handle());
  }

 private:
  friend micro_batch_slot;

  /// What is to be done once the mutex is free.
  struct errands {
    waiter_list ready;    // batch_waiters
    waiter_list closers;  // to be resumed after them
    micro_batch_slot* slots = nullptr;
    micro_batch_slot** last_slot = &slots;
    std::stop_source timer_to_stop{std::nostopstate};
    std::int64_t pause = -1;                 // the timer is to be started
    std::shared_ptr<micro_batch_core> keep;  // dropped last
  };

  struct alarm {
    micro_batch_core* core;
    void rung() const noexcept { core->timer_rung(); }
  };

  // Under mutex_.
  inline void look(std::int64_t now, errands& found) noexcept;
  inline void look_at_the_time(std::int64_t now, bool slot_free, errands& found) noexcept;
  inline micro_batch_slot* take_slot() noexcept;
  inline void release(micro_batch_slot& slot, errands& found) noexcept;
  inline void settle(batch_waiter& waiter, batch_outcome outcome, errands& found) noexcept;
  inline void settle_results(micro_batch_slot& slot, std::size_t end, errands& found) noexcept;
  void add_slot() {
    slots_.push_back(make_slot());
    slots_.back()->next = std::exchange(idle_, slots_.back().get());
  }

  inline static void perform(errands& found, micro_batch_core* self) noexcept;
  inline void refused(micro_batch_slot& slot) noexcept;
  inline void slot_rung(micro_batch_slot& slot);
  inline void keep_time(std::int64_t pause) noexcept;
  inline void timer_rung() noexcept;
  inline std::int64_t timer_ended(bool threw) noexcept;

  executor_ref executor_;
  std::size_t max_slots_;

  std::mutex mutex_;  // guards everything down to no_timers_
  micro_batch_queue queue_;
  std::vector<std::unique_ptr<micro_batch_slot>> slots_;
  micro_batch_slot* idle_ = nullptr;
  std::size_t active_ = 0;  // slots that are not idle, and the timer
  std::size_t inside_ = 0;  // samples that are queued, formed or running
  waiter_list closers_;
  std::stop_source timer_stop_;  // written by the timer, which may read it without the lock
  std::shared_ptr<micro_batch_core> timer_keeps_;
  std::int64_t wakes_at_ = timer_queue::never;  // the timer, while it runs
  bool timer_runs_ = false;
  bool timer_is_stopped_ = false;  // asked to look at once
  bool closed_ = false;
  bool no_timers_ = false;  // the executor has no more: nobody waits for others

  start_mark* timer_mark_ = nullptr;  // the timer's
  alarm alarm_;
  bell<alarm> bell_;
};

// ---- Implementation ----

void micro_batch_slot::rung() {
  core->slot_rung(*this);
}

bool micro_batch_core::enqueue(batch_waiter& waiter, std::int64_t patience) {
  const auto refuse = [&](batch_outcome why) {
    waiter.outcome = why;
    return false;
  };
  start_mark mark(&waiter);
  waiter.mark = &mark;
  waiter.arrival = now();
  waiter.expires = timer_queue::deadline_after(waiter.arrival, patience);
  waiter.urgent = patience <= queue_.limits().delay && waiter.expires != timer_queue::never;
  errands found;
  {
    const std::lock_guard lock(mutex_);
    if (waiter.stage == batch_stage::stopped) return refuse(batch_outcome::cancelled);
    if (closed_) return refuse(batch_outcome::closed);
    if (patience <= 0) return refuse(batch_outcome::expired);
    if (waiter.cost > queue_.limits().cost) return refuse(batch_outcome::too_costly);
    if (queue_.waiting() >= queue_.limits().waiting) return refuse(batch_outcome::full);
    queue_.push(waiter);
    ++inside_;
    look(waiter.arrival, found);
  }
  perform(found, this);
  // If the mark is still open, the waiter and *this may be gone.
  return !mark.finished();
}

void micro_batch_core::stop(batch_waiter& waiter) noexcept {
  errands found;
  {
    const std::lock_guard lock(mutex_);
    if (waiter.stage == batch_stage::outside) waiter.stage = batch_stage::stopped;
    if (waiter.stage != batch_stage::queued && waiter.stage != batch_stage::formed) return;
    queue_.leave(waiter);
    settle(waiter, batch_outcome::cancelled, found);
  }
  perform(found, this);
}

void micro_batch_core::abandon(batch_waiter& waiter) noexcept {
  const std::lock_guard lock(mutex_);
  switch (waiter.stage) {
    case batch_stage::queued:
    case batch_stage::formed:
      queue_.leave(waiter);
      --inside_;
      break;
    case batch_stage::running:
      waiter.group->remove(waiter);
      --inside_;
      break;
    default:
      if (waiter.linked()) waiter.unlink();  // settled, and next to be resumed by this very thread
  }
  waiter.stage = batch_stage::settled;
}

bool micro_batch_core::close(waiter& closer) {
  errands found;
  const std::int64_t time = now();
  bool ended = false;
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    look(time, found);
    ended = active_ == 0 && inside_ == 0;
    if (!ended) closers_.push_back(closer);
  }
  perform(found, this);
  return !ended;
}

void micro_batch_core::abandon_close(waiter& closer) noexcept {
  const std::lock_guard lock(mutex_);
  if (closer.linked()) closer.unlink();
}

void micro_batch_core::detach() noexcept {
  std::stop_source timer{std::nostopstate};
  micro_batch_slot* abandoned = nullptr;
  {
    const std::lock_guard lock(mutex_);
    if (inside_ > 0 || !closers_.empty()) {
      fail("a micro_batcher was destroyed while a coroutine waits in it: co_await its close() first");
    }
    closed_ = true;
    if (timer_runs_ && !std::exchange(timer_is_stopped_, true)) timer = timer_stop_;
    for (const auto& each : slots_) {
      // Its callers were destroyed while they waited; it waits for something that they will not see.
      if (each->stage == micro_batch_slot::stage_type::running) each->next = std::exchange(abandoned, each.get());
    }
  }
  for (; abandoned; abandoned = abandoned->next) {
    abandon_work(*abandoned);
    abandoned->keeps.reset();  // the batcher itself still keeps *this
  }
  retire();
  if (timer.stop_possible()) timer.request_stop();
}

/// Who leaves, which batches start, and when to look again.
void micro_batch_core::look(std::int64_t now, errands& found) noexcept {
  while (batch_waiter* const expired = queue_.take_expired(now)) settle(*expired, batch_outcome::expired, found);
  bool slot_free = true;
  while (batch_group* const bucket = queue_.ready(now, closed_ || no_timers_)) {
    micro_batch_slot* const slot = take_slot();
    if (!slot) {
      slot_free = false;
      break;
    }
    slot->group.key = bucket->key;
    queue_.fill(slot->group);
    slot->stage = micro_batch_slot::stage_type::dispatched;
    slot->keeps = shared_from_this();
    slot->next = nullptr;
    *std::exchange(found.last_slot, &slot->next) = slot;
    ++active_;
  }
  look_at_the_time(now, slot_free && (idle_ || slots_.size() < max_slots_), found);
  if (closed_ && active_ == 0 && inside_ == 0) found.closers.splice_back(closers_);
}

void micro_batch_core::look_at_the_time(std::int64_t now, bool slot_free, errands& found) noexcept {
  const std::int64_t next = queue_.next_event(slot_free && !closed_);
  if (timer_runs_) {
    const bool too_late = next < wakes_at_ || (next == timer_queue::never && closed_);
    if (too_late && !std::exchange(timer_is_stopped_, true)) found.timer_to_stop = timer_stop_;
  } else if (next != timer_queue::never && !no_timers_) {
    timer_runs_ = true;
    timer_keeps_ = shared_from_this();
    wakes_at_ = next;
    found.pause = next > now ? next - now : 0;
    ++active_;
  }
}

/// An idle slot, a new one, or null.
micro_batch_slot* micro_batch_core::take_slot() noexcept {
  if (!idle_ && slots_.size() < max_slots_) guarded([&] { add_slot(); }, [] {});  // no memory: there is another one
  micro_batch_slot* const taken = idle_;
  if (taken) idle_ = taken->next;
  return taken;
}

void micro_batch_core::release(micro_batch_slot& slot, errands& found) noexcept {
  slot.stage = micro_batch_slot::stage_type::idle;
  slot.next = std::exchange(idle_, &slot);
  found.keep = std::move(slot.keeps);
  --active_;
}

/// For a waiter that has left its group.
void micro_batch_core::settle(batch_waiter& waiter, batch_outcome outcome, errands& found) noexcept {
  waiter.stage = batch_stage::settled;
  waiter.outcome = outcome;
  found.ready.push_back(waiter);
  --inside_;
}

void micro_batch_core::settle_results(micro_batch_slot& slot, std::size_t end, errands& found) noexcept {
  while (batch_waiter* const first = slot.group.first()) {
    if (first->index >= end) break;
    slot.group.remove(*first);
    settle(*first, batch_outcome::result, found);
  }
}

/// `self` is used only by the timer, which keeps it.
void micro_batch_core::perform(errands& found, micro_batch_core* self) noexcept {
  for (waiter* next = found.ready.first(); next;) {
    auto& each = static_cast<batch_waiter&>(*next);
    next = found.ready.after(next);
    // Settled inside the very call that queues it: it goes on there.
    if (start_mark::finish(each.mark, &each)) each.unlink();
  }
  resume_all(found.ready);
  resume_all(found.closers);
  while (found.slots) {
    micro_batch_slot& slot = *found.slots;
    found.slots = slot.next;
    if (!slot.core->executor_.execute(slot.handle())) slot.core->refused(slot);
    // Taken: the slot may run, or have run, on another thread.
  }
  if (found.timer_to_stop.stop_possible()) found.timer_to_stop.request_stop();
  if (found.pause >= 0) self->keep_time(found.pause);
}

/// The executor takes nothing any more: nobody who waits will get a result.
void micro_batch_core::refused(micro_batch_slot& slot) noexcept {
  errands found;
  const std::int64_t time = now();
  {
    const std::lock_guard lock(mutex_);
    while (batch_waiter* const formed = slot.group.first()) {
      queue_.leave(*formed);
      settle(*formed, batch_outcome::executor_stopped, found);
    }
    while (batch_waiter* const queued = queue_.take_any()) settle(*queued, batch_outcome::executor_stopped, found);
    release(slot, found);
    look(time, found);
  }
  perform(found, this);
}

/// On the executor; or, where a batch runs, wherever what it awaits has ended.
void micro_batch_core::slot_rung(micro_batch_slot& slot) {
  using enum micro_batch_slot::stage_type;
  if (slot.stage == running) {
    if (start_mark::finish(slot.mark, &slot)) return;  // inside the call itself: it goes on there
    return resumed(slot);
  }
  if (slot.stage == hopping) {
    slot.stage = running;
    return go_on(slot);
  }
  errands found;
  const std::int64_t time = now();
  bool begins = false;
  {
    const std::lock_guard lock(mutex_);
    while (batch_waiter* const expired = queue_.take_expired(time)) settle(*expired, batch_outcome::expired, found);
    queue_.fill(slot.group);  // those who came while it was on its way
    begins = slot.group.count > 0;
    if (begins) {
      slot.stage = running;
      queue_.start(slot.group);
    } else {
      release(slot, found);
    }
    look(time, found);
  }
  perform(found, this);
  if (begins) run(slot);
}

void micro_batch_core::deliver(micro_batch_slot& slot, std::size_t end) noexcept {
  errands found;
  {
    const std::lock_guard lock(mutex_);
    settle_results(slot, end, found);
  }
  perform(found, this);
}

void micro_batch_core::finish(micro_batch_slot& slot) noexcept {
  errands found;
  const std::int64_t time = now();
  {
    const std::lock_guard lock(mutex_);
    settle_results(slot, std::numeric_limits<std::size_t>::max(), found);
    release(slot, found);
    look(time, found);
  }
  perform(found, this);
  // Unless found.keep is the last to keep it, *this may be gone.
}

/// Sleeps on whichever thread, until there is nothing to wait for. The timer keeps *this.
void micro_batch_core::keep_time(std::int64_t pause) noexcept {
  while (pause >= 0) {
    bool threw = false;
    {
      start_mark mark(this);
      timer_mark_ = &mark;
      const auto start = [&] { return start_timer(pause, timer_stop_.get_token(), bell_.handle()); };
      const bool ended = guarded(start, [&] { return threw = true; });
      if (!ended && !mark.finished()) return;  // it sleeps; *this may be gone
    }
    pause = timer_ended(threw);
  }
}

void micro_batch_core::timer_rung() noexcept {
  if (start_mark::finish(timer_mark_, this)) return;  // inside start_timer(): it goes on there
  if (const std::int64_t pause = timer_ended(false); pause >= 0) keep_time(pause);
}

/// How long to sleep now; negative: not at all, and *this may be gone.
std::int64_t micro_batch_core::timer_ended(bool threw) noexcept {
  const bool stopped = timer_stop_.stop_requested();
  std::stop_source fresh{std::nostopstate};
  bool refused = threw;
  guarded(
      [&] {
        if (!threw && !end_timer() && !stopped) refused = true;
        if (stopped) fresh = std::stop_source();
      },
      [&] { refused = true; });
  const std::int64_t time = now();
  errands found;
  {
    const std::lock_guard lock(mutex_);
    if (fresh.stop_possible()) timer_stop_.swap(fresh);
    if (refused) no_timers_ = true;
    timer_is_stopped_ = false;
    timer_runs_ = false;
    found.keep = std::move(timer_keeps_);
    --active_;
    look(time, found);
    if (threw) no_timers_ = false;  // there was no memory for one: what waits runs now, and the next may wait again
  }
  const std::int64_t pause = std::exchange(found.pause, -1);
  perform(found, nullptr);
  return pause;
}

}  // namespace cobatch::detail
