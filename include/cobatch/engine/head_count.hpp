#pragma once

#include <cstddef>
#include <cstdint>

#include <cobatch/detail/abi.hpp>
#include <cobatch/detail/as_size.hpp>
#include <cobatch/detail/atomic.hpp>

namespace cobatch::inline COBATCH_ABI::detail {

/// Who a batch still has to wait for, in one atomic word; its end is when nobody is left.
///
/// A *lane* is one sample in flight. A *holder* is whatever else the end must wait for: a worker that looks for
/// samples, a sample that sleeps until its next attempt, a stream whose input has not ended.
///
///     add_lane        + lane           a holder, below the cap
///     lane_to_holder  - lane + holder  a lane that has found nothing more to do
///     add_holder      + holder         any lane or holder
///     drop_holder     - holder         after a last look for work; who takes the word to zero ends the batch
///
/// **The end.** Whoever is counted may touch the batch; nobody else may, but for three that outlive or hold it in other
/// ways: the timekeeper (batch_alarm::one_end), the user's stop callback (its link is reset first), and the consumer of a
/// stream, who owns it.
///
/// Work (a sample that is neither in a lane nor settled) is put down only by somebody who is counted. A worker that
/// neither rests nor has gone will rest, and then look for work, before it drops out: so who puts work down either looks
/// itself, or hands its own holder to a worker, or has found all workers running, which will look later (to rest and to
/// look for one that rests is under one mutex). Whoever has a turn to ask or to read looks after it, or starts a worker.
///
/// Take the last piece of work that was put down, and the look that follows. Either it sees the work, and takes it, or it
/// is at the cap: then some lane was alive at that look, which must first become a holder, and then looks itself; or its
/// lane was taken by the timekeeper for a second attempt, which starts a worker when it gives one back. All operations
/// here and those that put work down are sequentially consistent, so that look comes later and sees the work. Hence at
/// zero there is none. A batch that is halted starts no work: whoever drops out then settles what lies there.
class head_count {
 public:
  static constexpr std::size_t most_lanes = 0x7fff'ffff;

  /// One holder: who starts the batch.
  explicit head_count(std::size_t cap) noexcept : cap_(cap < most_lanes ? cap : most_lanes) {}

  /// A hint, but for who asks after putting work down.
  std::size_t lanes() const noexcept { return as_size(word_.load() & lane_mask); }
  bool below_cap() const noexcept { return lanes() < cap_; }
  bool nobody() const noexcept { return word_.load() == 0; }

  bool add_lane() noexcept { return add_below_cap(one_lane); }
  void lane_to_holder() noexcept { word_.fetch_add(one_holder - one_lane); }
  void add_holder() noexcept { word_.fetch_add(one_holder); }

  /// For who is not counted but knows that *this is there; false: the batch has ended.
  bool add_holder_unless_over() noexcept {
    std::uint64_t seen = word_.load();
    while (seen != 0) {
      if (word_.compare_exchange_weak(seen, seen + one_holder)) return true;
    }
    return false;
  }

  /// True: nobody is left, and the caller ends the batch. False: *this may be gone.
  [[nodiscard]] bool drop_holder() noexcept { return word_.fetch_sub(one_holder) == one_holder; }
  /// For who is counted in another way as well.
  void drop_spare_holder() noexcept { word_.fetch_sub(one_holder); }
  void drop_spare_lane() noexcept { word_.fetch_sub(one_lane); }

 private:
  static constexpr std::uint64_t one_lane = 1;
  static constexpr std::uint64_t one_holder = std::uint64_t{1} << 32;
  static constexpr std::uint64_t lane_mask = one_holder - 1;

  bool add_below_cap(std::uint64_t change) noexcept {
    std::uint64_t seen = word_.load();
    while ((seen & lane_mask) < cap_) {
      if (word_.compare_exchange_weak(seen, seen + change)) return true;
    }
    return false;
  }

  const std::size_t cap_;
  atomic<std::uint64_t> word_{one_holder};  // written by who comes and goes, not per sample
};

}  // namespace cobatch::detail
