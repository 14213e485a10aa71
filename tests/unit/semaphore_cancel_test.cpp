#include <cobatch/semaphore.hpp>

#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstddef>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include <cobatch/simulation.hpp>
#include <cobatch/task.hpp>

#include "semaphore_coroutines.hpp"
#include "support/catch.hpp"
#include "support/step_executor.hpp"

using cobatch::async_semaphore;
using cobatch::errc;
using cobatch::permit;
using namespace semaphore_coroutines;

namespace {

// A waiter that can be stopped.
struct stoppable {
  stoppable(async_semaphore& semaphore, step_executor& ex, std::size_t weight = 1)
      : coroutine(ex.run([&] { return take_or_stop(semaphore, source.get_token(), result, weight); })) {}

  bool granted() const { return is_granted(result); }
  bool cancelled() const { return is_error(result, errc::cancelled); }

  std::stop_source source;
  stoppable_result result;
  started coroutine;
};

// What the body prints to stderr before it aborts in a process of its own; nothing if it does not abort.
template <class Body>
std::string dying_words(Body body) {
  int ends[2];
  REQUIRE(pipe(ends) == 0);
  const pid_t child = fork();
  if (child == 0) {
    std::signal(SIGABRT, SIG_DFL);
    dup2(ends[1], STDERR_FILENO);
    body();
    _exit(0);
  }
  close(ends[1]);
  std::string words;
  char buffer[256];
  for (ssize_t n; (n = read(ends[0], buffer, sizeof buffer)) > 0;) words.append(buffer, static_cast<std::size_t>(n));
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  const bool aborted = WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
  return aborted ? words : std::string();
}

}  // namespace

TEST_CASE("semaphore: a stopped waiter is passed over") {  // [C1] [C7]
  async_semaphore semaphore(0);
  step_executor ex;
  stoppable one(semaphore, ex), two(semaphore, ex), three(semaphore, ex);
  one.source.request_stop();
  CHECK_FALSE(one.result);  // goes on on its executor, not inside request_stop()
  ex.drain();
  CHECK(one.cancelled());
  semaphore.release();
  ex.drain();
  CHECK(two.granted());
  CHECK_FALSE(three.result);
  semaphore.release();
  ex.drain();
  CHECK(three.granted());
}

TEST_CASE("semaphore: two of four are stopped, one release goes to the third") {  // [C2]
  async_semaphore semaphore(0);
  step_executor ex;
  stoppable one(semaphore, ex), two(semaphore, ex), three(semaphore, ex), four(semaphore, ex);
  one.source.request_stop();
  two.source.request_stop();
  semaphore.release();
  ex.drain();
  CHECK(one.cancelled());
  CHECK(two.cancelled());
  CHECK(three.granted());
  CHECK_FALSE(four.result);
}

TEST_CASE("semaphore: stopped and then released in one step, the permit goes to the next") {  // [C3]
  async_semaphore semaphore(0);
  step_executor ex;
  stoppable one(semaphore, ex), two(semaphore, ex);
  one.source.request_stop();
  semaphore.release();
  ex.drain();
  CHECK(one.cancelled());
  CHECK(two.granted());
  CHECK(semaphore.available() == 0);
}

TEST_CASE(
    "semaphore: stopped after release chose it but before it ran, it keeps the permit, which is not lost") {  // [C4]
  async_semaphore semaphore(0);
  step_executor ex;
  stoppable one(semaphore, ex), two(semaphore, ex);
  semaphore.release();
  one.source.request_stop();
  ex.drain();
  CHECK(one.granted());
  CHECK_FALSE(two.result);
  one.result.reset();
  ex.drain();
  CHECK(two.granted());
}

TEST_CASE("semaphore: after its only waiter was stopped, a release is for the next acquire") {  // [C5]
  async_semaphore semaphore(0);
  step_executor ex;
  stoppable only(semaphore, ex);
  only.source.request_stop();
  ex.drain();
  semaphore.release();
  CHECK(semaphore.available() == 1);
  numbers log;
  CHECK(take(semaphore, log, 1).done());
}

TEST_CASE("semaphore: a thousand stopped waiters leave nothing behind") {  // [C6]
  async_semaphore semaphore(1);
  step_executor ex;
  permit held = semaphore.try_acquire().value();
  for (int i = 0; i < 1000; ++i) {
    stoppable waiter(semaphore, ex);
    CHECK(semaphore.waiting() == 1);
    waiter.source.request_stop();
    CHECK(semaphore.waiting() == 0);
    ex.drain();
    CHECK(waiter.cancelled());
  }
  held.release();
  CHECK(semaphore.available() == 1);
}

TEST_CASE("semaphore: an acquire that is stopped beforehand neither waits nor takes") {  // [C8] [C9]
  for (const std::size_t permits : {0u, 1u}) {
    async_semaphore semaphore(permits);
    std::stop_source source;
    source.request_stop();
    stoppable_result result;
    const started coroutine = take_or_stop(semaphore, source.get_token(), result);
    CHECK(is_error(result, errc::cancelled));
    CHECK(semaphore.available() == permits);
    CHECK(semaphore.waiting() == 0);
  }
}

TEST_CASE("semaphore: a token that can never stop is as good as none") {
  async_semaphore semaphore(0);
  stoppable_result result;
  const started coroutine = take_or_stop(semaphore, std::stop_token(), result);
  semaphore.release();
  CHECK(is_granted(result));
}

TEST_CASE("semaphore: an acquire that is awaited again can be stopped again") {
  async_semaphore semaphore(0);
  cobatch::simulation sim;
  std::stop_source stop;
  const auto body = [&]() -> cobatch::task<> {
    auto acquire = semaphore.acquire(1, stop.get_token());
    const auto first = co_await acquire;
    CHECK(first.has_value());
    const auto second = co_await acquire;
    CHECK((!second && second.error().code == errc::cancelled));
  };
  const auto release_then_stop = [&]() -> started {
    co_await sim.schedule();
    semaphore.release();
    co_await sim.schedule_after(std::chrono::seconds(1));
    stop.request_stop();
  };
  const started other = release_then_stop();
  sim.run(body());
}

TEST_CASE("semaphore: a stop after the end of the acquire does nothing") {  // [C12]
  async_semaphore semaphore(1);
  step_executor ex;
  stoppable taker(semaphore, ex);
  CHECK(taker.granted());
  taker.source.request_stop();
  ex.drain();
  CHECK(taker.granted());
  CHECK(semaphore.available() == 0);
}

TEST_CASE("semaphore: an acquire stopped by a timer leaves no ghost that swallows a release") {  // [C11] [C12]
  cobatch::simulation sim;
  async_semaphore semaphore(0);
  stoppable_result late, in_time;
  numbers log;
  std::vector<started> waiters;
  const auto body = [&]() -> cobatch::task<> {
    std::stop_source one, two;
    waiters.push_back(take_or_stop(semaphore, one.get_token(), late));
    waiters.push_back(take(semaphore, log, 10));
    waiters.push_back(take_or_stop(semaphore, two.get_token(), in_time));
    co_await sim.schedule_after(std::chrono::milliseconds(5));
    one.request_stop();
    co_await sim.schedule_after(std::chrono::milliseconds(5));
    semaphore.release();
    co_await sim.schedule_after(std::chrono::milliseconds(5));
    CHECK(log == numbers{10});
    semaphore.release();
    co_await sim.schedule_after(std::chrono::milliseconds(5));
    two.request_stop();
    co_await sim.schedule_after(std::chrono::milliseconds(5));
  };
  sim.run(body());
  CHECK(is_error(late, errc::cancelled));
  CHECK(is_granted(in_time));
}

TEST_CASE("semaphore: a stopped heavy head lets all who fit behind it go on at once") {
  async_semaphore semaphore(3);
  step_executor ex;
  numbers log;
  permit two = semaphore.try_acquire(1).value();
  stoppable heavy(semaphore, ex, 3);
  const started light = ex.run([&] { return take(semaphore, log, 1, 1); });
  const started lighter = ex.run([&] { return take(semaphore, log, 2, 1); });
  const started too_many = ex.run([&] { return take(semaphore, log, 3, 1); });
  CHECK(semaphore.available() == 2);
  heavy.source.request_stop();
  CHECK(semaphore.available() == 0);
  ex.drain();
  CHECK(heavy.cancelled());
  CHECK(log == numbers{1, 2});
  two.release();
  ex.drain();
  CHECK(log == numbers{1, 2, 3});
}

TEST_CASE("semaphore: stopped in the middle of the queue, the others keep their order") {
  async_semaphore semaphore(0);
  step_executor ex;
  numbers log;
  const started one = ex.run([&] { return take(semaphore, log, 1); });
  stoppable two(semaphore, ex);
  const started three = ex.run([&] { return take(semaphore, log, 3); });
  two.source.request_stop();
  semaphore.release(2);
  ex.drain();
  CHECK(log == numbers{1, 3});
  CHECK(two.cancelled());
}

TEST_CASE("semaphore: without an executor, a stopped waiter goes on inside request_stop, after those it held up") {
  async_semaphore semaphore(2);
  numbers log;
  permit one = semaphore.try_acquire().value();
  std::stop_source source;
  const auto stopped = [&](std::stop_token token) -> started {
    const auto result = co_await semaphore.acquire(2, token);
    log.push_back(result.has_value() ? 1 : -1);
  };
  const started heavy = stopped(source.get_token());
  const started light = take(semaphore, log, 2);
  source.request_stop();
  CHECK(log == numbers{2, -1});
}

TEST_CASE("semaphore: destroyed while a coroutine waits in it, it ends the program with a message") {  // [C13]
  const std::string words = dying_words([] {
    auto semaphore = std::make_unique<async_semaphore>(0);
    numbers log;
    const started waiter = take(*semaphore, log, 1);
    semaphore.reset();
  });
  CHECK(words.find("async_semaphore was destroyed while a coroutine waits in it") != std::string::npos);
}

TEST_CASE("semaphore: a waiting coroutine that is destroyed leaves the queue") {  // [C15]
  async_semaphore semaphore(0);
  step_executor ex;
  numbers log;
  started one = ex.run([&] { return take(semaphore, log, 1); });
  started two = ex.run([&] { return take(semaphore, log, 2); });
  auto three = std::make_unique<stoppable>(semaphore, ex);
  const started four = ex.run([&] { return take(semaphore, log, 4); });
  one.destroy();
  semaphore.release();
  ex.drain();
  CHECK(log == numbers{2});
  three.reset();
  CHECK(semaphore.waiting() == 1);
  semaphore.release();
  ex.drain();
  CHECK(log == numbers{2, 4});
}

TEST_CASE("semaphore: a destroyed heavy head lets those behind it go on") {  // [C15]
  async_semaphore semaphore(2);
  numbers log;
  permit one = semaphore.try_acquire().value();
  started heavy = take(semaphore, log, 1, 2);
  const started light = take(semaphore, log, 2, 1);
  heavy.destroy();
  CHECK(log == numbers{2});
}

TEST_CASE("semaphore: a granted waiter destroyed by one that runs before it gives its permit back") {  // [C15]
  async_semaphore semaphore(0);
  numbers log;
  std::vector<started> victims;
  const auto destroys_the_other = [&]() -> started {
    const permit held = co_await semaphore.acquire();
    victims.clear();
  };
  const started first = destroys_the_other();
  victims.push_back(take(semaphore, log, 1));
  const started last = take(semaphore, log, 2);
  semaphore.release(2);  // to the first and its victim; all of it goes on inside this call
  CHECK(log == numbers{2});
  CHECK(semaphore.available() == 1);
}

TEST_CASE("semaphore: a stopped waiter may be destroyed by one that goes on in its place") {  // [C15]
  async_semaphore semaphore(2);
  permit one = semaphore.try_acquire().value();
  std::stop_source source;
  stoppable_result result;
  std::vector<started> victims;
  const auto destroys_the_other = [&]() -> started {
    const permit held = co_await semaphore.acquire();
    victims.clear();
  };
  victims.push_back(take_or_stop(semaphore, source.get_token(), result, 2));
  const started next = destroys_the_other();
  source.request_stop();
  CHECK(next.done());
  CHECK_FALSE(result);
}

TEST_CASE("semaphore: the waiter that is granted the last permit may destroy the semaphore") {
  auto semaphore = std::make_unique<async_semaphore>(0);
  const auto last = [&]() -> started {
    permit held = co_await semaphore->acquire();
    (void)held.detach();
    semaphore.reset();
  };
  const started waiter = last();
  semaphore->release();
  CHECK(waiter.done());
  CHECK_FALSE(semaphore);
}
