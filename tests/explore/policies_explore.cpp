// Attempts in flight and those who look at them from outside: a timeout, a second attempt, a retry, a deadline.

#include <cobatch/batch_predict.hpp>
#include <cobatch/task.hpp>

#include <chrono>
#include <stdexcept>
#include <vector>

#include "scenario.hpp"

namespace x = cobatch_explore;
using namespace std::chrono_literals;
using explored::timed_executor;

namespace {

struct tally {
  int values = 0, timed_out = 0, cancelled = 0, others = 0;
  int all() const { return values + timed_out + cancelled + others; }
};

template <class Predict>
explored::fire_and_forget run(timed_executor& ex, const std::vector<int>& samples, Predict& predict,
                              cobatch::batch_options options, tally& count, x::channel* then_close = nullptr) {
  co_await cobatch::schedule(ex);
  const auto results = co_await cobatch::batch_predict(ex, samples, predict, options);
  for (const auto& each : results) {
    if (each.has_value()) {
      ++count.values;
    } else if (each.error().code == cobatch::errc::timed_out) {
      ++count.timed_out;
    } else if (each.error().code == cobatch::errc::cancelled) {
      ++count.cancelled;
    } else {
      ++count.others;
    }
  }
  if (then_close) then_close->close();
  ex.close();
}

}  // namespace

SCENARIO("timeout: an attempt that never looks at its token ends elsewhere", .stale = 0) {
  timed_executor ex(1);
  x::channel server;
  const std::vector<int> samples{1};
  auto predict = [&](int, std::stop_token) -> cobatch::task<int> {
    co_await explored::handed_to{&server};
    co_return 1;
  };
  tally count;
  run(ex, samples, predict, {.timeout = 1ms}, count);
  x::threads({[&] { ex.work(); }, [&] { explored::serve(server, 1); }});
  x::check(count.all() == 1 && count.others == 0, "not one outcome");
}

SCENARIO("timeout: two attempts on two workers, one lane each", .stale = 0) {
  timed_executor ex(2);
  x::channel server;
  const std::vector<int> samples{1, 2};
  auto predict = [&](int, std::stop_token) -> cobatch::task<int> {
    co_await explored::handed_to{&server};
    co_return 1;
  };
  tally count;
  run(ex, samples, predict, {.max_concurrency = 2, .timeout = 1ms}, count);
  x::threads({[&] { ex.work(); }, [&] { ex.work(); }, [&] { explored::serve(server, 2); }});
  x::check(count.all() == 2 && count.others == 0, "not one outcome each");
}

SCENARIO("timeout: one lane, one sample after another", .stale = 0) {
  timed_executor ex(1);
  x::channel server;
  const std::vector<int> samples{1, 2};
  auto predict = [&](int, std::stop_token) -> cobatch::task<int> {
    co_await explored::handed_to{&server};
    co_return 1;
  };
  tally count;
  run(ex, samples, predict, {.max_concurrency = 1, .timeout = 1ms}, count);
  x::threads({[&] { ex.work(); }, [&] { explored::serve(server, 2); }});
  x::check(count.all() == 2 && count.others == 0, "not one outcome each");
}

SCENARIO("deadline: it comes while samples are in flight", .stale = 0) {
  timed_executor ex(1);
  x::channel server;
  const std::vector<int> samples{1, 2, 3};
  auto predict = [&](int, std::stop_token) -> cobatch::task<int> {
    co_await explored::handed_to{&server};
    co_return 1;
  };
  tally count;
  run(ex, samples, predict, {.max_concurrency = 2, .deadline = 1ms}, count, &server);
  x::threads({[&] { ex.work(); }, [&] { explored::serve(server, 3); }});
  x::check(count.all() == 3, "not one outcome each");
}

SCENARIO("hedge: two attempts of one sample", .stale = 0) {
  timed_executor ex(1);
  x::channel server;
  const std::vector<int> samples{1};
  int calls = 0;
  auto predict = [&](int, std::stop_token) -> cobatch::task<int> {
    ++calls;
    co_await explored::handed_to{&server};
    co_return 1;
  };
  tally count;
  run(ex, samples, predict, {.max_concurrency = 2, .hedge = {.delay = 1ms, .max_extra = 1.0}}, count, &server);
  x::threads({[&] { ex.work(); }, [&] { explored::serve(server, 2); }});
  x::check(count.values == 1 && (calls == 1 || calls == 2), "not one outcome");
}

SCENARIO("hedge: two attempts end on two threads", .stale = 0) {
  timed_executor ex(2);
  x::channel server;
  const std::vector<int> samples{1};
  x::atomic<int> calls{0};
  auto predict = [&](int, std::stop_token) -> cobatch::task<int> {
    const int call = calls.fetch_add(1);
    co_await explored::handed_to{&server};
    if (call == 0 && x::choose(2) == 1) throw std::runtime_error("the first attempt fails");
    co_return 1;
  };
  tally count;
  run(ex, samples, predict, {.max_concurrency = 2, .hedge = {.delay = 1ms, .max_extra = 1.0}}, count, &server);
  x::threads({[&] { ex.work(); }, [&] { ex.work(); }, [&] { explored::serve(server, 2); }});
  x::check(count.all() == 1, "not one outcome");
}

SCENARIO("hedge: a second attempt takes the lane that the next sample wants", .stale = 0) {
  timed_executor ex(1);
  x::channel server;
  const std::vector<int> samples{1, 2, 3};
  auto predict = [&](int, std::stop_token) -> cobatch::task<int> {
    co_await explored::handed_to{&server};
    co_return 1;
  };
  tally count;
  run(ex, samples, predict, {.max_concurrency = 2, .hedge = {.delay = 1ms, .max_extra = 1.0}}, count, &server);
  x::threads({[&] { ex.work(); }, [&] { explored::serve(server, 6); }});
  x::check(count.values == 3, "not one outcome each");
}

SCENARIO("retry: a sample that sleeps, while the last lane ends", .stale = 0) {
  timed_executor ex(2);
  const std::vector<int> samples{1, 2};
  x::atomic<int> calls{0};
  auto predict = [&](int sample) -> int {
    if (sample == 1 && calls.fetch_add(1) == 0) throw std::runtime_error("try again");
    return 1;
  };
  tally count;
  cobatch::batch_options options{.max_concurrency = 2};
  options.retry = {.max_attempts = 2, .initial_backoff = 1ms, .jitter = false};
  run(ex, samples, predict, options, count);
  x::threads({[&] { ex.work(); }, [&] { ex.work(); }});
  x::check(count.values == 2, "not one outcome each");
}

SCENARIO("retry: a stop while a sample sleeps", .stale = 0) {
  timed_executor ex(1);
  const std::vector<int> samples{1, 2};
  std::stop_source stop;
  auto predict = [&](int) -> int { throw std::runtime_error("try again"); };
  tally count;
  cobatch::batch_options options{.max_concurrency = 2, .stop = stop};
  options.retry = {.max_attempts = 2, .initial_backoff = 1ms, .jitter = false};
  run(ex, samples, predict, options, count);
  x::threads({[&] { ex.work(); }, [&] { stop.request_stop(); }});
  x::check(count.all() == 2, "not one outcome each");
}
