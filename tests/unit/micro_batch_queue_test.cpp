#include <cobatch/engine/micro_batch_queue.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <random>
#include <vector>

#include "support/allocations.hpp"
#include "support/catch.hpp"

using cobatch::detail::batch_group;
using cobatch::detail::batch_stage;
using cobatch::detail::batch_waiter;
using cobatch::detail::micro_batch_limits;
using cobatch::detail::timer_queue;

namespace {

/// Compares keys, and counts how often.
struct counting_less {
  std::size_t* count;
  bool operator()(std::size_t a, std::size_t b) const {
    ++*count;
    return a < b;
  }
};

using queue = cobatch::detail::micro_batch_queue<>;
using counting_queue = cobatch::detail::micro_batch_queue<counting_less>;

constexpr micro_batch_limits limits(std::size_t samples, std::int64_t delay) {
  return {.samples = samples,
          .cost = micro_batch_limits::none,
          .waiting = micro_batch_limits::none,
          .delay = delay,
          .batches = 1};
}

batch_waiter& add(std::deque<batch_waiter>& all, auto& to, std::size_t key, std::int64_t arrival) {
  batch_waiter& made = all.emplace_back();
  made.key = key;
  made.arrival = arrival;
  to.push(made);
  return made;
}

std::vector<std::int64_t> arrivals(batch_group& batch) {
  std::vector<std::int64_t> all;
  for (batch_waiter* each = batch.first(); each; each = batch.after(*each)) all.push_back(each->arrival);
  return all;
}

std::vector<std::int64_t> next_batch(auto& from, std::int64_t now, bool all_are_due = false) {
  batch_group batch;
  if (!from.ready(now, all_are_due)) return {};
  from.fill_ready(batch, now, all_are_due);
  return arrivals(batch);
}

using numbers = std::vector<std::int64_t>;

}  // namespace

TEST_CASE("micro batch queue: 16,000 keys at once cost some 14 comparisons a sample, and so does taking them out") {
  std::size_t comparisons = 0;
  counting_queue all(limits(32, 1000), {&comparisons});
  constexpr std::size_t keys = 16'000;
  std::deque<batch_waiter> waiters;
  std::mt19937_64 random(1);
  std::vector<std::size_t> order(keys);
  for (std::size_t i = 0; i < keys; ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), random);
  for (const std::size_t key : order) add(waiters, all, key, 0);
  CHECK(all.keys() == keys);
  CHECK(comparisons < keys * 3 * 14);
  comparisons = 0;
  std::size_t batches = 0;
  while (!next_batch(all, 1000).empty()) ++batches;
  CHECK(batches == keys);
  CHECK(comparisons < keys * 3 * 14);
}

TEST_CASE("micro batch queue: buckets that are empty are forgotten, whichever way they became so") {
  std::size_t comparisons = 0;
  counting_queue all(limits(32, 1000), {&comparisons});
  std::deque<batch_waiter> waiters;
  for (std::size_t key = 0; key < 10'000; ++key) {
    batch_waiter& each = waiters.emplace_back();
    each.key = key;
    each.arrival = 0;
    if (key % 4 == 0) each.expires = 500;
    all.push(each);
  }
  while (all.take_expired(500)) {}
  CHECK(all.keys() == 7500);
  for (std::size_t key = 1; key < 10'000; key += 4) all.leave(waiters[key]);
  CHECK(all.keys() == 5000);
  while (!next_batch(all, 1000).empty()) {}
  CHECK(all.keys() == 0);
  CHECK(all.waiting() == 0);
  CHECK(all.next_event(true) == timer_queue::never);

  // What comes later is as cheap as if there had never been others.
  comparisons = 0;
  for (int i = 0; i < 3200; ++i) {
    add(waiters, all, 7, 2000);
    if (i % 32 == 31) CHECK(next_batch(all, 2000).size() == 32);
  }
  CHECK(comparisons < 3200);
}

TEST_CASE("micro batch queue: to leave takes no memory, wherever its bucket then stands") {
  constexpr std::size_t keys = 16;
  for (std::size_t leaves = 0; leaves < keys; ++leaves) {
    queue all(limits(8, 1000));
    std::deque<batch_waiter> waiters;
    for (std::size_t i = 0; i < 2 * keys; ++i) add(waiters, all, i % keys, static_cast<std::int64_t>(i));
    fail_allocation_in(1);
    all.leave(waiters[leaves]);
    allocation_failure_is_pending();
    CHECK(all.waiting() == 2 * keys - 1);
    numbers oldest;
    while (all.waiting() > 0) oldest.push_back(next_batch(all, 0, true).front());
    CHECK(std::is_sorted(oldest.begin(), oldest.end()));
    CHECK(oldest.back() == static_cast<std::int64_t>(leaves == keys - 1 ? 2 * keys - 1 : keys + leaves));
  }
}

TEST_CASE("micro batch queue: a bucket is ready when it is full or its oldest has waited, and says when that will be") {
  queue all(limits(2, 100));
  std::deque<batch_waiter> waiters;
  add(waiters, all, 1, 10);
  CHECK(all.next_event(true) == 110);
  CHECK(all.next_event(false) == timer_queue::never);
  CHECK_FALSE(all.ready(109, false));
  CHECK(all.ready(110, false));
  CHECK(all.ready(0, true));
  add(waiters, all, 2, 20);
  add(waiters, all, 2, 30);
  CHECK(all.next_event(true) == timer_queue::immediately);
  CHECK(next_batch(all, 30) == numbers{20, 30});
  CHECK(all.next_event(true) == 110);
  CHECK(next_batch(all, 109) == numbers{});
  CHECK(next_batch(all, 110) == numbers{10});
}

TEST_CASE("micro batch queue: of the buckets that are ready the one with the oldest sample goes first") {
  queue all(limits(2, 100));
  std::deque<batch_waiter> waiters;
  add(waiters, all, 1, 0);
  for (const std::int64_t at : {10, 40}) add(waiters, all, 2, at);
  for (const std::int64_t at : {20, 30, 50}) add(waiters, all, 3, at);
  SECTION("full ones while nothing is overdue") {
    CHECK(next_batch(all, 60) == numbers{10, 40});
    CHECK(next_batch(all, 60) == numbers{20, 30});
    CHECK(next_batch(all, 60) == numbers{});  // 50 alone is not full any more
  }
  SECTION("one that is overdue before a full one") {
    CHECK(next_batch(all, 100) == numbers{0});
    CHECK(next_batch(all, 100) == numbers{10, 40});
  }
  SECTION("one whose oldest sample leaves is as old as its next") {
    all.leave(waiters[1]);  // 10
    CHECK(next_batch(all, 60) == numbers{20, 30});
    CHECK(next_batch(all, 200) == numbers{0});
    CHECK(next_batch(all, 200) == numbers{40});
    CHECK(next_batch(all, 200) == numbers{50});
  }
}

TEST_CASE("micro batch queue: one that cannot wait makes its bucket ready until it leaves") {
  queue all(limits(8, 100));
  std::deque<batch_waiter> waiters;
  add(waiters, all, 1, 0);
  batch_waiter& hurried = waiters.emplace_back();
  hurried.key = 1;
  hurried.arrival = 5;
  hurried.urgent = true;
  all.push(hurried);
  CHECK(all.ready(5, false));
  all.leave(hurried);
  CHECK_FALSE(all.ready(5, false));
  CHECK(all.next_event(true) == 100);
}

TEST_CASE("micro batch queue: whatever comes and leaves, batches are those of a queue that looks at everything") {
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    CAPTURE(seed);
    std::mt19937_64 random(seed);
    const auto below = [&](std::uint64_t n) { return static_cast<std::size_t>(random() % n); };
    const micro_batch_limits chosen = limits(1 + below(4), static_cast<std::int64_t>(below(60)));
    queue all(chosen);
    std::deque<batch_waiter> waiters;
    std::map<std::size_t, std::vector<batch_waiter*>> model;
    for (std::int64_t now = 1; now < 300; ++now) {
      const std::size_t what = below(5);
      if (what < 3) {
        batch_waiter& each = add(waiters, all, below(6), now);  // one at a time: no two are equally old
        model[each.key].push_back(&each);
      } else if (what == 3 && !waiters.empty()) {
        batch_waiter& each = waiters[below(waiters.size())];
        if (each.stage != batch_stage::queued) continue;
        all.leave(each);
        each.stage = batch_stage::settled;
        std::erase(model[each.key], &each);
        if (model[each.key].empty()) model.erase(each.key);
      } else {
        std::vector<batch_waiter*>* oldest = nullptr;
        for (auto& [key, those] : model) {
          const bool ready = those.size() >= chosen.samples || those.front()->arrival + chosen.delay <= now;
          if (ready && (!oldest || those.front()->arrival < oldest->front()->arrival)) oldest = &those;
        }
        numbers expected;
        if (oldest) {
          const auto count = static_cast<std::ptrdiff_t>(std::min(oldest->size(), chosen.samples));
          for (std::ptrdiff_t i = 0; i < count; ++i) expected.push_back((*(oldest->begin() + i))->arrival);
          const std::size_t key = oldest->front()->key;
          oldest->erase(oldest->begin(), oldest->begin() + count);
          if (oldest->empty()) model.erase(key);
        }
        REQUIRE(next_batch(all, now) == expected);
      }
      REQUIRE(all.keys() == model.size());
    }
  }
}
