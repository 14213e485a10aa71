#include <cobatch/semaphore.hpp>

#include <cstddef>
#include <limits>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

#include "semaphore_coroutines.hpp"
#include "support/catch.hpp"
#include "support/step_executor.hpp"

using cobatch::async_semaphore;
using cobatch::errc;
using cobatch::permit;
using namespace semaphore_coroutines;

TEST_CASE("semaphore: a weight above the limit is an error at once, with or without a token") {
  async_semaphore semaphore(3);
  std::stop_source source;
  stoppable_result result;
  const started stoppable = take_or_stop(semaphore, source.get_token(), result, 4);
  CHECK(is_error(result, errc::cost_exceeds_capacity));
  std::optional<bool> threw;
  const started plain = take_or_throw(semaphore, 4, threw);
  CHECK(threw == true);
  CHECK_FALSE(semaphore.try_acquire(4));
  CHECK(semaphore.available() == 3);
  CHECK(semaphore.waiting() == 0);
  CHECK(semaphore.try_acquire(3));
}

TEST_CASE("semaphore: a weight above the limit is an error also behind a queue, and does not disturb it") {
  async_semaphore semaphore(2);
  numbers log;
  permit all = semaphore.try_acquire(2).value();
  const started waiter = take(semaphore, log, 1);
  std::optional<bool> threw;
  const started heavy = take_or_throw(semaphore, std::numeric_limits<std::size_t>::max(), threw);
  CHECK(threw == true);
  CHECK(semaphore.waiting() == 1);
  all.release();
  CHECK(waiter.done());
}

TEST_CASE("semaphore: the error of a weight above the limit says what to do") {
  async_semaphore semaphore(1);
  std::string message;
  const auto coroutine = [&]() -> started {
    try {
      const permit held = co_await semaphore.acquire(2);
    } catch (const std::exception& e) {
      message = e.what();
    }
  };
  const started heavy = coroutine();
  CHECK(message.find("above the limit") != std::string::npos);
  CHECK(message.find("raise the limit") != std::string::npos);
}

TEST_CASE("semaphore: a weight above the limit is granted where signals have left so many free") {
  async_semaphore semaphore(1);
  semaphore.release(4);
  permit held;
  const started taker = take_into(semaphore, held, 5);
  CHECK(held.weight() == 5);
}

TEST_CASE("semaphore: a limit of 0 means paused: everyone waits, whatever the weight") {
  async_semaphore semaphore(2);
  step_executor ex;
  numbers log;
  semaphore.set_limit(0);
  CHECK(semaphore.available() == 0);
  CHECK_FALSE(semaphore.try_acquire());
  CHECK_FALSE(semaphore.try_acquire(0));
  const started none = ex.run([&] { return take(semaphore, log, 0, 0); });
  const started one = ex.run([&] { return take(semaphore, log, 1, 1); });
  const started five = ex.run([&] { return take(semaphore, log, 5, 5); });
  CHECK(semaphore.waiting() == 3);
  semaphore.set_limit(6);
  ex.drain();
  CHECK(log == numbers{0, 1, 5});
  CHECK(semaphore.available() == 0);
}

TEST_CASE("semaphore: paused while permits are out, nothing is granted as they come back") {
  async_semaphore semaphore(2);
  numbers log;
  permit one = semaphore.try_acquire().value();
  permit two = semaphore.try_acquire().value();
  const started waiter = take(semaphore, log, 1);
  semaphore.set_limit(0);
  one.release();
  two.release();
  CHECK(log.empty());
  CHECK(semaphore.available() == 0);
  semaphore.set_limit(1);
  CHECK(log == numbers{1});
}

TEST_CASE("semaphore: lowering the limit revokes nothing and grants nothing until use is below it") {
  async_semaphore semaphore(4);
  numbers log;
  std::vector<permit> permits;
  for (int i = 0; i < 4; ++i) permits.push_back(semaphore.try_acquire().value());
  semaphore.set_limit(2);
  CHECK(semaphore.limit() == 2);
  CHECK(semaphore.available() == 0);
  const started waiter = take(semaphore, log, 1);
  permits.pop_back();
  permits.pop_back();
  CHECK(log.empty());
  CHECK(semaphore.available() == 0);
  permits.pop_back();
  CHECK(log == numbers{1});
  CHECK_FALSE(semaphore.try_acquire());
  permits.pop_back();
  CHECK(semaphore.available() == 1);
}

TEST_CASE("semaphore: with more permits out than the limit allows, a newcomer waits though nobody else does") {
  async_semaphore semaphore(3);
  numbers log;
  permit all = semaphore.try_acquire(3).value();
  semaphore.set_limit(1);
  CHECK_FALSE(semaphore.try_acquire());
  CHECK(semaphore.waiting() == 0);
  const started waiter = take(semaphore, log, 1);
  CHECK(semaphore.waiting() == 1);
  all.release();
  CHECK(log == numbers{1});
  CHECK(semaphore.available() == 0);
}

TEST_CASE("semaphore: use falls below a lowered limit with nobody waiting, and permits are free again") {
  async_semaphore semaphore(3);
  permit two = semaphore.try_acquire(2).value();
  permit one = semaphore.try_acquire(1).value();
  semaphore.set_limit(2);
  CHECK(semaphore.available() == 0);
  one.release();
  CHECK(semaphore.available() == 0);
  CHECK_FALSE(semaphore.try_acquire());
  two.release();
  CHECK(semaphore.available() == 2);
  CHECK(semaphore.try_acquire(2));
}

TEST_CASE("semaphore: raising the limit grants by what is really free") {
  async_semaphore semaphore(3);
  step_executor ex;
  numbers log;
  permit all = semaphore.try_acquire(3).value();
  semaphore.set_limit(1);  // two too many are out
  std::vector<started> waiters;
  for (int i = 1; i <= 4; ++i) waiters.push_back(ex.run([&] { return take(semaphore, log, i); }));
  semaphore.set_limit(3);
  ex.drain();
  CHECK(log.empty());
  semaphore.set_limit(5);
  CHECK(log.empty());  // never inside set_limit()
  ex.drain();
  CHECK(log == numbers{1, 2});
  all.release();
  ex.drain();
  CHECK(log == numbers{1, 2, 3, 4});
  CHECK(semaphore.available() == 1);
}

TEST_CASE("semaphore: raising the limit with nobody waiting adds permits") {
  async_semaphore semaphore(1);
  semaphore.set_limit(3);
  CHECK(semaphore.available() == 3);
  CHECK(semaphore.try_acquire(3));
  semaphore.set_limit(3);
  CHECK(semaphore.available() == 3);
}

TEST_CASE("semaphore: a limit lowered below a waiter's weight ends its wait, and those behind it go on") {
  async_semaphore semaphore(4);
  step_executor ex;
  numbers log;
  stoppable_result result;
  std::stop_source source;
  std::optional<bool> threw;
  permit three = semaphore.try_acquire(3).value();
  const started light_first = ex.run([&] { return take(semaphore, log, 1, 2); });
  const started heavy = ex.run([&] { return take_or_stop(semaphore, source.get_token(), result, 4); });
  const started heavy_too = ex.run([&] { return take_or_throw(semaphore, 3, threw); });
  const started light = ex.run([&] { return take(semaphore, log, 2, 1); });
  semaphore.set_limit(2);
  CHECK_FALSE(result);  // goes on on its executor, not inside set_limit()
  ex.drain();
  CHECK(is_error(result, errc::cost_exceeds_capacity));
  CHECK(threw == true);
  CHECK(log.empty());
  CHECK(semaphore.waiting() == 2);
  three.release();
  ex.drain();
  CHECK(log == numbers{1});
  semaphore.release(2);
  ex.drain();
  CHECK(log == numbers{1, 2});
}

TEST_CASE("semaphore: a heavy head that a lowered limit ends makes way at once") {
  async_semaphore semaphore(4);
  numbers log;
  std::optional<bool> threw;
  permit one = semaphore.try_acquire(1).value();
  const started heavy = take_or_throw(semaphore, 4, threw);
  const started light = take(semaphore, log, 1, 2);
  semaphore.set_limit(3);
  CHECK(threw == true);
  CHECK(log == numbers{1});
  CHECK(semaphore.available() == 0);
}

TEST_CASE("semaphore: a pause does not end a heavy waiter, a small limit after it does") {
  async_semaphore semaphore(4);
  std::optional<bool> threw;
  permit four = semaphore.try_acquire(4).value();
  const started heavy = take_or_throw(semaphore, 3, threw);
  semaphore.set_limit(0);
  CHECK(semaphore.waiting() == 1);
  CHECK_FALSE(threw);
  semaphore.set_limit(2);
  CHECK(threw == true);
  CHECK(semaphore.waiting() == 0);
}

TEST_CASE("semaphore: several limits in a row leave the count as if only the last had been set") {
  async_semaphore semaphore(5);
  permit two = semaphore.try_acquire(2).value();
  for (const std::size_t limit : {0u, 9u, 1u, 2u, 0u, 3u, 7u}) {
    semaphore.set_limit(limit);
    CHECK(semaphore.available() == (limit > 2 ? limit - 2 : 0));
  }
  two.release();
  CHECK(semaphore.available() == 7);
}
