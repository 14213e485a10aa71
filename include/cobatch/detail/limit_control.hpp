#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>

#include <cobatch/detail/abi.hpp>

namespace cobatch::inline COBATCH_ABI::detail {

struct limit_settings {
  bool by_latency = true;  // false: additive increase, whatever the latency
  double initial = 20;
  double min = 1;
  double max = 1000;
  std::size_t most = 1000;  // max as it was given: a double may round it up
  double tolerance = 1.2;
  double smoothing = 0.3;
  double backoff = 0.5;
  double probe_interval = 40;  // round trips
};

/// Finds a cap for calls in flight from how they end; see adaptive_limit for the reasons. No lock, no clock.
///
/// A *round trip* is as many ends of calls as there are calls in flight. Every sum over samples goes over no more than
/// one or two of them, so that it is as long for a cap of 5 as for one of 500.
class limit_control {
 public:
  explicit limit_control(const limit_settings& settings) noexcept : set_(settings), limit_(settings.initial) {}

  /// The cap to hold now; while it probes, below what it has found.
  std::size_t cap() const noexcept {
    const double now = state_ == state::steady ? limit_ : std::min(limit_, probe_cap_);
    return now >= set_.max ? set_.most : static_cast<std::size_t>(now);
  }

  /// A call came to its end after `latency`; it was one of `in_flight` when it started, and is one of
  /// `still_in_flight`.
  void succeeded(double latency, double in_flight, double still_in_flight) noexcept {
    if (!set_.by_latency) {
      if (2 * in_flight >= limit_) move_to(limit_ + 1 / limit_);
      return;
    }
    round_trips_ += 1 / in_flight;
    if (state_ == state::draining && still_in_flight <= probe_cap_) {
      state_ = state::settling;
      to_skip_ = static_cast<std::size_t>(probe_cap_);
      window_ = {};
    }
    if (state_ == state::settling) {
      if (to_skip_-- == 0) state_ = state::measuring;
      return;
    }
    window_.add(latency, in_flight);
    if (state_ == state::measuring) {
      if (window_.count >= std::max(least_to_measure, 2 * probe_cap_)) end_probe();
    } else if (window_.count >= std::clamp(window_.in_flight(), 5.0, 50.0)) {
      learn(still_in_flight);
      window_ = {};
    }
  }

  /// A call was rejected, or timed out.
  void dropped() noexcept {
    move_to(limit_ - (1 - set_.backoff));
    if (state_ != state::steady) begin_interval();
    window_ = {};
  }

 private:
  // steady ──probe_interval──> draining ──> settling ──> measuring ──> steady
  //
  // A probe halves the cap, to see whether that makes the calls faster. draining: calls that started under more load
  // are still coming in. settling: for one more round trip, or the first to end would be the fast ones only.
  enum class state : unsigned char { steady, draining, settling, measuring };

  struct sums {
    double count = 0;
    double latencies = 0;
    double in_flights = 0;
    double most_in_flight = 0;

    void add(double latency, double in_flight) noexcept {
      count += 1;
      latencies += latency;
      in_flights += in_flight;
      most_in_flight = std::max(most_in_flight, in_flight);
    }
    double latency() const noexcept { return latencies / count; }
    double in_flight() const noexcept { return in_flights / count; }
  };

  static constexpr double first_interval = 4;
  static constexpr double least_to_measure = 20;

  void move_to(double limit) noexcept { limit_ = std::clamp(limit, set_.min, set_.max); }

  static double headroom(double limit) noexcept { return std::sqrt(limit); }

  /// Some calls have ended: their average latency against what it would be without a queue.
  void learn(double still_in_flight) noexcept {
    const double latency = window_.latency();
    const double in_flight = window_.in_flight();
    if (!(unqueued_ > 0)) unqueued_ = latency;
    // Alone, or as few as may be: there is no lower load to compare with.
    if (in_flight < std::max(1.5, set_.min * 4 / 3)) unqueued_ += 0.3 * (latency - unqueued_);

    // By Little's law the server would be busy, and no more, with as many of them as is the share of their latency
    // that they did not spend in a queue. It takes the load under which these very calls started: it does not matter
    // that the cap has moved since.
    const double gradient = set_.tolerance * unqueued_ / latency;
    if (gradient < 1) {
      double wanted = std::max(in_flight * gradient + headroom(limit_), limit_ / 2);
      if (state_ != state::steady) wanted = std::min(wanted, limit_);
      move_to(limit_ + set_.smoothing * (wanted - limit_));
    } else if (state_ == state::steady) {
      // A cap that is not made use of stays. The most, not the average: where calls end and start in waves, the first
      // of a wave find few others in flight.
      const double step = headroom(limit_);
      move_to(limit_ + std::clamp(window_.most_in_flight + step - limit_, 0.0, step));
    }

    if (state_ == state::draining) {
      probe_cap_ = std::min(probe_cap_, probe_cap());
      return;
    }
    // How it was before a probe: the last few windows.
    const double weight = before_.count > 0 ? 0.3 : 1;
    before_.count = 1;
    before_.latencies += weight * (latency - before_.latencies);
    before_.in_flights += weight * (in_flight - before_.in_flights);
    if (!(limit_at_probe_ > 0)) limit_at_probe_ = limit_;
    const bool due = round_trips_ >= interval_ || limit_ < limit_at_probe_ / 2;
    const bool in_use = window_.most_in_flight >= 0.75 * limit_ && still_in_flight <= 1.25 * limit_ + 1;
    if (due && in_use && probe_cap() <= 0.75 * limit_) {
      state_ = state::draining;
      probe_cap_ = probe_cap();
      limit_at_probe_ = limit_;
    }
  }

  double probe_cap() const noexcept { return std::max(set_.min, std::floor(limit_ / 2)); }

  void end_probe() noexcept {
    const double latency = window_.latency();
    const double in_flight = window_.in_flight();
    const double slower = before_.latencies / latency;
    const double fuller = before_.in_flights / in_flight;
    interval_ = std::min(set_.probe_interval, 2 * interval_);
    // With a queue, twice as many calls take twice as long; without one, as long. In between: by the geometric mean.
    const bool queued = slower * slower > fuller;
    if (!queued || latency < unqueued_) {
      const bool far_off = latency > 1.3 * unqueued_ || latency < unqueued_ / 1.3;
      unqueued_ += (far_off ? 1.0 : 0.5) * (latency - unqueued_);
      if (far_off) interval_ = first_interval;
    }
    if (queued && fuller > 1) {
      const double enough = set_.tolerance * before_.in_flights / slower + headroom(in_flight);
      if (enough < 0.8 * limit_) interval_ = first_interval;
      move_to(std::min(limit_, enough));
    }
    begin_interval();
    window_ = {};
    before_ = {};
  }

  void begin_interval() noexcept {
    state_ = state::steady;
    round_trips_ = 0;
  }

  limit_settings set_;
  double limit_;
  state state_ = state::steady;
  sums window_;                       // since the last decision
  sums before_;                       // averages of windows, since the last probe
  double unqueued_ = 0;               // the latency without a queue; 0: not known yet
  double round_trips_ = 0;            // since the last probe
  double interval_ = first_interval;  // from probe to probe
  double probe_cap_ = 0;
  double limit_at_probe_ = 0;
  std::size_t to_skip_ = 0;
};

}  // namespace cobatch::detail
