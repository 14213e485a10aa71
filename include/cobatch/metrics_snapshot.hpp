#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <iosfwd>
#include <limits>
#include <ostream>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <cobatch/detail/config.hpp>
#include <cobatch/detail/prometheus_text.hpp>
#include <cobatch/detail/saturating.hpp>
#include <cobatch/detail/text.hpp>
#include <cobatch/error.hpp>
#include <cobatch/latency_histogram.hpp>

namespace cobatch::inline COBATCH_ABI {

/// What holds a batch up, see metrics_snapshot::slowed_by().
enum class bottleneck : std::uint8_t {
  nothing,   ///< nothing that is sure
  input,     ///< samples do not come fast enough
  consumer,  ///< results are not taken fast enough from a stream
  rate,      ///< the rate limiter
  limit,     ///< the cap on samples in flight: predict could do more at once
  window,    ///< of an ordered stream: full of results that wait for an earlier one
  server,    ///< what predict calls has more in flight than it can use: each one takes longer, no more get done
  failures,  ///< predict fails
  backoff,   ///< samples sleep before they are tried again
  blocking,  ///< predict does not suspend: there are as many in flight as the executor has threads
};

/// A label for write_prometheus(): `{{"model", "mlp"}}`.
struct metric_label {
  std::string_view name;
  std::string_view value;
};

/// What a batch_metrics has counted until some moment. Counts are totals over all batches it has observed.
class metrics_snapshot {
 public:
  metrics_snapshot() = default;

  /// Attempts that started while so many were in flight (from half of that up): how latency grows with load.
  struct load_level {
    std::uint64_t count = 0;
    double in_flight = 0, latency = 0, squared_latency = 0;  // sums, of counts and nanoseconds
  };

  std::uint64_t samples = 0;                 ///< with a final outcome
  std::uint64_t succeeded = 0;               ///< of them, with a value
  std::uint64_t failed = 0;                  ///< of them, without
  std::array<std::uint64_t, 24> outcomes{};  ///< by errc; [0]: succeeded
  std::uint64_t not_started = 0;             ///< samples of batches that stopped before their turn
  std::uint64_t attempts = 0;                ///< calls of predict that have started
  std::uint64_t retries = 0;                 ///< how often a sample was to be tried again
  std::uint64_t hedges = 0;                  ///< attempts that doubled another one
  std::uint64_t late = 0;                    ///< attempts that ended after their timeout
  std::uint64_t taken = 0;                   ///< results taken from streams
  std::uint64_t at_limit = 0;                ///< attempts that started with at least 90 % of the limit in flight
  std::uint64_t straight = 0;      ///< attempts that ended on the thread where they started, before it started another
  std::size_t threads = 0;         ///< on which attempts started
  std::size_t peak_in_flight = 0;  ///< the most samples in flight when an attempt started
  std::size_t window = 0;          ///< of the latest ordered stream; 0: there was none, or it was not told
  std::uint64_t batches = 0;       ///< that have begun
  std::uint64_t active_batches = 0;
  std::uint64_t hook_failures = 0;  ///< exceptions that left observers of batches that have ended
  std::uint64_t in_flight = 0;      ///< attempts that have started and not ended
  std::size_t limit = std::numeric_limits<std::size_t>::max();  ///< the latest; max(): none

  std::chrono::nanoseconds elapsed{};  ///< with at least one batch active, until the latest event
  latency_histogram latency;           ///< of attempts, whatever they came to

  // Sums over all samples.
  std::chrono::nanoseconds running{}, waited_for_input{}, waited_for_permits{}, waited_for_rate{}, backed_off{},
      waited_for_turn{}, waited_for_consumer{};
  std::chrono::nanoseconds consumer_behind{};  ///< in which at least one result lay ready, not taken
  std::array<load_level, 40> load{};

  std::uint64_t failed_with(errc code) const noexcept {
    const auto at = static_cast<std::size_t>(code);
    return at < outcomes.size() ? outcomes[at] : 0;
  }
  /// Samples with a final outcome per second.
  double throughput() const noexcept { return per_second(static_cast<double>(samples)); }
  /// How many attempts were in flight on average.
  double mean_in_flight() const noexcept { return share(running); }

  /// Counts of another one that observed other batches are added; its limit is taken.
  void merge(const metrics_snapshot& other);

  /// What holds the batch up. With T the time in which a batch was active, the first of these that holds:
  /// - failures: half of the samples came to no value, for a reason that is neither a stop, a deadline nor the input;
  /// - consumer: finished samples waited to be taken for T or more in all (on average at least one lay there), one lay
  ///   there for half of T, and fewer than half of the attempts started at the limit;
  /// - input, rate: somebody waited for it for 60 % of T; the longer of the two;
  /// - blocking: nine in ten attempts ran from start to end with nothing between on their thread, never more were in
  ///   flight than there were threads, which is below the limit, and threads were busy for 60 % of T;
  /// - server: latency grows nearly in proportion to what is in flight (with the exponent 0.6 or more), by more than
  ///   chance would explain; attempts that start while a batch fills up tell what it was with less in flight;
  /// - backoff: somebody slept before another attempt for 60 % of T, and on average more slept than ran, or finished
  ///   samples waited for an earlier one all the time;
  /// - limit: half of the attempts started with 90 % of the limit in flight, and on average half of it was, or 80 % were
  ///   on average, or permits were waited for for 60 % of T;
  /// - window: what was in flight, slept, or waited for an earlier result adds up to 90 % of the window; where that is
  ///   not known, to the limit, give or take 10 %.
  /// Timeouts that come with such a growth of latency are the server's.
  bottleneck slowed_by() const noexcept;
  /// The same in a sentence, with the numbers it was concluded from and what to do.
  std::string advice() const;

  /// Prometheus text exposition, version 0.0.4, of these metrics alone: see prometheus_writer.
  void write_prometheus(std::ostream& os, std::string_view prefix = "cobatch",
                        std::span<const metric_label> labels = {}) const;
  /// One JSON object on one line; times in seconds.
  void write_json(std::ostream& os) const;
  /// One screen for a person.
  void write_summary(std::ostream& os) const;

 private:
  friend class prometheus_writer;

  static constexpr std::string_view foreign = "other";  // what name_of() says of codes that are not the library's
  std::uint64_t other_outcomes() const noexcept;
  /// tell(name, count) of each of the library's outcomes, and of all others together, if there are any.
  template <class Tell>
  void each_outcome(Tell tell) const;

  bool limited() const noexcept { return limit != std::numeric_limits<std::size_t>::max(); }
  double per_second(double count) const noexcept {
    return elapsed.count() > 0 ? count * 1e9 / static_cast<double>(elapsed.count()) : 0;
  }
  double share(std::chrono::nanoseconds time) const noexcept {
    return elapsed.count() > 0 ? static_cast<double>(time.count()) / static_cast<double>(elapsed.count()) : 0;
  }
  struct growth {
    const load_level* few = nullptr;  // null: it does not grow
    const load_level* many = nullptr;
  };
  growth latency_growth() const noexcept;
  /// Samples that came to no value because predict did not give one.
  std::uint64_t broken() const noexcept;
};

/// Prometheus text exposition, version 0.0.4, of any number of metrics, one for each model, stage or service:
///
///     prometheus_writer("my_service").add(resnet.snapshot(), {{"model", "resnet"}})
///                                    .add(mlp.snapshot(), {{"model", "mlp"}}).write(os);
///
/// What is not allowed in a name becomes an underscore; bytes of a value that are no UTF-8 are written as `\xff`.
/// Errors of the user's own codes are one row, outcome="other".
class prometheus_writer {
 public:
  /// `prefix` begins every name.
  explicit prometheus_writer(std::string_view prefix = "cobatch") : prefix_(prefix) {}

  /// Errors: std::invalid_argument, with the label's name, for a label that begins with two underscores, that is there
  /// twice, also once names are what Prometheus allows, or that is named as one of the library's own: le, outcome, for.
  /// And where another one has just these labels.
  prometheus_writer& add(metrics_snapshot metrics, std::span<const metric_label> labels = {});
  prometheus_writer& add(metrics_snapshot metrics, std::initializer_list<metric_label> labels) {
    return add(std::move(metrics), std::span<const metric_label>(labels.begin(), labels.size()));
  }

  /// Errors: those of `os`.
  void write(std::ostream& os) const;

 private:
  struct entry {
    metrics_snapshot metrics;
    detail::prometheus_labels labels;
  };

  std::string prefix_;
  std::vector<entry> all_;
};

// ---- Implementation ----

inline void metrics_snapshot::merge(const metrics_snapshot& other) {
  for (auto count :
       {&metrics_snapshot::samples, &metrics_snapshot::succeeded, &metrics_snapshot::failed,
        &metrics_snapshot::not_started, &metrics_snapshot::attempts, &metrics_snapshot::retries,
        &metrics_snapshot::hedges, &metrics_snapshot::late, &metrics_snapshot::taken, &metrics_snapshot::at_limit,
        &metrics_snapshot::straight, &metrics_snapshot::batches, &metrics_snapshot::active_batches,
        &metrics_snapshot::hook_failures, &metrics_snapshot::in_flight}) {
    this->*count += other.*count;
  }
  for (auto time : {&metrics_snapshot::elapsed, &metrics_snapshot::running, &metrics_snapshot::waited_for_input,
                    &metrics_snapshot::waited_for_permits, &metrics_snapshot::waited_for_rate,
                    &metrics_snapshot::backed_off, &metrics_snapshot::waited_for_turn,
                    &metrics_snapshot::waited_for_consumer, &metrics_snapshot::consumer_behind}) {
    this->*time = detail::saturating_sum(this->*time, other.*time);
  }
  for (std::size_t i = 0; i < outcomes.size(); ++i) outcomes[i] += other.outcomes[i];
  for (std::size_t i = 0; i < load.size(); ++i) {
    load[i].count += other.load[i].count;
    load[i].in_flight += other.load[i].in_flight;
    load[i].latency += other.load[i].latency;
    load[i].squared_latency += other.load[i].squared_latency;
  }
  threads = std::max(threads, other.threads);
  peak_in_flight = std::max(peak_in_flight, other.peak_in_flight);
  window = other.window;
  limit = other.limit;
  latency.merge(other.latency);
}

inline auto metrics_snapshot::latency_growth() const noexcept -> growth {
  constexpr std::uint64_t enough = 3;
  std::uint64_t all = 0;
  for (const load_level& each : load) all += each.count;
  const load_level* many = nullptr;  // the highest level at which a good part of the work is done
  for (const load_level& each : load) {
    if (each.count >= enough && each.count * 10 >= all) many = &each;
  }
  if (!many) return {};
  const auto mean = [](const load_level& level, double sum) { return sum / static_cast<double>(level.count); };
  const double most = mean(*many, many->in_flight);
  const double slow = mean(*many, many->latency);
  const double spread = std::sqrt(std::max(0.0, mean(*many, many->squared_latency) - slow * slow));
  growth steepest;
  double exponent = 0.6;
  for (const load_level& few : load) {
    if (&few == many) break;
    if (few.count < enough || mean(few, few.in_flight) * 1.5 > most || few.latency <= 0) continue;
    const double fast = mean(few, few.latency);
    if (slow - fast <= 3 * spread / std::sqrt(static_cast<double>(few.count))) continue;
    const double found = std::log(slow / fast) / std::log(most / mean(few, few.in_flight));
    if (found >= exponent) {
      exponent = found;
      steepest = {&few, many};
    }
  }
  return steepest;
}

inline std::uint64_t metrics_snapshot::broken() const noexcept {
  std::uint64_t others = 0;
  for (const errc code : {errc::cancelled, errc::not_started, errc::deadline_exceeded, errc::queue_timed_out,
                          errc::input_failed, errc::executor_stopped, errc::closed}) {
    others += failed_with(code);
  }
  return failed - std::min(failed, others);
}

inline bottleneck metrics_snapshot::slowed_by() const noexcept {
  constexpr double most_of_the_time = 0.6;
  if (attempts == 0 || elapsed.count() <= 0) return bottleneck::nothing;
  const bool growing = latency_growth().few != nullptr;
  if (broken() != 0 && broken() * 2 >= samples) {
    return growing && failed_with(errc::timed_out) * 2 >= broken() ? bottleneck::server : bottleneck::failures;
  }
  // Where attempts start in waves, the first of each find few others in flight: then the average tells.
  const double used = limited() ? mean_in_flight() / static_cast<double>(std::max<std::size_t>(limit, 1)) : 1;
  const bool full = (at_limit * 2 >= attempts && used >= 0.5) || (limited() && used >= 0.8);
  if (share(waited_for_consumer) >= 1 && share(consumer_behind) >= 0.5 && !full) return bottleneck::consumer;
  if (std::max(share(waited_for_input), share(waited_for_rate)) >= most_of_the_time) {
    return waited_for_input > waited_for_rate ? bottleneck::input : bottleneck::rate;
  }
  if (straight * 10 >= attempts * 9 && attempts >= 2 * threads && peak_in_flight <= threads && threads < limit &&
      mean_in_flight() >= most_of_the_time * static_cast<double>(threads)) {
    return bottleneck::blocking;
  }
  if (growing) return bottleneck::server;
  if (!full && share(backed_off) >= most_of_the_time && (backed_off > running || share(waited_for_turn) >= 1)) {
    return bottleneck::backoff;
  }
  if (full || share(waited_for_permits) >= most_of_the_time) return bottleneck::limit;
  if (share(waited_for_turn) > 0) {
    const double held = share(detail::saturating_sum(detail::saturating_sum(running, waited_for_turn), backed_off));
    if (window != 0 ? held >= 0.9 * static_cast<double>(window)
                    : limited() && std::abs(held - static_cast<double>(limit)) <= 0.1 * static_cast<double>(limit)) {
      return bottleneck::window;
    }
  }
  return bottleneck::nothing;
}

inline std::string metrics_snapshot::advice() const {
  detail::text out;
  const auto percent = [&](double value) -> detail::text& { return out.fixed(100 * value, 0).add(" %"); };
  const auto share_of = [](std::uint64_t part, std::uint64_t all) {
    return all == 0 ? 0.0 : static_cast<double>(part) / static_cast<double>(all);
  };
  switch (slowed_by()) {
    case bottleneck::nothing:
      out.add("nothing that is sure: on average ").fixed(mean_in_flight(), 1).add(" are in flight");
      if (limited()) out.add(" of ", limit);
      out.add(", and nothing that was seen holds them up most of the time");
      break;
    case bottleneck::failures:
      out.add("predict fails: ", broken(), " of ", samples, " samples came to no value in ", attempts, " attempts");
      if (retries != 0) {
        out.add(", after ").duration(backed_off / static_cast<std::int64_t>(retries)).add(" of backoff each time");
      }
      out.add("; mend that first, what else is seen may come from it");
      break;
    case bottleneck::backoff:
      out.add("the backoff: after ", retries, " of ", attempts, " attempts a sample slept, for ");
      out.duration(backed_off / static_cast<std::int64_t>(std::max<std::uint64_t>(retries, 1)));
      out.add(" on average, and ").fixed(mean_in_flight(), 1).add(" were in flight");
      if (share(waited_for_turn) >= 1) {
        out.add(", and ").fixed(share(waited_for_turn), 1).add(" finished ones waited for an earlier one");
      }
      out.add("; see why predict fails, or lower .retry's backoff");
      break;
    case bottleneck::blocking:
      out.add("predict does not suspend: the executor has ", threads, threads == 1 ? " thread" : " threads");
      out.add(", and on average ").fixed(mean_in_flight(), 1).add(" are in flight");
      if (limited()) out.add(" of ", limit);
      out.add("; co_await what it waits for; where it computes, have as many threads as there are cores");
      break;
    case bottleneck::input:
      out.add("the input: ");
      percent(share(waited_for_input))
          .add(" of the time was spent waiting for the next sample; read ahead, or read faster");
      break;
    case bottleneck::consumer:
      out.add("the consumer of the stream: on average ").fixed(share(waited_for_consumer), 1);
      out.add(" results lay ready, and ")
          .fixed(mean_in_flight(), 1)
          .add(" samples were in flight; take results faster");
      break;
    case bottleneck::rate:
      out.add("the rate limiter: ");
      percent(share(waited_for_rate)).add(" of the time a sample waited for it, at ");
      out.fixed(per_second(static_cast<double>(attempts)), 1).add(" attempts a second; ask for a higher rate");
      break;
    case bottleneck::server: {
      const growth found = latency_growth();
      const auto line = [&](const load_level& level) {
        const auto count = static_cast<double>(level.count);
        out.fixed(level.in_flight / count, 0).add(" in flight an attempt takes ");
        out.duration(detail::saturating_nanoseconds(level.latency / count));
      };
      out.add("what predict calls: with ");
      line(*found.few);
      out.add(", with ");
      line(*found.many);
      out.add("; a lower limit gets as much done. find_limit() tells which");
      break;
    }
    case bottleneck::limit:
      out.add("the limit: ");
      percent(share_of(at_limit, attempts)).add(" of the attempts started with at least 90 % of ");
      if (limited()) {
        out.add(limit);
      } else {
        out.add("it");
      }
      out.add(" in flight");
      if (waited_for_permits.count() > 0) {
        out.add(", ");
        percent(share(waited_for_permits)).add(" of the time a sample waited for a permit");
      }
      out.add("; raise it, find_limit() tells how far");
      break;
    case bottleneck::window:
      out.add("the window of the ordered stream: on average ").fixed(mean_in_flight(), 1).add(" are in flight, and ");
      out.fixed(share(waited_for_turn), 1)
          .add(" have finished and wait for an earlier one; raise .window, or take results as they come");
      break;
  }
  return out.str();
}

inline std::uint64_t metrics_snapshot::other_outcomes() const noexcept {
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i < outcomes.size(); ++i) {
    if (name_of(static_cast<errc>(i)) == foreign) sum += outcomes[i];
  }
  return sum;
}

template <class Tell>
void metrics_snapshot::each_outcome(Tell tell) const {
  for (std::size_t i = 0; i < outcomes.size(); ++i) {
    const std::string_view name = name_of(static_cast<errc>(i));
    if (name != foreign) tell(name, outcomes[i]);
  }
  if (const std::uint64_t count = other_outcomes()) tell(foreign, count);
}

inline void metrics_snapshot::write_prometheus(std::ostream& os, std::string_view prefix,
                                               std::span<const metric_label> labels) const {
  prometheus_writer(prefix).add(*this, labels).write(os);
}

inline prometheus_writer& prometheus_writer::add(metrics_snapshot metrics, std::span<const metric_label> labels) {
  detail::prometheus_labels made;
  for (const metric_label& each : labels) made.add(each.name, each.value);
  for (const entry& each : all_) {
    if (each.labels.str() == made.str()) {
      detail::throw_or_fail<std::invalid_argument>(
          ("cobatch: two metrics in one exposition have the labels {" + made.str() + "}").c_str());
    }
  }
  all_.push_back({std::move(metrics), std::move(made)});
  return *this;
}

inline void prometheus_writer::write(std::ostream& os) const {
  using namespace std::chrono_literals;
  detail::prometheus_text out(prefix_);
  const auto family = [&](std::string_view name, std::string_view type, std::string_view help, auto write_one) {
    out.family(name, type, help);
    for (const entry& each : all_) {
      write_one(each.metrics, [&](std::string_view what, auto number, const std::string& own_label = {}) {
        out.value(what, each.labels, number, own_label);
      });
    }
  };
  const auto one = [&](std::string_view name, std::string_view type, std::string_view help, auto number) {
    family(name, type, help, [&](const metrics_snapshot& of, auto value) { value(name, number(of)); });
  };
  const auto counted = [&](std::string_view name, std::string_view type, std::string_view help,
                           std::uint64_t metrics_snapshot::*count) {
    one(name, type, help, [&](const metrics_snapshot& of) { return of.*count; });
  };
  const auto seconds = [](std::chrono::nanoseconds time) { return static_cast<double>(time.count()) / 1e9; };
  const auto label = detail::prometheus_labels::one;
  using m = metrics_snapshot;

  family("samples_total", "counter", "Samples with a final outcome.", [&](const m& of, auto value) {
    of.each_outcome([&](std::string_view outcome, std::uint64_t count) {
      value("samples_total", count, label("outcome", outcome));
    });
  });
  counted("samples_not_started_total", "counter", "Samples of batches that stopped before their turn.",
          &m::not_started);
  counted("attempts_total", "counter", "Calls of predict that have started.", &m::attempts);
  counted("retries_total", "counter", "How often a sample was to be tried again.", &m::retries);
  counted("hedges_total", "counter", "Attempts that doubled another one.", &m::hedges);
  counted("late_attempts_total", "counter", "Attempts that ended after their timeout.", &m::late);
  counted("results_taken_total", "counter", "Results taken from streams.", &m::taken);
  counted("batches_total", "counter", "Batches that have begun.", &m::batches);
  counted("hook_failures_total", "counter", "Exceptions that left observers.", &m::hook_failures);
  counted("batches_active", "gauge", "Batches that have begun and not ended.", &m::active_batches);
  counted("in_flight", "gauge", "Attempts that have started and not ended.", &m::in_flight);
  one("limit", "gauge", "How many samples may be in flight.", [](const m& of) {
    return of.limited() ? static_cast<double>(of.limit) : std::numeric_limits<double>::infinity();
  });

  family("wait_seconds_total", "counter", "Time that samples spent waiting, added up.", [&](const m& of, auto value) {
    for (const auto& [what, time] :
         {std::pair("input", of.waited_for_input), std::pair("permits", of.waited_for_permits),
          std::pair("rate", of.waited_for_rate), std::pair("backoff", of.backed_off),
          std::pair("turn", of.waited_for_turn), std::pair("consumer", of.waited_for_consumer)}) {
      value("wait_seconds_total", seconds(time), label("for", what));
    }
  });

  constexpr std::array<std::chrono::nanoseconds, 24> bounds{10us,   25us, 50us, 100us, 250us, 500us, 1ms,   2500us,
                                                            5ms,    10ms, 25ms, 50ms,  100ms, 250ms, 500ms, 1s,
                                                            2500ms, 5s,   10s,  25s,   50s,   100s,  250s,  500s};
  family("attempt_duration_seconds", "histogram", "How long attempts took, whatever they came to.",
         [&](const m& of, auto value) {
           for (const std::chrono::nanoseconds bound : bounds) {
             const std::string at = detail::text().add(seconds(bound)).str();
             value("attempt_duration_seconds_bucket", of.latency.count_up_to(bound), label("le", at));
           }
           value("attempt_duration_seconds_bucket", of.latency.count(), label("le", "+Inf"));
           value("attempt_duration_seconds_sum", of.latency.sum() / 1e9);
           value("attempt_duration_seconds_count", of.latency.count());
         });
  os << out.str();
}

inline void metrics_snapshot::write_json(std::ostream& os) const {
  detail::text out;
  const auto seconds = [](auto time) { return static_cast<double>(time.count()) / 1e9; };
  out.add("{\"samples\":", samples, ",\"succeeded\":", succeeded, ",\"failed\":", failed, ",\"failed_by\":{");
  const char* comma = "";
  each_outcome([&](std::string_view name, std::uint64_t count) {
    if (name != name_of(errc{}) && count != 0) out.add(std::exchange(comma, ",")).json(name).add(":", count);
  });
  out.add("},\"not_started\":", not_started, ",\"attempts\":", attempts, ",\"retries\":", retries,
          ",\"hedges\":", hedges, ",\"late\":", late, ",\"taken\":", taken, ",\"batches\":", batches,
          ",\"active_batches\":", active_batches, ",\"hook_failures\":", hook_failures, ",\"in_flight\":", in_flight,
          ",\"limit\":");
  if (limited()) {
    out.add(limit);
  } else {
    out.add("null");
  }
  out.add(",\"elapsed\":", seconds(elapsed), ",\"throughput\":", throughput(),
          ",\"latency\":{\"count\":", latency.count(), ",\"mean\":", seconds(latency.mean()),
          ",\"min\":", seconds(latency.min()), ",\"p50\":", seconds(latency.quantile(0.5)),
          ",\"p90\":", seconds(latency.quantile(0.9)), ",\"p99\":", seconds(latency.quantile(0.99)),
          ",\"p999\":", seconds(latency.quantile(0.999)), ",\"max\":", seconds(latency.max()),
          "},\"waited\":{\"input\":", seconds(waited_for_input), ",\"permits\":", seconds(waited_for_permits),
          ",\"rate\":", seconds(waited_for_rate), ",\"backoff\":", seconds(backed_off),
          ",\"turn\":", seconds(waited_for_turn), ",\"consumer\":", seconds(waited_for_consumer), "},\"advice\":");
  out.json(advice()).add("}\n");
  os << out.str();
}

inline void metrics_snapshot::write_summary(std::ostream& os) const {
  constexpr std::size_t tab = 12;
  detail::text out;
  out.add("samples")
      .column(tab)
      .add(samples, " in ")
      .duration(elapsed)
      .add(", ")
      .fixed(throughput(), throughput() < 100 ? 1 : 0);
  out.add(" a second: ", succeeded, " succeeded, ", failed, " failed");
  if (not_started != 0) out.add(", ", not_started, " not started");
  out.add("\n");
  if (failed != 0) {
    out.add("failures").column(tab);
    const char* comma = "";
    each_outcome([&](std::string_view name, std::uint64_t count) {
      if (name != name_of(errc{}) && count != 0) out.add(std::exchange(comma, ", "), count, " ", name);
    });
    out.add("\n");
  }
  out.add("attempts").column(tab).add(attempts, ": ", retries, " retries, ", hedges, " hedges, ", late, " late\n");
  out.add("in flight").column(tab).add(in_flight, " now, ").fixed(mean_in_flight(), 1).add(" on average, limit ");
  if (limited()) {
    out.add(limit, "\n");
  } else {
    out.add("none\n");
  }
  out.add("latency")
      .column(tab)
      .add("p50 ")
      .duration(latency.quantile(0.5))
      .add("  p90 ")
      .duration(latency.quantile(0.9));
  out.add("  p99 ").duration(latency.quantile(0.99)).add("  p99.9 ").duration(latency.quantile(0.999));
  out.add("  max ").duration(latency.max()).add("\n");
  out.add("waited for").column(tab);
  const char* comma = "";
  const auto wait = [&](std::string_view what, std::chrono::nanoseconds time, std::uint64_t count) {
    if (time.count() <= 0 || count == 0) return;
    out.add(std::exchange(comma, ", "), what, " ").duration(time / static_cast<std::int64_t>(count));
  };
  wait("input", waited_for_input, attempts);
  wait("permits", waited_for_permits, attempts);
  wait("rate", waited_for_rate, attempts);
  wait("backoff", backed_off, retries);
  wait("turn", waited_for_turn, taken);
  wait("consumer", waited_for_consumer, taken);
  out.add(*comma == '\0' ? "nothing\n" : " on average\n");
  const std::string all = advice();
  const std::size_t why = std::min(all.find("; "), all.size());
  out.add("slowed by").column(tab).add(all.substr(0, why), "\n");
  if (why != all.size()) out.repeat(tab, ' ').add(all.substr(why + 2), "\n");
  os << out.str();
}

}  // namespace cobatch
