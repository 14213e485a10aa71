#include <cobatch/detail/polling_pace.hpp>

#include "support/catch.hpp"

using cobatch::detail::polling_pace;

namespace {

/// How many resumptions there are up to the next look.
int until_next_look(polling_pace& pace, bool timers, bool waiting) {
  int count = 1;
  while (!pace.tick(timers, waiting)) ++count;
  return count;
}

}  // namespace

TEST_CASE("polling_pace: without timers looks are rare, and soon where something is known to wait") {
  polling_pace pace;
  for (int i = 0; i < 3; ++i) {
    CHECK(until_next_look(pace, false, false) == 61);
    pace.looked_around();
    CHECK(until_next_look(pace, false, true) == 4);
    pace.looked_around();
  }
  for (int i = 0; i < 10; ++i) CHECK_FALSE(pace.tick(false));
  CHECK(pace.tick(false, true));  // the last look was long ago
}

TEST_CASE("polling_pace: with the first timer comes a look, and then after each coroutine that takes long") {
  polling_pace pace;
  CHECK(until_next_look(pace, true, false) == 1);
  for (int i = 1; i < 4; ++i) {
    pace.looked_around(i * 1'000'000);
    CHECK(until_next_look(pace, true, i % 2 == 0) == 1);
  }
}

TEST_CASE("polling_pace: with timers, short coroutines make looks rare, but for what is known to wait") {
  polling_pace pace;
  CHECK(until_next_look(pace, true, false) == 1);
  for (int i = 1; i < 10; ++i) {
    pace.looked_around(i);
    until_next_look(pace, true, false);
  }
  pace.looked_around(10);
  CHECK(until_next_look(pace, true, false) == 61);
  pace.looked_around(11);
  CHECK(until_next_look(pace, true, true) == 4);
}
