#include <cobatch/asio.hpp>

#include <atomic>
#include <chrono>
#include <coroutine>
#include <cstddef>
#include <exception>
#include <memory>
#include <optional>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#if defined(COBATCH_ASIO_STANDALONE)
#include <asio/detached.hpp>
#include <asio/experimental/awaitable_operators.hpp>
#include <asio/io_context.hpp>
#include <asio/thread_pool.hpp>
using asio::system_error;
#else
#include <boost/asio/detached.hpp>
#include <boost/asio/experimental/awaitable_operators.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/thread_pool.hpp>
namespace asio = boost::asio;
using boost::system::system_error;
#endif

#include <cobatch/batch_predict.hpp>
#include <cobatch/predict_stream.hpp>
#include <cobatch/semaphore.hpp>
#include <cobatch/sync_wait.hpp>
#include <cobatch/thread_pool.hpp>

#include "support/catch.hpp"
#include "support/lifetimes.hpp"
#include "support/outline.hpp"

using asio::awaitable;
using asio::use_awaitable;
using cobatch::as_asio;
using cobatch::asio_executor;
using cobatch::batch_predict;
using cobatch::from_asio;
using cobatch::task;
using namespace std::chrono_literals;

namespace {

const std::vector<int> four{1, 2, 3, 4};

using context_executor = asio_executor<asio::io_context::executor_type>;
static_assert(cobatch::timed_executor<context_executor>);
static_assert(cobatch::timed_executor<asio_executor<>>);
static_assert(!std::is_move_constructible_v<context_executor>);

/// Runs the coroutine in the context until nothing is left to do; its exception is thrown here.
template <class Coroutine>
void run_in(asio::io_context& context, Coroutine&& coroutine) {
  std::exception_ptr failure;
  bool ended = false;
  asio::co_spawn(context, std::forward<Coroutine>(coroutine)(), [&](std::exception_ptr thrown) {
    failure = thrown;
    ended = true;
  });
  context.run();
  if (failure) std::rethrow_exception(failure);
  REQUIRE(ended);
}

/// Waits for ever, but for a cancellation, and counts itself.
awaitable<int> hang(census& counted) {
  const life here(counted);
  asio::steady_timer timer(co_await asio::this_coro::executor, asio::steady_timer::time_point::max());
  co_await timer.async_wait(use_awaitable);
  co_return 0;
}

awaitable<int> tenfold(int x) {
  asio::steady_timer timer(co_await asio::this_coro::executor, 1ms);
  co_await timer.async_wait(use_awaitable);
  if (x < 0) throw std::runtime_error("negative");
  co_return 10 * x;
}

/// Several threads that run a context.
class runners {
 public:
  runners(asio::io_context& context, int count) : work_(asio::make_work_guard(context)) {
    for (int i = 0; i < count; ++i) threads_.emplace_back([&] { context.run(); });
  }
  runners(const runners&) = delete;
  runners& operator=(const runners&) = delete;
  ~runners() {
    work_.reset();
    for (std::thread& each : threads_) each.join();
  }

 private:
  asio::executor_work_guard<asio::io_context::executor_type> work_;
  std::vector<std::thread> threads_;
};

}  // namespace

// ---- asio_executor ----

TEST_CASE("asio_executor: a batch runs on an io_context, with all that needs timers, and run() returns after it") {
  asio::io_context context;
  asio_executor executor(context);
  std::vector<int> attempts(5);
  run_in(context, [&]() -> awaitable<void> {
    const auto predict = [&](int x, std::stop_token stop) -> task<int> {
      CHECK(executor.running_in_this_thread());
      const bool elapsed = co_await executor.schedule_after(x == 3 ? 24h : 1ms, stop);
      if (++attempts[static_cast<std::size_t>(x)] == 1 && x == 2) throw std::runtime_error("once");
      if (!elapsed) throw std::runtime_error("stopped");
      co_return 10 * x;
    };
    cobatch::batch_options options{.max_concurrency = 3, .timeout = 1s, .deadline = 1h};
    options.retry.max_attempts = 2;
    options.retry.initial_backoff = 1ms;
    options.retry.retry_if = [](const cobatch::error& why) { return why.code == cobatch::errc::exception; };
    const auto results = co_await as_asio(batch_predict(executor, four, predict, options));
    CHECK(outline(results) == "10 20 timed_out 40");
  });
  CHECK(attempts == std::vector<int>{0, 1, 2, 1, 1});
  CHECK(!executor.running_in_this_thread());
}

TEST_CASE("asio_executor: timers elapse in order, are stopped one by one, and leave no work behind") {
  asio::io_context context;
  asio_executor executor(context);
  std::string order;
  std::stop_source first, second;
  const auto sleeper = [&](char name, std::chrono::nanoseconds delay, std::stop_token stop) -> task<int> {
    const bool elapsed = co_await executor.schedule_after(delay, stop);
    order += name;
    order += elapsed ? '+' : '-';
    if (name == 'b') first.request_stop();
    co_return 0;
  };
  const std::vector<char> names{'a', 'b', 'c', 'd', 'e'};
  run_in(context, [&]() -> awaitable<void> {
    second.request_stop();
    const auto predict = [&](char name) {
      switch (name) {
        case 'a': return sleeper(name, 20ms, {});
        case 'b': return sleeper(name, 10ms, {});
        case 'c': return sleeper(name, 24h, first.get_token());
        case 'd': return sleeper(name, 0ns, {});
        default: return sleeper(name, 24h, second.get_token());
      }
    };
    co_await as_asio(batch_predict(executor, names, predict));
  });
  CHECK(order.size() == 10);
  for (const char* each : {"a+", "b+", "c-", "d+", "e-"}) {
    INFO(each);
    CHECK(order.find(each) != std::string::npos);
  }
  CHECK(order.find('b') < order.find('a'));
  CHECK(order.find('b') < order.find('c'));
}

TEST_CASE("asio_executor: a context that many threads run, stopped from yet another") {
  asio::io_context context;
  const runners threads(context, 4);
  asio_executor executor(context, 4);
  CHECK(executor.concurrency() == 4);
  std::vector<int> samples(2000);
  for (std::size_t i = 0; i < samples.size(); ++i) samples[i] = static_cast<int>(i);
  std::stop_source stop;
  std::atomic<int> started{0};
  const auto predict = [&](int x, std::stop_token token) -> task<int> {
    ++started;
    co_await executor.schedule();
    if (x % 2 == 0) co_await executor.schedule_after(100us, token);
    if (x % 100 != 99) co_return x;
    const bool elapsed = co_await executor.schedule_after(24h, token);
    co_return elapsed ? 1 : -1;
  };
  std::thread stopper([&] {
    while (started < 2000) std::this_thread::yield();
    stop.request_stop();
  });
  const auto results = cobatch::sync_wait(batch_predict(executor, samples, predict, {.max_concurrency = 64, .stop = stop}));
  stopper.join();
  CHECK(values_in(results) == 2000);
  CHECK(results[99].value() == -1);
  CHECK(results[98].value() == 98);
}

TEST_CASE("asio_executor: strands, thread pools and type-erased executors") {
  asio::thread_pool threads(3);
  const auto check = [&](auto& executor) {
    int unguarded = 0;
    const auto predict = [&](int x) -> task<int> {
      co_await executor.schedule_after(1ms);
      if (executor.concurrency() == 1) ++unguarded;
      co_return x;
    };
    CHECK(outline(cobatch::sync_wait(batch_predict(executor, four, predict))) == "1 2 3 4");
    CHECK(unguarded == (executor.concurrency() == 1 ? 4 : 0));
  };
  SECTION("a thread pool") {
    asio_executor executor(threads, 3);
    check(executor);
  }
  SECTION("a strand") {
    asio_executor executor(asio::make_strand(threads));
    check(executor);
  }
  SECTION("any executor") {
    asio_executor<> executor(threads.get_executor(), 3);
    asio_executor<> of_context(threads, 3);
    check(executor);
    check(of_context);
  }
  threads.join();
}

TEST_CASE("asio_executor: what is queued while the context is stopped waits for it to be run again") {
  asio::io_context context;
  asio_executor executor(context);
  std::string results;
  asio::co_spawn(
      context,
      [&]() -> awaitable<void> {
        const auto predict = [&](int x) -> task<int> {
          if (x == 2) context.stop();
          co_await executor.schedule_after(1ms);
          co_return x;
        };
        results = outline(co_await as_asio(batch_predict(executor, four, predict)));
      },
      asio::detached);
  context.run();
  CHECK(results.empty());
  context.restart();
  context.run();
  CHECK(results == "1 2 3 4");
}

TEST_CASE("asio_executor: its destructor lets what is queued, and who sleeps, go on to the end") {
  asio::io_context context;
  census alive;
  std::optional<context_executor> executor(std::in_place, context);
  std::string results;
  const auto run = [&]() -> awaitable<void> {
    const auto predict = [&](int x) -> task<int> {
      const life here(alive);
      if (x == 1) {
        co_await executor->schedule_after(24h);
      } else {
        co_await executor->schedule();
      }
      co_return x;
    };
    results = outline(co_await as_asio(batch_predict(*executor, four, predict, {.max_concurrency = 2})));
  };
  asio::co_spawn(context, run, asio::detached);
  SECTION("not even begun") {}
  SECTION("begun") {
    context.run_one();
    context.run_one();
  }
  SECTION("asleep") {
    while (context.poll_one() != 0) {}
  }
  executor.reset();
  CHECK(alive.alive == 0);
}

TEST_CASE("asio_executor: a context that is destroyed takes its coroutines with it, executor and batch included") {
  census alive;
  int stopped = 0;
  bool came_back = false;
  const auto everything = [&](auto how_far) {
    asio::io_context context;
    const auto run = [&]() -> awaitable<void> {
      const life coroutine(alive);
      asio_executor executor(context);
      const auto predict = [&](int x) -> task<int> {
        const life here(alive);
        co_await executor.schedule();
        if (!co_await executor.schedule_after(24h)) ++stopped;
        co_return x;
      };
      co_await as_asio(batch_predict(executor, four, predict, {.max_concurrency = 2}));
      came_back = true;
    };
    asio::co_spawn(context, run, asio::detached);
    how_far(context);
  };
  SECTION("nothing ran") {
    everything([](asio::io_context&) {});
    CHECK(stopped == 0);
  }
  SECTION("queued") {
    everything([](asio::io_context& context) { context.run_one(), context.run_one(); });
  }
  SECTION("asleep") {
    everything([](asio::io_context& context) {
      while (context.poll_one() != 0) {}
    });
    CHECK(stopped == 2);  // the others' executor refuses to schedule them
  }
  CHECK(alive.alive == 0);
  CHECK(!came_back);
}

TEST_CASE("asio_executor: a thread that runs it cannot be blocked for it") {
  asio::io_context context;
  asio_executor executor(context);
  run_in(context, [&]() -> awaitable<void> {
    const auto predict = [&](int x) -> task<int> {
      co_await executor.schedule();
      co_return cobatch::sync_wait([](int y) -> task<int> { co_return y; }(x));
    };
    const auto results = co_await as_asio(batch_predict(executor, four, predict));
    CHECK(outline(results) == "exception exception exception exception");
    CHECK_THROWS_WITH(std::rethrow_exception(results[0].error().exception),
                      Catch::Contains("a thread that runs an asio_executor"));
  });
}

TEST_CASE("asio_executor: a stream that is left in the middle ends on its own") {
  asio::io_context context;
  asio_executor executor(context);
  census alive;
  run_in(context, [&]() -> awaitable<void> {
    const auto predict = [&](int x, std::stop_token stop) -> task<int> {
      const life here(alive);
      if (x > 1) co_await executor.schedule_after(24h, stop);
      co_return x;
    };
    auto stream = cobatch::predict_stream(executor, four, predict, {.max_concurrency = 2});
    const auto first = co_await as_asio([&] { return stream.next(); });
    CHECK(first->index == 0);
  });
  CHECK(alive.alive == 0);
}

// ---- as_asio ----

TEST_CASE("as_asio: gives values, references as copies, and what can only be moved; rethrows") {
  asio::io_context context;
  int variable = 5;
  run_in(context, [&]() -> awaitable<void> {
    const auto number = []() -> task<int> { co_return 3; };
    const auto nothing = [&]() -> task<> {
      ++variable;
      co_return;
    };
    const auto reference = [&]() -> task<int&> { co_return variable; };
    const auto pointer = []() -> task<std::unique_ptr<int>> { co_return std::make_unique<int>(7); };
    const auto failing = []() -> task<int> {
      throw std::runtime_error("no");
      co_return 0;
    };
    const int three = co_await as_asio(number());
    CHECK(three == 3);
    co_await as_asio(nothing());
    const int six = co_await as_asio(reference());
    CHECK(six == 6);
    const std::unique_ptr<int> moved = co_await as_asio(pointer());
    CHECK(*moved == 7);
    std::string thrown;
    try {
      co_await as_asio(failing());
    } catch (const std::runtime_error& error) {
      thrown = error.what();
    }
    CHECK(thrown == "no");
    task<int> kept = number();
    const int kept_three = co_await as_asio(kept);
    CHECK(kept_three == 3);
  });
}

TEST_CASE("as_asio: resumes on the caller's own strand, and keeps its context running") {
  asio::io_context context;
  cobatch::thread_pool pool(2);
  const auto strand = asio::make_strand(context);
  std::string results;
  asio::co_spawn(
      strand,
      [&]() -> awaitable<void> {
        for (int i = 0; i < 50; ++i) {
          const auto predict = [&](int x) -> task<int> {
            co_await pool.schedule();
            co_return x;
          };
          results = outline(co_await as_asio(batch_predict(pool, four, predict)));
          CHECK(strand.running_in_this_thread());
        }
      },
      asio::detached);
  context.run();
  CHECK(results == "1 2 3 4");
}

TEST_CASE("as_asio: any executor type of the coroutine") {
  asio::io_context context;
  using executor_type = asio::io_context::executor_type;
  int sum = 0;
  asio::co_spawn(
      context,
      [&]() -> awaitable<void, executor_type> {
        const auto add = [&](int x) -> task<int> { co_return x + 1; };
        sum += co_await as_asio<executor_type>(add(1));
        const auto with_stop = [&](std::stop_token) { return add(2); };
        sum += co_await as_asio<executor_type>(with_stop);
      },
      asio::detached);
  context.run();
  CHECK(sum == 5);
}

TEST_CASE("as_asio: a cancellation stops the batch, and the await ends with its outcomes when it has ended") {
  asio::io_context context;
  cobatch::thread_pool pool(2);
  census alive;
  asio::cancellation_signal signal;
  std::string results, afterwards;
  std::atomic<int> asleep{0};
  std::optional<std::jthread> canceller;
  const auto run = [&]() -> awaitable<void> {
    const auto predict = [&](int x, std::stop_token stop) -> task<int> {
      const life here(alive);
      if (x == 1) co_return 1;
      ++asleep;
      const bool elapsed = co_await pool.schedule_after(24h, stop);
      if (!elapsed && x == 2) throw std::runtime_error("stopped");
      co_return x;
    };
    const auto batch = [&](std::stop_token stop) {
      return batch_predict(pool, four, predict, {.max_concurrency = 2, .stop = stop});
    };
    results = outline(co_await as_asio(batch));
    CHECK(alive.alive == 0);
    try {
      co_await as_asio(batch);
    } catch (const system_error& error) {
      if (error.code() == asio::error::operation_aborted) afterwards = "aborted";
    }
  };
  asio::co_spawn(context, run(), asio::bind_cancellation_slot(signal.slot(), asio::detached));
  canceller.emplace([&] {
    while (asleep < 2) std::this_thread::yield();
    asio::post(context, [&] { signal.emit(asio::cancellation_type::terminal); });
  });
  context.run();
  CHECK(results == "1 cancelled 3 not_started");
  CHECK(afterwards == "aborted");
  CHECK(asleep == 2);
}

TEST_CASE("as_asio: is one of the operands of ||") {
  using namespace asio::experimental::awaitable_operators;
  asio::io_context context;
  asio_executor executor(context);
  census alive;
  run_in(context, [&]() -> awaitable<void> {
    const auto predict = [&](int x, std::stop_token stop) -> task<int> {
      const life here(alive);
      co_await executor.schedule_after(24h, stop);
      co_return x;
    };
    const auto batch = [&](std::stop_token stop) { return batch_predict(executor, four, predict, {.stop = stop}); };
    asio::steady_timer timer(context, 1ms);
    const auto timer_first = co_await (as_asio(batch) || timer.async_wait(use_awaitable));
    CHECK(timer_first.index() == 1);
    CHECK(alive.alive == 0);

    const auto quick = [](int x) { return x; };
    const auto quick_batch = [&](std::stop_token stop) { return batch_predict(executor, four, quick, {.stop = stop}); };
    timer.expires_at(asio::steady_timer::time_point::max());
    const auto batch_first = co_await (as_asio(quick_batch) || timer.async_wait(use_awaitable));
    CHECK(outline(std::get<0>(batch_first)) == "1 2 3 4");
  });
}

TEST_CASE("as_asio: without a function for the token a cancellation changes nothing until the end") {
  asio::io_context context;
  asio_executor executor(context);
  asio::cancellation_signal signal;
  std::string results;
  const auto run = [&]() -> awaitable<void> {
    const auto predict = [&](int x) -> task<int> {
      signal.emit(asio::cancellation_type::terminal);
      co_await executor.schedule_after(1ms);
      co_return x;
    };
    results = outline(co_await as_asio(batch_predict(executor, four, predict)));
  };
  asio::co_spawn(context, run(), asio::bind_cancellation_slot(signal.slot(), asio::detached));
  context.run();
  CHECK(results == "1 2 3 4");
}

TEST_CASE("as_asio: what the function throws is thrown by the await") {
  asio::io_context context;
  const auto bad = [](std::stop_token) -> task<int> { throw std::runtime_error("made nothing"); };
  CHECK_THROWS_WITH(run_in(context, [&]() -> awaitable<void> { co_await as_asio(bad); }), "made nothing");
}

// ---- from_asio ----

TEST_CASE("from_asio: a predict may be one of Asio's coroutines") {
  asio::io_context context;
  const std::vector<int> samples{1, -1, 3};
  SECTION("of a batch on the same context") {
    asio_executor executor(context);
    run_in(context, [&]() -> awaitable<void> {
      const auto predict = [&](int x) { return from_asio(executor, tenfold(x)); };
      const auto results = co_await as_asio(batch_predict(executor, samples, predict));
      CHECK(outline(results) == "10 exception 30");
      const auto with_token = [&](int x, std::stop_token stop) { return from_asio(context, tenfold(x), stop); };
      const auto timed = co_await as_asio(batch_predict(executor, samples, with_token, {.timeout = 1h}));
      CHECK(outline(timed) == "10 exception 30");
    });
  }
  SECTION("of a batch elsewhere, to which it comes back") {
    const runners threads(context, 2);
    cobatch::thread_pool pool(2);
    std::atomic<int> came_back{0};
    const auto predict = [&](int x, std::stop_token stop) -> task<int> {
      const int y = co_await from_asio(context.get_executor(), tenfold(x), stop);
      if (pool.worker_index() != cobatch::thread_pool::npos) ++came_back;
      co_return y;
    };
    const auto results = cobatch::sync_wait(batch_predict(pool, samples, predict, {.timeout = 1h}));
    CHECK(outline(results) == "10 exception 30");
    CHECK(came_back == 2);
    CHECK_THROWS_WITH(std::rethrow_exception(results[1].error().exception), "negative");
  }
}

TEST_CASE("from_asio: a result may be void, or have neither a default nor a copy") {
  struct plain {
    explicit plain(int x) : value(std::make_unique<int>(x)) {}
    std::unique_ptr<int> value;
  };
  asio::io_context context;
  const runners threads(context, 1);
  int ran = 0;
  const auto nothing = [&]() -> awaitable<void> {
    ++ran;
    co_return;
  };
  const auto something = []() -> awaitable<plain> { co_return plain(4); };
  cobatch::sync_wait(from_asio(context, nothing()));
  CHECK(ran == 1);
  CHECK(*cobatch::sync_wait(from_asio(context, something())).value == 4);
}

TEST_CASE("from_asio: a stop cancels the coroutine, on its own strand, and waits for its end") {
  asio::io_context context;
  const runners threads(context, 3);
  cobatch::thread_pool pool(2);
  census alive;
  std::vector<int> samples(100);
  const auto predict = [&](int, std::stop_token stop) { return from_asio(context, hang(alive), stop); };
  SECTION("a timeout of each") {
    const auto results =
        cobatch::sync_wait(batch_predict(pool, samples, predict, {.max_concurrency = 50, .timeout = 1ms}));
    CHECK(count_of(results, cobatch::errc::timed_out) == 100);
  }
  SECTION("a stop of all") {
    std::stop_source stop;
    const std::jthread stopper([&] {
      while (alive.alive < 50) std::this_thread::yield();
      stop.request_stop();
    });
    const auto results =
        cobatch::sync_wait(batch_predict(pool, samples, predict, {.max_concurrency = 50, .stop = stop}));
    CHECK(count_of(results, cobatch::errc::cancelled) == 50);
    CHECK(count_of(results, cobatch::errc::not_started) == 50);
  }
  SECTION("a stop before it begins") {
    std::stop_source stop;
    stop.request_stop();
    std::string why;
    try {
      cobatch::sync_wait(from_asio(context, hang(alive), stop.get_token()));
    } catch (const system_error& error) {
      if (error.code() == asio::error::operation_aborted) why = "aborted";
    }
    CHECK(why == "aborted");
  }
  CHECK(alive.alive == 0);
}

TEST_CASE("from_asio: stops and ends that race") {
  asio::io_context context;
  const runners threads(context, 2);
  cobatch::thread_pool pool(2);
  std::vector<int> samples(500);
  const auto soon = []() -> awaitable<int> {
    asio::steady_timer timer(co_await asio::this_coro::executor, 50us);
    co_await timer.async_wait(use_awaitable);
    co_return 1;
  };
  const auto predict = [&](int, std::stop_token stop) { return from_asio(context, soon(), stop); };
  const auto results = cobatch::sync_wait(batch_predict(pool, samples, predict, {.max_concurrency = 20, .timeout = 50us}));
  CHECK(values_in(results) + count_of(results, cobatch::errc::timed_out) == 500);
}

TEST_CASE("from_asio: a coroutine of another executor type") {
  asio::io_context context;
  const runners threads(context, 1);
  const auto hang_here = [&]() -> awaitable<int, asio::io_context::executor_type> {
    using token = asio::use_awaitable_t<asio::io_context::executor_type>;
    asio::steady_timer timer(context, asio::steady_timer::time_point::max());
    co_await timer.async_wait(token());
    co_return 1;
  };
  cobatch::thread_pool pool(1);
  const auto predict = [&](int, std::stop_token stop) { return from_asio(context, hang_here(), stop); };
  const auto results = cobatch::sync_wait(batch_predict(pool, four, predict, {.timeout = 1ms}));
  CHECK(outline(results) == "timed_out timed_out timed_out timed_out");
}

TEST_CASE("from_asio: whoever waits for a coroutine that the context destroys is told") {
  std::optional<asio::io_context> context(std::in_place);
  cobatch::thread_pool pool(1);
  census alive;
  std::string results, message;
  std::thread waiting([&] {
    const auto predict = [&](int) { return from_asio(*context, hang(alive)); };
    const auto outcomes = cobatch::sync_wait(batch_predict(pool, four, predict));
    results = outline(outcomes);
    message = outcomes[0].error().message();
  });
  while (alive.alive < 4) {
    context->restart();
    context->poll();
  }
  context.reset();
  waiting.join();
  CHECK(results == "exception exception exception exception");
  CHECK_THAT(message, Catch::Contains("a coroutine of Asio was destroyed before its end"));
  CHECK(alive.alive == 0);
}
