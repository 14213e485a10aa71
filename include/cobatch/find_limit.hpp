#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <iosfwd>
#include <limits>
#include <memory>
#include <ostream>
#include <ranges>
#include <span>
#include <stdexcept>
#include <type_traits>
#include <utility>
#include <vector>

#include <cobatch/batch_options.hpp>
#include <cobatch/batch_predict.hpp>
#include <cobatch/detail/atomic.hpp>
#include <cobatch/detail/config.hpp>
#include <cobatch/detail/mutex.hpp>
#include <cobatch/detail/stop_token.hpp>
#include <cobatch/detail/text.hpp>
#include <cobatch/executor.hpp>
#include <cobatch/metrics.hpp>
#include <cobatch/observer.hpp>
#include <cobatch/semaphore.hpp>
#include <cobatch/simulation.hpp>
#include <cobatch/task.hpp>

namespace cobatch::inline COBATCH_ABI {

/// How find_limit() looks. A trivially copyable aggregate for designated initialisers.
struct find_limit_options {
  std::size_t min = 1;                    ///< the first limit that is tried
  std::size_t max = 256;                  ///< none above it is
  std::span<const std::size_t> limits{};  ///< these and no others, where given; they must live until the end
  std::size_t samples_per_limit = 0;      ///< 0: 200, or 20 times the limit if that is more
  time_span time_per_limit = std::chrono::seconds(2);  ///< no sample starts later than that
  double tolerance = 0.05;                        ///< so much less throughput than the best is still good enough
  time_span max_p99 = no_timeout;                 ///< a limit with a higher p99 is not good enough
  batch_options batch = {};  ///< for each of the batches; max_concurrency and observer are set by find_limit()
};

static_assert(std::is_trivially_copyable_v<find_limit_options>, "GCC 12 breaks any other aggregate inside co_await");

/// What was measured at one limit.
struct limit_step {
  std::size_t limit = 0;
  std::uint64_t samples = 0;  ///< that have ended
  std::uint64_t failed = 0;   ///< of them, without a value
  double throughput = 0;      ///< values a second, in the middle of the batch: neither filling up nor running out;
                             ///< infinite where it took no time
  std::chrono::nanoseconds p50{}, p99{};  ///< of attempts
};

/// What find_limit() found, with the evidence.
class limit_report {
 public:
  limit_report(std::vector<limit_step> steps, double tolerance, std::chrono::nanoseconds max_p99);

  /// The smallest limit that was tried whose throughput is within the tolerance of the best; 0 if none is good enough.
  std::size_t limit() const noexcept { return knee_ == none ? 0 : steps_[knee_].limit; }
  /// All that was measured, the smallest limit first.
  const std::vector<limit_step>& steps() const noexcept { return steps_; }
  /// How many requests the server seems to work on at once: best throughput times the latency at the smallest limit
  /// (Little's law); 0 where that cannot be said.
  double server_slots() const noexcept;

  void write_table(std::ostream& os) const;
  /// One line of text for each limit: a bar of its throughput, and its p99.
  void write_chart(std::ostream& os) const;
  /// limit,samples,failed,throughput,p50,p99: with a header, times in seconds.
  void write_csv(std::ostream& os) const;

 private:
  static constexpr std::size_t none = static_cast<std::size_t>(-1);

  std::vector<limit_step> steps_;
  std::size_t knee_ = none;
};

/// Finds the limit beyond which predict gets no more done: runs batches over `samples` at growing limits, each twice
/// the one before, until two in a row were no better; then halves the interval in which the knee lies until it is known
/// to a quarter. `co_await find_limit(pool, samples, predict)` is a limit_report.
///
/// The samples are used as often as needed; predict is called on them as in batch_predict(), with all that it does:
/// use it where that does no harm. Outside these batches nothing should load the server.
///
/// Resumes: on ex, as batch_predict().
/// Stops: options.batch.stop ends it; the report holds what was measured until then.
/// Lifetime: refers to the samples; the executor must outlive the await.
/// Errors: std::invalid_argument for options that make no sense, or if there are no samples.
template <executor Executor, std::ranges::forward_range Samples, class Predict>
  requires std::is_lvalue_reference_v<std::ranges::range_reference_t<Samples>>
task<limit_report> find_limit(Executor& ex, Samples& samples, Predict predict, find_limit_options options = {});

/// "What if the limit were 32?", without the server: find_limit() on a simulation whose server takes as long as the
/// recorded latencies say, one after another and again from the first, and works on `server_slots` requests at once;
/// more than that wait there, first come, first served.
///
/// Record the latencies where nothing waits in the server: at a small limit. Takes no longer than the computation;
/// options.time_per_limit is not used.
template <std::ranges::forward_range Latencies>
  requires std::is_convertible_v<std::ranges::range_reference_t<const Latencies>, std::chrono::nanoseconds>
limit_report simulate_limits(const Latencies& latencies, std::size_t server_slots, find_limit_options options = {});

/// Keeps the latency of every attempt that came to a value, for simulate_limits().
///
/// Thread safety: hooks on any thread; the rest while no batch reports.
class latency_recorder : public batch_observer {
 public:
  void attempt_ended(const attempt_event& event) override {
    if (!event.succeeded()) return;
    const std::lock_guard lock(mutex_);
    latencies_.push_back(event.ran);
  }
  const std::vector<std::chrono::nanoseconds>& latencies() const noexcept { return latencies_; }

 private:
  detail::mutex mutex_;  // guards latencies_
  std::vector<std::chrono::nanoseconds> latencies_;
};

// ---- Implementation ----

namespace detail {

/// Metrics that also know when the batch had filled up, and when its last sample started.
class step_meter final : public batch_metrics {
 public:
  explicit step_meter(std::size_t limit) noexcept : limit_(limit) {}

  void attempt_started(const attempt_event& event) override {
    batch_metrics::attempt_started(event);
    const std::lock_guard lock(mutex_);
    ++starts_;
    if (starts_ <= limit_) full_ = event.at;
    last_ = std::max(last_, event.at);
  }

  limit_step result() const {
    const metrics_snapshot seen = snapshot();
    limit_step step{limit_, seen.samples, seen.failed, 0, seen.latency.quantile(0.5), seen.latency.quantile(0.99)};
    // From then on each start follows an end. If it never was so, the batch was too short for its limit.
    double per_second = seen.throughput();
    // In no time at all: any number of them.
    if (seen.elapsed.count() <= 0) per_second = std::numeric_limits<double>::infinity();
    if (starts_ / 2 >= limit_ && last_ > full_) {
      per_second = static_cast<double>(starts_ - limit_) * 1e9 / static_cast<double>((last_ - full_).count());
      if (seen.attempts != 0) per_second *= static_cast<double>(seen.samples) / static_cast<double>(seen.attempts);
    }
    if (seen.succeeded != 0)
      step.throughput = per_second * static_cast<double>(seen.succeeded) / static_cast<double>(seen.samples);
    return step;
  }

 private:
  const std::size_t limit_;
  detail::mutex mutex_;  // guards the rest while the batch runs
  std::size_t starts_ = 0;
  std::chrono::nanoseconds full_{}, last_ = std::chrono::nanoseconds::min();
};

/// Which limit to try next.
class limit_search {
 public:
  explicit limit_search(const find_limit_options& options) : set_(options) {
    const auto require = [](bool holds, const char* message) {
      if (!holds) throw_or_fail<std::invalid_argument>(message);
    };
    require(set_.min >= 1 && set_.min <= set_.max, "find_limit: min must be at least 1 and not above max");
    require(set_.tolerance >= 0 && set_.tolerance < 1, "find_limit: tolerance must be in the range [0, 1)");
    require(std::find(set_.limits.begin(), set_.limits.end(), std::size_t{0}) == set_.limits.end(),
            "find_limit: a limit of 0 gets nothing done");
  }

  /// 0: it is over.
  std::size_t next() {
    if (!set_.limits.empty()) return steps_.size() < set_.limits.size() ? set_.limits[steps_.size()] : 0;
    if (steps_.empty()) return set_.min;
    if (doubling_) {
      const std::size_t last = steps_.back().limit;
      if (last < set_.max && in_vain_ < 2) return last > set_.max / 2 ? set_.max : 2 * last;
      doubling_ = false;
    }
    // The knee is above `low` and not above `high`.
    const std::size_t high = report().limit();
    std::size_t low = 0;
    for (const limit_step& each : steps_) {
      if (each.limit < high) low = std::max(low, each.limit);
    }
    if (low == 0 || high - low <= std::max<std::size_t>(1, high / 5)) return 0;
    return low + (high - low) / 2;
  }

  void add(const limit_step& step) {
    const double least = best_ * (1 + set_.tolerance);
    in_vain_ = step.throughput > least && step.p99 <= set_.max_p99 ? 0 : in_vain_ + 1;
    best_ = std::max(best_, step.throughput);
    steps_.push_back(step);
  }

  limit_report report() const { return limit_report(steps_, set_.tolerance, set_.max_p99); }

 private:
  const find_limit_options set_;
  std::vector<limit_step> steps_;
  double best_ = 0;
  int in_vain_ = 0;
  bool doubling_ = true;
};

}  // namespace detail

COBATCH_COROUTINES_BEGIN
template <executor Executor, std::ranges::forward_range Samples, class Predict>
  requires std::is_lvalue_reference_v<std::ranges::range_reference_t<Samples>>
task<limit_report> find_limit(Executor& ex, Samples& samples, Predict predict, find_limit_options options) {
  using sample = std::remove_reference_t<std::ranges::range_reference_t<Samples>>;
  std::vector<sample*> all;
  for (auto& each : samples) all.push_back(std::addressof(each));
  if (all.empty()) detail::throw_or_fail<std::invalid_argument>("find_limit: there are no samples");

  // Stoppable like predict itself.
  const auto call = [&predict]<class... Token>(sample* const& each, Token... token) -> decltype(auto)
    requires(sizeof...(Token) == 0
                 ? std::is_invocable_v<Predict&, sample&> && !std::is_invocable_v<Predict&, sample&, std::stop_token>
                 : std::is_invocable_v<Predict&, sample&, Token...>)
  { return std::invoke(predict, *each, std::move(token)...); };

  detail::limit_search search(options);
  const std::stop_token stop = options.batch.stop.token();
  while (const std::size_t limit = stop.stop_requested() ? 0 : search.next()) {
    detail::step_meter meter(limit);
    batch_options step = options.batch;
    step.max_concurrency = limit;
    step.observer = &meter;
    const std::size_t count =
        options.samples_per_limit != 0 ? options.samples_per_limit : std::max<std::size_t>(200, 20 * std::min<std::size_t>(limit, 1'000'000'000));
    const std::chrono::nanoseconds begin = detail::now_of(ex);
    const auto in_time = [&](std::size_t) { return detail::now_of(ex) - begin < options.time_per_limit; };
    const auto choose = [&](std::size_t i) { return all[i % all.size()]; };
    auto input =
        std::views::iota(std::size_t{0}, count) | std::views::take_while(in_time) | std::views::transform(choose);
    auto batch = batch_predict(ex, std::move(input), call, step);
    (void)co_await std::move(batch);
    if (stop.stop_requested()) break;
    search.add(meter.result());
  }
  co_return search.report();
}
COBATCH_COROUTINES_END

template <std::ranges::forward_range Latencies>
  requires std::is_convertible_v<std::ranges::range_reference_t<const Latencies>, std::chrono::nanoseconds>
limit_report simulate_limits(const Latencies& latencies, std::size_t server_slots, find_limit_options options) {
  if (server_slots == 0)
    detail::throw_or_fail<std::invalid_argument>("simulate_limits: a server with no slots serves nobody");
  options.time_per_limit = no_timeout;
  std::vector<std::chrono::nanoseconds> samples(std::ranges::begin(latencies), std::ranges::end(latencies));
  simulation sim;
  async_semaphore server(std::min(server_slots, async_semaphore::max()));
  const auto predict = [&](const std::chrono::nanoseconds& latency) -> task<> {
    const auto slot = co_await server.acquire();
    co_await sim.schedule_after(latency);
  };
  return sim.run(find_limit(sim, samples, predict, options));
}

inline limit_report::limit_report(std::vector<limit_step> steps, double tolerance, std::chrono::nanoseconds max_p99)
    : steps_(std::move(steps)) {
  std::sort(steps_.begin(), steps_.end(), [](const limit_step& a, const limit_step& b) { return a.limit < b.limit; });
  double best = 0;
  for (const limit_step& each : steps_) {
    if (each.p99 <= max_p99) best = std::max(best, each.throughput);
  }
  for (std::size_t i = 0; i < steps_.size() && knee_ == none; ++i) {
    const limit_step& each = steps_[i];
    if (each.throughput > 0 && each.p99 <= max_p99 && each.throughput >= (1 - tolerance) * best) knee_ = i;
  }
}

inline double limit_report::server_slots() const noexcept {
  double best = 0;
  for (const limit_step& each : steps_) best = std::max(best, each.throughput);
  return steps_.empty() || !std::isfinite(best) ? 0 : best * static_cast<double>(steps_.front().p50.count()) / 1e9;
}

inline void limit_report::write_table(std::ostream& os) const {
  detail::text out;
  out.add("   limit    values/s         p50         p99    failed\n");
  const auto right = [&](std::size_t width, const detail::text& cell) {
    out.repeat(cell.str().size() < width ? width - cell.str().size() : 0, ' ').add(cell.str());
  };
  for (std::size_t i = 0; i < steps_.size(); ++i) {
    const limit_step& each = steps_[i];
    right(8, detail::text().add(each.limit));
    right(12, detail::text().fixed(each.throughput, each.throughput < 1000 ? 1 : 0));
    right(12, detail::text().duration(each.p50));
    right(12, detail::text().duration(each.p99));
    right(10, detail::text().add(each.failed));
    out.add(i == knee_ ? "  <- enough\n" : "\n");
  }
  os << out.str();
}

inline void limit_report::write_chart(std::ostream& os) const {
  constexpr double length = 50;
  detail::text out;
  double best = 0;
  for (const limit_step& each : steps_) best = std::max(best, each.throughput);
  for (std::size_t i = 0; i < steps_.size(); ++i) {
    const limit_step& each = steps_[i];
    const std::string limit = detail::text().add(each.limit).str();
    out.repeat(limit.size() < 8 ? 8 - limit.size() : 0, ' ').add(limit, i == knee_ ? " > " : " | ");
    out.repeat(static_cast<std::size_t>(best > 0 ? std::lround(length * (std::isfinite(best) ? each.throughput / best : std::isinf(each.throughput) ? 1 : 0)) : 0), '#').add(" ");
    out.fixed(each.throughput, each.throughput < 1000 ? 1 : 0).add("/s, p99 ").duration(each.p99).add("\n");
  }
  os << out.str();
}

inline void limit_report::write_csv(std::ostream& os) const {
  detail::text out;
  out.add("limit,samples,failed,throughput,p50,p99\n");
  for (const limit_step& each : steps_) {
    out.add(each.limit, ",", each.samples, ",", each.failed, ",", each.throughput, ",").seconds(each.p50).add(",");
    out.seconds(each.p99).add("\n");
  }
  os << out.str();
}

}  // namespace cobatch
