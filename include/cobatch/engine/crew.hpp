#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include <cobatch/detail/abi.hpp>
#include <cobatch/detail/atomic.hpp>
#include <cobatch/detail/brief_mutex.hpp>
#include <cobatch/detail/current_executor.hpp>
#include <cobatch/detail/mutex.hpp>
#include <cobatch/detail/start_mark.hpp>
#include <cobatch/engine/head_count.hpp>
#include <cobatch/engine/lane.hpp>
#include <cobatch/engine/pace.hpp>

namespace cobatch::inline COBATCH_ABI::detail {

/// How many loops of whatever batches are on this thread's stack, one inside the other.
inline thread_local constinit std::size_t this_thread_loops = 0;

template <class Types>
class batch_crew;

/// One run on one thread; the innermost ones are known to the thread.
template <class Types>
class batch_loop {
 public:
  batch_loop(const batch_crew<Types>& crew, executor_ref executor) noexcept
      : mark(nullptr), crew_(&crew), scope_(executor), outer_(std::exchange(innermost_, this)) {
    ++this_thread_loops;
  }
  batch_loop(const batch_loop&) = delete;
  batch_loop& operator=(const batch_loop&) = delete;
  ~batch_loop() {
    close();
    --this_thread_loops;
  }

  /// From here on nobody finds it.
  void close() noexcept {
    if (!crew_) return;
    innermost_ = outer_;
    crew_ = nullptr;
    mark.take_off();  // the batch may end inside its own start
  }
  static batch_loop* innermost_of(const batch_crew<Types>* crew) noexcept {
    batch_loop* each = innermost_;
    while (each && each->crew_ != crew) each = each->outer_;
    return each;
  }

  start_mark mark;                          // the innermost one of this thread while a sample is driven
  batch_lane<Types>* late = nullptr;        // resumed inside something that this loop called: the newest first
  batch_worker<Types>* launched = nullptr;  // by the batch's start on this thread, the newest first
  loop_pace pace;
  bool no_memory = false;    // for a lane, though there is room for one
  std::size_t finished = 0;  // samples, that the observer's count does not know yet
  [[no_unique_address]] typename batch_types<Types>::sink::handful done;  // outcomes that were not yet handed over

 private:
  static inline thread_local constinit batch_loop* innermost_ = nullptr;

  const batch_crew<Types>* crew_;
  executor_scope scope_;
  batch_loop* outer_;
};

/// The loops of a batch, and how it ends: who is counted, who rests, who is started.
///
/// A *worker* claims samples and starts lanes with them. A lane that ends its sample without suspending takes the next
/// one; a lane that suspends is lost to the loop, which goes on with another, until the cap is reached. A lane that is
/// resumed goes on by itself, sample after sample. What a worker has claimed and not started when it goes rests with it,
/// for whoever comes next. See head_count for the end.
///
/// Engine derives from it; what it has is named where it is called.
template <class Types>
class batch_crew {
  using engine_type = batch_engine<Types>;
  using names = batch_types<Types>;

 public:
  using lane = batch_lane<Types>;
  using worker = batch_worker<Types>;
  using step = typename lane::step;
  using portion = decltype(worker::portion);

  using loop = batch_loop<Types>;

  batch_crew(const batch_crew&) = delete;
  batch_crew& operator=(const batch_crew&) = delete;

  /// The handle of a lane was resumed: what it waited for has happened, or its executor lets it go on.
  void resumed(lane& self) {
    if (!std::exchange(self.comes_home, false) && !engine().at_home()) {
      engine().happened(self);
      self.comes_home = true;
      self.mark = nullptr;
      if (engine().execute(self.handle())) return;
      self.comes_home = false;
      engine().refused();
    }
    if (loop* const outer = loop::innermost_of(this)) {
      self.next = outer->late;
      outer->late = &self;
      return;
    }
    run(&self, nullptr, nullptr);
  }
  void resumed(worker& self) { run(std::exchange(self.in_hand, nullptr), &self, nullptr); }

  /// One more worker, if one rests or may be made. The caller is counted.
  void start_worker() {
    if (worker* const another = idle_worker()) {
      head.add_holder();
      launch(*another);
    }
  }
  /// The same for who is not counted.
  void start_worker_from_outside() {
    if (head.add_holder_unless_over()) start_worker_with_holder();
  }

  /// For who puts something down and hands over its own holder: *this may be gone.
  void start_worker_with_holder() {
    if (worker* const another = idle_worker()) return launch_or_end(*another);
    if (head.drop_holder()) engine().over();  // others run, and look before they go
  }

  /// A worker's run inside this call, by who is not counted but knows that *this stays.
  void work_from_outside() {
    if (!head.add_holder_unless_over()) return;
    worker* const another = idle_worker();
    if (another) {
      run(nullptr, another, nullptr);
    } else if (head.drop_holder()) {
      engine().over();
    }
  }

  bool is_hungry() const noexcept { return hungry_.load(std::memory_order_relaxed); }
  std::size_t most_workers() const noexcept { return most_workers_; }

  /// A lane below the cap, or null; where there is no memory that is the cap. The caller is counted.
  lane* take_lane() {
    if (!head.add_lane()) return nullptr;
    if (lane* const taken = spare_lane()) return taken;
    head.drop_spare_lane();
    return nullptr;
  }
  /// The lane is not needed any more; the caller is counted in another way as well.
  void drop_lane(lane& self) {
    put_back(self);
    head.drop_spare_lane();
  }

  /// What rests with a worker that has gone: `take(portion)` all or some of it.
  template <class Take>
  bool take_rest(Take&& take) {
    if (rests_.load() == 0) return false;
    const std::lock_guard lock(mutex_);
    for (worker* each = resting_; each; each = each->next) {
      if (each->portion.empty()) continue;
      take(each->portion);
      if (each->portion.empty()) rests_.fetch_sub(1);
      return true;
    }
    return false;
  }
  bool any_rest() const noexcept { return rests_.load() != 0; }
  /// Alone: what was claimed and not started, of all workers.
  template <class Visit>
  void each_rest(Visit&& visit) {
    for (worker* each = workers_; each; each = each->next_made) visit(each->portion);
  }

  /// All lanes that were ever made: they live until the batch ends. From any thread.
  template <class Visit>
  void each_lane(Visit&& visit) const {
    // acquire: pairs with the release in spare_lane().
    for (lane* each = lanes_.load(std::memory_order_acquire); each; each = each->next_made) visit(*each);
  }

 protected:
  explicit batch_crew(std::size_t cap) noexcept : head(cap) {}
  ~batch_crew() {
    for (lane* each = lanes_.load(std::memory_order_relaxed); each;) std::exchange(each, each->next_made)->destroy();
    for (worker* each = workers_; each;) std::exchange(each, each->next_made)->handle().destroy();
  }

  /// Makes what the batch cannot do without. Throws std::bad_alloc.
  void prepare(std::size_t most_workers) {
    most_workers_ = most_workers;
    lane* const first_lane = new_lane();
    if (first_lane) put_back(*first_lane);
    if (!first_) first_ = new_worker();
    if (!first_lane || !first_) throw_bad_alloc();
  }

  /// `count` workers begin, the first one inside this call where that is on the executor and not too deep in the stack.
  /// *this may be gone after it.
  void begin_work(std::size_t count) {
    worker* launched = nullptr;
    std::size_t more = 0;
    for (; more + 1 < count; ++more) {
      worker* const another = new_worker();
      if (!another) break;
      another->next_launched = launched;
      launched = another;
    }
    execute_all(launched, more);
    if (engine().begins_inside() && this_thread_loops < deepest) return run(nullptr, first_, launched);
    launch_or_end(*first_);
  }

  /// Executes it, by who is counted.
  void launch(worker& self) {
    self.mark = nullptr;
    if (engine().execute(self.handle())) return;
    engine().refused();
    put_to_rest(self);
    head.drop_spare_holder();
  }
  /// By who hands over its own holder: *this may be gone.
  void launch_or_end(worker& self) {
    self.mark = nullptr;
    if (engine().execute(self.handle())) return;
    engine().refused();
    run(nullptr, &self, nullptr);
  }

  head_count head;

 private:
  static constexpr std::size_t deepest = 24;

  engine_type& engine() noexcept { return static_cast<engine_type&>(*this); }

  /// In bulk, where the executor can; `count` of them, the newest first.
  void execute_all(worker* newest, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) head.add_holder();
    std::array<std::coroutine_handle<>, 64> handles;
    if (count > 1 && count <= handles.size()) {
      std::size_t place = count;
      for (worker* each = newest; each; each = each->next_launched) handles[--place] = each->handle();
      if (engine().execute_many(std::span(handles.data(), count))) return;
    }
    // The newest last.
    for (; count > 0; --count) {
      worker* each = newest;
      for (std::size_t i = 1; i < count; ++i) each = each->next_launched;
      launch(*each);
    }
  }

  void run(lane* current, worker* self, worker* launched);
  bool leave(loop& here, lane* current, worker*& self, step why);
  void share(loop& here, worker& self);
  bool next_turn(loop& here, lane*& current, worker*& self);

  lane* new_lane() {
    lane* const made = engine().make_lane();
    if (!made) return nullptr;
    made->next_made = lanes_.load(std::memory_order_relaxed);
    while (!lanes_.compare_exchange_weak(made->next_made, made, std::memory_order_release, std::memory_order_relaxed)) {}
    return made;
  }
  lane* spare_lane() {
    {
      const std::lock_guard lock(mutex_);
      if (lane* const spare = spare_lanes_) {
        spare_lanes_ = spare->next;
        return spare;
      }
    }
    return new_lane();
  }
  void put_back(lane& self) {
    const std::lock_guard lock(mutex_);
    self.next = spare_lanes_;
    spare_lanes_ = &self;
  }

  worker* new_worker() {
    {
      const std::lock_guard lock(mutex_);
      if (made_workers_ == most_workers_) return nullptr;
      ++made_workers_;
    }
    worker* const made = worker::make(engine());
    const std::lock_guard lock(mutex_);
    if (made) {
      made->next_made = workers_;
      workers_ = made;
    } else {
      --made_workers_;
    }
    return made;
  }
  worker* idle_worker() {
    if (worker* const rested = wake_rested()) return rested;
    return new_worker();
  }
  void put_to_rest(worker& self) {
    const std::lock_guard lock(mutex_);
    self.next = resting_;
    resting_ = &self;
    if (!self.portion.empty()) rests_.fetch_add(1);
  }
  /// One that rests with something to do before one that has nothing.
  worker* wake_rested() {
    const std::lock_guard lock(mutex_);
    worker** chosen = &resting_;
    for (worker** each = &resting_; *each && rests_.load() != 0; each = &(*each)->next) {
      if ((*each)->portion.empty()) continue;
      chosen = each;
      rests_.fetch_sub(1);
      break;
    }
    worker* const woken = *chosen;
    if (woken) *chosen = woken->next;
    return woken;
  }

  std::size_t most_workers_ = 1;
  worker* first_ = nullptr;
  // A worker has gone for lack of samples: whoever has many may give it half. A hint, read before each sample.
  atomic<bool> hungry_{false};
  atomic<lane*> lanes_{nullptr};       // pushed to only
  atomic<std::size_t> rests_{0};       // resting workers that have samples; written under mutex_, see head_count
  brief_mutex mutex_;                       // guards what follows, and the portions of those that rest
  lane* spare_lanes_ = nullptr;
  worker* resting_ = nullptr;
  worker* workers_ = nullptr;               // all
  std::size_t made_workers_ = 0;
};

// ---- Implementation ----

/// Until there is nothing more to do on this thread; *this may be gone then. Counted by `self`, a worker, or by
/// `current` alone, a lane that was resumed.
template <class Types>
void batch_crew<Types>::run(lane* current, worker* self, worker* launched) {
  loop here(*this, engine().executor());
  here.launched = launched;
  if (self) {
    here.pace = self->pace;
    here.pace.begin_anew();
  } else {
    here.pace.begin_resumed();
  }
  for (;;) {
    step said = step::finished;
    if (here.late) [[unlikely]] {
      if (current) {
        engine().part_with(*current);
        drop_lane(*current);  // the late one is counted
      }
      current = std::exchange(here.late, here.late->next);
    } else if (!current) {
      if (!self) return;
      said = engine().before_a_lane(here, *self);
      if (said == step::finished && !(current = take_lane())) {
        here.no_memory = head.below_cap();
        said = step::full;
      }
    }
    if (current) said = engine().drive(here, *current, self);
    if (said == step::lost) {
      current = nullptr;
      if (!self && !here.late) return;  // *this may be gone
      engine().lost_one(here);
      if (self) {
        if (here.pace.tick()) engine().look(here);
        if (here.pace.turn_is_over() && !here.late && !next_turn(here, current, self)) return;
      }
      continue;
    }
    if (said == step::finished) {
      if (self && is_hungry() && here.pace.sharing_due()) [[unlikely]] share(here, *self);
      if (here.pace.turn_is_over() && !here.late && !next_turn(here, current, self)) return;
      continue;
    }
    engine().hand_over(here);
    if (!leave(here, std::exchange(current, nullptr), self, said)) return;
  }
}

/// Nothing to do just now. True: there is, after all, or something late. False: gone, and *this may be as well.
template <class Types>
bool batch_crew<Types>::leave(loop& here, lane* current, worker*& self, step why) {
  if (current) {
    engine().part_with(*current);
    put_back(*current);
    if (self) {
      head.drop_spare_lane();
    } else {
      head.lane_to_holder();
    }
  }
  // From here on a holder. The worker rests before the last look: whoever sees it running knows that it will look.
  if (self) {
    if (engine().halted()) engine().give_up(here, self->portion);
    self->pace = here.pace;
    if (why == step::none && most_workers_ > 1) hungry_.store(true, std::memory_order_relaxed);
    put_to_rest(*std::exchange(self, nullptr));
  }
  if (engine().last_look(here, why) && head.below_cap() && !(std::exchange(here.no_memory, false) && head.lanes() != 0)) {
    self = wake_rested();
    if (self) return true;  // else all run, and look before they go
  }
  if (here.late) {
    head.drop_spare_holder();
    return true;
  }
  // What was begun here and nobody has taken need not be waited for.
  while (here.launched && engine().take_back(here.launched->handle())) {
    worker& back = *std::exchange(here.launched, here.launched->next_launched);
    head.drop_spare_holder();
    if (!back.portion.empty()) {
      self = &back;
      return true;
    }
    put_to_rest(back);
  }
  here.close();
  if (head.drop_holder()) engine().over();  // *this may be gone
  return false;
}

/// Somebody lacks samples: half of what is left, if that is worth a thread's while.
template <class Types>
void batch_crew<Types>::share(loop& here, worker& self) {
  if (self.portion.size() < 2) return;
  here.pace.look_early(engine().now());
  if (!here.pace.worth_sharing(self.portion.size())) return;
  hungry_.store(false, std::memory_order_relaxed);
  if (worker* const another = idle_worker()) {
    if (another->portion.empty()) another->portion = self.portion.split();
    head.add_holder();
    launch(*another);
  }
}

/// Behind whatever else is ready on the executor. True: it is our turn again at once. False: gone.
template <class Types>
bool batch_crew<Types>::next_turn(loop& here, lane*& current, worker*& self) {
  engine().hand_over(here);
  here.pace.begin_turn();
  here.launched = nullptr;  // they may be anywhere by then
  if (current) engine().before_a_turn(*current);
  bool taken;
  if (self) {
    self->pace = here.pace;
    self->in_hand = current;
    self->mark = &here.mark;
    here.mark.reopen(self);
    taken = engine().execute(self->handle());
  } else if (current) {
    current->comes_home = true;
    current->mark = &here.mark;
    here.mark.reopen(current);
    taken = engine().execute(current->handle());
  } else {
    return true;
  }
  if (here.mark.finished()) {
    if (self) {
      self->in_hand = nullptr;
    } else {
      current->comes_home = false;
    }
    return true;
  }
  if (taken) {
    current = nullptr;  // both may be gone
    self = nullptr;
    return here.late != nullptr;
  }
  engine().refused();
  if (self) self->in_hand = nullptr;
  if (!self && current) current->comes_home = false;
  return true;
}

}  // namespace cobatch::detail
