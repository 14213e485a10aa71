#pragma once

#include <algorithm>
#include <chrono>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include <cobatch/batch_options.hpp>
#include <cobatch/detail/atomic.hpp>
#include <cobatch/detail/config.hpp>
#include <cobatch/detail/results.hpp>
#include <cobatch/engine/batch.hpp>
#include <cobatch/engine/stream_wait.hpp>
#include <cobatch/error.hpp>
#include <cobatch/executor.hpp>
#include <cobatch/expected.hpp>
#include <cobatch/stream_options.hpp>
#include <cobatch/sync_wait.hpp>

/// What is behind a stream: a batch engine, and how its outcomes reach the consumer.

namespace cobatch::inline COBATCH_ABI::detail {

/// Outcomes on their way from many lanes to one consumer, in boxes that go round: at most `window` of them.
///
/// `finished_` is a stack of boxes that the consumer takes as a whole:
///
///     null / boxes ──push──> boxes                 any lane, compare-exchange
///     null ──wait──> waiting                       the consumer, when it has suspended and found nothing to give
///     waiting ──push──> null                       by one lane, which thereby owns the consumer's side until it has
///                                                  resumed the consumer, or has put `waiting` back
///     boxes ──take──> null                         whoever owns the consumer's side
///
/// A push is release, a take is acquire: an outcome is seen by who takes its box. The consumer's side is handed over by
/// the same operations.
///
/// `returned_` is a stack of empty boxes: pushed by the consumer's side, taken as a whole by the lane that reads the
/// input. `reading_` says whether that lane found one:
///
///     fed ──> starved   who has the turn to read, and found none; it then looks once more
///     starved ──> told  the consumer's side, after it has returned boxes; it then wakes a worker
///     told ──> starved  a worker that rests; it then looks for boxes
///     any ──> fed       who has the turn to read, and found one
///
/// All of it is seq_cst, so that one of the two sees the other. The consumer may find all workers running: each looks
/// before it rests whether boxes lie there for a reader that is not fed. It may also tell of boxes that were taken
/// meanwhile; so a worker that finds none sees to it that it is told of the next one.
template <class Types>
class stream_state {
  struct box;

 public:
  /// Outcomes of one loop, the newest first.
  struct handful {
    box* newest = nullptr;
    box* oldest = nullptr;
  };

  using result = typename Types::result;
  using executor_type = typename Types::executor;

  /// Refers to predict.
  template <class Source, class Predict>
  stream_state(executor_type& ex, Source&& samples, Predict& predict, const batch_options& options,
               const stream_options& how, std::size_t window)
      : ex_(ex),
        in_order_(how.order == result_order::input),
        observed_(options.observer != nullptr),
        window_(window),
        held_back_(std::min<std::size_t>(window / 4, 32)),
        boxes_left_(window - 1),
        source_(std::forward<Source>(samples)),
        engine_(ex, source_, predict, *this, options, options.stop.token()) {
    if (in_order_) early_.reserve(std::min<std::size_t>(window, 4096));
  }
  stream_state(const stream_state&) = delete;
  stream_state& operator=(const stream_state&) = delete;
  virtual ~stream_state() {
    engine_.abandon();
    delete_all(finished_.load(std::memory_order_relaxed));
    delete_all(returned_.load(std::memory_order_relaxed));
    delete_all(empty_);
    delete_all(ready_);
    for (box* const each : early_) delete each;
    delete_all(used_.newest);
    delete end_;
  }

  // -- for the consumer, one call at a time --

  /// take() would have one at once.
  bool has_item() const noexcept { return ready_ != nullptr; }

  /// Starts the engine if it has not been; then true: there is an item, or the end.
  bool look() {
    if (!started_ && !over_) {
      // One box at least: where there is no memory for more, the samples go one by one.
      if (!end_) end_ = new box();
      if (!empty_) empty_ = new box();
      engine_.start(unlimited);
      started_ = true;
    }
    if (absorb()) return true;
    if (reading_.load() != supply::starved) return false;
    give_back_all();
    if (!tell_reader()) return false;
    if (!engine_.is_cheap() || !engine_.work_here()) engine_.wake();
    return absorb();
  }

  /// The consumer has suspended. False: something has come in the meantime.
  bool wait(std::coroutine_handle<> consumer, stream_wait<stream_state>& waits) noexcept {
    consumer_ = consumer;
    waits_ = &waits;
    return put_waiting();
  }
  /// The consumer that waits is being destroyed.
  bool forget_consumer() noexcept {
    box* consumer = waiting();
    return finished_.compare_exchange_strong(consumer, nullptr, std::memory_order_acquire);
  }

  std::optional<stream_item<result>> take() {
    box* const first = ready_;
    if (!first) return std::nullopt;
    ready_ = after(first);
    if (!ready_) last_ready_ = nullptr;
    if (observed_) {
      all_finished_ = std::max(all_finished_, first->finished);
      engine_.report().taken(first->outcome, first->index, first->finished, in_order_ ? all_finished_ : first->finished);
    }
    std::optional<stream_item<result>> item;
    const std::size_t number = number_of(*first);
    guarded([&] { item.emplace(number, std::move(first->outcome)); },
            [&] {
              item.emplace(number, result(unexpect, error(errc::exception, std::current_exception())));
            });
    give_back(first);
    return item;
  }

  /// Stops it and drops what is left. True: all is over.
  bool close() {
    discards_ = true;
    if (!started_) return over_ = true;
    drop_ready();
    if (absorb()) return true;
    engine_.request_stop(halt::closed);
    engine_.wake();  // if it pauses, somebody must see that it has ended
    return absorb();
  }

  /// A simulation after a deadlock.
  static bool is_deserted([[maybe_unused]] const executor_type& ex) noexcept {
    if constexpr (executor_blocks<executor_type> != nullptr) {
      if constexpr (requires { static_cast<bool>(ex.is_deadlocked()); }) return ex.is_deadlocked();
    }
    return false;
  }

  /// The stream object goes.
  static void abandon(std::unique_ptr<stream_state> self) {
    // The consumer that waits, if there is one, is destroyed later.
    if (self->forget_consumer() && self->waits_) self->waits_->state = nullptr;
    self->waits_ = nullptr;
    if (!self->started_) return;
    if (is_deserted(self->ex_)) return;  // nothing of it goes on: what waits goes with it
    if (self->close()) return;
    // Blocks only where neither our executor nor anybody up the stack may be what the end has to wait for.
    const bool on_our_executor = current_executor().refers_to(std::addressof(self->ex_)) ||
                                 (!std::is_same_v<executor_type, inline_executor> && runs_here(self->ex_));
    bool blocks = this_thread_loop == nullptr && !on_our_executor && !delivery::is_on_stack(self.get());
    if constexpr (executor_blocks<executor_type> != nullptr &&
                  requires { static_cast<bool>(self->ex_.is_running()); }) {
      // A loop that nobody runs: we do, until the end; or until nothing goes on, in a deadlock.
      if (blocks && !self->ex_.is_running()) {
        const bool ended = guarded(
            [&] {
              self->ex_.run(stream_close<stream_state>(*self));
              return true;
            },
            [] { return false; });
        if (ended || is_deserted(self->ex_)) return;
        blocks = self->ex_.is_running();  // another thread has just begun to run it; or there is no memory for that
      }
    }
    const auto wait_for_end = [&] {
      sync_wait(stream_close<stream_state>(*self));
      return true;
    };
    if (blocks && guarded(wait_for_end, [] { return false; })) return;
    // It ends by itself, on its executor.
    stream_state* const orphan = self.release();
    orphan->orphaned_ = true;
    if (!orphan->put_waiting()) delete orphan;
  }

  // -- for batch_engine --

  template <class Item>
  Item* reserve() {
    for (;;) {
      if (!empty_) empty_ = returned_.exchange(nullptr);
      if (empty_) {
        feed();
        return std::exchange(empty_, after(empty_));
      }
      if (boxes_left_ != 0) {
        box* const made = guarded([] { return new box(); }, []() -> box* { return nullptr; });
        if (made) {
          --boxes_left_;
          feed();
          return made;
        }
      }
      reading_.store(supply::starved);
      if (returned_.load() == nullptr) return nullptr;
    }
  }
  template <class Item>
  void unreserve(Item& item) noexcept {
    item.next = std::exchange(empty_, static_cast<box*>(&item));
  }
  template <class Item>
  bool place(Item& item) noexcept {
    item.slot = &static_cast<box&>(item).outcome;
    return true;
  }
  static constexpr bool can_go_on() noexcept { return true; }
  std::size_t window() const noexcept { return in_order_ ? window_ : 0; }
  static constexpr bool drops_unstarted(std::size_t) noexcept { return false; }
  bool room_came() noexcept {
    supply seen = reading_.load();
    if (seen == supply::fed) return false;
    // Who was told may have found nothing: from here on the next box that comes back is told of again.
    if (seen == supply::told) reading_.compare_exchange_strong(seen, supply::starved);
    return returned_.load() != nullptr;
  }

  template <class Sample>
  void settled(handful& done, const Sample& sample) noexcept {
    box* const filled = static_cast<box*>(sample.item);
    if (observed_) filled->finished = now_of(ex_);
    filled->next = done.newest;
    if (!done.newest) done.oldest = filled;
    done.newest = filled;
  }
  void hand_over(handful& done) noexcept {
    if (done.newest) push(std::exchange(done, handful{}));
  }

  void complete() noexcept {
    box* const end = std::exchange(end_, nullptr);
    push({end, end});  // *this may be gone
  }

 private:
  enum class supply : std::uint8_t { fed, starved, told };
  void feed() noexcept {
    if (reading_.load(std::memory_order_relaxed) != supply::fed) reading_.store(supply::fed);
  }

  // A sample that was read, and its outcome. The last one has no outcome; its slot is null.
  struct box : Types::source::template item_for<result>::item {
    result outcome = result(unexpect, error(errc::not_started, {}, 0));
    std::chrono::nanoseconds finished{};  // only with an observer
  };
  static box* after(const box* each) noexcept { return static_cast<box*>(each->next); }

  /// A lane of ours, on this thread, that has handed an item over to the consumer: who may be running inside the call.
  class delivery {
   public:
    explicit delivery(const stream_state* from) noexcept : from_(from), outer_(std::exchange(innermost_, this)) {}
    delivery(const delivery&) = delete;
    delivery& operator=(const delivery&) = delete;
    ~delivery() { innermost_ = outer_; }

    static bool is_on_stack(const stream_state* from) noexcept {
      const delivery* each = innermost_;
      while (each && each->from_ != from) each = each->outer_;
      return each != nullptr;
    }

   private:
    static inline thread_local constinit delivery* innermost_ = nullptr;

    const stream_state* from_;
    delivery* outer_;
  };

  static bool later(const box* a, const box* b) noexcept { return a->index > b->index; }

  static void delete_all(box* first) noexcept {
    while (first && first != waiting()) delete std::exchange(first, after(first));
  }

  // No box has this address.
  static box* waiting() noexcept { return reinterpret_cast<box*>(&waiting_mark_); }

  void push(handful filled) noexcept {
    box* top = finished_.load(std::memory_order_relaxed);
    for (;;) {
      if (top == waiting()) {
        // acquire: pairs with the release in put_waiting(); the consumer's side is ours.
        if (finished_.compare_exchange_weak(top, nullptr, std::memory_order_acquire, std::memory_order_relaxed)) break;
        continue;
      }
      filled.oldest->next = top;
      if (finished_.compare_exchange_weak(top, filled.newest, std::memory_order_release, std::memory_order_relaxed)) {
        return;
      }
    }
    filled.oldest->next = nullptr;
    accept_all(filled.newest);
    if (has_something() || !put_waiting()) resume_consumer();
  }

  /// For who owns the consumer's side and has found nothing. False: something has come; the side is still ours.
  bool put_waiting() noexcept {
    for (;;) {
      box* none = nullptr;
      if (finished_.compare_exchange_strong(none, waiting(), std::memory_order_acq_rel)) return true;
      if (absorb()) return false;
    }
  }

  void resume_consumer() noexcept {
    if (orphaned_) {
      delete this;
      return;
    }
    executor_type& ex = ex_;
    const std::coroutine_handle<> consumer = consumer_;
    const delivery here(over_ ? nullptr : this);  // after the end nobody has to wait for anything of ours
    if (!execute_on(ex, consumer)) consumer.resume();  // *this may be gone
  }

  /// Of an item of another stream, its number there.
  std::size_t number_of(box& taken) const noexcept {
    if constexpr (is_stream_item<std::remove_cvref_t<typename Types::source::reference>>) {
      if (taken.sample) return source_.get(&taken, taken.index).index;
    }
    return taken.index;
  }

  bool has_something() const noexcept { return ready_ != nullptr || over_; }

  /// Takes in what has come; true: there is an item to give, or the end.
  bool absorb() noexcept {
    if (has_something()) return true;
    // acquire: pairs with the release in push().
    accept_all(finished_.exchange(nullptr, std::memory_order_acquire));
    return has_something();
  }

  void accept_all(box* newest) noexcept {
    box* oldest = nullptr;
    while (newest) {
      box* const each = std::exchange(newest, after(newest));
      each->next = std::exchange(oldest, each);
    }
    while (oldest) accept(std::exchange(oldest, after(oldest)));
  }

  void accept(box* filled) noexcept {
    if (!filled->slot) {
      over_ = true;
      delete filled;
      return;
    }
    if (discards_) {
      give_back(filled);
    } else if (!in_order_ || filled->index == next_index_) {
      make_ready(filled);
      while (!early_.empty() && early_.front()->index == next_index_) {
        std::pop_heap(early_.begin(), early_.end(), later);
        make_ready(std::exchange(early_.back(), nullptr));
        early_.pop_back();
      }
    } else {
      early_.push_back(filled);
      std::push_heap(early_.begin(), early_.end(), later);
    }
  }

  void make_ready(box* filled) noexcept {
    ++next_index_;
    filled->next = nullptr;
    if (last_ready_) {
      last_ready_->next = filled;
    } else {
      ready_ = filled;
    }
    last_ready_ = filled;
  }

  void drop_ready() noexcept {
    while (box* const first = ready_) {
      ready_ = after(first);
      give_back(first);
    }
    last_ready_ = nullptr;
    for (box* const each : std::exchange(early_, {})) give_back(each);
  }

  void give_back(box* used) noexcept {
    // Whoever comes next writes into a slot that holds an error.
    guarded([&] { rewrite(used->outcome, unexpect, error(errc::not_started, {}, 0)); }, [] {});
    used->next = used_.newest;
    if (!used_.newest) used_.oldest = used;
    used_.newest = used;
    // Not one by one, unless somebody waits for them or hardly any are left.
    if (++used_count_ > held_back_ || !ready_ || (reading_.load() == supply::starved && !engine_.is_cheap())) {
      give_back_all();
    }
  }
  void give_back_all() noexcept {
    if (!used_.newest) return;
    used_count_ = 0;
    const handful used = std::exchange(used_, handful{});
    box* top = returned_.load(std::memory_order_relaxed);
    do {
      used.oldest->next = top;
    } while (!returned_.compare_exchange_weak(top, used.newest));
    // Samples that take next to no time are computed when the consumer asks for them: see look().
    if (!engine_.is_cheap() && tell_reader()) engine_.wake();
  }
  /// True: the caller wakes a worker.
  bool tell_reader() noexcept {
    supply seen = reading_.load();
    return seen == supply::starved && reading_.compare_exchange_strong(seen, supply::told);
  }

  executor_type& ex_;
  const bool in_order_;
  const bool observed_;
  const std::size_t window_;
  const std::size_t held_back_;  // so many boxes the consumer may keep, to give them back together
  alignas(box) static inline char waiting_mark_ = 0;

  atomic<box*> finished_{nullptr};
  atomic<box*> returned_{nullptr};
  atomic<supply> reading_{supply::fed};

  // The consumer's side.
  std::coroutine_handle<> consumer_;
  stream_wait<stream_state>* waits_ = nullptr;  // what it awaits; only while it does
  handful used_;  // on their way back
  std::size_t used_count_ = 0;
  box* ready_ = nullptr;  // in the order in which they are given
  box* last_ready_ = nullptr;
  std::vector<box*> early_;  // input order: a heap of those whose turn has not come
  std::size_t next_index_ = 0;
  std::chrono::nanoseconds all_finished_ = std::chrono::nanoseconds::min();  // input order: this one and all before it
  bool started_ = false;
  bool discards_ = false;
  bool orphaned_ = false;
  bool over_ = false;

  // Of the lane that reads the input.
  box* empty_ = nullptr;
  std::size_t boxes_left_;
  box* end_ = nullptr;  // made beforehand, so that the end needs no memory

  typename Types::source source_;
  batch_engine<Types> engine_;
};

template <class Predict>
struct predict_holder {
  Predict kept;
};

/// A stream with its predict, which goes last.
template <class Types, class Predict>
class stream_of final : predict_holder<Predict>, public stream_state<Types> {
 public:
  template <class Source>
  stream_of(typename Types::executor& ex, Source&& samples, Predict&& predict, const batch_options& options,
            const stream_options& how, std::size_t window)
      : predict_holder<Predict>{std::move(predict)},
        stream_state<Types>(ex, std::forward<Source>(samples), predict_holder<Predict>::kept, options, how, window) {}
};

}  // namespace cobatch::detail
