// SPDX-License-Identifier: BSL-1.0
#include <cobatch/in_flight.hpp>

#include <sstream>
#include <string>

#include "support/catch.hpp"
#include "support/told.hpp"

using namespace std::chrono_literals;
using cobatch::errc;

namespace {

std::string dump(const cobatch::in_flight_recorder& of, std::chrono::nanoseconds now, std::size_t most = 50) {
  std::ostringstream os;
  of.dump_at(os, now, most);
  return os.str();
}

cobatch::attempt_event at(const teller& batch, const int& lane, std::size_t index, std::chrono::nanoseconds when) {
  cobatch::attempt_event event;
  event.batch = batch.batch;
  event.lane = &lane;
  event.index = index;
  event.at = when;
  event.limit = 4;
  return event;
}

}  // namespace

TEST_CASE("in_flight: what runs, waits and sleeps is told, the oldest first, batch by batch") {
  cobatch::in_flight_recorder stuck;
  CHECK(dump(stuck, 0s) == "no batch is active\n");
  const int lanes[4]{};
  teller first(stuck, 4, 10), second(stuck);
  stuck.attempt_started(at(first, lanes[0], 3, 102s));
  stuck.attempt_started(at(first, lanes[1], 2, 101s));
  stuck.wait_started({first.batch, &lanes[2], cobatch::wait_event::no_sample, cobatch::wait_for::rate, 2, 4, 103s, {}});
  first.now = 104s;
  first.attempt(5, 1s, 1, errc::exception);
  first.retry(5, 1, errc::exception, 20s);
  first.sample(6, 1s);
  const std::string expected = "batch " + std::to_string(first.batch) +
                               ": 1 of 10 finished after 10.0 s, 2 in flight, limit 4\n"
                               "  sample 2, attempt 1: in predict since 9.00 s\n"
                               "  sample 3, attempt 1: in predict since 8.00 s\n"
                               "  the next sample: waits for the rate limiter since 7.00 s\n"
                               "  sample 5, attempt 2: sleeps, for another 14.0 s, since 6.00 s\n"
                               "batch " +
                               std::to_string(second.batch) + ": 0 finished after 10.0 s, 0 in flight\n";
  CHECK(dump(stuck, 110s) == expected);
  CHECK(dump(stuck, 110s, 1).find("  ... and 3 more\n") != std::string::npos);
  CHECK(dump(stuck, 130s).find("sample 5, attempt 2: waits for its next turn since") != std::string::npos);

  // All of it comes to its end.
  stuck.attempt_ended(at(first, lanes[0], 3, 110s));
  stuck.attempt_ended(at(first, lanes[1], 2, 110s));
  stuck.wait_ended({first.batch, &lanes[2], 0, cobatch::wait_for::rate, 2, 4, 110s, 7s});
  auto again = at(first, lanes[0], 5, 125s);
  again.attempt = 2;
  stuck.attempt_started(again);
  stuck.attempt_ended(again);
  second.end();
  CHECK(dump(stuck, 130s) ==
        "batch " + std::to_string(first.batch) + ": 1 of 10 finished after 30.0 s, 0 in flight, limit 4\n");
  first.end();
  CHECK(dump(stuck, 130s) == "no batch is active\n");
}
