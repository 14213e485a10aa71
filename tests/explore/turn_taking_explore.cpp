#include <cobatch/detail/turn_taking.hpp>

#include "scenario.hpp"

namespace x = cobatch_explore;
using cobatch::detail::turn_taking;

// Each puts a piece of work down and then sees to it that somebody does it: who has the turn, or who asked.
namespace {

struct shared_work {
  turn_taking turn;
  x::atomic<int> put_down{0};
  int done = 0;  // of who has the turn: not atomic
  x::atomic<bool> started{false};

  void work() {
    for (;;) {
      if (!turn.enter()) {
        if (turn.ask()) return;  // who has the turn starts us
        continue;
      }
      done += put_down.exchange(0);
      if (!turn.leave()) return;
    }
  }
};

}  // namespace

SCENARIO("turn_taking: what is put down is taken by who has the turn", .preemptions = 3) {
  shared_work shared;
  const auto worker = [&] {
    shared.put_down.fetch_add(1);
    shared.work();
  };
  x::threads({worker, worker});
  x::check(shared.put_down.load() == 0 && shared.done == 2, "work lies there, and nobody comes");
}

SCENARIO("turn_taking: three at once", .preemptions = 2) {
  shared_work shared;
  const auto worker = [&] {
    shared.put_down.fetch_add(1);
    shared.work();
  };
  x::threads({worker, worker, worker});
  x::check(shared.put_down.load() == 0 && shared.done == 3, "work lies there, and nobody comes");
}

SCENARIO("turn_taking: patience", .preemptions = 2) {
  turn_taking turn;
  int inside = 0;
  int entered = 0;
  const auto worker = [&] {
    while (!turn.enter(3)) {}
    x::check(inside++ == 0, "two have the turn");
    ++entered;
    --inside;
    turn.leave();
  };
  x::threads({worker, worker});
  x::check(entered == 2, "somebody never had the turn");
}
