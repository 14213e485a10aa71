#include <cobatch/option_types.hpp>

#include <chrono>
#include <cstdint>
#include <limits>
#include <ratio>
#include <type_traits>

#include <cobatch/batch_options.hpp>
#include <cobatch/metrics.hpp>
#include <cobatch/semaphore.hpp>

#include "support/catch.hpp"

using namespace std::chrono_literals;
using cobatch::option_ref;
using cobatch::time_span;
using std::chrono::duration;
using std::chrono::nanoseconds;

static_assert(std::is_trivially_copyable_v<time_span>);
static_assert(std::is_trivially_copyable_v<option_ref<cobatch::async_semaphore>>);
static_assert(std::is_nothrow_convertible_v<std::chrono::hours, time_span>);
static_assert(std::is_nothrow_convertible_v<duration<float>, time_span>);
static_assert(std::is_convertible_v<time_span, nanoseconds>);

TEST_CASE("time_span: any duration is taken, to the nearest nanosecond") {
  CHECK(time_span() == 0ns);
  CHECK(time_span(5ns) == 5ns);
  CHECK(time_span(3s) == 3s);
  CHECK(time_span(-2min) == -2min);
  CHECK(time_span(0.5s) == 500ms);
  CHECK(time_span(0.3s) == 300ms);
  CHECK(time_span(-0.3s) == -300ms);
  CHECK(time_span(duration<float, std::milli>(1.5f)) == 1500us);
  CHECK(time_span(duration<int, std::pico>(7'999)) == 7ns);  // as duration_cast does it
  CHECK(time_span(duration<unsigned>(7)) == 7s);
}

TEST_CASE("time_span: what is beyond the range is its end, and no number is zero") {
  CHECK(time_span(std::chrono::hours::max()) == nanoseconds::max());
  CHECK(time_span(std::chrono::hours::min()) == nanoseconds::min());
  CHECK(time_span(duration<double>(1e300)) == cobatch::no_timeout);
  CHECK(time_span(duration<double>(-1e300)) == nanoseconds::min());
  CHECK(time_span(duration<double>(std::numeric_limits<double>::infinity())) == cobatch::no_timeout);
  CHECK(time_span(duration<double>(std::numeric_limits<double>::quiet_NaN())) == 0ns);
  CHECK(time_span(duration<std::int64_t, std::ratio<1, 60>>::max()) == cobatch::no_timeout);
  CHECK(time_span(duration<std::int64_t, std::ratio<1, 60>>(90)) == 1500ms);
  CHECK(time_span(cobatch::no_timeout) == cobatch::no_timeout);
}

TEST_CASE("time_span: is used like std::chrono::nanoseconds") {
  cobatch::batch_options options{.timeout = 1.5s};
  CHECK(options.timeout != cobatch::no_timeout);
  CHECK(options.timeout * 2 == 3s);
  CHECK(options.timeout.count() == 1'500'000'000);
  options.timeout = options.timeout + 1ms;
  const nanoseconds plain = options.timeout;
  CHECK(plain == 1501ms);
  CHECK(std::chrono::steady_clock::time_point() + options.timeout == std::chrono::steady_clock::time_point(1501ms));
}

TEST_CASE("option_ref: is made from an object, from its address, or from null") {
  cobatch::async_semaphore semaphore(3);
  cobatch::batch_metrics metrics;
  cobatch::batch_options options{.semaphore = semaphore, .observer = metrics};
  CHECK(options.semaphore == &semaphore);
  CHECK(options.semaphore->limit() == 3);
  CHECK((*options.semaphore).limit() == 3);
  CHECK(options.observer == &metrics);
  CHECK_FALSE(options.limit);

  options.semaphore = nullptr;
  CHECK(options.semaphore == nullptr);
  options.semaphore = &semaphore;
  CHECK(options.semaphore);
  cobatch::async_semaphore* const plain = options.semaphore;
  CHECK(plain == &semaphore);
}
