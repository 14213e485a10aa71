#pragma once

#include <atomic>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>

#include <cobatch/detail/cache_line.hpp>
#include <cobatch/detail/config.hpp>
#include <cobatch/detail/current_executor.hpp>
#include <cobatch/detail/frame_pool.hpp>
#include <cobatch/detail/intrusive_list.hpp>
#include <cobatch/detail/start_mark.hpp>
#include <cobatch/detail/station.hpp>

/// Lanes, pumps and stations: how a number of threads work through samples that may suspend.
///
/// A *lane* is one sample in flight: a coroutine frame that takes samples one after another. The number of lanes is the
/// concurrency of the batch, so a cap of its own costs no semaphore, and frames are O(in flight).
///
/// A *pump* is a plain loop on a thread of the executor: it claims a sample for its lane and calls predict. If predict
/// finishes synchronously, the same lane takes the next sample. If it suspends, the pump has lost its lane and makes
/// another one, until the cap is reached or no sample is left. A lane that is resumed is a pump again.
///
/// A *station* is what a pump must occupy: there are as many as the executor resumes handles at once. It holds the
/// pump's chunk of samples, and it is how pumps find each other (see station.hpp): a pump without work asks the others
/// to share, a lane for which no station is free is parked with a busy one, and the pump that sees the last lane go
/// asks the others to look again before it calls the batch complete.

namespace cobatch::detail {

/// What a pump finds when it looks for work.
enum class supply : unsigned char {
  ready,      ///< go on
  none,       ///< the lane is of no use any more
  contended,  ///< nor here, but another pump may have some to share
  queued,     ///< another lane looks for permits, and will start another pump if it is asked to
  queued_for_input,  ///< the same with another lane that waits for the next sample
  lost,       ///< the lane waits for something that no pump can do; the pump is done as well
};

struct alive_tag {};

/// The links and the marks of a lane, and its coroutine; Lane derives from it and is the promise.
template <class Lane>
class lane_base : public pooled_frame, public list_link<alive_tag> {
 public:
  struct coroutine {
    using promise_type = Lane;
    Lane* made;
  };

  coroutine get_return_object() noexcept { return {static_cast<Lane*>(this)}; }
  std::suspend_always initial_suspend() const noexcept { return {}; }
  std::suspend_always final_suspend() const noexcept { return {}; }
  void return_void() const noexcept {}
  void unhandled_exception() const noexcept { fail("an exception left the batch engine"); }

  std::coroutine_handle<Lane> handle() noexcept {
    return std::coroutine_handle<Lane>::from_promise(static_cast<Lane&>(*this));
  }

  start_mark* mark = nullptr;    // of the pump that last drove it
  Lane* next_parked = nullptr;

 protected:
  /// Passes every resumption on, from inside an await_suspend: there the coroutine counts as suspended, so that the
  /// next attempt may be given its handle, and whoever retires it may destroy it.
  struct pass_on {
    bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<Lane> self) const noexcept {
      Lane& resumed = self.promise();
      // Nested in the pump's own call: it goes on there.
      if (resumed.mark && start_mark::finish(resumed.mark, &resumed)) return;
      resumed.engine.resumed(resumed);
    }
    void await_resume() const noexcept {}
  };
};

/// The engine-independent half of an engine. Engine derives from it and has, for its friend:
///
///     executor_ref loop()                          where pumps run; a refusal is told to refused()
///     bool halted()                                no sample may start any more
///     supply provide(station&, Lane*)              sees to it that the station has a claim, or the lane a sample
///     supply process(station&, Lane*&, start_mark&) one sample; ready with a null lane: the lane was lost, go on
///     bool share(station&)                         gives part of the claim away; true: worth another pump
///     bool ask_at_turnstile(supply)                what to do about `queued`; false: nobody is in the way any more
///     void nothing_left()                          a pump that has no lane has found nothing
///     void part_with(Lane&, supply)                before a lane is destroyed, and why
///     bool more_came()                             after a lane was destroyed: there is work again
///     bool may_add_lane()                          under mutex_: the batch is not complete yet
///     bool complete(live)                          no lane, no pump but the calling one; false: not so any more
template <class Engine, class Lane>
class pump_core {
 public:
  pump_core(const pump_core&) = delete;
  pump_core& operator=(const pump_core&) = delete;

 protected:
  explicit pump_core(std::size_t cap) noexcept : cap_(cap < most_lanes ? cap : most_lanes) {}

  ~pump_core() = default;

  /// First of all in Engine's destructor: only where the whole batch is abandoned, its executor being deserted, are
  /// there lanes left. Those that queue for something go before those that may have it and give it back.
  void abandon_lanes() noexcept {
    intrusive_list<alive_tag> twins, others;  // twins before those whose samples they use
    while (auto* const left = lanes_.first()) {
      Lane& each = *static_cast<Lane*>(left);
      lanes_.erase(*left);
      if (each.queues()) {
        each.abandon();
      } else {
        (each.is_twin() ? twins : others).push_back(*left);
      }
    }
    for (auto* const list : {&twins, &others}) {
      while (auto* const left = list->first()) {
        list->erase(*left);
        static_cast<Lane*>(left)->abandon();
      }
    }
  }

  void open_stations(std::size_t count) {
    stations_ = std::make_unique<station[]>(count);
    station_count_ = count;
  }

  void pump(Lane& first) {
    if (station* const here = occupy(first)) run(*here, &first);
  }

  Lane* new_lane();
  bool retire(Lane& lane);
  bool start_another();
  supply steal(station& here);

  // Lanes alive in the low half, lanes ever made in the high half. Read-modify-writes are acquire-release: who sees a
  // lane gone sees what it wrote. See last_check() for what the high half is for.
  static constexpr std::uint64_t live_mask = 0xffff'ffff;
  static constexpr std::uint64_t one_more = (std::uint64_t{1} << 32) + 1;

  const std::size_t cap_;
  std::size_t station_count_ = 0;
  std::unique_ptr<station[]> stations_;
  line_gap gap_;  // what comes before is only read
  std::atomic<std::uint64_t> live_{0};
  mutable std::mutex mutex_;  // guards lanes_, parked_ and what Engine puts under it

 private:
  static constexpr std::size_t most_lanes = 0x7fff'ffff;

  Engine& engine() noexcept { return static_cast<Engine&>(*this); }
  station* occupy(Lane& first);
  void run(station& here, Lane* current);
  bool answer(station& here);
  bool ask_others(station& here);
  bool last_check(station& here);
  Lane* parked_lane();

  // Lanes in parked_; written under mutex_. Whoever must see one has been asked through its station since.
  std::atomic<std::size_t> parked_count_{0};
  intrusive_list<alive_tag> lanes_;  // all of them
  Lane* parked_ = nullptr;
};

// ---- Implementation ----

/// A station for a pump that has this lane, or null: then the lane was parked, and *this may be gone.
template <class Engine, class Lane>
station* pump_core<Engine, Lane>::occupy(Lane& first) {
  for (const std::size_t preferred = this_thread_number();;) {
    for (std::size_t i = 0; i < station_count_; ++i) {
      station& each = stations_[(preferred + i) % station_count_];
      if (each.enter()) return &each;
    }
    // Under the lock, so that whoever takes the lane over cannot do so before it has been asked to.
    const std::lock_guard lock(mutex_);
    first.next_parked = parked_;
    parked_ = &first;
    parked_count_.fetch_add(1, std::memory_order_relaxed);
    for (std::size_t i = 0; i < station_count_; ++i) {
      if (stations_[i].ask(station::wanted)) return nullptr;
    }
    parked_count_.fetch_sub(1, std::memory_order_relaxed);
    parked_ = first.next_parked;  // all have been left in the meantime
  }
}

template <class Engine, class Lane>
void pump_core<Engine, Lane>::run(station& here, Lane* current) {
  const executor_scope scope(engine().loop());
  start_mark mark(current);
  current->mark = &mark;
  bool check = false;      // last_check() is due
  bool looked = false;     // since then this pump has looked for work once more
  for (;;) {
    if (here.marked()) [[unlikely]] check |= answer(here);
    if (!current && parked_count_.load(std::memory_order_relaxed) != 0) [[unlikely]] {
      current = parked_lane();
    }
    supply more = engine().halted() ? supply::none : engine().provide(here, current);
    if (more == supply::ready) {
      if (!current) current = new_lane();
      if (current) {
        mark.reopen(current);
        current->mark = &mark;
        more = engine().process(here, current, mark);
        if (!current) mark.reopen(nullptr);  // lost, and may be resumed inside whatever is called next
        if (more == supply::ready) {
          looked = false;
          continue;
        }
      }
    }
    // Nothing that this pump could do now. First the lane goes, then others are asked: who answers can have it.
    if (more == supply::lost) current = nullptr;
    if (!current && more == supply::none) engine().nothing_left();
    if (current) {
      engine().part_with(*current, more);
      check |= retire(*current);
      current = nullptr;
      // Where others look for permits, there would be no end to looking again: they start another pump.
      if (more != supply::queued && engine().more_came()) [[unlikely]] continue;
    }
    if (more == supply::contended && !ask_others(here)) continue;
    const bool queued = more == supply::queued || more == supply::queued_for_input;
    if (queued && !engine().ask_at_turnstile(more)) continue;
    if (parked_count_.load(std::memory_order_relaxed) != 0) [[unlikely]] continue;
    if (check) {
      // The last lane may have gone because something was in its way, with work left in this very station.
      if (!std::exchange(looked, true)) continue;
      check = looked = false;
      mark.take_off();  // the batch may end inside its own start
      if (last_check(here)) return;
      mark.put_on();
    }
    if (here.leave()) return;  // *this may be gone
  }
}

/// The greater half of what a pump has left behind that could not get a lane for it.
template <class Engine, class Lane>
supply pump_core<Engine, Lane>::steal(station& here) {
  supply found = supply::none;
  for (std::size_t i = 0; i < station_count_ && found != supply::ready; ++i) {
    station& other = stations_[i];
    if (&other == &here) continue;
    if (!other.enter()) {
      found = supply::contended;
      continue;
    }
    if (const std::size_t left = other.range.size(); left != 0) {
      here.range = {other.range.begin + left / 2, other.range.end};
      other.range.end = here.range.begin;
      found = supply::ready;
    }
    // What was asked of the other station while we held it is now asked of us.
    while (!other.leave()) {
      const std::uint8_t marks = other.take_marks();
      if ((marks & station::wanted) != 0) here.ask(station::wanted);
      if ((marks & station::last_check) != 0) here.ask(station::last_check);
    }
  }
  return found;
}

/// Does what others have asked of this station; true: last_check() is due.
template <class Engine, class Lane>
bool pump_core<Engine, Lane>::answer(station& here) {
  const std::uint8_t marks = here.take_marks();
  bool check = (marks & station::last_check) != 0;
  if ((marks & station::wanted) != 0 && !engine().halted() && engine().share(here)) check |= start_another();
  return check;
}

/// True: at least one other pump is there to be asked.
template <class Engine, class Lane>
bool pump_core<Engine, Lane>::ask_others(station& here) {
  bool asked = false;
  for (std::size_t i = 0; i < station_count_; ++i) {
    if (&stations_[i] != &here && stations_[i].ask(station::wanted)) asked = true;
  }
  return asked;
}

/// Called when the last lane was seen to go, or when another pump has passed on this duty. True: the batch is complete
/// and *this may be gone.
///
/// Complete means: no lane, and no pump but this one. While no lane is alive only a pump in some busy station could
/// make one; if there is such a station its owner gets the duty. If none was seen busy, and no lane has been made since
/// before the first look (the high half of live_ is the same), no station can have become busy again: a pump begins
/// with a lane. Two pumps that keep passing the duty to each other would both have to mark the other's station between
/// the other's own check and the very next instruction, every time.
template <class Engine, class Lane>
bool pump_core<Engine, Lane>::last_check(station& here) {
  for (;;) {
    const std::uint64_t before = live_.load(std::memory_order_acquire);
    if ((before & live_mask) != 0) return false;
    for (std::size_t i = 0; i < station_count_; ++i) {
      if (&stations_[i] != &here && stations_[i].ask(station::last_check)) return false;
    }
    if (live_.load(std::memory_order_acquire) == before) return engine().complete(before);
  }
}

/// Null at the cap, or where there is no memory.
template <class Engine, class Lane>
Lane* pump_core<Engine, Lane>::new_lane() {
  std::uint64_t seen = live_.load();
  if ((seen & live_mask) >= cap_) return nullptr;
  Lane* const made = Lane::make(engine());
  if (!made) return nullptr;
  {
    const std::lock_guard lock(mutex_);
    bool added = false;
    while (!added && (seen & live_mask) < cap_ && engine().may_add_lane()) {
      added = live_.compare_exchange_weak(seen, seen + one_more, std::memory_order_acq_rel);
    }
    if (added) {
      lanes_.push_back(*made);
      return made;
    }
  }
  made->handle().destroy();
  return nullptr;
}

template <class Engine, class Lane>
Lane* pump_core<Engine, Lane>::parked_lane() {
  const std::lock_guard lock(mutex_);
  Lane* const taken = parked_;
  if (taken) {
    parked_ = taken->next_parked;
    parked_count_.fetch_sub(1, std::memory_order_relaxed);
  }
  return taken;
}

/// True: it was the last one, and last_check() is due.
template <class Engine, class Lane>
bool pump_core<Engine, Lane>::retire(Lane& lane) {
  {
    const std::lock_guard lock(mutex_);
    lanes_.erase(lane);
  }
  lane.handle().destroy();
  // seq_cst: pairs with the load in new_lane(), see more_came() of the engine.
  return (live_.fetch_sub(1) & live_mask) == 1;
}

/// One more pump, on a lane of its own, if the cap allows; true: last_check() is due.
template <class Engine, class Lane>
bool pump_core<Engine, Lane>::start_another() {
  Lane* const another = new_lane();
  if (!another) return false;
  if (engine().loop().execute(another->handle())) return false;
  engine().refused();
  engine().part_with(*another, supply::none);
  return retire(*another);
}

}  // namespace cobatch::detail
