#pragma once

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <limits>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>

#include <cobatch/detail/atomic.hpp>
#include <cobatch/detail/config.hpp>
#include <cobatch/detail/mutex.hpp>
#include <cobatch/detail/saturating.hpp>
#include <cobatch/detail/text.hpp>
#include <cobatch/observer.hpp>
#include <cobatch/option_types.hpp>

#if __has_include(<unistd.h>)
#include <unistd.h>
#endif
#if __has_include(<sys/ioctl.h>)
#include <sys/ioctl.h>
#endif

namespace cobatch::inline COBATCH_ABI {

/// Whether to draw over the last line, or to write plain ones.
enum class progress_style : std::uint8_t {
  automatic,  ///< draws where the stream is std::cerr or std::cout on a terminal, and TERM is neither empty nor "dumb"
  draws,
  lines,
};

/// How a progress_bar looks. A trivially copyable aggregate for designated initialisers.
struct progress_options {
  progress_style style = progress_style::automatic;
  std::size_t width = 0;  ///< columns; 0: COLUMNS, else those of the terminal, else 80, looked up at each drawing
  bool colour = true;     ///< where it draws; a non-empty NO_COLOR in the environment turns it off
  time_span redraw = std::chrono::milliseconds(100);  ///< least time between two drawings
  time_span next_line = std::chrono::seconds(10);     ///< least time between two plain lines
  std::chrono::nanoseconds (*clock)() = nullptr;                     ///< null: the steady clock
};

static_assert(std::is_trivially_copyable_v<progress_options>);

/// Shows how far batches have come:
///
///     412/1000 [===========>                ]  41 %  3 failed  812/s  0:00:07 left
///
/// Where there is not enough room the bar goes first; the rest is cut, so that a line never wraps.
/// Where the stream is no terminal, a plain line at most every ten seconds, and one at the end.
///
///     progress_bar bar(images.size());   ... {.observer = &bar}
///
/// It may see several batches, one after another or at once; `total` is that of all of them. Without a total, it is the
/// sum of what the batches know to have.
/// Thread safety: hooks on any thread; one of them draws, the others do not wait for it.
/// Lifetime: refers to the stream. The destructor ends a line that was left open.
/// Errors: a bad stream is ignored.
class progress_bar : public batch_observer {
 public:
  static constexpr std::size_t from_batches = 0;

  explicit progress_bar(std::size_t total = from_batches, std::ostream& os = std::cerr,
                        const progress_options& options = {})
      : total_(total),
        total_given_(total != from_batches),
        os_(os),
        set_(resolve(options, os)),
        began_(now()),
        drawn_(began_) {}
  progress_bar(const progress_bar&) = delete;
  progress_bar& operator=(const progress_bar&) = delete;
  ~progress_bar() override {
    detail::guarded([&] { end_line(); }, [] {});
  }

  /// Draws now, unless another thread does.
  void draw();

  inline void batch_started(const batch_info& event) override;
  inline void sample_finished(const sample_event& event) override;
  inline void batch_ended(const batch_summary&) override;

 private:
  static progress_options resolve(progress_options options, const std::ostream& os);
  static int terminal_of(const std::ostream& os);
  std::size_t width() const;
  static std::size_t cut(std::string& line, std::size_t most);
  std::chrono::nanoseconds now() const {
    if (set_.clock) return set_.clock();
    return std::chrono::steady_clock::now().time_since_epoch();
  }
  static double seconds_between(std::chrono::nanoseconds a, std::chrono::nanoseconds b) noexcept {
    return static_cast<double>(detail::saturating_difference(b, a).count()) / 1e9;
  }
  bool draws() const noexcept { return set_.style == progress_style::draws; }
  void draw_under_lock(std::chrono::nanoseconds at);
  void end_line();
  std::string line(std::chrono::nanoseconds at, std::size_t width) const;

  // Counts, ordering nothing: what is drawn may be a sample behind.
  detail::atomic<std::size_t> total_, done_{0}, failed_{0}, active_{0};
  const bool total_given_;
  std::ostream& os_;
  const progress_options set_;
  const std::chrono::nanoseconds began_;
  detail::atomic<std::int64_t> next_draw_{std::numeric_limits<std::int64_t>::min()};  // changed by whoever draws then

  detail::mutex mutex_;  // guards all below, and os_
  std::chrono::nanoseconds drawn_;
  std::size_t done_when_drawn_ = 0;
  double rate_ = 0;                                                // samples a second, lately
  std::size_t last_size_ = 0;                                      // columns of the line that is open; 0: none is
  std::size_t written_ = std::numeric_limits<std::size_t>::max();  // done, in the last plain line
};

// ---- Implementation ----

inline void progress_bar::batch_started(const batch_info& event) {
  active_.fetch_add(1, std::memory_order_relaxed);
  if (!total_given_ && event.samples != std::numeric_limits<std::size_t>::max()) {
    total_.fetch_add(event.samples, std::memory_order_relaxed);
  }
  // The first drawing is not for the first sample, which says nothing about the rate.
  std::int64_t none = std::numeric_limits<std::int64_t>::min();
  const std::chrono::nanoseconds pause = draws() ? set_.redraw : set_.next_line;
  next_draw_.compare_exchange_strong(none, detail::saturating_sum(now(), pause).count(), std::memory_order_relaxed);
}

inline void progress_bar::sample_finished(const sample_event& event) {
  if (!event.succeeded()) failed_.fetch_add(1, std::memory_order_relaxed);
  done_.fetch_add(1, std::memory_order_relaxed);
  const std::chrono::nanoseconds at = now();
  std::int64_t due = next_draw_.load(std::memory_order_relaxed);
  if (at.count() < due) return;
  const std::chrono::nanoseconds pause = draws() ? set_.redraw : set_.next_line;
  if (!next_draw_.compare_exchange_strong(due, detail::saturating_sum(at, pause).count(), std::memory_order_relaxed))
    return;
  const std::unique_lock lock(mutex_, std::try_to_lock);
  if (lock) draw_under_lock(at);
}

inline void progress_bar::batch_ended(const batch_summary&) {
  if (active_.fetch_sub(1, std::memory_order_relaxed) != 1) return;
  {
    const std::lock_guard lock(mutex_);
    draw_under_lock(now());
  }
  end_line();
}

inline void progress_bar::draw() {
  const std::unique_lock lock(mutex_, std::try_to_lock);
  if (lock) draw_under_lock(now());
}

inline void progress_bar::draw_under_lock(std::chrono::nanoseconds at) {
  const std::size_t done = done_.load(std::memory_order_relaxed);
  if (!draws() && written_ == done) return;
  // An average in which what is 5 s old counts a third; over the first seconds, the plain average.
  const double passed = seconds_between(drawn_, at);
  if (passed > 0) {
    const double lately = static_cast<double>(done - std::min(done, done_when_drawn_)) / passed;
    const double weight = std::max(1 - std::exp(-passed / 5), passed / std::max(passed, seconds_between(began_, at)));
    rate_ += weight * (lately - rate_);
    drawn_ = at;
    done_when_drawn_ = done;
  }
  const std::size_t columns = draws() ? width() : 0;
  std::string now_shown = line(at, columns);
  written_ = done;
  if (!draws()) {
    now_shown += '\n';
    os_ << now_shown << std::flush;
    return;
  }
  // The last column stays free: some terminals begin a new line there.
  const std::size_t size = cut(now_shown, columns - 1);
  const std::size_t to_cover = std::min(last_size_, columns - 1);  // of the longer line before
  if (size < to_cover) now_shown.append(to_cover - size, ' ');
  last_size_ = std::max<std::size_t>(size, 1);
  os_ << '\r' << now_shown << std::flush;
}

inline std::string progress_bar::line(std::chrono::nanoseconds at, std::size_t width) const {
  const std::size_t total = total_.load(std::memory_order_relaxed);
  const std::size_t failed = failed_.load(std::memory_order_relaxed);
  const std::size_t done = done_.load(std::memory_order_relaxed);
  const auto clock_time = [](detail::text& out, double seconds) {
    const auto whole = static_cast<std::uint64_t>(std::clamp(seconds, 0.0, 3.5e6));  // 999 h at most
    const auto two = [&](std::uint64_t value) { out.add(value < 10 ? ":0" : ":", value); };
    out.add(whole / 3600);
    two(whole / 60 % 60);
    two(whole % 60);
  };
  const double share = total == 0 ? 0 : std::min(1.0, static_cast<double>(done) / static_cast<double>(total));
  detail::text left, right;
  left.add(done);
  if (total != 0) {
    left.add("/", total);
    const std::string percent = detail::text().fixed(std::floor(100 * share), 0).str();
    right.repeat(percent.size() < 3 ? 4 - percent.size() : 1, ' ').add(percent, " %");
  }
  std::size_t invisible = 0;
  if (failed != 0) {
    const bool red = draws() && set_.colour;
    constexpr std::string_view on = "\x1b[31m", off = "\x1b[0m";
    right.add("  ", red ? on : "", failed, " failed", red ? off : "");
    if (red) invisible = on.size() + off.size();
  }
  right.add("  ").fixed(rate_, rate_ < 100 ? 1 : 0).add("/s  ");
  if (total != 0 && done < total) {
    if (rate_ > 0) {
      clock_time(right, std::ceil(static_cast<double>(total - done) / rate_));
      right.add(" left");
    } else {
      right.add("-:--:-- left");
    }
  } else {
    clock_time(right, seconds_between(began_, at));
  }
  if (draws() && total != 0) {
    const std::size_t used = left.str().size() + right.str().size() - invisible + 4;  // " [", "]" and the last column
    if (width >= used + 4) {
      const std::size_t room = std::min<std::size_t>(width - used, 60);
      const auto filled = static_cast<std::size_t>(share * static_cast<double>(room));
      left.add(" [").repeat(filled, '=');
      if (filled < room) left.add(">").repeat(room - filled - 1, ' ');
      left.add("]");
    }
  }
  return left.str() + right.str();
}

inline void progress_bar::end_line() {
  const std::lock_guard lock(mutex_);
  if (last_size_ == 0) return;
  last_size_ = 0;
  os_ << '\n' << std::flush;
}

/// Leaves so many columns of it at most, and all that sets colours. Returns how many it has.
inline std::size_t progress_bar::cut(std::string& line, std::size_t most) {
  std::string left;
  std::size_t columns = 0;
  bool escape = false;
  for (const char each : line) {
    escape = escape || each == '\x1b';
    if (escape || columns < most) left += each;
    if (!escape && columns < most) ++columns;
    if (each == 'm') escape = false;
  }
  line = std::move(left);
  return columns;
}

inline progress_options progress_bar::resolve(progress_options options, const std::ostream& os) {
  if (options.style == progress_style::automatic) {
    const char* const terminal = std::getenv("TERM");
    const bool dumb = terminal == nullptr || *terminal == '\0' || std::string_view(terminal) == "dumb";
    options.style = terminal_of(os) >= 0 && !dumb ? progress_style::draws : progress_style::lines;
  }
  const char* const no_colour = std::getenv("NO_COLOR");
  if (no_colour != nullptr && *no_colour != '\0') options.colour = false;
  return options;
}

/// At least 1.
inline std::size_t progress_bar::width() const {
  if (set_.width != 0) return set_.width;
  if (const char* const columns = std::getenv("COLUMNS")) {
    const std::string_view digits(columns);
    std::size_t width = 0;
    const auto parsed = std::from_chars(digits.data(), digits.data() + digits.size(), width);
    if (parsed.ec == std::errc() && parsed.ptr == digits.data() + digits.size() && width != 0) return width;
  }
#if __has_include(<unistd.h>) && defined(TIOCGWINSZ)
  winsize size{};
  if (const int file = terminal_of(os_); file >= 0 && ::ioctl(file, TIOCGWINSZ, &size) == 0 && size.ws_col != 0) {
    return size.ws_col;
  }
#endif
  return 80;
}

/// The file of a stream that is a terminal; -1: it is none, or that cannot be found out.
inline int progress_bar::terminal_of([[maybe_unused]] const std::ostream& os) {
#if __has_include(<unistd.h>)
  const int file = os.rdbuf() == std::cerr.rdbuf()   ? STDERR_FILENO
                   : os.rdbuf() == std::cout.rdbuf() ? STDOUT_FILENO
                                                     : -1;
  return file >= 0 && ::isatty(file) != 0 ? file : -1;
#else
  return -1;
#endif
}

}  // namespace cobatch
