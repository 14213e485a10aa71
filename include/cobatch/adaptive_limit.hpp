#pragma once

#include <algorithm>
#include <chrono>
#include <coroutine>
#include <cstddef>
#include <optional>
#include <stdexcept>
#include <type_traits>
#include <utility>

#include <cobatch/batch_options.hpp>
#include <cobatch/detail/atomic.hpp>
#include <cobatch/detail/config.hpp>
#include <cobatch/detail/limit_control.hpp>
#include <cobatch/detail/mutex.hpp>
#include <cobatch/detail/stop_token.hpp>
#include <cobatch/error.hpp>
#include <cobatch/expected.hpp>
#include <cobatch/semaphore.hpp>

namespace cobatch::inline COBATCH_ABI {

/// How an adaptive_limit moves.
enum class adaptive_algorithm : unsigned char {
  gradient,  ///< by latency, as far as more calls in flight do not make them slower; and down with drops
  aimd,      ///< up by one per round trip, down with drops; for servers that reject what they cannot serve at once
};

/// How an adaptive_limit begins and how far it may go. A trivially copyable aggregate for designated initialisers.
struct adaptive_options {
  std::size_t initial = 20;  ///< the cap at first
  std::size_t min = 1;       ///< never below; at least 1
  std::size_t max = 1000;    ///< never above
  adaptive_algorithm algorithm = adaptive_algorithm::gradient;
  time_span timeout = no_timeout;  ///< a call that took so long, or longer, counts as dropped
  double backoff = 0.5;    ///< the share of the cap that is left after a round trip in which every call was dropped
  double tolerance = 1.2;  ///< gradient: how many times the latency without a queue is still no reason to go down
  double smoothing = 0.3;  ///< gradient: the share of the way down that one step takes
  std::size_t probe_interval = 40;  ///< gradient: round trips from one look at the latency without a queue to the next
};

static_assert(std::is_trivially_copyable_v<adaptive_options>, "GCC 12 breaks any other aggregate inside co_await");

namespace detail {
class adaptive_acquire;
struct adaptive_access;
}  // namespace detail

/// A cap on calls in flight that finds itself: it grows while more calls do not make each of them slower, and shrinks
/// when they do, or when calls are rejected or time out.
///
///     auto ticket = co_await limit.acquire();          // suspends while as many are in flight as the cap allows
///     const auto begin = clock::now();
///     const auto reply = co_await call_server();
///     reply ? ticket->succeeded(clock::now() - begin) : ticket->dropped();
///
/// **The gradient** is that of Netflix's concurrency-limits ("Performance Under Load", 2018, Gradient2Limit): the cap
/// is multiplied with latency-without-a-queue / latency, plus the square root of the cap as headroom to explore. Three
/// things differ, each for a known failure of the original:
/// - The latency without a queue is no long-term average, which drifts upward with a queue that lasts, and the cap with
///   it (their issue 165). Now and then the cap is halved for a few round trips, as BBR and brpc's auto limiter do. If
///   that makes calls faster there was a queue, and the cap comes down; if not, this is the latency without one. So it
///   rises only on evidence, and a server that has become slower is told from one that is overloaded.
/// - What is multiplied is not the cap but the number of calls that were in flight when the sampled ones started. By
///   Little's law this is the server's capacity, so that a start from 1000 goes straight down, and replies that are
///   older than the last step do not make it overshoot.
/// - Timeouts and rejections never enter the latencies. A server whose every call takes exactly the timeout looks
///   perfectly steady to the original, which therefore grows (issue 137). Here they are drops; see also `timeout`.
/// Vegas, the alternative, counts queued calls with the minimum of all latencies as its measure, which any jitter makes
/// too low; averages bear that.
///
/// **Drops** take a constant 1 - backoff off the cap each, so that a round trip of nothing but drops leaves the share
/// `backoff` or a little more, and a stray one hardly matters. aimd adds 1/cap for each success.
///
/// The cap does not grow while it is not made use of. Calls that were cancelled say nothing about the server: give
/// their tickets back without a word.
///
/// Order, Resumes, Stops: those of async_semaphore, which it is built on. A cap that shrinks revokes nothing.
/// Lifetime: must outlive its tickets and whoever waits in it.
/// Thread safety: all members may be called from any thread at any time.
/// Allocates: nothing. A report costs a lock and a few divisions; it may grant waiters, as raising a semaphore's limit
/// does.
class adaptive_limit {
 public:
  class ticket;

  /// Errors: std::invalid_argument unless 1 <= min <= initial <= max, 0 <= backoff < 1, tolerance >= 1,
  /// 0 < smoothing <= 1 and probe_interval >= 1.
  explicit adaptive_limit(const adaptive_options& options = {})
      : semaphore_(check(options).initial),
        control_(settings(options)),
        timeout_(options.timeout),
        published_(options.initial) {}
  adaptive_limit(const adaptive_limit&) = delete;
  adaptive_limit& operator=(const adaptive_limit&) = delete;

  /// `co_await limit.acquire()` gives an `expected<ticket, error>`, suspending while the cap is reached.
  ///
  /// Stops: with errc::cancelled, as async_semaphore::acquire(weight, stop_token).
  [[nodiscard]] detail::adaptive_acquire acquire(std::stop_token stop = {}) noexcept;

  /// A ticket if there is room right now and nobody waits, else nothing.
  [[nodiscard]] std::optional<ticket> try_acquire() noexcept;

  /// The cap at this moment. Half of what it has found, while it looks at the latency without a queue.
  std::size_t limit() const noexcept { return semaphore_.limit(); }
  /// How many calls are in flight: tickets, and what started() has begun.
  std::size_t in_flight() const noexcept { return in_flight_.load(std::memory_order_relaxed); }
  /// How many coroutines wait at this moment.
  std::size_t waiting() const noexcept { return semaphore_.waiting(); }

  /// For who reports calls without tickets: one begins; returns how many are in flight now, with this one. Each call is
  /// to end with one of succeeded(), dropped() and ignored().
  std::size_t started() noexcept { return in_flight_.fetch_add(1, std::memory_order_relaxed) + 1; }

  /// A call has had its reply after `latency`; it was one of `in_flight_at_start`, which started() told.
  void succeeded(std::chrono::nanoseconds latency, std::size_t in_flight_at_start) noexcept;
  /// A call was rejected as too many, or timed out.
  void dropped() noexcept;
  /// A call came to an end that says nothing about the server's load: cancelled, or an error of its own.
  void ignored() noexcept { in_flight_.fetch_sub(1, std::memory_order_relaxed); }

 private:
  friend detail::adaptive_access;

  static const adaptive_options& check(const adaptive_options& options);
  static detail::limit_settings settings(const adaptive_options& options) noexcept;
  void publish(std::unique_lock<detail::mutex>& lock) noexcept;

  async_semaphore semaphore_;
  // Counts; what is known of a call passes through mutex_. Orders nothing.
  detail::atomic<std::size_t> in_flight_{0};

  detail::mutex mutex_;  // guards all below
  detail::limit_control control_;
  const std::chrono::nanoseconds timeout_;
  std::size_t published_;    // what the semaphore's limit is, or is being set to
  bool publishing_ = false;  // by a thread that will look again before it leaves
};

/// The right to make one call: what acquire() gives. Report how the call ended; destroyed without a report, it says
/// nothing.
///
/// Lifetime: the adaptive_limit must outlive the ticket.
/// Thread safety: as an int; any thread may report.
class [[nodiscard]] adaptive_limit::ticket {
 public:
  ticket(ticket&& other) noexcept
      : limit_(std::exchange(other.limit_, nullptr)),
        permit_(std::move(other.permit_)),
        in_flight_at_start_(other.in_flight_at_start_) {}
  /// Gives back what it held before.
  ticket& operator=(ticket&& other) noexcept {
    ticket taken(std::move(other));
    std::swap(limit_, taken.limit_);
    std::swap(permit_, taken.permit_);
    std::swap(in_flight_at_start_, taken.in_flight_at_start_);
    return *this;
  }
  ~ticket() { release(); }

  /// True until it is reported, released or moved from.
  explicit operator bool() const noexcept { return limit_ != nullptr; }

  /// The call has had its reply after `latency`. Ends the ticket.
  void succeeded(std::chrono::nanoseconds latency) noexcept {
    end([&](adaptive_limit& limit) { limit.succeeded(latency, in_flight_at_start_); });
  }
  /// The call was rejected as too many, or timed out. Ends the ticket.
  void dropped() noexcept {
    end([](adaptive_limit& limit) { limit.dropped(); });
  }
  /// Ends the ticket without a word.
  void release() noexcept {
    end([](adaptive_limit& limit) { limit.ignored(); });
  }

 private:
  friend adaptive_limit;
  friend detail::adaptive_acquire;

  ticket(adaptive_limit& limit, permit&& held) noexcept
      : limit_(&limit), permit_(std::move(held)), in_flight_at_start_(limit.started()) {}

  template <class Report>
  void end(Report report) noexcept {
    adaptive_limit* const limit = std::exchange(limit_, nullptr);
    if (limit == nullptr) return;
    report(*limit);
    permit_.release();  // last: from here on the limit may be gone
  }

  adaptive_limit* limit_;
  permit permit_;
  std::size_t in_flight_at_start_;
};

// ---- Implementation ----

namespace detail {

/// For the library's own drivers, which take permits without tickets.
struct adaptive_access {
  static async_semaphore& semaphore(adaptive_limit& limit) noexcept { return limit.semaphore_; }
};

class [[nodiscard]] adaptive_acquire {
 public:
  adaptive_acquire(adaptive_limit& limit, std::stop_token stop) noexcept
      : limit_(&limit), permit_(adaptive_access::semaphore(limit).acquire(1, std::move(stop))) {}

  bool await_ready() const noexcept { return false; }
  bool await_suspend(std::coroutine_handle<> awaiting) { return permit_.await_suspend(awaiting); }
  [[nodiscard]] expected<adaptive_limit::ticket, error> await_resume() {
    expected<permit, error> taken = permit_.await_resume();
    if (!taken) return unexpected(std::move(taken).error());
    return adaptive_limit::ticket(*limit_, std::move(*taken));
  }

 private:
  adaptive_limit* limit_;
  stoppable_acquire_awaiter permit_;
};

}  // namespace detail

inline detail::adaptive_acquire adaptive_limit::acquire(std::stop_token stop) noexcept {
  return detail::adaptive_acquire(*this, std::move(stop));
}

inline std::optional<adaptive_limit::ticket> adaptive_limit::try_acquire() noexcept {
  std::optional<permit> taken = semaphore_.try_acquire();
  if (!taken) return std::nullopt;
  return ticket(*this, std::move(*taken));
}

inline void adaptive_limit::succeeded(std::chrono::nanoseconds latency, std::size_t in_flight_at_start) noexcept {
  if (latency >= timeout_) return dropped();
  const std::size_t still_in_flight = in_flight_.fetch_sub(1, std::memory_order_relaxed);
  std::unique_lock lock(mutex_);
  // A clock may be too coarse for the call.
  control_.succeeded(static_cast<double>(std::max<std::chrono::nanoseconds::rep>(latency.count(), 1)),
                     static_cast<double>(std::max<std::size_t>(in_flight_at_start, 1)),
                     static_cast<double>(still_in_flight));
  publish(lock);
}

inline void adaptive_limit::dropped() noexcept {
  ignored();
  std::unique_lock lock(mutex_);
  control_.dropped();
  publish(lock);
}

/// Sets the semaphore's limit, under no lock, as that may resume coroutines; by one thread at a time, so that the last
/// word stays the last.
inline void adaptive_limit::publish(std::unique_lock<detail::mutex>& lock) noexcept {
  if (publishing_ || control_.cap() == published_) return;
  publishing_ = true;
  while (control_.cap() != published_) {
    const std::size_t cap = published_ = control_.cap();
    lock.unlock();
    semaphore_.set_limit(cap);
    lock.lock();
  }
  publishing_ = false;
}

inline const adaptive_options& adaptive_limit::check(const adaptive_options& options) {
  const auto require = [](bool holds, const char* message) {
    if (!holds) detail::throw_or_fail<std::invalid_argument>(message);
  };
  require(options.min >= 1, "adaptive_limit: min must be at least 1; to pause, stop the batch");
  require(options.min <= options.initial && options.initial <= options.max,
          "adaptive_limit: initial must be in the range from min to max");
  require(options.max <= async_semaphore::max(), "adaptive_limit: max is beyond what a semaphore can count");
  require(options.backoff >= 0 && options.backoff < 1, "adaptive_limit: backoff must be in the range [0, 1)");
  require(options.tolerance >= 1, "adaptive_limit: tolerance must be at least 1, and more where latencies vary");
  require(options.smoothing > 0 && options.smoothing <= 1, "adaptive_limit: smoothing must be in the range (0, 1]");
  require(options.probe_interval >= 1, "adaptive_limit: probe_interval must be at least 1 round trip");
  return options;
}

inline detail::limit_settings adaptive_limit::settings(const adaptive_options& options) noexcept {
  detail::limit_settings made;
  made.by_latency = options.algorithm == adaptive_algorithm::gradient;
  made.initial = static_cast<double>(options.initial);
  made.min = static_cast<double>(options.min);
  made.max = static_cast<double>(options.max);
  made.most = options.max;
  made.tolerance = options.tolerance;
  made.smoothing = options.smoothing;
  made.backoff = options.backoff;
  made.probe_interval = static_cast<double>(options.probe_interval);
  return made;
}

}  // namespace cobatch
