// SPDX-License-Identifier: BSL-1.0
#include <cobatch/latency_histogram.hpp>

#include <cmath>
#include <limits>

#include "support/catch.hpp"

using namespace std::chrono_literals;
using cobatch::latency_histogram;

TEST_CASE("latency_histogram: times at the ends of the range are kept as they are") {
  constexpr auto longest = std::chrono::nanoseconds::max();
  latency_histogram all;
  all.record(longest);
  CHECK(all.mean() == longest);
  CHECK(all.quantile(0.5) == longest);
  CHECK(all.min() == longest);
  all.record(longest);
  all.record(std::chrono::nanoseconds::min());
  CHECK(all.min() == 0ns);
  CHECK(all.max() == longest);
  CHECK(all.mean() > 6'000'000'000'000'000'000ns);
  CHECK(all.count_up_to(longest) == 3);
  CHECK(all.count_up_to(std::chrono::nanoseconds::min()) == 0);
}

TEST_CASE("latency_histogram: a share that is none counts as the nearest, no number as 0") {
  latency_histogram all;
  for (int i = 1; i <= 60; ++i) all.record(std::chrono::nanoseconds(i));
  CHECK(all.quantile(-1) == 1ns);
  CHECK(all.quantile(-std::numeric_limits<double>::infinity()) == 1ns);
  CHECK(all.quantile(std::numeric_limits<double>::quiet_NaN()) == 1ns);
  CHECK(all.quantile(2) == 60ns);
  CHECK(all.quantile(std::numeric_limits<double>::infinity()) == 60ns);
  CHECK(latency_histogram().quantile(NAN) == 0ns);
}
