#pragma once

#include <chrono>
#include <coroutine>
#include <cstddef>
#include <exception>
#include <utility>

#include <cobatch/detail/atomic.hpp>
#include <cobatch/detail/attempt.hpp>
#include <cobatch/detail/config.hpp>
#include <cobatch/detail/start_mark.hpp>
#include <cobatch/engine/head_count.hpp>
#include <cobatch/engine/input.hpp>
#include <cobatch/engine/lane.hpp>

namespace cobatch::inline COBATCH_ABI::detail {

/// Awaits an asynchronous source, one sample at a time: nobody's lane and nobody's permit waits for an input.
///
/// It has the turn to read while it waits, and is a holder of the batch. What comes then is put down for whoever is
/// free, and a worker is started for it; what comes at once is taken by who asked.
template <class Engine, class Source>
class input_reader {
 public:
  explicit input_reader(Engine&) noexcept {}
  void prepare() noexcept {}
  template <class Sink>
  void abandon(Sink&) noexcept {}
  template <class Portion>
  static constexpr bool take(Portion&) noexcept {
    return false;
  }
  static constexpr bool any() noexcept { return false; }
};

template <class Engine, class Source>
  requires Source::awaited
class input_reader<Engine, Source> {
  using item_type = typename Source::template item_for<typename Engine::result>::item;

 public:
  explicit input_reader(Engine& engine) noexcept : engine_(engine) {}
  input_reader(const input_reader&) = delete;
  input_reader& operator=(const input_reader&) = delete;
  ~input_reader() {
    if (frame_) frame_->handle().destroy();
  }

  /// Throws std::bad_alloc.
  void prepare() {
    if (!frame_) frame_ = frame::relay(*this).made;
  }
  /// It waits, and will never be resumed.
  template <class Sink>
  void abandon(Sink& sink) noexcept {
    if (std::exchange(waits_, false)) frame_->wait.abandon();
    if (item_) sink.unreserve(*std::exchange(item_, nullptr));
  }

  /// A sample was put down.
  bool any() const noexcept { return came_.load() != nullptr; }

  /// What was put down, for who gives it up.
  template <class Portion>
  bool take(Portion& to) noexcept {
    if (!any()) return false;
    item_type* const taken = came_.exchange(nullptr);
    if (taken) to.push(*taken);
    return taken != nullptr;
  }

  template <class Portion>
  claim pull(Portion& to) {
    if (take(to)) return claim::taken;
    Source& source = engine_.input();
    if (source.exhausted()) return claim::exhausted;
    if (!source.turn().enter()) return claim::elsewhere;
    const auto leave = [&](claim answer) {
      if (source.turn().leave() && !source.exhausted()) engine_.start_worker();
      return answer;
    };
    // Read and put down since we looked, or the end.
    if (take(to)) return leave(claim::taken);
    if (source.exhausted()) return leave(claim::exhausted);
    item_ = engine_.sink().template reserve<item_type>();
    if (!item_) return leave(claim::no_room);
    engine_.counted().add_holder();
    waits_ = true;
    began_ = engine_.input_wait_began(this);
    start_mark mark(frame_);
    frame_->mark = &mark;
    bool threw = false;
    const bool at_once = guarded(
        [&] { return frame_->wait.start([&]() -> decltype(auto) { return source.next(stop()); }, frame_->handle()); },
        [&] {
          threw = true;
          thrown(std::current_exception());
          return true;
        });
    if (!at_once && !mark.finished()) return claim::elsewhere;  // whoever comes with it starts a worker
    item_type* const read = threw ? nullptr : finish_read();
    engine_.counted().drop_spare_holder();
    if (read) to.push(*read);
    return leave(read ? claim::taken : claim::exhausted);
  }

 private:
  class frame : public relayed<frame> {
   public:
    explicit frame(input_reader& owner) noexcept : engine(owner) {}
    input_reader& engine;
    attempt<typename Source::awaitable_type> wait;
    using relayed<frame>::relay;
  };

  auto stop() const noexcept { return engine_.reading_stop(); }

 public:
  /// The source has answered.
  void resumed(frame& self) {
    if (!std::exchange(comes_home_, false) && !engine_.at_home()) {
      comes_home_ = true;
      self.mark = nullptr;
      if (engine_.execute(self.handle())) return;
      comes_home_ = false;
      engine_.refused();
    }
    if (item_type* const read = finish_read()) came_.store(read);
    engine_.input().turn().leave();
    // Who asked is served by the same worker.
    engine_.start_worker_with_holder();  // *this may be gone
  }

 private:
  /// What has come; null at the end.
  item_type* finish_read() {
    waits_ = false;
    item_->waited = engine_.input_wait_ended(this, began_);
    item_type* read = nullptr;
    const auto use = [&](auto&& next) {
      if (!next) {
        engine_.input().end();
        engine_.sink().unreserve(*std::exchange(item_, nullptr));
        return;
      }
      item_->sample.emplace(*std::forward<decltype(next)>(next));
      item_->index = engine_.input().count();
      engine_.sink().place(*item_);
      read = std::exchange(item_, nullptr);
    };
    guarded([&] { frame_->wait.resume(use); }, [&] { unreadable(); });
    return read;
  }
  void thrown(std::exception_ptr) {
    waits_ = false;
    engine_.input_wait_ended(this, began_);
    unreadable();
  }
  /// Inside the handler of what the source, or taking its sample, threw.
  void unreadable() {
    engine_.input().end();
    item_->sample.reset();  // the item may have been used before
    item_->index = engine_.input().count();
    engine_.sink().place(*item_);
    engine_.unreadable(*std::exchange(item_, nullptr));
  }

  Engine& engine_;
  frame* frame_ = nullptr;
  // Of who has the turn.
  item_type* item_ = nullptr;
  std::chrono::nanoseconds began_{};
  bool waits_ = false;
  bool comes_home_ = false;
  atomic<item_type*> came_{nullptr};  // put down, see head_count; written in turn, taken by anybody
};

}  // namespace cobatch::detail
