// The micro-batcher: its inbox and its queue, against its timer, a caller's stop, and close().

#include <cobatch/micro_batcher.hpp>

#include <chrono>
#include <memory>
#include <span>
#include <vector>

#include "scenario.hpp"

namespace x = cobatch_explore;
using namespace std::chrono_literals;
using explored::timed_executor;
using batcher = cobatch::micro_batcher<int, int>;

namespace {

std::vector<int> doubled(std::span<const int> samples) {
  std::vector<int> results;
  for (const int each : samples) results.push_back(2 * each);
  return results;
}

struct tally {
  x::atomic<int> values{0}, stopped{0}, others{0};
};

explored::fire_and_forget ask(batcher& from, int sample, tally& count, std::stop_token stop = {}) {
  const auto got = co_await from.predict(sample, stop);
  if (got.has_value()) {
    x::check(*got == 2 * sample, "an outcome is another sample's");
    count.values.fetch_add(1);
  } else if (got.error().code == cobatch::errc::cancelled || got.error().code == cobatch::errc::closed) {
    count.stopped.fetch_add(1);
  } else {
    count.others.fetch_add(1);
  }
}

explored::fire_and_forget close(batcher& it, timed_executor& ex) {
  co_await it.close();
  ex.close();
}

}  // namespace

SCENARIO("micro_batcher: two callers on two threads, a full batch", .stale = 0) {
  timed_executor ex(1);
  tally count;
  {
    batcher it(ex, doubled, {.max_batch_size = 2, .max_delay = 1ms});
    x::threads({[&] {
                  ask(it, 1, count);
                  ask(it, 2, count);
                },
                [&] { ask(it, 3, count); },
                [&] {
                  close(it, ex);
                  ex.work();
                }});
  }
  x::check(count.values.load() + count.stopped.load() == 3 && count.others.load() == 0, "not one outcome each");
}

SCENARIO("micro_batcher: the timer and a late caller", .stale = 0) {
  timed_executor ex(1);
  tally count;
  {
    batcher it(ex, doubled, {.max_batch_size = 3, .max_delay = 1ms});
    x::threads({[&] {
                  ask(it, 1, count);
                  ask(it, 2, count);
                  while (count.values.load() < 2) x::spin_pause();
                  close(it, ex);
                },
                [&] { ex.work(); }});
  }
  x::check(count.values.load() == 2, "not one outcome each");
}

SCENARIO("micro_batcher: a caller's stop against its batch", .stale = 0) {
  timed_executor ex(1);
  tally count;
  std::stop_source stop;
  {
    batcher it(ex, doubled, {.max_batch_size = 2, .max_delay = 1ms});
    x::threads({[&] {
                  ask(it, 1, count, stop.get_token());
                  ask(it, 2, count);
                  while (count.values.load() + count.stopped.load() < 2) x::spin_pause();
                  close(it, ex);
                },
                [&] { ex.work(); }, [&] { stop.request_stop(); }});
  }
  x::check(count.values.load() + count.stopped.load() == 2 && count.others.load() == 0, "not one outcome each");
}

SCENARIO("micro_batcher: two batches at a time, two workers", .stale = 0) {
  timed_executor ex(2);
  tally count;
  {
    batcher it(ex, doubled, {.max_batch_size = 1, .max_delay = 0ns, .max_concurrent_batches = 2});
    x::threads({[&] {
                  ask(it, 1, count);
                  ask(it, 2, count);
                  close(it, ex);
                },
                [&] { ex.work(); }, [&] { ex.work(); }});
  }
  x::check(count.values.load() == 2, "not one outcome each");
}

SCENARIO("micro_batcher: a full queue", .stale = 0) {
  timed_executor ex(1);
  tally count;
  {
    batcher it(ex, doubled, {.max_batch_size = 1, .max_delay = 0ns, .max_queue = 1});
    x::threads({[&] { ask(it, 1, count); }, [&] { ask(it, 2, count); },
                [&] {
                  close(it, ex);
                  ex.work();
                }});
  }
  x::check(count.values.load() + count.stopped.load() + count.others.load() == 2, "not one outcome each");
}
