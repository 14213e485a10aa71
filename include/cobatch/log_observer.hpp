#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <iosfwd>
#include <limits>
#include <ostream>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>

#include <cobatch/detail/abi.hpp>
#include <cobatch/detail/atomic.hpp>
#include <cobatch/detail/mutex.hpp>
#include <cobatch/detail/text.hpp>
#include <cobatch/error.hpp>
#include <cobatch/metrics_snapshot.hpp>
#include <cobatch/observer.hpp>

namespace cobatch::inline COBATCH_ABI {

/// How much an event matters.
enum class log_level : std::uint8_t {
  debug,    ///< each attempt and each wait
  info,     ///< a batch begins or ends
  warning,  ///< a sample is tried again, or is late
  error,    ///< a sample has failed
};

/// "debug", "info", "warning" or "error".
constexpr std::string_view name_of(log_level level) noexcept {
  constexpr std::array<std::string_view, 4> names{"debug", "info", "warning", "error"};
  return names[static_cast<std::size_t>(level)];
}

/// One thing that is known of an event. The texts are literals: they may be kept.
struct log_field {
  std::string_view name;
  std::variant<std::uint64_t, std::chrono::nanoseconds, std::string_view> value;
};

/// What a log_observer tells of, and how often.
struct log_options {
  log_level least = log_level::info;
  /// Events a second on average, batches' beginnings and ends apart; the rest is counted only. 0: none after the burst.
  double per_second = 20;
  double burst = 50;  ///< and so many at once
};

static_assert(std::is_trivially_copyable_v<log_options>);

/// Tells a logger of yours: `log_observer log([&](log_level level, std::string_view event, std::span<const log_field>
/// fields) { ... });`
///
/// Events are named as the hooks of batch_observer. What went beyond the rate is told as a field "suppressed" of the
/// next event that gets through.
/// Thread safety: the callback is called on the threads of the executor, concurrently, under no lock.
/// Errors: what the callback throws is swallowed and counted by the batch.
class log_observer : public batch_observer {
 public:
  using callback = std::function<void(log_level, std::string_view event, std::span<const log_field>)>;

  explicit log_observer(callback tell, const log_options& options = {})
      : tell_(std::move(tell)),
        least_(options.least),
        per_nanosecond_(options.per_second > 0 ? options.per_second / 1e9 : 0),
        slack_(std::max(0.0, options.burst - 1)) {}

  inline void batch_started(const batch_info& event) override;
  void wait_started(const wait_event& event) override { waits("wait_started", event); }
  void wait_ended(const wait_event& event) override { waits("wait_ended", event); }
  inline void attempt_started(const attempt_event& event) override;
  inline void attempt_ended(const attempt_event& event) override;
  inline void sample_retried(const retry_event& event) override;
  inline void sample_finished(const sample_event& event) override;
  inline void sample_taken(const sample_event& event) override;
  inline void batch_ended(const batch_summary& event) override;

 private:
  // Room for all fields of any event, on the stack.
  class fields {
   public:
    fields& add(std::string_view name, std::uint64_t value) { return put({name, value}); }
    fields& add(std::string_view name, std::chrono::nanoseconds value) { return put({name, value}); }
    fields& add(std::string_view name, std::string_view value) { return put({name, value}); }
    fields& add_if_known(std::string_view name, std::size_t value) {
      return value == std::numeric_limits<std::size_t>::max() ? *this : add(name, std::uint64_t{value});
    }
    fields& add_if_failed(errc failure) { return failure == errc{} ? *this : add("failure", name_of(failure)); }
    std::span<const log_field> all() const { return {all_.data(), count_}; }

   private:
    fields& put(const log_field& field) {
      if (count_ < all_.size()) all_[count_++] = field;
      return *this;
    }
    std::array<log_field, 12> all_;
    std::size_t count_ = 0;
  };

  bool wanted(log_level level) const noexcept { return level >= least_; }
  void waits(std::string_view name, const wait_event& event);
  void tell(log_level level, std::string_view event, fields& what, std::chrono::nanoseconds at);
  bool admits(std::chrono::nanoseconds at) noexcept;

  const callback tell_;
  const log_level least_;
  const double per_nanosecond_, slack_;
  // When the next event would be on time if all came evenly ("GCRA"), in the time in which one comes; changed by whoever
  // is let through. Orders nothing.
  detail::atomic<double> next_{-std::numeric_limits<double>::infinity()};
  detail::atomic<std::uint64_t> suppressed_{0};  // counts
};

/// A log_observer that writes lines: "[cobatch] 12.003451000 warning sample_retried batch=1 sample=17
/// failure=timed_out".
///
/// Lifetime: refers to the stream. Thread safety: lines of different threads come one after another.
class stream_log : public log_observer {
 public:
  explicit stream_log(std::ostream& os, const log_options& options = {})
      : log_observer([this](log_level level, std::string_view event,
                            std::span<const log_field> all) { write(level, event, all); },
                     options),
        os_(os) {}
  stream_log(const stream_log&) = delete;
  stream_log& operator=(const stream_log&) = delete;

 private:
  void write(log_level level, std::string_view event, std::span<const log_field> all);

  detail::mutex mutex_;  // guards os_
  std::ostream& os_;
};

// ---- Implementation ----

inline bool log_observer::admits(std::chrono::nanoseconds at) noexcept {
  const double now = static_cast<double>(at.count()) * per_nanosecond_;
  double due = next_.load(std::memory_order_relaxed);
  for (;;) {
    if (due > now && due - now > slack_) return false;
    if (next_.compare_exchange_weak(due, std::max(due, now) + 1, std::memory_order_relaxed)) return true;
  }
}

inline void log_observer::tell(log_level level, std::string_view event, fields& what, std::chrono::nanoseconds at) {
  if (level != log_level::info && !admits(at)) {
    suppressed_.fetch_add(1, std::memory_order_relaxed);
    return;
  }
  what.add("at", at);
  if (suppressed_.load(std::memory_order_relaxed) != 0) {
    if (const std::uint64_t count = suppressed_.exchange(0, std::memory_order_relaxed)) what.add("suppressed", count);
  }
  tell_(level, event, what.all());
}

inline void log_observer::batch_started(const batch_info& event) {
  if (!wanted(log_level::info)) return;
  fields what;
  what.add("batch", event.batch).add_if_known("samples", event.samples).add_if_known("limit", event.limit);
  tell(log_level::info, "batch_started", what, event.at);
}

inline void log_observer::waits(std::string_view name, const wait_event& event) {
  if (!wanted(log_level::debug)) return;
  constexpr std::array<std::string_view, 3> names{"input", "permits", "rate"};
  fields what;
  what.add("batch", event.batch).add_if_known("sample", event.index);
  what.add("for", names[static_cast<std::size_t>(event.what)]).add("waited", event.waited);
  tell(log_level::debug, name, what, event.at);
}

inline void log_observer::attempt_started(const attempt_event& event) {
  if (!wanted(log_level::debug)) return;
  fields what;
  what.add("batch", event.batch).add("sample", std::uint64_t{event.index}).add("attempt", std::uint64_t{event.attempt});
  what.add("in_flight", std::uint64_t{event.in_flight}).add_if_known("limit", event.limit);
  if (event.hedge) what.add("hedge", "yes");
  tell(log_level::debug, "attempt_started", what, event.at);
}

inline void log_observer::attempt_ended(const attempt_event& event) {
  const log_level level = event.late ? log_level::warning : log_level::debug;
  if (!wanted(level)) return;
  fields what;
  what.add("batch", event.batch).add("sample", std::uint64_t{event.index}).add("attempt", std::uint64_t{event.attempt});
  what.add("ran", event.ran).add_if_failed(event.failure);
  if (event.hedge) what.add("hedge", "yes");
  if (event.late) what.add("late", "yes");
  tell(level, "attempt_ended", what, event.at);
}

inline void log_observer::sample_retried(const retry_event& event) {
  if (!wanted(log_level::warning)) return;
  fields what;
  what.add("batch", event.batch)
      .add("sample", std::uint64_t{event.index})
      .add("attempts", std::uint64_t{event.attempts});
  what.add_if_failed(event.failure).add("delay", event.delay);
  tell(log_level::warning, "sample_retried", what, event.at);
}

inline void log_observer::sample_finished(const sample_event& event) {
  const log_level level = event.succeeded() ? log_level::debug : log_level::error;
  if (!wanted(level)) return;
  fields what;
  what.add("batch", event.batch)
      .add("sample", std::uint64_t{event.index})
      .add("attempts", std::uint64_t{event.attempts});
  what.add_if_failed(event.failure);
  tell(level, "sample_finished", what, event.at);
}

inline void log_observer::sample_taken(const sample_event& event) {
  if (!wanted(log_level::debug)) return;
  fields what;
  what.add("batch", event.batch).add("sample", std::uint64_t{event.index});
  what.add("waited_for_turn", event.waited_for_turn).add("waited_for_consumer", event.waited_for_consumer);
  tell(log_level::debug, "sample_taken", what, event.at);
}

inline void log_observer::batch_ended(const batch_summary& event) {
  if (!wanted(log_level::info)) return;
  fields what;
  what.add("batch", event.batch).add("finished", std::uint64_t{event.finished});
  what.add("not_started", std::uint64_t{event.not_started}).add("elapsed", event.elapsed);
  if (event.stopped != errc{}) what.add("stopped", name_of(event.stopped));
  if (event.hook_failures != 0) what.add("hook_failures", event.hook_failures);
  tell(log_level::info, "batch_ended", what, event.at);
}

inline void stream_log::write(log_level level, std::string_view event, std::span<const log_field> all) {
  detail::text line;
  line.add("[cobatch] ");
  for (const log_field& each : all) {
    if (each.name == "at") line.seconds(std::get<std::chrono::nanoseconds>(each.value)).add(" ");
  }
  line.add(name_of(level), " ", event);
  for (const log_field& each : all) {
    if (each.name == "at") continue;
    line.add(" ", each.name, "=");
    if (const auto* const number = std::get_if<std::uint64_t>(&each.value)) {
      line.add(*number);
    } else if (const auto* const time = std::get_if<std::chrono::nanoseconds>(&each.value)) {
      line.seconds(*time).add("s");
    } else if (const auto* const word = std::get_if<std::string_view>(&each.value)) {
      line.add(*word);
    }
  }
  line.add("\n");
  const std::lock_guard lock(mutex_);
  os_ << line.str();
}

}  // namespace cobatch
