#pragma once

#include <algorithm>
#include <chrono>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <limits>
#include <memory>
#include <span>
#include <stdexcept>
#include <stop_token>
#include <utility>
#include <vector>

#include <cobatch/detail/atomic.hpp>
#include <cobatch/detail/cache_line.hpp>
#include <cobatch/detail/config.hpp>
#include <cobatch/detail/current_executor.hpp>
#include <cobatch/detail/mutex.hpp>
#include <cobatch/detail/pool_shard.hpp>
#include <cobatch/detail/pool_worker.hpp>
#include <cobatch/detail/punctual_wait.hpp>
#include <cobatch/detail/sleeping_workers.hpp>
#include <cobatch/detail/spin_pause.hpp>
#include <cobatch/detail/thread.hpp>
#include <cobatch/detail/timer_awaiter.hpp>
#include <cobatch/detail/timer_queue.hpp>
#include <cobatch/executor.hpp>

namespace cobatch::inline COBATCH_ABI {

class thread_pool;
namespace detail {
template <>
inline constexpr const char* executor_blocks<thread_pool> = "a thread_pool worker";
}

/// An executor of several threads: a queue and timers each, work stealing between them; an idle pool uses no CPU.
///
/// Order: a coroutine that reschedules itself goes behind all that is queued on its thread and starves nobody, however
/// much that is: what is due and what comes from outside gets its turn as well.
/// Lifetime: the destructor is stop() and then waits until all that is queued has run, so no frame is lost. It must
/// not run on one of the pool's own threads.
/// Thread safety: everything from any thread; execute() may race with the end of the coroutine that it hands over,
/// even if that is what lets another thread destroy the pool.
class thread_pool {
 public:
  static constexpr std::size_t npos = std::numeric_limits<std::size_t>::max();

  /// Starts the threads.
  /// Errors: std::invalid_argument if `threads` is 0, or more than a million or so; std::system_error if one cannot be
  /// started.
  explicit thread_pool(std::size_t threads = std::max(1u, detail::thread::hardware_concurrency()));
  thread_pool(const thread_pool&) = delete;
  thread_pool& operator=(const thread_pool&) = delete;
  ~thread_pool();

  /// Queues the handle; false after stop(), or where there is no memory to queue it: it was not taken.
  ///
  /// Resumes: on a pool thread, never inside execute().
  /// Allocates: nothing, but where a queue grows beyond its largest size so far.
  bool execute(std::coroutine_handle<> handle) noexcept;

  /// execute() for many at once; false: none of them was taken. As many sleeping threads as there are handles are woken
  /// directly, not one by the other, and each takes one of them.
  bool execute_all(std::span<const std::coroutine_handle<>> handles) noexcept;

  /// Takes back what the calling thread has queued: true if `handle` is the newest of it and nobody has begun with it.
  /// The caller owns it again. False on any other thread than the pool's own.
  ///
  /// Complexity: constant, and no lock.
  bool take_back(std::coroutine_handle<> handle) noexcept;

  /// The number of threads.
  std::size_t concurrency() const noexcept { return workers_.size(); }

  /// How many of them have nothing to do right now: a hint, as it may have changed by the time it is looked at. It is
  /// cheap: what it reads changes only where a thread runs out of work or finds some.
  std::size_t idle() const noexcept { return sleepers_.counts.idle(); }

  /// Which of the pool's threads this is, from 0 to concurrency() - 1; npos on any other.
  std::size_t worker_index() const noexcept;

  /// `co_await pool.schedule()` goes on on the pool, behind what is queued on this thread.
  schedule_awaiter<thread_pool> schedule() noexcept { return schedule_awaiter<thread_pool>(*this); }

  /// `co_await pool.schedule_after(delay, token)`: true once the delay has elapsed, false as soon as it is stopped.
  ///
  /// Resumes: on the pool. A delay of zero or less is a schedule(); one too long for the clock never elapses. After
  /// stop() it gives false at once, without suspending.
  detail::timer_awaiter<thread_pool> schedule_after(std::chrono::nanoseconds delay,
                                                    std::stop_token token = {}) noexcept {
    return detail::timer_awaiter<thread_pool>(*this, delay, std::move(token));
  }

  /// Refuses new work from now on; what is queued still runs, and who sleeps resumes at once with false. Does not
  /// wait. Once or more often, from any thread, the pool's own included.
  void stop() noexcept;

 private:
  friend detail::timer_awaiter<thread_pool>;
  using timer_queue = detail::timer_queue;
  using nanoseconds = timer_queue::nanoseconds;
  using handles = std::span<const std::coroutine_handle<>>;
  using tell = detail::pool_shard::tell;
  using worker = detail::pool_worker;
  enum class gate : unsigned char { closed, open, abandoned };
  enum class parked : unsigned char { not_at_all, woken, looks, leave };

  static constexpr int search_turns = 7;
  static constexpr nanoseconds shortest_nap = 50'000;                           // of the one on watch
  static constexpr nanoseconds time_to_compare = 4 * detail::work_ring::pause;  // after a nap
  static constexpr nanoseconds patience = 50'000;  // with a worker that has just woken up, before others help

  // For the timers' awaiter.
  std::size_t choose_shard() const noexcept;
  bool add_timer(detail::timer_node& node, nanoseconds delay);
  void stop_timer(detail::timer_node& node) noexcept;
  void erase_timer(detail::timer_node& node) noexcept;

  worker* own_worker() const noexcept;
  bool post(handles all) noexcept;

  void work(worker& self);
  std::coroutine_handle<> next(worker& self);
  std::coroutine_handle<> look_around(worker& self) noexcept;
  std::coroutine_handle<> search(worker& self);
  parked park(worker& self);
  nanoseconds watch(worker& self) noexcept;
  void after_search(nanoseconds now) noexcept;

  bool anything_queued() const noexcept;
  bool any_ring_has_work() const noexcept;
  nanoseconds earliest_to_mind() const noexcept;
  void wake_one_soon() noexcept;
  void attend(worker& owner, tell whom) noexcept;

  // The worker that this thread is, of whatever pool.
  static inline thread_local constinit worker* this_worker_ = nullptr;

  std::vector<std::unique_ptr<worker>> workers_;  // complete before the gate opens
  detail::atomic<gate> gate_{gate::closed};          // written by the constructor, read by each thread at its start
  // Set by stop(), for good. A worker that reads it late pushes as if before the stop, and runs it itself.
  detail::atomic<bool> stopped_{false};
  // Set with the first timer, for good. Read before every resumption, as a hint: the clock is read only if it is set.
  detail::atomic<bool> timers_seen_{false};
  detail::mutex stopping_;  // held by stop() until it touches nothing any more

  detail::line_gap gap_;
  detail::sleeping_workers sleepers_;  // its counts are read on every push
};

// ---- Implementation ----

inline thread_pool::thread_pool(std::size_t threads) {
  if (threads == 0) detail::throw_or_fail<std::invalid_argument>("a thread_pool needs at least one thread");
  if (threads > detail::idle_count::most) {
    detail::throw_or_fail<std::invalid_argument>("a thread_pool cannot have so many threads; a negative number?");
  }
  const auto open = [&](gate to) {
    gate_.store(to);
    gate_.notify_all();
  };
  detail::guarded(
      [&] {
        workers_.reserve(threads);
        sleepers_.reserve(threads);
        for (std::size_t i = 0; i < threads; ++i) {
          worker& added = *workers_.emplace_back(std::make_unique<worker>(this, i));
          added.thread = detail::thread([this, &added] { work(added); });
        }
        if (threads == 1) workers_[0]->ring.never_stolen_from();
        open(gate::open);
      },
      [&] {
        open(gate::abandoned);
        for (const auto& each : workers_) {
          if (each->thread.joinable()) each->thread.join();
        }
        std::rethrow_exception(std::current_exception());
      });
}

inline thread_pool::~thread_pool() {
  if (own_worker() != nullptr) {
    detail::fail("a thread_pool was destroyed on one of its own threads, for the end of which it would have to wait");
  }
  stop();
  for (const auto& each : workers_) each->thread.join();
  for (const auto& each : workers_) const std::lock_guard visitors_have_left(each->visited);
}

inline auto thread_pool::own_worker() const noexcept -> worker* {
  worker* const self = this_worker_;
  return self != nullptr && self->pool == this ? self : nullptr;
}

inline std::size_t thread_pool::worker_index() const noexcept {
  const worker* const self = own_worker();
  return self != nullptr ? self->index : npos;
}

inline bool thread_pool::execute(std::coroutine_handle<> handle) noexcept {
  worker* const self = own_worker();
  if (self == nullptr) return post({&handle, 1});
  if (stopped_.load(std::memory_order_relaxed)) return false;
  if (!self->ring.push(handle)) return false;
  wake_one_soon();
  return true;
}

inline bool thread_pool::execute_all(handles all) noexcept {
  worker* const self = own_worker();
  if (self == nullptr) return post(all);
  if (stopped_.load(std::memory_order_relaxed)) return false;
  if (!self->ring.push(all.data(), all.size())) return false;
  if (sleepers_.counts.anyone_sleeps()) sleepers_.wake_some(all.size(), self->index);
  return true;
}

inline bool thread_pool::take_back(std::coroutine_handle<> handle) noexcept {
  worker* const self = own_worker();
  return self != nullptr && self->ring.take_back(handle);
}

inline void thread_pool::stop() noexcept {
  const std::lock_guard lock(stopping_);
  if (stopped_.load(std::memory_order_relaxed)) return;
  stopped_.store(true);
  for (const auto& each : workers_) each->shard.stop();
  sleepers_.wake_some(workers_.size(), detail::sleeping_workers::nobody);
}

/// From outside: to one of the shards, so that threads that post at the same time rarely meet.
inline bool thread_pool::post(handles all) noexcept {
  if (all.empty()) return !stopped_.load(std::memory_order_relaxed);
  worker& target = *workers_[choose_shard()];
  const std::lock_guard visit(target.visited);
  const tell whom = target.shard.push(all);
  if (whom == tell::refused) return false;
  if (all.size() > 1 && sleepers_.counts.anyone_sleeps()) {
    sleepers_.wake_some(all.size(), target.index);
  } else if (sleepers_.counts.wake_needed()) {
    if (whom == tell::owner) {
      sleepers_.wake(target.sleep);
    } else {
      sleepers_.wake_one();
    }
  }
  return true;
}

// ---- A worker's loop ----

inline void thread_pool::work(worker& self) {
  gate_.wait(gate::closed);
  if (gate_.load() == gate::abandoned) return;
  this_worker_ = &self;
  const detail::executor_scope scope(detail::ref(*this));
  detail::make_waits_punctual();
  while (const std::coroutine_handle<> handle = next(self)) handle.resume();
  this_worker_ = nullptr;
}

/// What to resume now; sleeps while there is nothing; null: the pool has stopped and all is done.
inline std::coroutine_handle<> thread_pool::next(worker& self) {
  if (self.pace.tick(timers_seen_.load(std::memory_order_relaxed), self.shard.may_have_queued())) [[unlikely]] {
    if (const auto handle = look_around(self)) return handle;
  }
  if (const auto handle = self.ring.pop()) return handle;
  return search(self);
}

/// While busy: lets what is due or queued queue up in the ring; null, or what to resume before that.
inline std::coroutine_handle<> thread_pool::look_around(worker& self) noexcept {
  nanoseconds now = timer_queue::immediately;
  if (timers_seen_.load(std::memory_order_relaxed)) {
    now = detail::steady_now();
    self.pace.looked_around(now);
  } else {
    self.pace.looked_around();
  }
  const std::coroutine_handle<> first = self.take_shared(workers_, now);
  if (!self.ring.empty()) wake_one_soon();
  return first;
}

/// The own ring is empty: looks everywhere else, sleeps if there is nothing.
inline std::coroutine_handle<> thread_pool::search(worker& self) {
  sleepers_.counts.begin_search();
  nanoseconds compares_until = timer_queue::immediately;
  for (int turn = 0;;) {
    const nanoseconds now = detail::steady_now();
    if (const std::coroutine_handle<> found = self.find(workers_, now)) {
      self.pace.restart();
      self.naps = 0;
      after_search(now);
      return found;
    }
    if (now < self.spin_until) {
      for (int i = 0; i < 8; ++i) detail::spin_pause();
    } else if (turn < search_turns || (now < compares_until && self.wants_another_look())) {
      // Rarer and rarer: each look takes cache lines away from those that work.
      for (int i = 0; i < 1 << std::min(turn, search_turns - 1); ++i) detail::spin_pause();
      ++turn;
    } else {
      const parked outcome = park(self);
      if (outcome == parked::leave) return nullptr;
      turn = outcome == parked::woken ? 0 : outcome == parked::looks ? search_turns : search_turns - 1;
      if (outcome == parked::looks) compares_until = detail::steady_now() + time_to_compare;
    }
  }
}

// ---- Sleeping and waking ----
//
// What threads share here: each worker's ring and shard (a queue, timers); idle_count, how many search and sleep; the
// list of who sleeps, under a lock of its own, and one of them who is the keeper.
//
// A push to a ring wakes a sleeper only if there is one, nobody searches and nobody is on watch: whoever searches will
// find the work, and so will, a little later, the one on watch. What comes from outside does not wait for the watch.
// No wake-up is lost, because each side first writes and then reads, all of it sequentially consistent:
//
//     a push             stores the ring's tail, or has_queued(),   then reads idle_count: sleepers, no searcher -> wake
//     a worker to sleep  moves from searching to sleeping there,    then reads all tails and queues: work -> gets up,
//                                                                   or sees to it that somebody is on watch
//     a worker that      moves from searching to busy there,        then, if it was the last searcher and some sleep,
//     found something                                               reads all of them: work -> wake
//
// Of a push and either of the others at least one sees the other. Who is on watch moves from that to searching in one
// step, so a push that relied on the watch comes before that search, or sees a searcher. A waker takes the sleeper out
// of the list and counts it as searching itself, so that of many pushes in a row only the first wakes somebody; that
// one, if there is more than it can take, wakes the next. execute_all() does not rely on that chain.
//
// The watch is for rings that hold little and move fast, so that nothing should be stolen: instead of waking somebody
// in vain at every push, one sleeper gets up after a nap, compares two looks, and sleeps again, longer, if it moves.
//
// Deadlines. A worker that sleeps minds those of its own shard: under the shard's lock it says that it sleeps and reads
// the earliest, and whoever changes that afterwards sees it there and tells it. Those of the workers that are awake are
// published, and the keeper minds them, as a worker may be computing for long:
//
//     a change           publishes the deadline,                    then reads keeper_wakes_at(): later -> tells it
//     a keeper           stores keeper_wakes_at(): never,           then reads all published deadlines
//
// Without a keeper the time reads as never, so that somebody is told as long as anybody sleeps; and if nobody does, a
// worker becomes the keeper before it sleeps, and reads them all. A worker that wakes up leaves what it has to the keeper
// after some patience only: most come back to their own shard before that.

/// After a push to the own ring.
inline void thread_pool::wake_one_soon() noexcept {
  if (sleepers_.counts.wake_needed_soon()) sleepers_.wake_one();
}

/// Found something: no longer searching. Passes on what was left undone because this thread was.
inline void thread_pool::after_search(nanoseconds now) noexcept {
  const detail::idle_count::snapshot before = sleepers_.counts.end_search();
  if (before.sleeping == 0) return;
  if (before.searching == 1 && (anything_queued() || (!before.watched && any_ring_has_work()))) sleepers_.wake_one();
  if (!timers_seen_.load(std::memory_order_relaxed)) return;
  const nanoseconds earliest = earliest_to_mind();
  if (earliest == timer_queue::never) return;
  const nanoseconds wanted = std::max(earliest, now + patience);
  if (wanted < sleepers_.keeper_wakes_at()) sleepers_.mind(wanted);
}

inline bool thread_pool::anything_queued() const noexcept {
  return std::any_of(workers_.begin(), workers_.end(), [](const auto& each) { return each->shard.has_queued(); });
}

inline bool thread_pool::any_ring_has_work() const noexcept {
  return std::any_of(workers_.begin(), workers_.end(), [](const auto& each) { return !each->ring.empty(); });
}

inline auto thread_pool::earliest_to_mind() const noexcept -> nanoseconds {
  nanoseconds earliest = timer_queue::never;
  for (const auto& each : workers_) earliest = std::min(earliest, each->shard.deadline_to_mind());
  return earliest;
}

/// Sleeps unless there is something to do; the caller is searching, before and after.
inline thread_pool::parked thread_pool::park(worker& self) {
  if (stopped_.load() && self.shard.finished()) {
    sleepers_.counts.end_search();
    return parked::leave;
  }
  sleepers_.lie_down(self.sleep);
  const nanoseconds deadline = watch(self);
  const bool woken = sleepers_.sleep(self.sleep, deadline);
  self.shard.get_up();
  if (woken) {
    self.spin_until = 0;
    return parked::woken;
  }
  if (deadline == timer_queue::immediately) return parked::not_at_all;
  if (detail::steady_now() < deadline) self.spin_until = 0;  // told to look at what is new
  return parked::looks;
}

/// The last look before sleeping, after lie_down(): when to get up. spin_until is then the deadline that comes soon
/// after, if it is that.
inline auto thread_pool::watch(worker& self) noexcept -> nanoseconds {
  self.spin_until = 0;
  nanoseconds earliest = self.shard.lie_down();
  if (earliest == timer_queue::immediately || stopped_.load() || anything_queued()) return timer_queue::immediately;
  nanoseconds end_of_nap = timer_queue::never;
  const nanoseconds now = detail::steady_now();
  if (workers_.size() > 1) {
    const bool work = any_ring_has_work();
    if (sleepers_.keep_watch(self.sleep, work)) {
      earliest = std::min(earliest, earliest_to_mind());
      if (work) {
        end_of_nap = now + (shortest_nap << std::min(self.naps / 4, 3u));
        if (!self.wants_another_look()) ++self.naps;  // what it has seen moves
      }
      sleepers_.keeper_sleeps_until(self.sleep, std::min(earliest, end_of_nap));
    }
  }
  if (earliest == timer_queue::never) return end_of_nap;
  const nanoseconds early = earliest - detail::spin_before(earliest, now);
  if (end_of_nap < early) return end_of_nap;
  self.spin_until = earliest;
  return early;
}

// ---- Timers ----

inline std::size_t thread_pool::choose_shard() const noexcept {
  const worker* const self = own_worker();
  return self != nullptr ? self->index : detail::this_thread_number() % workers_.size();
}

inline bool thread_pool::add_timer(detail::timer_node& node, nanoseconds delay) {
  worker& owner = *workers_[node.shard];
  const nanoseconds deadline = timer_queue::deadline_after(detail::steady_now(), delay);
  if (!timers_seen_.load(std::memory_order_relaxed)) timers_seen_.store(true, std::memory_order_relaxed);
  if (&owner == own_worker()) {
    const tell whom = owner.shard.add(node, deadline);
    if (whom == tell::refused) return false;
    attend(owner, whom);  // the coroutine may be gone, the pool not: this is one of its threads
    return true;
  }
  const std::lock_guard visit(owner.visited);
  const tell whom = owner.shard.add(node, deadline);
  if (whom == tell::refused) return false;
  attend(owner, whom);
  return true;
}

inline void thread_pool::stop_timer(detail::timer_node& node) noexcept {
  worker& owner = *workers_[node.shard];
  if (own_worker() != nullptr) {
    attend(owner, owner.shard.stop(node));
  } else {
    const std::lock_guard visit(owner.visited);
    attend(owner, owner.shard.stop(node));
  }
}

inline void thread_pool::erase_timer(detail::timer_node& node) noexcept {
  workers_[node.shard]->shard.erase(node);
}

/// After a change of the owner's timers.
inline void thread_pool::attend(worker& owner, tell whom) noexcept {
  if (whom == tell::owner) {
    sleepers_.tell(owner.sleep);
  } else if (whom == tell::others && sleepers_.counts.anyone_sleeps()) {
    const nanoseconds deadline = owner.shard.deadline_to_mind();
    if (deadline < sleepers_.keeper_wakes_at()) sleepers_.mind(deadline);
  }
}

}  // namespace cobatch
