#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <coroutine>
#include <cstddef>
#include <exception>
#include <memory>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include <cobatch/batch_engine.hpp>
#include <cobatch/batch_options.hpp>
#include <cobatch/detail/config.hpp>
#include <cobatch/detail/results.hpp>
#include <cobatch/error.hpp>
#include <cobatch/executor.hpp>
#include <cobatch/expected.hpp>
#include <cobatch/stream_options.hpp>
#include <cobatch/sync_wait.hpp>

/// What is behind a stream: a batch engine, and how its outcomes reach the consumer.

namespace cobatch::detail {

template <class State>
class stream_close;

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
/// input. A lane that finds no box says so in starved_ and looks once more; the consumer returns a box and then looks
/// at starved_; both seq_cst, so that one of them sees the other.
template <class Types>
class stream_state {
 public:
  using result = typename outcome_of<typename Types::source, typename Types::predict>::result;
  using traits = typename outcome_of<typename Types::source, typename Types::predict>::traits;
  using executor_type = typename Types::executor;

  template <class Source>
  stream_state(executor_type& ex, Source&& samples, typename Types::predict&& predict, const batch_options& options,
               const stream_options& how, std::size_t window)
      : ex_(ex),
        in_order_(how.order == result_order::input),
        observed_(options.observer != nullptr),
        boxes_left_(window),
        source_(std::forward<Source>(samples)),
        predict_(std::move(predict)),
        engine_(ex, source_, predict_, *this, options, options.stop.token()) {}
  stream_state(const stream_state&) = delete;
  stream_state& operator=(const stream_state&) = delete;
  ~stream_state() {
    delete_all(finished_.load(std::memory_order_relaxed));
    delete_all(returned_.load(std::memory_order_relaxed));
    delete_all(empty_);
    delete_all(ready_);
    for (box* const each : early_) delete each;
    delete reserved_;
    delete end_;
  }

  // -- for the consumer, one call at a time --

  /// take() would have one at once.
  bool has_item() const noexcept { return ready_ != nullptr; }

  /// Starts the engine if it has not been; then true: there is an item, or the end.
  bool look() {
    if (!started_) {
      if (!end_) end_ = new box();
      engine_.start(unlimited);
      started_ = true;
    }
    return absorb();
  }

  /// The consumer has suspended. False: something has come in the meantime.
  bool wait(std::coroutine_handle<> consumer) noexcept {
    consumer_ = consumer;
    return put_waiting();
  }

  std::optional<stream_item<result>> take() {
    box* const first = ready_;
    if (!first) return std::nullopt;
    ready_ = first->next;
    if (!ready_) last_ready_ = nullptr;
    if (observed_) {
      all_finished_ = std::max(all_finished_, first->finished);
      engine_.reporter().taken(first->slot, first->index, first->finished, in_order_ ? all_finished_ : first->finished);
    }
    std::optional<stream_item<result>> item;
    guarded([&] { item.emplace(first->index, std::move(first->slot)); },
            [&] {
              item.emplace(first->index, result(unexpect, error(errc::exception, std::current_exception())));
            });
    give_back(first);
    return item;
  }

  /// Stops it and drops what is left. True: all is over.
  bool close() {
    discards_ = true;
    if (!started_) return true;
    drop_ready();
    if (absorb()) return true;
    engine_.request_stop(halt::closed);
    engine_.wake();  // if it pauses, somebody must see that it has ended
    return absorb();
  }

  /// The stream object goes.
  static void abandon(std::unique_ptr<stream_state> self) {
    // The consumer that waits, if there is one, is being destroyed.
    box* consumer = waiting();
    self->finished_.compare_exchange_strong(consumer, nullptr, std::memory_order_acquire);
    if (!self->started_ || self->close()) return;
    // Blocks only where neither our executor nor anybody up the stack may be what the end has to wait for.
    const bool on_our_executor = current_executor().refers_to(std::addressof(self->ex_)) ||
                                 (!std::is_same_v<executor_type, inline_executor> && runs_here(self->ex_));
    if (this_thread_loop == nullptr && !on_our_executor && !delivery::is_on_stack(self.get())) {
      sync_wait(stream_close<stream_state>(*self));
      return;
    }
    stream_state* const orphan = self.release();
    orphan->orphaned_ = true;
    if (!orphan->put_waiting()) delete orphan;
  }

  // -- for batch_engine --

  bool reserve() {
    if (reserved_) return true;
    for (;;) {
      if (!empty_) empty_ = returned_.exchange(nullptr);
      if (empty_) {
        reserved_ = empty_;
        empty_ = empty_->next;
        return true;
      }
      if (boxes_left_ != 0) {
        reserved_ = guarded([] { return new box(); }, []() -> box* { return nullptr; });
        if (reserved_) {
          --boxes_left_;
          return true;
        }
      }
      starved_.store(true);
      if (returned_.load() == nullptr) return false;
      starved_.store(false);
    }
  }

  template <class Lane>
  bool place(Lane& lane) noexcept {
    box* const room = std::exchange(reserved_, nullptr);
    room->index = lane.index;
    lane.slot = &room->slot;
    lane.room = room;
    return true;
  }

  void settled(result*, std::size_t, void* room) noexcept {
    box* const filled = static_cast<box*>(room);
    if (observed_) filled->finished = now_of(ex_);
    push(filled);
  }

  bool room_came() noexcept { return starved_.load() && returned_.load() != nullptr && starved_.exchange(false); }

  void complete() noexcept { push(std::exchange(end_, nullptr)); }  // *this may be gone

 private:
  struct box {
    result slot = result(unexpect, error(errc::not_started, {}, 0));
    std::size_t index = unlimited;  // of the last one, which has no outcome
    box* next = nullptr;
    std::chrono::nanoseconds finished{};  // only with an observer
  };

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
    while (first && first != waiting()) delete std::exchange(first, first->next);
  }

  // No box has this address.
  static box* waiting() noexcept { return reinterpret_cast<box*>(&waiting_mark_); }

  void push(box* filled) noexcept {
    box* top = finished_.load(std::memory_order_relaxed);
    for (;;) {
      if (top == waiting()) {
        // acquire: pairs with the release in put_waiting(); the consumer's side is ours.
        if (finished_.compare_exchange_weak(top, nullptr, std::memory_order_acquire, std::memory_order_relaxed)) break;
        continue;
      }
      filled->next = top;
      if (finished_.compare_exchange_weak(top, filled, std::memory_order_release, std::memory_order_relaxed)) return;
    }
    filled->next = nullptr;
    accept(filled);
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

  bool has_something() const noexcept { return ready_ != nullptr || over_; }

  /// Takes in what has come; true: there is an item to give, or the end.
  bool absorb() noexcept {
    if (has_something()) return true;
    // acquire: pairs with the release in push().
    box* newest = finished_.exchange(nullptr, std::memory_order_acquire);
    box* oldest = nullptr;
    while (newest) {
      box* const each = std::exchange(newest, newest->next);
      each->next = std::exchange(oldest, each);
    }
    while (oldest) accept(std::exchange(oldest, oldest->next));
    return has_something();
  }

  void accept(box* filled) noexcept {
    if (filled->index == unlimited) {
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
    (last_ready_ ? last_ready_->next : ready_) = filled;
    last_ready_ = filled;
  }

  void drop_ready() noexcept {
    while (box* const first = ready_) {
      ready_ = first->next;
      give_back(first);
    }
    last_ready_ = nullptr;
    for (box* const each : std::exchange(early_, {})) give_back(each);
  }

  void give_back(box* used) noexcept {
    // Whoever comes next writes into a slot that holds an error.
    guarded([&] { rewrite(used->slot, unexpect, error(errc::not_started, {}, 0)); }, [] {});
    box* top = returned_.load(std::memory_order_relaxed);
    do {
      used->next = top;
    } while (!returned_.compare_exchange_weak(top, used));
    // A lane that cannot be made now looks itself before it goes, see room_came().
    if (starved_.load()) engine_.wake(&starved_);
  }

  executor_type& ex_;
  const bool in_order_;
  const bool observed_;
  alignas(box) static inline char waiting_mark_ = 0;

  std::atomic<box*> finished_{nullptr};
  std::atomic<box*> returned_{nullptr};
  std::atomic<bool> starved_{false};

  // The consumer's side.
  std::coroutine_handle<> consumer_;
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
  box* reserved_ = nullptr;
  box* empty_ = nullptr;
  std::size_t boxes_left_;
  box* end_ = nullptr;  // made beforehand, so that the end needs no memory

  typename Types::source source_;
  typename Types::predict predict_;
  batch_engine<Types> engine_;
};

template <class State>
class [[nodiscard]] stream_next {
 public:
  explicit stream_next(State& state) noexcept : state_(&state) {}
  bool await_ready() const noexcept { return state_->has_item(); }
  bool await_suspend(std::coroutine_handle<> consumer) { return !state_->look() && state_->wait(consumer); }
  std::optional<stream_item<typename State::result>> await_resume() { return state_->take(); }

 private:
  State* state_;
};

template <class State>
class [[nodiscard]] stream_close {
 public:
  explicit stream_close(State& state) noexcept : state_(&state) {}
  bool await_ready() const noexcept { return false; }
  bool await_suspend(std::coroutine_handle<> consumer) { return !state_->close() && state_->wait(consumer); }
  void await_resume() const noexcept {}

 private:
  State* state_;
};

}  // namespace cobatch::detail
