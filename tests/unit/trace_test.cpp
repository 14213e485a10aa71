// SPDX-License-Identifier: BSL-1.0
#include <cobatch/trace.hpp>

#include <map>
#include <regex>
#include <sstream>
#include <string>

#include "support/catch.hpp"
#include "support/json.hpp"
#include "support/told.hpp"

using namespace std::chrono_literals;
using cobatch::errc;
using cobatch::trace_recorder;

namespace {

std::string chrome(const trace_recorder& trace) {
  std::ostringstream os;
  trace.write_chrome(os);
  REQUIRE(json_checker::accepts(os.str()));
  return os.str();
}

std::size_t count(const std::string& text, const std::string& what) {
  std::size_t found = 0;
  for (std::size_t at = text.find(what); at != text.npos; at = text.find(what, at + 1)) ++found;
  return found;
}

}  // namespace

TEST_CASE("trace: without an attempt it is valid all the same") {
  const trace_recorder trace;
  CHECK(chrome(trace).find("\"traceEvents\":[") != std::string::npos);
}

TEST_CASE("trace: one slice per attempt, in microseconds since the first moment") {
  trace_recorder trace;
  teller batch(trace, 2, 2);
  batch.now += 5ms;
  batch.sample(17, 3ms, 1, errc::timed_out);
  batch.now += 1500ns;
  batch.end();
  const std::string text = chrome(trace);
  CHECK(count(text, "\"ph\":\"X\"") == 2);  // the batch and the attempt
  CHECK(text.find("\"tid\":0,\"ts\":0.000,\"dur\":5001.500,\"name\":\"batch\"") != text.npos);
  CHECK(text.find("\"tid\":1,\"ts\":2000.000,\"dur\":3000.000,\"name\":\"sample 17\"") != text.npos);
  CHECK(text.find("\"outcome\":\"timed_out\",\"late\":true") != text.npos);
  CHECK(count(text, "\"name\":\"lane 1\"") == 1);
}

TEST_CASE("trace: there are as many rows as attempts at the same time") {
  trace_recorder trace;
  teller batch(trace);
  for (int i = 0; i < 100; ++i) {
    batch.now += 10ms;
    batch.sample(0, 25ms);  // each begins when two others run
  }
  const std::string text = chrome(trace);
  CHECK(count(text, "\"name\":\"thread_name\"") == 1 + 3);
  CHECK(text.find("{\"in flight\":3}") != text.npos);
  CHECK(text.find("{\"in flight\":4}") == text.npos);
}

TEST_CASE("trace: slices on one row never overlap, waits included") {
  trace_recorder trace;
  teller batch(trace, 8);
  batch.waits.waited_for_input = 2ms;
  batch.waits.waited_for_rate = 4ms;
  for (int i = 0; i < 50; ++i) {
    batch.now += 7ms;
    batch.sample(0, std::chrono::milliseconds(1 + i * 37 % 20));
  }
  const std::string text = chrome(trace);
  const std::regex slice("\"ph\":\"X\",\"pid\":\\d+,\"tid\":(\\d+),\"ts\":([0-9.]+),\"dur\":([0-9.]+)");
  std::map<int, double> free_from;
  std::size_t slices = 0;
  for (std::sregex_iterator each(text.begin(), text.end(), slice), end; each != end; ++each, ++slices) {
    const int row = std::stoi((*each)[1]);
    const double begin = std::stod((*each)[2]);
    if (row != 0) CHECK(begin >= free_from[row] - 0.001);
    free_from[row] = begin + std::stod((*each)[3]);
  }
  CHECK(slices == 1 + 3 * 50);
  CHECK(count(text, "wait for rate") == 50);
}

TEST_CASE("trace: the limit is a counter that is written when it changes") {
  trace_recorder trace;
  teller batch(trace, 8);
  for (int i = 0; i < 5; ++i) batch.sample(0, 1ms), batch.now += 1ms;
  CHECK(count(chrome(trace), "{\"limit\":8}") == 1);
}

TEST_CASE("trace: each batch is a process") {
  trace_recorder trace;
  teller first(trace), second(trace);
  first.sample(0, 1ms);
  second.sample(0, 1ms);
  second.sample(1, 1ms);
  const std::string text = chrome(trace);
  CHECK(count(text, "process_name") == 2);
  CHECK(count(text, "\"pid\":" + std::to_string(second.batch) + ",\"tid\":2,\"ts\"") == 1);
  CHECK(count(text, "\"pid\":" + std::to_string(first.batch) + ",\"tid\":2,\"ts\"") == 0);
}

TEST_CASE("trace: a full one counts what it drops") {
  trace_recorder trace("small", 10);
  teller batch(trace);
  for (int i = 0; i < 25; ++i) batch.sample(0, 1ms);
  CHECK(trace.recorded() == 10);
  CHECK(trace.dropped() == 15);
  const std::string text = chrome(trace);
  CHECK(count(text, "\"cat\":\"attempt\"") == 10);
  CHECK(text.find("\"dropped_attempts\":15") != text.npos);
}

TEST_CASE("trace: names are escaped") {
  trace_recorder trace("a \"b\"\\\n\x01");
  teller batch(trace);
  CHECK(chrome(trace).find(R"("name":"a \"b\"\\\u000a\u0001: batch)") != std::string::npos);
}

TEST_CASE("trace: times at the ends of the range are written as they are") {
  trace_recorder trace;
  constexpr auto first = std::chrono::nanoseconds::min(), last = std::chrono::nanoseconds::max();
  for (const auto at : {first, 0ns, last}) {
    for (const auto ran : {0ns, last}) {
      cobatch::batch_info begun;
      begun.at = at;
      trace.batch_started(begun);
      cobatch::attempt_event ended;
      ended.at = at;
      ended.ran = ended.waited_for_input = ended.waited_for_permits = ended.waited_for_rate = ran;
      trace.attempt_ended(ended);
      cobatch::batch_summary over;
      over.at = last;
      trace.batch_ended(over);
    }
  }
  const std::string text = chrome(trace);
  CHECK(text.find("\"ts\":-") == std::string::npos);
  CHECK(text.find("\"dur\":-") == std::string::npos);
}
