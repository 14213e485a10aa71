#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <memory>
#include <optional>
#include <ranges>
#include <stop_token>
#include <type_traits>
#include <utility>

#include <cobatch/detail/atomic.hpp>
#include <cobatch/detail/awaitable.hpp>
#include <cobatch/detail/cache_line.hpp>
#include <cobatch/detail/config.hpp>
#include <cobatch/detail/turn_taking.hpp>
#include <cobatch/engine/shelves.hpp>

/// Where samples come from. All kinds hand out sample numbers in input order, in portions.

namespace cobatch::inline COBATCH_ABI::detail {

/// Several threads may read different elements at once: the elements exist, reading one runs no code of the user's.
template <class View>
concept indexable = std::ranges::random_access_range<View> && std::ranges::sized_range<View> &&
                    std::is_lvalue_reference_v<std::ranges::range_reference_t<View>>;

/// The elements belong to the batch: the range was moved in.
template <class View>
inline constexpr bool owns_elements = false;
template <class Range>
inline constexpr bool owns_elements<std::ranges::owning_view<Range>> = true;

/// What came of asking for samples.
enum class claim : unsigned char {
  taken,      ///< there is at least one
  exhausted,  ///< nobody will ever get another one
  elsewhere,  ///< somebody else is reading, and will start a worker
  no_room,    ///< its outcome would have no place just now
};

/// A sample that does not lie in the caller's range, with its place in the results. Kept is what is kept of it.
template <class Kept, class Result>
struct sample_item {
  std::optional<Kept> sample;
  Result* slot = nullptr;
  std::size_t index = 0;
  std::chrono::nanoseconds waited{};  // for the input; only with an observer
  sample_item* next = nullptr;
};

/// Items that one worker has read and not yet started, the oldest first.
template <class Item>
class item_portion {
 public:
  using item_type = Item;

  bool empty() const noexcept { return first_ == nullptr; }
  std::size_t size() const noexcept { return size_; }
  Item& first() noexcept { return *first_; }
  void push(Item& item) noexcept {
    item.next = nullptr;
    (last_ ? last_->next : first_) = &item;
    last_ = &item;
    ++size_;
  }
  Item& pop() noexcept {
    Item& popped = *first_;
    first_ = static_cast<Item*>(popped.next);
    if (!first_) last_ = nullptr;
    --size_;
    return popped;
  }
  /// The later half.
  item_portion split() noexcept {
    item_portion early, late;
    for (std::size_t keep = size_ - size_ / 2; keep > 0; --keep) early.push(pop());
    late = std::exchange(*this, early);
    return late;
  }

 private:
  Item* first_ = nullptr;
  Item* last_ = nullptr;
  std::size_t size_ = 0;
};

/// Samples with numbers, claimed in ranges from one counter.
template <class View>
class indexed_source {
 public:
  static constexpr bool indexed = true;
  static constexpr bool owned = owns_elements<View>;
  static constexpr bool awaited = false;
  using reference = std::ranges::range_reference_t<View>;
  template <class>
  struct item_for {
    struct item {};
    using portion = index_range;
  };

  explicit indexed_source(View&& samples)
      : samples_(std::move(samples)),
        begin_(std::ranges::begin(samples_)),
        size_(static_cast<std::size_t>(std::ranges::size(samples_))) {}
  indexed_source(const indexed_source&) = delete;
  indexed_source& operator=(const indexed_source&) = delete;

  std::optional<std::size_t> size_hint() const noexcept { return size_; }

  template <class Item>
  reference get(Item*, std::size_t index) const {
    return begin_[static_cast<std::ranges::range_difference_t<View>>(index)];
  }

  /// At most `most` numbers, and at most half of what is left for each of `sharers`; empty: nobody will get any more.
  index_range claim_range(std::size_t most, std::size_t sharers) noexcept {
    const std::size_t seen = next_.load(std::memory_order_relaxed);
    if (seen >= size_) return {};
    const std::size_t share = sharers == 1 ? size_ - seen : (size_ - seen) / (2 * sharers);
    const std::size_t count = std::clamp<std::size_t>(std::min(most, share), 1, shelves::most);
    // Numbers are all that is handed over: relaxed. It runs past the end by no more than one claim for each thread.
    const std::size_t begin = next_.fetch_add(count, std::memory_order_relaxed);
    return begin >= size_ ? index_range{} : index_range{begin, std::min(begin + count, size_)};
  }

  bool exhausted() const noexcept { return next_.load(std::memory_order_relaxed) >= size_; }
  /// Alone: how many have been handed out.
  std::size_t handed_out() const noexcept { return std::min(next_.load(std::memory_order_relaxed), size_); }

 private:
  View samples_;
  std::ranges::iterator_t<View> begin_;
  std::size_t size_;
  line_gap gap_;                      // what comes before is only read
  atomic<std::size_t> next_{0};  // written by who claims, which is once in 50 microseconds or so
};

/// Samples that can only be read one after another, by whichever worker comes first: single-pass, lazy, of unknown
/// length, or made by the user's own iterators. Reading is exclusive but under no lock, for it runs the user's code.
template <class View>
class pulled_source {
  using iterator = std::ranges::iterator_t<View>;
  using iterator_reference = std::ranges::range_reference_t<View>;
  using value_type = std::ranges::range_value_t<View>;
  // An lvalue of a multi-pass range stays where it is. A temporary is kept, and so is the element of a single-pass
  // range, whose iterator may overwrite it.
  static constexpr bool in_place = std::ranges::forward_range<View> && std::is_lvalue_reference_v<iterator_reference>;
  using kept = std::conditional_t<in_place, std::remove_reference_t<iterator_reference>*,
                                  std::conditional_t<std::is_reference_v<iterator_reference>, value_type,
                                                     std::remove_cv_t<iterator_reference>>>;

 public:
  static constexpr bool indexed = false;
  static constexpr bool owned = !in_place || owns_elements<View>;
  static constexpr bool awaited = false;
  using reference = std::conditional_t<in_place, iterator_reference, kept&>;
  template <class Result>
  struct item_for {
    using item = sample_item<kept, Result>;
    using portion = item_portion<item>;
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

  template <class Item>
  reference get(Item* from, std::size_t) const noexcept {
    if constexpr (in_place) {
      return **from->sample;
    } else {
      return *from->sample;
    }
  }

  turn_taking& turn() noexcept { return turn_; }

  /// In the reader's turn: up to `most` samples, as far as the sink has room. `failed(item)`, inside the handler of
  /// what the input threw, has room as well.
  template <class Portion, class Sink, class Failed>
  claim pull(Portion& to, std::size_t most, Sink& sink, Failed&& failed) {
    claim answer = claim::exhausted;
    while (most-- > 0 && !exhausted_.load(std::memory_order_relaxed)) {
      auto* const item = sink.template reserve<typename Portion::item_type>();
      if (!item) {
        if (!sink.can_go_on()) end();
        answer = claim::no_room;
        break;
      }
      item->index = count_;
      bool ours = true;
      const bool read = guarded(
          [&] {
            if (!position_) {
              position_.emplace(std::ranges::begin(samples_));
            } else {
              ++*position_;
            }
            if (*position_ == std::ranges::end(samples_)) {
              end();
              return false;
            }
            if constexpr (in_place) {
              item->sample.emplace(std::addressof(**position_));
            } else if constexpr (std::is_lvalue_reference_v<iterator_reference> &&
                                 !std::is_constructible_v<kept, iterator_reference>) {
              item->sample.emplace(std::ranges::iter_move(*position_));
            } else {
              item->sample.emplace(**position_);
            }
            return true;
          },
          [&] {
            end();
            item->sample.reset();  // the item may have been used before
            if (sink.place(*item)) {
              ours = false;
              ++count_;
              failed(*item);
            }
            return false;
          });
      if (!read || !sink.place(*item)) {
        end();
        if (ours) sink.unreserve(*item);
        break;
      }
      ++count_;
      to.push(*item);
    }
    return to.empty() ? (exhausted() ? claim::exhausted : answer) : claim::taken;
  }

  /// Alone: how many have been read, the one that could not be read among them.
  std::size_t handed_out() const noexcept { return count_; }
  bool exhausted() const noexcept { return exhausted_.load(); }

 private:
  void end() noexcept { exhausted_.store(true); }

  View samples_;
  std::optional<iterator> position_;  // of who has the turn, like count_
  std::size_t count_ = 0;
  turn_taking turn_;
  atomic<bool> exhausted_{false};  // written by a reader; whoever sees it true need not read any more
};

/// Samples that come one after another from `co_await source.next()`, which gives an optional: empty at the end.
/// input_reader awaits it.
template <class Source>
class awaited_source {
  template <class S>
  static constexpr bool takes_token = requires(S& source, std::stop_token stop) {
    { source.next(std::move(stop)) } -> awaitable;
  };

 public:
  static constexpr bool stoppable = takes_token<std::remove_reference_t<Source>>;

 private:
  static decltype(auto) call(std::remove_reference_t<Source>& source, [[maybe_unused]] const std::stop_token& stop) {
    if constexpr (stoppable) {
      return source.next(stop);
    } else {
      return source.next();
    }
  }

 public:
  using awaitable_type = decltype(call(std::declval<std::remove_reference_t<Source>&>(),
                                       std::declval<const std::stop_token&>()));
  using sample_type = std::remove_cvref_t<decltype(*std::declval<await_result<awaitable_type>>())>;

  static constexpr bool indexed = false;
  static constexpr bool owned = true;
  static constexpr bool awaited = true;
  using reference = sample_type&;
  template <class Result>
  struct item_for {
    using item = sample_item<sample_type, Result>;
    using portion = item_portion<item>;
  };

  explicit awaited_source(Source&& source) : source_(std::forward<Source>(source)) {}
  awaited_source(const awaited_source&) = delete;
  awaited_source& operator=(const awaited_source&) = delete;

  std::optional<std::size_t> size_hint() const noexcept { return std::nullopt; }

  awaitable_type next(const std::stop_token& stop) { return call(source_, stop); }

  template <class Item>
  reference get(Item* from, std::size_t) const noexcept {
    return *from->sample;
  }

  turn_taking& turn() noexcept { return turn_; }
  std::size_t count() noexcept { return count_++; }
  bool exhausted() const noexcept { return exhausted_.load(); }
  void end() noexcept { exhausted_.store(true); }

 private:
  Source source_;  // an lvalue is referred to
  std::size_t count_ = 0;  // of who has the turn
  turn_taking turn_;
  atomic<bool> exhausted_{false};  // as in pulled_source
};

}  // namespace cobatch::detail
