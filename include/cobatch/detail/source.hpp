#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <iterator>
#include <memory>
#include <mutex>
#include <optional>
#include <ranges>
#include <type_traits>
#include <utility>
#include <vector>

#include <cobatch/detail/awaitable.hpp>
#include <cobatch/detail/brief_mutex.hpp>
#include <cobatch/detail/config.hpp>
#include <cobatch/detail/station.hpp>

/// Where samples come from. Both kinds hand out sample numbers in input order; see batch_engine.hpp for who calls what.

namespace cobatch::detail {

/// Several threads may read different elements at once: the elements exist, reading one runs no code of the user's.
template <class View>
concept indexable = std::ranges::random_access_range<View> && std::ranges::sized_range<View> &&
                    std::is_lvalue_reference_v<std::ranges::range_reference_t<View>>;

/// The elements belong to the batch: the range was moved in.
template <class View>
inline constexpr bool owns_elements = false;
template <class Range>
inline constexpr bool owns_elements<std::ranges::owning_view<Range>> = true;

/// Answers of a claim.
enum class claim : unsigned char {
  taken,      ///< a sample is ours
  exhausted,  ///< nobody will ever get another one
  elsewhere,  ///< what is left is in the hands of another station just now
  no_room,    ///< its outcome would have no place just now
};

/// Samples with numbers, claimed in chunks that shrink towards the end ("guided", Polychronopoulos and Kuck, 1987).
///
/// A chunk lives in its claimer's station; it is shared, given back or stolen when somebody else runs dry.
template <class View>
class indexed_source {
 public:
  static constexpr bool indexed = true;
  static constexpr bool owned = owns_elements<View>;
  using reference = std::ranges::range_reference_t<View>;
  struct cell {};

  explicit indexed_source(View&& samples)
      : samples_(std::move(samples)),
        begin_(std::ranges::begin(samples_)),
        size_(static_cast<std::size_t>(std::ranges::size(samples_))) {
    returned_.reserve(most_returned);
  }
  indexed_source(const indexed_source&) = delete;
  indexed_source& operator=(const indexed_source&) = delete;

  std::optional<std::size_t> size_hint() const noexcept { return size_; }

  reference get(cell&, std::size_t index) const {
    return begin_[static_cast<std::ranges::range_difference_t<View>>(index)];
  }

  /// A chunk that nobody has claimed yet, or one that was given back. `grow(end)` is told, under the lock, when the
  /// numbers below `end` have been handed out.
  template <class Grow>
  bool refill(index_range& range, std::size_t workers, Grow&& grow) {
    const std::lock_guard lock(mutex_);
    if (!returned_.empty()) {
      range = returned_.back();
      returned_.pop_back();
      return true;
    }
    if (next_ == size_) return false;
    const std::size_t left = size_ - next_;
    const std::size_t chunk =
        workers == 1 ? largest_chunk : std::clamp<std::size_t>(left / (4 * workers), 1, largest_chunk);
    range = {next_, next_ + std::min(chunk, left)};
    next_ = range.end;
    grow(range.end);
    return true;
  }

  /// Anybody may claim it now; false: too much lies here already, keep it.
  bool give_back(index_range range) {
    const std::lock_guard lock(mutex_);
    if (returned_.size() == returned_.capacity()) return false;
    returned_.push_back(range);
    return true;
  }

  /// Alone: how many have been handed out.
  std::size_t handed_out() const noexcept { return next_; }

  /// Alone: calls `visit(range)` for what was handed out and given back.
  template <class Visit>
  void each_returned(Visit&& visit) const {
    for (const index_range& range : returned_) visit(range);
  }

 private:
  static constexpr std::size_t largest_chunk = 256;
  static constexpr std::size_t most_returned = 64;

  View samples_;
  std::ranges::iterator_t<View> begin_;
  std::size_t size_;

  brief_mutex mutex_;  // guards next_ and returned_, and whatever grow() does
  std::size_t next_ = 0;
  std::vector<index_range> returned_;
};

/// Samples that can only be read one after another, by whichever pump comes first: single-pass, lazy, of unknown
/// length, or made by the user's own iterators. A sample is read when its lane is ready for it, never ahead.
///
/// Reading is exclusive but under no lock, for it runs the user's code: `reading_` is a flag that is tried, not waited
/// for. A pump that finds it taken answers `elsewhere` and leaves; the reader is told (station::wanted) and starts
/// another pump.
template <class View>
class pulled_source {
  using iterator = std::ranges::iterator_t<View>;
  using iterator_reference = std::ranges::range_reference_t<View>;
  using value_type = std::ranges::range_value_t<View>;
  // An lvalue of a multi-pass range stays where it is. A temporary is kept in the lane, and so is the element of a
  // single-pass range, whose iterator may overwrite it.
  static constexpr bool in_place = std::ranges::forward_range<View> && std::is_lvalue_reference_v<iterator_reference>;
  using kept = std::conditional_t<in_place, std::remove_reference_t<iterator_reference>*,
                                  std::conditional_t<std::is_reference_v<iterator_reference>, value_type,
                                                     std::remove_cv_t<iterator_reference>>>;

 public:
  static constexpr bool indexed = false;
  static constexpr bool owned = !in_place || owns_elements<View>;
  using reference = std::conditional_t<in_place, iterator_reference, kept&>;

  struct cell {
    std::optional<kept> sample;
  };

  explicit pulled_source(View&& samples) : samples_(std::move(samples)) {}
  pulled_source(const pulled_source&) = delete;
  pulled_source& operator=(const pulled_source&) = delete;

  std::optional<std::size_t> size_hint() {
    if constexpr (std::ranges::sized_range<View>) {
      return static_cast<std::size_t>(std::ranges::size(samples_));
    } else {
      return std::nullopt;
    }
  }

  reference get(cell& from, std::size_t) const noexcept {
    if constexpr (in_place) {
      return **from.sample;
    } else {
      return *from.sample;
    }
  }

  /// Reads one sample into `to`, if `reserve()` finds that there is room for it. `place(index)`, while reading is still
  /// exclusive, makes room for its result; where it answers false nothing more is read. `failed()`, inside the handler
  /// of what the input threw, has room as well.
  template <class Reserve, class Place, class Failed>
  claim pull(cell& to, Reserve&& reserve, Place&& place, Failed&& failed) {
    if (exhausted_.load(std::memory_order_acquire)) return claim::exhausted;
    while (reading_.exchange(true, std::memory_order_acquire)) {
      // Only looked at while it is taken: who reads must not have to fetch it back for each of our tries.
      for (int tries = 0; reading_.load(std::memory_order_relaxed);) {
        if (++tries == patience) return claim::elsewhere;
      }
    }
    claim answer = claim::exhausted;
    if (exhausted_.load(std::memory_order_relaxed)) {
      // somebody else has just seen the end
    } else if (!reserve()) {
      answer = claim::no_room;
    } else {
      answer = guarded(
          [&] {
            if (!position_) {
              position_.emplace(std::ranges::begin(samples_));
            } else {
              ++*position_;
            }
            if (*position_ == std::ranges::end(samples_)) {
              exhausted_.store(true, std::memory_order_release);
              return claim::exhausted;
            }
            if constexpr (in_place) {
              to.sample.emplace(std::addressof(**position_));
            } else if constexpr (std::is_lvalue_reference_v<iterator_reference> &&
                                 !std::is_constructible_v<kept, iterator_reference>) {
              to.sample.emplace(std::ranges::iter_move(*position_));
            } else {
              to.sample.emplace(**position_);
            }
            if (!place(count_)) {
              exhausted_.store(true, std::memory_order_release);
              return claim::exhausted;
            }
            ++count_;
            return claim::taken;
          },
          [&] {
            exhausted_.store(true, std::memory_order_release);
            if (place(count_)) {
              ++count_;
              failed();
            }
            return claim::exhausted;
          });
    }
    reading_.store(false, std::memory_order_release);
    return answer;
  }

  /// Alone: how many have been read, the one that could not be read among them.
  std::size_t handed_out() const noexcept { return count_; }

  bool exhausted() const noexcept { return exhausted_.load(std::memory_order_acquire); }

 private:
  static constexpr int patience = 20;  // looks: a read usually takes less than starting another pump

  View samples_;
  std::optional<iterator> position_;  // guarded by reading_, like count_
  std::size_t count_ = 0;
  std::atomic<bool> reading_{false};    // exchange (acquire) by a reader pairs with its predecessor's store (release)
  std::atomic<bool> exhausted_{false};  // written by a reader; whoever sees it true need not read any more
};

/// Samples that come one after another from `co_await source.next()`, which gives an optional: empty at the end.
///
/// One lane at a time awaits it (the one that holds the engine's turnstile), so nothing here is shared but the flag.
template <class Source>
class awaited_source {
 public:
  using awaitable_type = decltype(std::declval<Source&>().next());
  using sample_type = std::remove_cvref_t<decltype(*std::declval<await_result<awaitable_type>>())>;

  static constexpr bool indexed = false;
  static constexpr bool owned = true;
  using reference = sample_type&;

  struct cell {
    std::optional<sample_type> sample;
  };

  explicit awaited_source(Source&& source) : source_(std::forward<Source>(source)) {}
  awaited_source(const awaited_source&) = delete;
  awaited_source& operator=(const awaited_source&) = delete;

  awaitable_type next() { return source_.next(); }

  reference get(cell& from, std::size_t) const noexcept { return *from.sample; }

  std::size_t count() noexcept { return count_++; }
  bool exhausted() const noexcept { return exhausted_.load(std::memory_order_acquire); }
  void end() noexcept { exhausted_.store(true, std::memory_order_release); }

 private:
  Source source_;  // an lvalue is referred to
  std::size_t count_ = 0;
  std::atomic<bool> exhausted_{false};  // as in pulled_source
};

/// Whether samples of this source must be awaited.
template <class Source>
inline constexpr bool is_awaited = false;
template <class Source>
inline constexpr bool is_awaited<awaited_source<Source>> = true;

}  // namespace cobatch::detail
