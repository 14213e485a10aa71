// The pool, as it is: its threads, their rings and shards, who sleeps and who is woken. The ring and its thieves alone.

#include <cobatch/thread_pool.hpp>

#include <array>
#include <coroutine>
#include <memory>

#include "scenario.hpp"

namespace x = cobatch_explore;
using cobatch::detail::work_ring;

namespace {

explored::fire_and_forget count_on(cobatch::thread_pool& pool, x::atomic<int>& count) {
  co_await pool.schedule();
  count.fetch_add(1);
}

explored::fire_and_forget count_twice_on(cobatch::thread_pool& pool, x::atomic<int>& count) {
  co_await pool.schedule();
  count_on(pool, count);  // from inside: to the ring
  count.fetch_add(1);
}

/// Until the other has come, each holds its thread.
explored::fire_and_forget meet_on(cobatch::thread_pool& pool, x::atomic<int>& count) {
  co_await pool.schedule();
  count.fetch_add(1);
  while (count.load() < 2) x::spin_pause();
}

/// The second one is sent from inside the first, to the ring of a worker that then is busy.
explored::fire_and_forget meet_from_inside(cobatch::thread_pool& pool, x::atomic<int>& count) {
  co_await pool.schedule();
  meet_on(pool, count);
  count.fetch_add(1);
  while (count.load() < 2) x::spin_pause();
}

explored::fire_and_forget sleep_on(cobatch::thread_pool& pool, std::stop_token stop, x::atomic<int>& count) {
  co_await pool.schedule_after(std::chrono::milliseconds(1), stop);
  count.fetch_add(1);
}

}  // namespace

SCENARIO("thread_pool: one thread, one post from outside", .steps = 20'000) {
  x::atomic<int> count{0};
  {
    cobatch::thread_pool pool(1);
    count_on(pool, count);
  }
  x::check(count.load() == 1, "a coroutine is lost");
}

SCENARIO("thread_pool: one thread, posts while it falls asleep", .steps = 20'000) {
  x::atomic<int> count{0};
  {
    cobatch::thread_pool pool(1);
    count_on(pool, count);
    while (count.load() < 1) x::spin_pause();
    count_on(pool, count);
    while (count.load() < 2) x::spin_pause();
  }
  x::check(count.load() == 2, "a coroutine is lost");
}

SCENARIO("thread_pool: two threads, posts from outside and inside", .steps = 20'000) {
  x::atomic<int> count{0};
  {
    cobatch::thread_pool pool(2);
    count_twice_on(pool, count);
    while (count.load() < 2) x::spin_pause();
  }
  x::check(count.load() == 2, "a coroutine is lost");
}

SCENARIO("thread_pool: two threads, two coroutines that need both", .steps = 20'000) {
  x::atomic<int> count{0};
  {
    cobatch::thread_pool pool(2);
    meet_on(pool, count);
    meet_on(pool, count);
    while (count.load() < 2) x::spin_pause();  // a pool that was stopped may do the rest on one thread
  }
  x::check(count.load() == 2, "a coroutine is lost");
}

SCENARIO("thread_pool: two threads, one coroutine sends another that it needs", .steps = 20'000) {
  x::atomic<int> count{0};
  {
    cobatch::thread_pool pool(2);
    meet_from_inside(pool, count);
    while (count.load() < 2) x::spin_pause();
  }
  x::check(count.load() == 2, "a coroutine is lost");
}

SCENARIO("thread_pool: two threads post from outside", .steps = 20'000) {
  x::atomic<int> count{0};
  {
    cobatch::thread_pool pool(1);
    const auto post = [&] { count_on(pool, count); };
    x::threads({post, post});
    while (count.load() < 2) x::spin_pause();
  }
  x::check(count.load() == 2, "a coroutine is lost");
}

SCENARIO("thread_pool: who sent the last one destroys it", .steps = 20'000) {
  // The pool goes while another thread may still be inside the post whose coroutine has told us.
  auto pool = std::make_unique<cobatch::thread_pool>(1);
  x::atomic<int> count{0};
  x::threads({[&] { count_on(*pool, count); },
              [&] {
                while (count.load() < 1) x::spin_pause();
                pool.reset();
              }});
  x::check(count.load() == 1, "a coroutine is lost");
}

SCENARIO("thread_pool: a busy worker's timer is minded by the other one", .steps = 20'000) {
  x::atomic<int> count{0};
  {
    cobatch::thread_pool pool(2);
    const auto busy = [&]() -> explored::fire_and_forget {
      co_await pool.schedule();
      sleep_on(pool, {}, count);
      while (count.load() < 1) x::spin_pause();  // holds its thread
      count.fetch_add(1);
    };
    busy();
    while (count.load() < 2) x::spin_pause();
  }
  x::check(count.load() == 2, "a sleeper is lost");
}

SCENARIO("thread_pool: a timer fires, or is stopped", .steps = 20'000) {
  x::atomic<int> count{0};
  std::stop_source stop;
  {
    cobatch::thread_pool pool(1);
    sleep_on(pool, stop.get_token(), count);
    stop.request_stop();
  }
  x::check(count.load() == 1, "a sleeper is lost");
}

SCENARIO("thread_pool: a timer beside the end", .steps = 20'000) {
  x::atomic<int> count{0};
  {
    cobatch::thread_pool pool(2);
    sleep_on(pool, {}, count);
    while (x::choose(2) == 0 && count.load() == 0) x::spin_pause();
  }
  x::check(count.load() == 1, "a sleeper is lost");
}

// ---- The ring ----

SCENARIO("sleeping: a push to a ring, and a worker that goes to sleep: one sees the other", .preemptions = 3,
         .stale = 2) {
  work_ring ring;
  cobatch::detail::idle_count counts;
  bool wakes = false, gets_up = false;
  x::threads({[&] {
                ring.push(std::noop_coroutine());
                wakes = counts.wake_needed_soon();
              },
              [&] {
                counts.begin_search();
                if (!ring.empty()) {
                  gets_up = true;
                  return;
                }
                counts.searching_to_sleeping();
                gets_up = !ring.empty();
              }});
  x::check(wakes || gets_up, "the worker sleeps, and nobody wakes it");
}

namespace {

/// A handle that is only counted.
std::coroutine_handle<> handle(int number) {
  return std::coroutine_handle<>::from_address(reinterpret_cast<void*>(static_cast<std::uintptr_t>(number) * 16));
}

struct taken_once {
  std::array<x::atomic<int>, 16> times{};
  void take(std::coroutine_handle<> which) {
    x::check(which != nullptr, "nothing was there to be taken");
    times[reinterpret_cast<std::uintptr_t>(which.address()) / 16].fetch_add(1, std::memory_order_relaxed);
  }
  void check(int count) {
    for (int i = 1; i <= count; ++i)
      x::check(times[static_cast<std::size_t>(i)].load() == 1, "a handle is lost, or came twice");
  }
};

}  // namespace

SCENARIO("work_ring: the owner pushes and pops, a thief steals", .preemptions = 4, .stale = 2) {
  work_ring ring;
  taken_once seen;
  x::threads({[&] {
                for (int i = 1; i <= 3; ++i) ring.push(handle(i));
                while (const auto popped = ring.pop()) seen.take(popped);
              },
              [&] {
                std::array<std::coroutine_handle<>, 4> stolen;
                for (int i = 0; i < 2; ++i) {
                  for (std::size_t n = ring.steal_one(stolen), k = 0; k < n; ++k) seen.take(stolen[k]);
                }
              }});
  while (const auto popped = ring.pop()) seen.take(popped);
  seen.check(3);
}

SCENARIO("work_ring: two thieves", .preemptions = 3, .stale = 1) {
  work_ring ring;
  taken_once seen;
  ring.push(handle(1));
  ring.push(handle(2));
  const auto thief = [&] {
    std::array<std::coroutine_handle<>, 4> stolen;
    for (std::size_t n = ring.steal_one(stolen), k = 0; k < n; ++k) seen.take(stolen[k]);
  };
  x::threads({thief, thief, [&] {
                ring.push(handle(3));
                if (const auto popped = ring.pop()) seen.take(popped);
              }});
  while (const auto popped = ring.pop()) seen.take(popped);
  seen.check(3);
}

SCENARIO("work_ring: one thief takes two, and then another comes", .preemptions = 2, .stale = 1) {
  work_ring ring;
  taken_once seen;
  const auto thief = [&](int times) {
    std::array<std::coroutine_handle<>, 4> stolen;
    for (int i = 0; i < times; ++i) {
      for (std::size_t n = ring.steal_one(stolen), k = 0; k < n; ++k) seen.take(stolen[k]);
    }
  };
  x::threads({[&] {
                ring.push(handle(1));
                ring.push(handle(2));
              },
              [&] { thief(2); }, [&] { thief(1); }});
  while (const auto popped = ring.pop()) seen.take(popped);
  seen.check(2);
}

SCENARIO("work_ring: half of many is stolen while the owner takes", .preemptions = 2, .stale = 2) {
  work_ring ring;
  taken_once seen;
  for (int i = 1; i <= 8; ++i) ring.push(handle(i));
  x::threads({[&] {
                for (int i = 0; i < 3; ++i) {
                  if (const auto popped = ring.pop()) seen.take(popped);
                }
                ring.push(handle(9));
              },
              [&] {
                std::array<std::coroutine_handle<>, 8> stolen;
                work_ring::glance glance;
                for (std::size_t n = ring.steal(stolen, glance, 0), k = 0; k < n; ++k) seen.take(stolen[k]);
              }});
  while (const auto popped = ring.pop()) seen.take(popped);
  seen.check(9);
}

SCENARIO("work_ring: the owner takes the newest back while a thief steals", .preemptions = 4, .stale = 2) {
  work_ring ring;
  taken_once seen;
  ring.push(handle(1));
  x::threads({[&] {
                ring.push(handle(2));
                if (ring.take_back(handle(2))) seen.take(handle(2));
                ring.push(handle(3));
                while (const auto popped = ring.pop()) seen.take(popped);
              },
              [&] {
                std::array<std::coroutine_handle<>, 4> stolen;
                for (int i = 0; i < 2; ++i) {
                  for (std::size_t n = ring.steal_one(stolen), k = 0; k < n; ++k) seen.take(stolen[k]);
                }
              }});
  while (const auto popped = ring.pop()) seen.take(popped);
  seen.check(3);
}

SCENARIO("work_ring: the only one is taken back, or stolen", .preemptions = 4, .stale = 2) {
  work_ring ring;
  taken_once seen;
  ring.push(handle(1));
  x::threads({[&] {
                if (ring.take_back(handle(1))) seen.take(handle(1));
              },
              [&] {
                std::array<std::coroutine_handle<>, 4> stolen;
                for (std::size_t n = ring.steal_one(stolen), k = 0; k < n; ++k) seen.take(stolen[k]);
              }});
  seen.check(1);
}

SCENARIO("work_ring: a thief comes when all is popped", .preemptions = 4, .stale = 2) {
  work_ring ring;
  taken_once seen;
  x::threads({[&] {
                ring.push(handle(1));
                ring.push(handle(2));
                while (const auto popped = ring.pop()) seen.take(popped);
              },
              [&] {
                std::array<std::coroutine_handle<>, 4> stolen;
                for (std::size_t n = ring.steal_one(stolen), k = 0; k < n; ++k) seen.take(stolen[k]);
              }});
  seen.check(2);
}

SCENARIO("work_ring: it grows while a thief steals", .preemptions = 2, .stale = 2, .most_runs = 20'000,
         .steps = 20'000) {
  work_ring ring;
  x::atomic<int> stolen_count{0};
  std::array<std::coroutine_handle<>, 256> many;
  for (auto& each : many) each = handle(1);
  ring.push(many.data(), 255);
  x::threads({[&] {
                ring.push(handle(2));
                ring.push(handle(3));  // grows
              },
              [&] {
                std::array<std::coroutine_handle<>, 4> stolen;
                for (int i = 0; i < 2; ++i) {
                  for (std::size_t n = ring.steal_one(stolen), k = 0; k < n; ++k) {
                    x::check(stolen[k] == handle(1), "not the oldest");
                    stolen_count.fetch_add(1);
                  }
                }
              }});
  int left = 0;
  while (ring.pop()) ++left;
  x::check(left + stolen_count.load() == 257, "a handle is lost, or came twice");
}
