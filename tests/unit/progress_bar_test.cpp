// SPDX-License-Identifier: BSL-1.0
#include <cobatch/progress_bar.hpp>

#include <algorithm>
#include <cstdlib>
#include <regex>
#include <sstream>
#include <string>

#include "support/catch.hpp"
#include "support/told.hpp"

using namespace std::chrono_literals;
using cobatch::errc;
using cobatch::progress_bar;
using cobatch::progress_options;
using cobatch::progress_style;

namespace {

std::chrono::nanoseconds test_time{};

progress_options with(progress_style style) {
  test_time = 50s;
  return {.style = style, .width = 70, .colour = false, .clock = [] { return test_time; }};
}

std::size_t count(const std::string& text, char what) {
  return static_cast<std::size_t>(std::count(text.begin(), text.end(), what));
}

void run(teller& batch, std::size_t samples, std::chrono::nanoseconds each, errc failure = {}) {
  for (std::size_t i = 0; i < samples; ++i) {
    test_time += each;
    batch.finish(i, failure);
  }
}

}  // namespace

TEST_CASE("progress_bar: it draws done, total, failures, rate and the time left") {
  std::ostringstream os;
  progress_bar bar(1000, os, with(progress_style::draws));
  teller batch(bar);
  run(batch, 247, 10ms);
  run(batch, 3, 10ms, errc::exception);
  test_time += 100ms;
  bar.draw();
  const std::string text = os.str();
  const std::string last = text.substr(text.rfind('\r') + 1);
  CHECK(last == "250/1000 [=====>              ]  25 %  3 failed  96.2/s  0:00:08 left");
}

TEST_CASE("progress_bar: it draws at most ten times a second, over the same line") {
  std::ostringstream os;
  progress_bar bar(100'000, os, with(progress_style::draws));
  teller batch(bar);
  run(batch, 30'000, 100us);  // three seconds
  CHECK(count(os.str(), '\r') == 30);
  CHECK(count(os.str(), '\n') == 0);
  batch.end();
  CHECK(count(os.str(), '\n') == 1);
}

TEST_CASE("progress_bar: the line never wraps, whatever the width") {
  for (const std::size_t width : {20u, 45u, 60u, 80u, 200u}) {
    std::ostringstream os;
    progress_options options = with(progress_style::draws);
    options.width = width;
    progress_bar bar(1000, os, options);
    teller batch(bar);
    run(batch, 500, 10ms);
    bar.draw();
    const std::string last = os.str().substr(os.str().rfind('\r') + 1);
    if (width >= 45) CHECK(last.size() < width);
    CHECK((last.find('[') != std::string::npos) == (width >= 45));
  }
}

TEST_CASE("progress_bar: a shorter line covers the longer one before it") {
  std::ostringstream os;
  progress_bar bar(progress_bar::from_batches, os, with(progress_style::draws));
  teller batch(bar);
  run(batch, 2, 1us);
  test_time += 1s;
  bar.draw();
  const std::size_t before = os.str().size();
  test_time += 1000s;
  bar.draw();
  CHECK(os.str().size() - before >= before);
}

TEST_CASE("progress_bar: failures are red where there is colour, and only there") {
  for (const bool colour : {false, true}) {
    ::unsetenv("NO_COLOR");
    std::ostringstream os;
    progress_options options = with(progress_style::draws);
    options.colour = colour;
    progress_bar bar(10, os, options);
    teller batch(bar);
    run(batch, 5, 50ms, errc::exception);
    CHECK((os.str().find("\x1b[31m") != std::string::npos) == colour);
  }
}

TEST_CASE("progress_bar: NO_COLOR is respected") {
  ::setenv("NO_COLOR", "1", 1);
  std::ostringstream os;
  progress_options options = with(progress_style::draws);
  options.colour = true;
  progress_bar bar(10, os, options);
  teller batch(bar);
  run(batch, 5, 50ms, errc::exception);
  ::unsetenv("NO_COLOR");
  CHECK(os.str().find("4 failed") != std::string::npos);
  CHECK(os.str().find('\x1b') == std::string::npos);
}

TEST_CASE("progress_bar: where there is no terminal it writes a plain line now and then, and one at the end") {
  std::ostringstream os;
  progress_options options = with(progress_style::automatic);  // a string stream is no terminal
  progress_bar bar(1000, os, options);
  teller batch(bar);
  run(batch, 1000, 25ms);  // 25 seconds
  batch.end();
  CHECK(os.str() ==
        "400/1000  40 %  40.0/s  0:00:15 left\n"
        "800/1000  80 %  40.0/s  0:00:05 left\n"
        "1000/1000 100 %  40.0/s  0:00:25\n");
}

TEST_CASE("progress_bar: a short batch leaves one line") {
  std::ostringstream os;
  progress_bar bar(3, os, with(progress_style::lines));
  teller batch(bar);
  run(batch, 3, 1ms);
  batch.end();
  CHECK(os.str() == "3/3 100 %  1000/s  0:00:00\n");
}

TEST_CASE("progress_bar: without a total it takes what the batches know") {
  std::ostringstream os;
  progress_bar bar(progress_bar::from_batches, os, with(progress_style::lines));
  teller first(bar, SIZE_MAX, 3), second(bar, SIZE_MAX, 4);
  run(first, 3, 1ms);
  first.end();
  CHECK(os.str().empty());  // the other one is still active
  run(second, 4, 1ms);
  second.end();
  CHECK(os.str() == "7/7 100 %  1000/s  0:00:00\n");
}

TEST_CASE("progress_bar: without any total there is neither bar nor percentage") {
  std::ostringstream os;
  progress_bar bar(progress_bar::from_batches, os, with(progress_style::draws));
  teller batch(bar);
  run(batch, 100, 10ms);
  batch.end();
  CHECK(os.str().substr(os.str().rfind('\r')) == "\r100  100/s  0:00:01\n");
}

TEST_CASE("progress_bar: a line that is open is ended when it is destroyed") {
  std::ostringstream os;
  {
    progress_bar bar(10, os, with(progress_style::draws));
    bar.draw();
  }
  CHECK(count(os.str(), '\n') == 1);
}

TEST_CASE("progress_bar: more samples than expected do no harm") {
  std::ostringstream os;
  progress_bar bar(2, os, with(progress_style::draws));
  teller batch(bar);
  run(batch, 5, 1s);
  batch.end();
  CHECK(os.str().find("5/2 [") != std::string::npos);
  CHECK(os.str().find("100 %") != std::string::npos);
}

TEST_CASE("progress_bar: what is too long for the width is cut, colours and all") {
  for (const std::size_t width : {1u, 2u, 10u, 20u, 30u}) {
    for (const bool colour : {false, true}) {
      std::ostringstream os;
      progress_options options = with(progress_style::draws);
      options.width = width;
      options.colour = colour;
      progress_bar bar(1000, os, options);
      teller batch(bar);
      run(batch, 10, 10ms, errc::exception);
      for (int i = 0; i < 3; ++i) bar.draw();
      batch.end();
      const std::regex colours("\x1b\\[[0-9]*m");
      std::istringstream drawings(std::regex_replace(os.str(), colours, ""));
      for (std::string drawing; std::getline(drawings, drawing, '\r');) {
        CAPTURE(width, drawing);
        while (!drawing.empty() && drawing.back() == '\n') drawing.pop_back();
        CHECK(drawing.size() <= width - 1);
      }
      CHECK(count(os.str(), '\n') == 1);
      // What sets a colour is there as often as what ends it.
      CHECK((count(os.str(), '[') == 0 || os.str().rfind("\x1b[0m") > os.str().rfind("\x1b[31m")));
    }
  }
}

TEST_CASE("progress_bar: without a width it looks at COLUMNS each time it draws") {
  std::ostringstream os;
  progress_options options = with(progress_style::draws);
  options.width = 0;
  progress_bar bar(1000, os, options);
  teller batch(bar);
  const auto drawn = [&](const char* columns) {
    ::setenv("COLUMNS", columns, 1);
    os.str("");
    bar.draw();
    ::unsetenv("COLUMNS");
    std::string text = os.str().substr(1);
    text.erase(text.find_last_not_of(' ') + 1);
    return text.size();
  };
  CHECK(drawn("60") == 59);
  CHECK(drawn("12") <= 11);
  CHECK(drawn("70") == 69);
  CHECK(drawn("no number") == 79);
  CHECK(drawn("0") == 79);
  CHECK(drawn("") == 79);
}

TEST_CASE("progress_bar: no_timeout between drawings or lines leaves the one at the end") {
  for (const progress_style style : {progress_style::draws, progress_style::lines}) {
    std::ostringstream os;
    progress_options options = with(style);
    options.redraw = options.next_line = std::chrono::nanoseconds::max();
    progress_bar bar(1000, os, options);
    teller batch(bar);
    run(batch, 1000, 1h);
    batch.end();
    CHECK(count(os.str(), '\n') == 1);
    CHECK(count(os.str(), '\r') == (style == progress_style::draws ? 1 : 0));
  }
}

TEST_CASE("progress_bar: a clock at the ends of its range, or one that goes back, does no harm") {
  std::ostringstream os;
  progress_bar bar(10, os, with(progress_style::draws));
  teller batch(bar);
  for (const auto at : {std::chrono::nanoseconds::max(), std::chrono::nanoseconds::min(), 0ns}) {
    test_time = at;
    batch.finish(0);
    bar.draw();
  }
  CHECK(os.str().find("nan") == std::string::npos);
}
