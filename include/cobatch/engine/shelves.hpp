#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>

#include <cobatch/detail/abi.hpp>
#include <cobatch/detail/as_size.hpp>
#include <cobatch/detail/atomic.hpp>
#include <cobatch/detail/cache_line.hpp>

namespace cobatch::inline COBATCH_ABI::detail {

/// Sample numbers [begin, end).
struct index_range {
  std::size_t begin = 0;
  std::size_t end = 0;

  std::size_t size() const noexcept { return end - begin; }
  bool empty() const noexcept { return begin == end; }

  /// The later half, which is then another's.
  index_range split() noexcept {
    const index_range half{end - size() / 2, end};
    end = half.begin;
    return half;
  }
};

/// Ranges of sample numbers that lie ready for lanes that come back one by one, a shelf for each thread, so that they
/// need not all go to one shared counter. What lies on a shelf anybody may take.
///
/// A shelf is one atomic word:
///
///     empty ──reserve──> filling ──fill──> [begin, begin + n)     one thread at a time
///                        filling ──────────> empty                it has found nothing
///     [begin, begin + n) ──take──> [begin + 1, begin + n)         anybody
///     [begin, begin + n) ──steal──> [begin, begin + n - n / 2)    anybody; n = 1: empty
///
/// No number lies twice on any shelf, so a word that has come back means the same as before. All operations are
/// sequentially consistent: see head_count for who may rely on finding what lies here. How many shelves are not empty is
/// counted, so that who looks in vain need not look at each: up before a shelf is filled, down after it was emptied.
class shelves {
 public:
  /// There are at least one.
  explicit shelves(std::size_t count) : count_(std::max<std::size_t>(count, 1)), all_(new shelf[count_]) {}

  /// One number for the thread `place`, from its own shelf; if that is empty it is filled with what `more(most)` gives
  /// (a range, perhaps empty), or from another shelf. `now` is asked when it is filled: the share follows the pace.
  template <class More, class Now>
  bool take(std::size_t& index, std::size_t place, More&& more, Now&& now) {
    shelf& own = all_[place % count_];
    std::uint64_t seen = own.word.load();
    for (;;) {
      if (seen == filling) {
        index_range one = more(std::size_t{1});
        if (one.empty() && !steal(one, most_stolen_at_once)) return false;
        index = one.begin;
        return true;
      }
      if (seen == empty) {
        if (own.word.compare_exchange_weak(seen, filling)) break;
      } else if (own.word.compare_exchange_weak(seen, (seen & filling) == 1 ? empty : seen + one_later)) {
        if ((seen & filling) == 1) in_use_.fetch_sub(1);
        index = as_size(seen >> count_bits);
        return true;
      }
    }
    const std::chrono::nanoseconds time = now();
    own.follow_pace(time);
    index_range got = more(own.share);
    if (got.empty()) steal(got, most);
    if (got.empty()) {
      own.word.store(empty);
      return false;
    }
    index = got.begin++;
    if (!got.empty()) in_use_.fetch_add(1);
    own.word.store(pack(got));
    return true;
  }

  /// Half of what lies on some shelf, at most `limit` numbers; false: none was seen.
  bool steal(index_range& into, std::size_t limit = most) noexcept {
    if (!any()) return false;
    for (std::size_t i = 0; i < count_; ++i) {
      std::uint64_t seen = all_[i].word.load();
      while (seen != empty && seen != filling) {
        const std::uint64_t lies = seen & filling;
        const std::uint64_t taken = std::min<std::uint64_t>((lies + 1) / 2, limit);
        if (all_[i].word.compare_exchange_weak(seen, lies == taken ? empty : seen - taken)) {
          if (lies == taken) in_use_.fetch_sub(1);
          into.end = as_size((seen >> count_bits) + lies);
          into.begin = into.end - as_size(taken);
          return true;
        }
      }
    }
    return false;
  }

  /// Something lies on a shelf, or did just now.
  bool any() const noexcept { return in_use_.load() != 0; }

  /// Alone: `visit(range)` for what lies there.
  template <class Visit>
  void each(Visit&& visit) const {
    for (std::size_t i = 0; i < count_; ++i) {
      const std::uint64_t lies = all_[i].word.load(std::memory_order_relaxed);
      const std::size_t begin = as_size(lies >> count_bits);
      if (lies != empty) visit(index_range{begin, begin + as_size(lies & filling)});
    }
  }

  /// The most that one shelf can hold.
  static constexpr std::size_t most = (std::size_t{1} << 24) - 2;

 private:
  static constexpr int count_bits = 24;
  static constexpr std::size_t most_stolen_at_once = 1;
  static constexpr std::size_t largest_share = 256;
  static constexpr std::uint64_t empty = 0;
  static constexpr std::uint64_t filling = (std::uint64_t{1} << count_bits) - 1;
  static constexpr std::uint64_t one_later = (std::uint64_t{1} << count_bits) - 1;  // begin + 1, count - 1

  struct alignas(cache_line) shelf {
    atomic<std::uint64_t> word{empty};  // begin above, count below
    // Of who fills it.
    std::chrono::nanoseconds filled{};
    std::size_t share = 1;

    /// A share is what is started in 25 to 100 microseconds.
    void follow_pace(std::chrono::nanoseconds now) noexcept {
      const std::chrono::nanoseconds lasted = now - filled;
      filled = now;
      if (lasted < std::chrono::microseconds(25)) {
        share = std::min(2 * share, largest_share);
      } else if (lasted > std::chrono::microseconds(100)) {
        share = std::max<std::size_t>(share / 2, 1);
      }
    }
  };

  static std::uint64_t pack(index_range range) noexcept {
    return range.empty() ? std::uint64_t{empty} : (std::uint64_t{range.begin} << count_bits) | range.size();
  }

  std::size_t count_;
  std::unique_ptr<shelf[]> all_;
  line_gap gap_;
  atomic<std::size_t> in_use_{0};  // written where a shelf is filled or emptied, which is not often
};

}  // namespace cobatch::detail
