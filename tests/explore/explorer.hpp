#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <mutex>
#include <source_location>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

/// Runs a piece of code on a few logical threads, one step at a time, in every order and with every value that a load
/// may return, within bounds. See README.md in this folder for what is modelled and what is not.
///
/// A logical thread is a fiber. Each operation on an atomic, a mutex or a condition variable is a step, before which
/// the explorer may switch to another thread. Where nothing is explored the same types work for one thread.

namespace cobatch_explore {

/// So many logical threads at most, the first one included. More than 31 cannot be.
#if !defined(COBATCH_EXPLORE_THREADS)
#define COBATCH_EXPLORE_THREADS 8
#endif
inline constexpr unsigned most_threads = COBATCH_EXPLORE_THREADS;

struct options {
  int preemptions = 2;           ///< how often a thread that could go on is interrupted
  int stale = 1;                 ///< how often a load returns an older value, or a weak exchange fails for no reason
  std::uint64_t steps = 20'000;  ///< a run must end within so many
  std::uint64_t most_runs = ~std::uint64_t{0};
};

struct result {
  bool failed = false;
  bool complete = false;  ///< everything within the bounds was seen
  std::string what;       ///< what failed, and where
  std::string schedule;   ///< runs it again: see replay()
  std::string trace;      ///< step by step
  std::uint64_t runs = 0, steps = 0;
};

/// Every order within the bounds.
result explore_all(const std::function<void()>& body, options how = {});
/// `runs` of them at random: threads have priorities, which change at `depth - 1` random steps ("A randomized scheduler
/// with probabilistic guarantees of finding bugs", Burckhardt et al., 2010).
result explore_at_random(const std::function<void()>& body, std::uint64_t runs, std::uint64_t seed = 1, int depth = 3,
                         options how = {});
/// The one run that a schedule stands for.
result replay(const std::function<void()>& body, const std::string& schedule, options how = {});

// ---- Inside a run ----

/// Runs each of them on a logical thread of its own, and waits for all.
void threads(const std::vector<std::function<void()>>& bodies);
/// The run fails unless `fine`.
void check(bool fine, const char* what);
/// 0 to n - 1: every one of them is explored.
int choose(int n);
/// How many steps the run has had.
std::uint64_t steps_done() noexcept;
/// Which logical thread this is.
unsigned this_thread() noexcept;
/// The virtual clock, in ns. It stands still unless a timed wait comes to its end, or somebody lets it go on.
std::int64_t steady_now() noexcept;
void let_pass(std::int64_t nanoseconds) noexcept;
/// A turn of a spin loop.
void spin_pause() noexcept;
/// A remark for the trace.
void remark(const char* text) noexcept;

// ---- What the checked types are made of ----

namespace runtime {

using order = std::memory_order;
using place = std::source_location;

enum class change : unsigned char { exchange, add, subtract, conjunction, disjunction, exclusive };

std::uint64_t load(const volatile void* at, unsigned size, order, place) noexcept;
void store(volatile void* at, unsigned size, std::uint64_t value, order, place) noexcept;
std::uint64_t modify(volatile void* at, unsigned size, change, std::uint64_t operand, order, place) noexcept;
bool compare_exchange(volatile void* at, unsigned size, std::uint64_t& expected, std::uint64_t desired, order success,
                      order failure, bool weak, place) noexcept;
void wait(const volatile void* at, unsigned size, std::uint64_t old, order, place) noexcept;
void notify(const volatile void* at, bool all, place) noexcept;
void fence(order, place) noexcept;

/// Clocks of what has happened before.
struct clock {
  std::uint32_t of[most_threads] = {};
};

/// Whom the thread that goes on here waits for.
class hand_over {
 public:
  constexpr hand_over() noexcept = default;
  hand_over(const hand_over&) = delete;
  hand_over& operator=(const hand_over&) = delete;

  void lock(const char* what) noexcept;
  bool try_lock(const char* what) noexcept;
  void unlock(const char* what) noexcept;

  int owner = -1;
  clock released;
};

/// `deadline`: no wait without end where it is not never. True: notified.
inline constexpr std::int64_t never = INT64_MAX;
bool wait(unsigned& waiting, hand_over& mutex, std::int64_t deadline) noexcept;
void notify(unsigned& waiting, bool all) noexcept;

int start_thread(std::function<void()> body);
void join_thread(int thread) noexcept;

template <class T>
std::uint64_t to_bits(const T& value) noexcept {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}
template <class T>
T from_bits(std::uint64_t bits) noexcept {
  T value;
  std::memcpy(static_cast<void*>(&value), &bits, sizeof(T));
  return value;
}

}  // namespace runtime

/// std::atomic, as far as it is used.
template <class T>
class atomic {
  using order = runtime::order;
  using place = runtime::place;
  static constexpr unsigned size = sizeof(T);
  static constexpr order for_failure(order of) noexcept {
    return of == order::acq_rel ? order::acquire : of == order::release ? order::relaxed : of;
  }

 public:
  using value_type = T;
  static constexpr bool is_always_lock_free = true;

  constexpr atomic() noexcept : value_() {}
  constexpr atomic(T value) noexcept : value_(value) {}
  atomic(const atomic&) = delete;
  atomic& operator=(const atomic&) = delete;

  T load(order how = order::seq_cst, place where = place::current()) const noexcept {
    return runtime::from_bits<T>(runtime::load(&value_, size, how, where));
  }
  void store(T value, order how = order::seq_cst, place where = place::current()) noexcept {
    runtime::store(&value_, size, runtime::to_bits(value), how, where);
  }
  T exchange(T value, order how = order::seq_cst, place where = place::current()) noexcept {
    return modify(runtime::change::exchange, value, how, where);
  }
  bool compare_exchange_strong(T& expected, T desired, order success, order failure,
                               place where = place::current()) noexcept {
    return compare_exchange(expected, desired, success, failure, false, where);
  }
  bool compare_exchange_strong(T& expected, T desired, order how = order::seq_cst,
                               place where = place::current()) noexcept {
    return compare_exchange(expected, desired, how, for_failure(how), false, where);
  }
  bool compare_exchange_weak(T& expected, T desired, order success, order failure,
                             place where = place::current()) noexcept {
    return compare_exchange(expected, desired, success, failure, true, where);
  }
  bool compare_exchange_weak(T& expected, T desired, order how = order::seq_cst,
                             place where = place::current()) noexcept {
    return compare_exchange(expected, desired, how, for_failure(how), true, where);
  }

  T fetch_add(T by, order how = order::seq_cst, place where = place::current()) noexcept {
    if constexpr (std::is_floating_point_v<T>) {
      T seen = load(order::relaxed, where);
      while (!compare_exchange(seen, seen + by, how, order::relaxed, true, where)) {}
      return seen;
    } else {
      return modify(runtime::change::add, by, how, where);
    }
  }
  T fetch_sub(T by, order how = order::seq_cst, place where = place::current()) noexcept {
    return modify(runtime::change::subtract, by, how, where);
  }
  T fetch_and(T by, order how = order::seq_cst, place where = place::current()) noexcept {
    return modify(runtime::change::conjunction, by, how, where);
  }
  T fetch_or(T by, order how = order::seq_cst, place where = place::current()) noexcept {
    return modify(runtime::change::disjunction, by, how, where);
  }
  T fetch_xor(T by, order how = order::seq_cst, place where = place::current()) noexcept {
    return modify(runtime::change::exclusive, by, how, where);
  }

  void wait(T old, order how = order::seq_cst, place where = place::current()) const noexcept {
    runtime::wait(&value_, size, runtime::to_bits(old), how, where);
  }
  void notify_one(place where = place::current()) noexcept { runtime::notify(&value_, false, where); }
  void notify_all(place where = place::current()) noexcept { runtime::notify(&value_, true, where); }

  operator T() const noexcept { return load(); }
  T operator=(T value) noexcept {
    store(value);
    return value;
  }
  T operator++() noexcept { return static_cast<T>(fetch_add(1) + 1); }
  T operator++(int) noexcept { return fetch_add(1); }
  T operator--() noexcept { return static_cast<T>(fetch_sub(1) - 1); }
  T operator--(int) noexcept { return fetch_sub(1); }

 private:
  T modify(runtime::change what, T operand, order how, place where) noexcept {
    return runtime::from_bits<T>(runtime::modify(&value_, size, what, runtime::to_bits(operand), how, where));
  }
  bool compare_exchange(T& expected, T desired, order success, order failure, bool weak, place where) noexcept {
    std::uint64_t bits = runtime::to_bits(expected);
    const bool done =
        runtime::compare_exchange(&value_, size, bits, runtime::to_bits(desired), success, failure, weak, where);
    if (!done) expected = runtime::from_bits<T>(bits);
    return done;
  }

  alignas(sizeof(T)) T value_;
};

class mutex {
 public:
  constexpr mutex() noexcept = default;
  mutex(const mutex&) = delete;
  mutex& operator=(const mutex&) = delete;

  void lock() { state.lock("lock"); }
  bool try_lock() { return state.try_lock("try_lock"); }
  void unlock() { state.unlock("unlock"); }

  runtime::hand_over state;
};

class condition_variable {
 public:
  condition_variable() = default;
  condition_variable(const condition_variable&) = delete;
  condition_variable& operator=(const condition_variable&) = delete;
  ~condition_variable() { check(waiting_ == 0, "a condition variable is destroyed while a thread waits in it"); }

  void notify_one() noexcept { runtime::notify(waiting_, false); }
  void notify_all() noexcept { runtime::notify(waiting_, true); }

  void wait(std::unique_lock<mutex>& lock) { runtime::wait(waiting_, lock.mutex()->state, runtime::never); }
  template <class Predicate>
  void wait(std::unique_lock<mutex>& lock, Predicate done) {
    while (!done()) wait(lock);
  }
  template <class Clock, class Duration>
  std::cv_status wait_until(std::unique_lock<mutex>& lock, const std::chrono::time_point<Clock, Duration>& until) {
    const auto deadline = std::chrono::duration_cast<std::chrono::nanoseconds>(until.time_since_epoch()).count();
    return runtime::wait(waiting_, lock.mutex()->state, deadline) ? std::cv_status::no_timeout
                                                                  : std::cv_status::timeout;
  }

 private:
  unsigned waiting_ = 0;  // one bit for each thread
};

class thread {
 public:
  thread() noexcept = default;
  template <class F>
    requires(!std::is_same_v<std::remove_cvref_t<F>, thread>)
  explicit thread(F body) : number_(runtime::start_thread(std::move(body))) {}
  thread(thread&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
  thread& operator=(thread&& other) noexcept {
    number_ = std::exchange(other.number_, -1);
    return *this;
  }
  bool joinable() const noexcept { return number_ >= 0; }
  void join() { runtime::join_thread(std::exchange(number_, -1)); }
  static unsigned hardware_concurrency() noexcept { return 2; }

 private:
  int number_ = -1;
};

/// A queue of pointers between logical threads whose every operation is one step: what an executor needs, and no more.
class channel {
 public:
  channel() = default;
  channel(const channel&) = delete;
  channel& operator=(const channel&) = delete;

  void push(void* item);
  /// Waits for one; null once it is closed and empty.
  void* pop();
  /// Null, and closed, where `threads` of them would wait.
  void* pop_unless_all_wait(std::size_t threads);
  void close();
  std::size_t size() const noexcept { return count_; }
  bool ready() const noexcept { return count_ != 0 || closed_; }

 private:
  static constexpr std::size_t most = 64;

  void* items_[most] = {};
  std::size_t first_ = 0, count_ = 0, waiting_ = 0;
  bool closed_ = false;
  runtime::clock released_;
};

}  // namespace cobatch_explore
