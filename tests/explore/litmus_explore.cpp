// What the explorer itself must find, and what it must not.

#include <memory>
#include <mutex>
#include <stop_token>

#include "scenario.hpp"

namespace x = cobatch_explore;

namespace {

using enum std::memory_order;

void store_buffer(std::memory_order order) {
  x::atomic<int> a{0}, b{0};
  int first = -1, second = -1;
  x::threads({[&] {
                a.store(1, order);
                first = b.load(order);
              },
              [&] {
                b.store(1, order);
                second = a.load(order);
              }});
  x::check(first == 1 || second == 1, "both loads came before both stores");
}

void message(std::memory_order store, std::memory_order load) {
  int data = 0;
  x::atomic<bool> ready{false};
  x::threads({[&] {
                data = 1;
                ready.store(true, store);
              },
              [&] {
                if (ready.load(load)) x::check(data == 1, "the data is old");
              }});
}

void independent_reads(std::memory_order store, std::memory_order load) {
  x::atomic<int> a{0}, b{0};
  int r[4] = {};
  x::threads({[&] { a.store(1, store); }, [&] { b.store(1, store); },
              [&] {
                r[0] = a.load(load);
                r[1] = b.load(load);
              },
              [&] {
                r[2] = b.load(load);
                r[3] = a.load(load);
              }});
  x::check(!(r[0] == 1 && r[1] == 0 && r[2] == 1 && r[3] == 0), "two saw the stores in opposite orders");
}

}  // namespace

SCENARIO("explorer: store buffers, relaxed", .finds = "both loads") {
  store_buffer(relaxed);
}
SCENARIO("explorer: store buffers, seq_cst", .preemptions = 4, .stale = 4) {
  store_buffer(seq_cst);
}
SCENARIO("explorer: a message, relaxed store", .finds = "data race") {
  message(relaxed, acquire);
}
SCENARIO("explorer: a message, relaxed load", .finds = "data race") {
  message(release, relaxed);
}
SCENARIO("explorer: a message, release and acquire", .preemptions = 4, .stale = 4) {
  message(release, acquire);
}
SCENARIO("explorer: independent reads of independent writes, acquire", .stale = 2, .finds = "opposite orders") {
  independent_reads(release, acquire);
}
SCENARIO("explorer: independent reads of independent writes, seq_cst", .preemptions = 2, .stale = 2) {
  independent_reads(seq_cst, seq_cst);
}

SCENARIO("explorer: a thread does not read what is older than it has read", .preemptions = 4, .stale = 4) {
  x::atomic<int> a{0};
  x::threads({[&] {
                a.store(1, relaxed);
                a.store(2, relaxed);
              },
              [&] {
                const int first = a.load(relaxed);
                x::check(a.load(relaxed) >= first, "older than before");
              }});
}

SCENARIO("explorer: a release sequence goes on through another thread's exchange", .preemptions = 4, .stale = 4) {
  int data = 0;
  x::atomic<int> a{0};
  x::threads({[&] {
                data = 1;
                a.store(1, release);
              },
              [&] { a.fetch_add(1, relaxed); },
              [&] {
                if (a.load(acquire) == 2) x::check(data == 1, "the data is old");
              }});
}

SCENARIO("explorer: a lost wake-up", .finds = "deadlock") {
  x::mutex mutex;
  x::condition_variable changed;
  x::atomic<bool> ready{false};
  x::threads({[&] {
                ready.store(true);  // not under the mutex
                changed.notify_one();
              },
              [&] {
                std::unique_lock lock(mutex);
                while (!ready.load()) changed.wait(lock);
              }});
}

SCENARIO("explorer: two mutexes in opposite orders", .finds = "deadlock") {
  x::mutex a, b;
  x::threads({[&] {
                const std::lock_guard first(a);
                const std::lock_guard second(b);
              },
              [&] {
                const std::lock_guard first(b);
                const std::lock_guard second(a);
              }});
}

SCENARIO("explorer: a thread that spins for ever", .steps = 1'000, .finds = "no end within") {
  x::atomic<int> a{0};
  x::threads({[&] {
    while (a.load() == 0) x::spin_pause();
  }});
}

SCENARIO("explorer: memory that is freed before another thread uses it", .finds = "after the end") {
  int* const made = new int(0);
  x::atomic<bool> freed{false};
  x::threads({[&] {
                delete static_cast<int*>(made);
                freed.store(true);
              },
              [&] {
                if (freed.load()) ++*made;
              }});
}

SCENARIO("explorer: memory that is freed by somebody who does not know that it is done", .finds = "frees") {
  x::atomic<int>* const made = new x::atomic<int>(0);
  x::threads({[&] { made->fetch_add(1, relaxed); },
              [&] {
                if (made->load(relaxed) == 1) delete made;
              }});
}

SCENARIO("explorer: a thread's own variables", .preemptions = 3) {
  static thread_local int own = 0;
  const auto count = [] {
    x::atomic<int> step{0};
    for (int i = 0; i < 3; ++i) {
      ++own;
      step.store(i);
      x::check(own == i + 1, "another thread's");
    }
  };
  x::threads({count, count});
}

SCENARIO("explorer: exceptions, thrown by threads that take turns", .preemptions = 3) {
  x::atomic<int> step{0};
  const auto thrower = [&] {
    try {
      step.fetch_add(1);
      throw static_cast<int>(x::this_thread());
    } catch (int who) {
      step.fetch_add(1);
      x::check(who == static_cast<int>(x::this_thread()), "another thread's");
      try {
        throw;
      } catch (int again) {
        x::check(who == again, "another thread's");
      }
    }
  };
  x::threads({thrower, thrower});
}

SCENARIO("explorer: the standard library's stop token and shared pointer", .preemptions = 2) {
  auto shared = std::make_shared<int>(0);
  std::stop_source source;
  int called = 0;
  x::threads({[&source, shared] { source.request_stop(); },
              [&, shared] { const std::stop_callback on_stop(source.get_token(), [&] { ++called; }); }});
  x::check(called <= 1, "called twice");
}

SCENARIO("explorer: a timed wait ends where nobody notifies", .preemptions = 2) {
  x::mutex mutex;
  x::condition_variable changed;
  x::threads({[&] {
    std::unique_lock lock(mutex);
    const std::chrono::steady_clock::time_point end(std::chrono::nanoseconds(x::steady_now() + 1'000));
    while (changed.wait_until(lock, end) != std::cv_status::timeout) {}
    x::check(x::steady_now() >= end.time_since_epoch().count(), "too early");
  }});
}
