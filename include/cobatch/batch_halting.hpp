#pragma once

#include <atomic>
#include <cstddef>
#include <optional>
#include <stop_token>
#include <utility>

#include <cobatch/batch_options.hpp>
#include <cobatch/batch_types.hpp>

namespace cobatch::detail {

template <class Types>
class batch_engine;

/// How a batch comes to an early end: no further sample starts, and what is in flight may be asked to stop.
template <class Types>
class batch_halting {
  using engine = batch_engine<Types>;

 public:
  batch_halting(engine& owner, std::stop_token user) : engine_(owner), user_stop_(std::move(user)) {
    if (engine_.needs_.tokens) stop_ = std::stop_source();
  }

  /// From here on the user's stop token halts the batch, which may happen at once.
  void link() {
    if (user_stop_.stop_possible()) user_link_.emplace(std::move(user_stop_), on_user_stop{this});
  }
  void unlink() noexcept { user_link_.reset(); }

  halt why() const noexcept { return why_.load(std::memory_order_relaxed); }

  /// Why what is in flight was asked to stop; never `input` or `executor`, which only keep samples from starting.
  halt asked() const noexcept { return asked_.load(std::memory_order_relaxed); }

  /// No sample starts any more. Only while a lane of the caller's is alive.
  void once(halt why) noexcept {
    halt expected = halt::none;
    if (!why_.compare_exchange_strong(expected, why)) return;
    if (engine_.needs_.retries) engine_.clock_.wake();  // what sleeps will not be tried again
    if (engine_.needs_.gates) engine_.gates_.end_waits(true);
  }

  /// The same, and what is in flight is asked to stop. Runs the stop callbacks of predicts.
  void request(halt why) {
    halt unasked = halt::none;
    if (!asked_.compare_exchange_strong(unasked, why)) return;
    halt expected = halt::none;
    const bool first = why_.compare_exchange_strong(expected, why);
    // Whoever is resumed by one of these may end the batch: *this is not touched any more.
    std::stop_source attempts = stop_;
    std::stop_source sleep = engine_.needs_.retries ? engine_.clock_.take_wake() : std::stop_source(std::nostopstate);
    std::stop_source waits =
        first && engine_.needs_.gates ? engine_.gates_.take_waits(true) : std::stop_source(std::nostopstate);
    sleep.request_stop();
    waits.request_stop();
    attempts.request_stop();
  }

  void count_failure() {
    const std::size_t most = engine_.options_.max_failures;
    if (most == unlimited || asked() != halt::none) return;
    if (failures_.fetch_add(1, std::memory_order_relaxed) + 1 >= most) request(halt::failures);
  }

  /// Stopped with the batch; the tokens of attempts derive from it.
  std::stop_token token() const noexcept { return stop_.get_token(); }

 private:
  struct on_user_stop {
    batch_halting* self;
    void operator()() const noexcept { self->request(halt::user); }
  };

  engine& engine_;
  // Each set once, by whoever halts the batch; the first is read before each sample. They order nothing but themselves.
  std::atomic<halt> why_{halt::none}, asked_{halt::none};
  std::atomic<std::size_t> failures_{0};  // a count, ordering nothing
  std::stop_source stop_{std::nostopstate};
  std::stop_token user_stop_;
  std::optional<std::stop_callback<on_user_stop>> user_link_;
};

}  // namespace cobatch::detail
