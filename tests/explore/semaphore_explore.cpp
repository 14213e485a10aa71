#include <cobatch/semaphore.hpp>

#include <memory>
#include <stop_token>

#include "scenario.hpp"

namespace x = cobatch_explore;
using cobatch::async_semaphore;

namespace {

/// Takes the permits, changes what they guard, gives them back. Without an executor: goes on inside the other's release().
explored::fire_and_forget use(async_semaphore& semaphore, int& guarded, std::size_t weight = 1) {
  const auto permit = co_await semaphore.acquire(weight);
  ++guarded;  // not atomic
}

/// Until a stop is requested.
explored::fire_and_forget use_until(async_semaphore& semaphore, std::stop_token stop, int& guarded, int& ended) {
  auto permit = co_await semaphore.acquire(1, stop);
  if (permit) {
    ++guarded;
    permit->release();
  }
  ++ended;
}

}  // namespace

SCENARIO("semaphore: one permit, two threads", .preemptions = 4, .stale = 2) {
  async_semaphore semaphore(1);
  int guarded = 0;
  const auto user = [&] {
    use(semaphore, guarded);
    use(semaphore, guarded);
  };
  x::threads({user, user});
  x::check(guarded == 4, "somebody never had a permit");
  x::check(semaphore.available() == 1 && semaphore.waiting() == 0, "permits are lost, or made");
}

SCENARIO("semaphore: one permit, three threads", .preemptions = 3) {
  async_semaphore semaphore(1);
  int guarded = 0;
  const auto user = [&] { use(semaphore, guarded); };
  x::threads({user, user, user});
  x::check(guarded == 3, "somebody never had a permit");
  x::check(semaphore.available() == 1 && semaphore.waiting() == 0, "permits are lost, or made");
}

SCENARIO("semaphore: weights", .preemptions = 3) {
  async_semaphore semaphore(2);
  int a = 0, b = 0, c = 0;
  x::threads({[&] { use(semaphore, a, 2); }, [&] { use(semaphore, b, 1); }, [&] { use(semaphore, c, 2); }});
  x::check(a + b + c == 3, "somebody never had its permits");
  x::check(semaphore.available() == 2 && semaphore.waiting() == 0, "permits are lost, or made");
}

SCENARIO("semaphore: one who writes takes all permits, two who read take one each", .preemptions = 3) {
  async_semaphore semaphore(2);
  int data = 0, seen = 0, reads[2] = {};
  const auto reads_it = [&](int which) -> explored::fire_and_forget {
    const auto permit = co_await semaphore.acquire(1);
    reads[which] = data + 1;
  };
  x::threads({[&] { use(semaphore, data, 2); }, [&] { reads_it(0); }, [&] { reads_it(1); }});
  for (const int each : reads) seen += each != 0;
  x::check(data == 1 && seen == 2, "somebody never had its permits");
  x::check(semaphore.available() == 2 && semaphore.waiting() == 0, "permits are lost, or made");
}

SCENARIO("semaphore: who gets the permit on an executor", .preemptions = 2) {
  async_semaphore semaphore(1);
  explored::executor ex(1);
  int guarded = 0;
  const auto here = [&]() -> explored::fire_and_forget {
    co_await cobatch::schedule(ex);
    use(semaphore, guarded);
    use(semaphore, guarded);
    const auto last = co_await semaphore.acquire();
    ex.close();
  };
  here();
  x::threads({[&] { ex.work(); }, [&] { use(semaphore, guarded); }});
  x::check(guarded == 3, "somebody never had a permit");
}

SCENARIO("semaphore: try_acquire beside acquire", .preemptions = 3) {
  async_semaphore semaphore(1);
  int guarded = 0, tried = 0;
  x::threads({[&] { use(semaphore, guarded); }, [&] { use(semaphore, guarded); },
              [&] {
                if (const auto permit = semaphore.try_acquire()) {
                  ++guarded;
                  ++tried;
                }
              }});
  x::check(guarded == 2 + tried, "somebody never had a permit");
  x::check(semaphore.available() == 1 && semaphore.waiting() == 0, "permits are lost, or made");
}

SCENARIO("semaphore: a stop beside a release", .preemptions = 2) {
  async_semaphore semaphore(1);
  std::stop_source stop;
  int guarded = 0, ended = 0;
  x::threads({[&] { use(semaphore, guarded); }, [&] { use_until(semaphore, stop.get_token(), guarded, ended); },
              [&] { stop.request_stop(); }});
  x::check(ended == 1, "who is stopped never goes on");
  x::check(semaphore.available() == 1 && semaphore.waiting() == 0, "permits are lost, or made");
}

SCENARIO("semaphore: who stands behind a waiter that is stopped", .preemptions = 2) {
  async_semaphore semaphore(2);
  std::stop_source stop;
  int small = 0, ended = 0, guarded = 0;
  auto held = semaphore.try_acquire(1);
  const auto heavy = [&]() -> explored::fire_and_forget {
    auto permit = co_await semaphore.acquire(2, stop.get_token());
    if (permit) ++guarded;
    ++ended;
  };
  x::threads({[&] { heavy(); }, [&] { use(semaphore, small); }, [&] { stop.request_stop(); }});
  x::check(small == 1 && ended == 1, "somebody never goes on");
  held->release();
  x::check(semaphore.available() == 2 && semaphore.waiting() == 0, "permits are lost, or made");
}

SCENARIO("semaphore: the limit is lowered and raised", .preemptions = 2) {
  async_semaphore semaphore(1);
  int guarded = 0;
  const auto user = [&] { use(semaphore, guarded); };
  x::threads({user, user, [&] {
                semaphore.set_limit(0);
                semaphore.set_limit(1);
              }});
  x::check(guarded == 2, "somebody never had a permit");
  x::check(semaphore.available() == 1 && semaphore.waiting() == 0, "permits are lost, or made");
}

SCENARIO("semaphore: two change the limit", .preemptions = 3) {
  async_semaphore semaphore(1);
  int guarded = 0;
  x::threads({[&] { use(semaphore, guarded); }, [&] { semaphore.set_limit(2); }, [&] { semaphore.set_limit(3); }});
  x::check(guarded == 1, "somebody never had a permit");
  x::check(semaphore.available() == semaphore.limit() && semaphore.waiting() == 0, "permits are lost, or made");
}

SCENARIO("semaphore: too heavy for a limit that is lowered", .preemptions = 2) {
  async_semaphore semaphore(2);
  int guarded = 0, refused = 0, passed = 0;
  const auto heavy = [&]() -> explored::fire_and_forget {
    auto permit = co_await semaphore.acquire(2, std::stop_token());
    permit ? ++passed : ++refused;
  };
  x::threads({[&] { use(semaphore, guarded); }, [&] { heavy(); }, [&] { semaphore.set_limit(1); }});
  x::check(guarded == 1 && passed + refused == 1, "somebody never goes on");
  x::check(semaphore.available() == 1 && semaphore.waiting() == 0, "permits are lost, or made");
}

SCENARIO("semaphore: whoever gets the last permit back destroys it", .preemptions = 4, .stale = 2) {
  auto semaphore = std::make_unique<async_semaphore>(1);
  auto held = semaphore->try_acquire();
  const auto destroys = [&]() -> explored::fire_and_forget {
    { const auto permit = co_await semaphore->acquire(); }
    semaphore.reset();
  };
  x::threads({[&] { held->release(); }, [&] { destroys(); }});
  x::check(!semaphore, "it never had the permit");
}

SCENARIO("semaphore: a signal, and whoever waits for it destroys it", .preemptions = 4, .stale = 2) {
  auto semaphore = std::make_unique<async_semaphore>(0);
  int data = 0;
  const auto destroys = [&]() -> explored::fire_and_forget {
    auto permit = co_await semaphore->acquire();
    (void)permit.detach();
    x::check(data == 1, "what came before the signal is not seen");
    semaphore.reset();
  };
  x::threads({[&] {
                data = 1;
                semaphore->release();
              },
              [&] { destroys(); }});
  x::check(!semaphore, "the signal was lost");
}

SCENARIO("semaphore: two signals for two", .preemptions = 3) {
  async_semaphore semaphore(0);
  x::atomic<int> came{0};
  const auto waits = [&]() -> explored::fire_and_forget {
    auto permit = co_await semaphore.acquire();
    (void)permit.detach();
    came.fetch_add(1);
  };
  x::threads({[&] { semaphore.release(2); },
              [&] {
                waits();
                waits();
              }});
  x::check(came.load() == 2 && semaphore.available() == 0, "a signal was lost, or came twice");
}
