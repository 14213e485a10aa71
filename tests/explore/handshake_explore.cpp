// How one coroutine tells another that it has ended, across threads: tasks, sync_wait, callbacks, timers.

#include <cobatch/callback.hpp>
#include <cobatch/run_loop.hpp>
#include <cobatch/sync_wait.hpp>
#include <cobatch/task.hpp>

#include <memory>
#include <optional>
#include <stdexcept>

#include "scenario.hpp"

namespace x = cobatch_explore;
using cobatch::task;
using explored::handed_to;

namespace {

task<int> answer_from(x::channel& server) {
  co_await handed_to{&server};
  co_return 42;
}

task<int> through(x::channel& server) {
  co_return 1 + co_await answer_from(server);
}

}  // namespace

SCENARIO("task: it ends on another thread while its start returns", .preemptions = 4, .stale = 2) {
  x::channel server;
  int got = 0;
  const auto awaits = [&]() -> explored::fire_and_forget { got = co_await answer_from(server); };
  x::threads({[&] { awaits(); }, [&] { explored::serve(server, 1); }});
  x::check(got == 42, "whoever awaits it never goes on");
}

SCENARIO("task: a task in a task", .preemptions = 4, .stale = 2) {
  x::channel server;
  int got = 0;
  const auto awaits = [&]() -> explored::fire_and_forget { got = co_await through(server) + co_await through(server); };
  x::threads({[&] { awaits(); }, [&] { explored::serve(server, 2); }});
  x::check(got == 86, "whoever awaits it never goes on");
}

SCENARIO("sync_wait: the end comes from another thread", .preemptions = 4, .stale = 2) {
  x::channel server;
  int got = 0;
  x::threads({[&] { got = cobatch::sync_wait(through(server)); }, [&] { explored::serve(server, 1); }});
  x::check(got == 43, "the result is another");
}

SCENARIO("sync_wait: twice, on one stack", .preemptions = 3, .stale = 2) {
  x::channel server;
  int got = 0;
  x::threads({[&] {
                for (int i = 0; i < 2; ++i) got += cobatch::sync_wait(answer_from(server));
              },
              [&] { explored::serve(server, 2); }});
  x::check(got == 84, "the result is another");
}

SCENARIO("run_loop: posts and the end from another thread", .preemptions = 3, .stale = 1) {
  x::channel server;
  cobatch::run_loop loop;
  int got = 0;
  const auto body = [&]() -> task<int> {
    const int first = co_await answer_from(server);
    co_await cobatch::schedule(loop);  // from the other thread, back to the loop
    const int second = co_await answer_from(server);
    co_return first + second;
  };
  x::threads({[&] { got = loop.run(body()); }, [&] { explored::serve(server, 2); }});
  x::check(got == 84, "the result is another");
}

SCENARIO("run_loop: a timer, a stop from another thread", .preemptions = 3, .stale = 1) {
  cobatch::run_loop loop;
  std::stop_source stop;
  bool ended = false;
  const auto body = [&]() -> task<void> {
    co_await loop.schedule_after(std::chrono::milliseconds(1), stop.get_token());
    ended = true;
  };
  x::threads({[&] { loop.run(body()); }, [&] { stop.request_stop(); }});
  x::check(ended, "the sleeper is lost");
}

// ---- Timers: fire, stop, erase ----

SCENARIO("timer: it fires, or is stopped, and is awaited again", .preemptions = 3, .stale = 1) {
  explored::timed_executor ex;
  std::stop_source stop;
  int ended = 0;
  const auto sleeper = [&]() -> explored::fire_and_forget {
    const bool first = co_await ex.schedule_after(std::chrono::milliseconds(1), stop.get_token());
    ++ended;
    const bool second = co_await ex.schedule_after(std::chrono::milliseconds(1), stop.get_token());
    ++ended;
    x::check(first || !second, "it was stopped, and then it was not");
    ex.close();
  };
  sleeper();
  x::threads({[&] { ex.work(); }, [&] { stop.request_stop(); }});
  x::check(ended == 2, "the sleeper is lost");
}

SCENARIO("timer: two sleepers, one stopped, two threads", .preemptions = 2, .stale = 0) {
  explored::timed_executor ex(2);
  std::stop_source stop;
  x::atomic<int> ended{0};
  const auto sleeper = [&](std::stop_token token, int ms) -> explored::fire_and_forget {
    co_await ex.schedule_after(std::chrono::milliseconds(ms), token);
    if (ended.fetch_add(1) == 1) ex.close();
  };
  sleeper(stop.get_token(), 2);
  sleeper({}, 1);
  x::threads({[&] { ex.work(); }, [&] { ex.work(); }, [&] { stop.request_stop(); }});
  x::check(ended.load() == 2, "a sleeper is lost");
}

// ---- Callbacks ----

namespace {

struct client {
  std::optional<cobatch::callback<int>> first, second;
  int outcome = 0;
  int resumed = 0;

  explored::fire_and_forget ask(x::channel& asked) {
    auto initiate = [&](cobatch::callback<int> done) {
      first = done;
      second = std::move(done);
      asked.push(&first);
      asked.push(&second);
    };
    const auto got = co_await cobatch::from_callback<int>(initiate);
    ++resumed;
    outcome = got.has_value() ? *got : -static_cast<int>(got.error().code);
  }
};

}  // namespace

SCENARIO("callback: two copies are called on two threads", .preemptions = 3, .stale = 2) {
  client one;
  x::channel asked;
  x::threads({[&] { one.ask(asked); },
              [&] {
                asked.pop();
                (*one.first)(1);
                one.first.reset();
              },
              [&] {
                asked.pop();
                (*one.second)(2);
                one.second.reset();
              }});
  x::check(one.resumed == 1 && (one.outcome == 1 || one.outcome == 2), "not one outcome");
}

SCENARIO("callback: one copy is called, the other dropped", .preemptions = 3, .stale = 2) {
  client one;
  x::channel asked;
  x::threads({[&] { one.ask(asked); },
              [&] {
                asked.pop();
                (*one.first)(1);
                one.first.reset();
              },
              [&] {
                asked.pop();
                one.second.reset();
              }});
  x::check(one.resumed == 1 && one.outcome == 1, "not the outcome it was called with");
}

SCENARIO("callback: all copies are dropped", .preemptions = 3, .stale = 2) {
  client one;
  x::channel asked;
  x::threads({[&] { one.ask(asked); },
              [&] {
                asked.pop();
                one.first.reset();
              },
              [&] {
                asked.pop();
                one.second.reset();
              }});
  x::check(one.resumed == 1 && one.outcome == -static_cast<int>(cobatch::errc::callback_dropped), "not dropped");
}
