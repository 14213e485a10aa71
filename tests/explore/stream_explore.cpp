#include <cobatch/predict_stream.hpp>
#include <cobatch/task.hpp>

#include <optional>
#include <vector>

#include "scenario.hpp"

namespace x = cobatch_explore;

namespace {

/// Takes all there is, on whichever thread it is resumed; then the executor's threads may end.
template <class Stream>
explored::fire_and_forget consume(Stream& stream, explored::executor& ex, std::size_t expected) {
  std::size_t taken = 0;
  while (auto item = co_await stream.next()) {
    x::check(item->result.has_value(), "an outcome is an error");
    ++taken;
  }
  x::check(taken == expected, "not all samples were given");
  ex.close();
}

int double_of(int sample) {
  x::let_pass(1'000);  // long enough that the stream does not count it as cheap
  return 2 * sample;
}

}  // namespace

SCENARIO("stream: boxes come back while the only worker runs", .preemptions = 4, .stale = 0) {
  explored::executor ex(1);
  const std::vector<int> samples{1, 2, 3};
  cobatch::batch_options options;
  options.max_concurrency = 1;
  auto stream = cobatch::predict_stream(ex, samples, double_of, options, {.window = 1});
  x::threads({[&] { ex.work(); }, [&] { consume(stream, ex, 3); }});
}

namespace {

/// An asynchronous source of the numbers below `count`. Where `suspends` has the bit of a number, the executor brings it.
struct numbers {
  explored::executor* ex;
  int count;
  unsigned suspends;
  int next_one = 0;

  struct answer {
    numbers* self;
    bool await_ready() const noexcept { return (self->suspends >> self->next_one & 1u) == 0; }
    void await_suspend(std::coroutine_handle<> handle) const { self->ex->execute(handle); }
    std::optional<int> await_resume() const noexcept {
      if (self->next_one == self->count) return std::nullopt;
      return self->next_one++;
    }
  };
  answer next() noexcept { return {this}; }
};

/// Sample i ends once sample i + 1 has begun.
struct chain {
  explored::executor* ex;
  int last;
  x::atomic<void*> waiting[8] = {};

  struct link {
    chain* self;
    int sample;
    bool await_ready() const noexcept { return sample == self->last; }
    bool await_suspend(std::coroutine_handle<> handle) const noexcept {
      void* nobody = nullptr;
      return self->waiting[sample].compare_exchange_strong(nobody, handle.address());
    }
    int await_resume() const noexcept { return sample; }
  };
  link begin(int sample) {
    if (sample > 0) {
      void* const before = waiting[sample - 1].exchange(this);
      if (before) ex->execute(std::coroutine_handle<>::from_address(before));
    }
    x::let_pass(1'000);
    return {this, sample};
  }
};

explored::fire_and_forget start_on(explored::executor& ex, auto& stream, std::size_t expected) {
  co_await cobatch::schedule(ex);
  consume(stream, ex, expected);
}

void two_workers(unsigned suspends, int count) {
  explored::executor ex(2);
  chain links{&ex, count - 1};
  cobatch::batch_options options;
  options.max_concurrency = 2;
  auto stream = cobatch::predict_stream(ex, numbers{&ex, count, suspends},
                                        [&](int sample) { return links.begin(sample); }, options, {.window = 4});
  start_on(ex, stream, static_cast<std::size_t>(count));
  x::threads({[&] { ex.work(); }, [&] { ex.work(); }});
}

}  // namespace

SCENARIO("stream: an awaited source answers at once, each sample needs the next one", .preemptions = 2, .stale = 0) {
  two_workers(0b000, 3);
}
SCENARIO("stream: an awaited source suspends, each sample needs the next one", .preemptions = 2, .stale = 0) {
  two_workers(0b111, 3);
}
SCENARIO("stream: an awaited source suspends now and then, each sample needs the next one", .preemptions = 2,
         .stale = 0) {
  two_workers(static_cast<unsigned>(x::choose(16)), 3);
}

// ---- The consumer: its sleep, input order, close, and a stream that is left alone ----

SCENARIO("stream: the consumer sleeps while two workers push", .stale = 1) {
  explored::executor ex(2);
  const std::vector<int> samples{1, 2};
  auto stream = cobatch::predict_stream(ex, samples, double_of, {.max_concurrency = 2}, {.window = 2});
  x::threads({[&] { ex.work(); }, [&] { ex.work(); }, [&] { consume(stream, ex, 2); }});
}

SCENARIO("stream: boxes come back while two workers run", .stale = 0) {
  explored::executor ex(2);
  const std::vector<int> samples{1, 2, 3, 4};
  auto stream = cobatch::predict_stream(ex, samples, double_of, {.max_concurrency = 2}, {.window = 2});
  start_on(ex, stream, 4);
  x::threads({[&] { ex.work(); }, [&] { ex.work(); }});
}

SCENARIO("stream: samples that take no time, computed when the consumer asks", .stale = 0) {
  explored::executor ex(1);
  const std::vector<int> samples{1, 2, 3, 4};
  auto stream =
      cobatch::predict_stream(ex, samples, [](int sample) { return sample; }, {.max_concurrency = 1}, {.window = 2});
  x::threads({[&] { ex.work(); }, [&] { consume(stream, ex, 4); }});
}

namespace {

void cheap_now_and_then(std::size_t workers, std::size_t window, unsigned costly) {
  explored::executor ex(workers);
  const std::vector<int> samples{0, 1, 2, 3, 4};
  auto predict = [costly](int sample) {
    if ((costly >> sample & 1u) != 0) x::let_pass(1'000);
    return sample;
  };
  auto stream = cobatch::predict_stream(ex, samples, predict, {.max_concurrency = workers}, {.window = window});
  if (workers == 1) {
    x::threads({[&] { ex.work(); }, [&] { consume(stream, ex, 5); }});
  } else {
    start_on(ex, stream, 5);
    x::threads({[&] { ex.work(); }, [&] { ex.work(); }});
  }
}

}  // namespace

SCENARIO("stream: samples that take no time now and then, one worker", .stale = 0) {
  cheap_now_and_then(1, 1, static_cast<unsigned>(x::choose(32)));
}
SCENARIO("stream: samples that take no time now and then, one worker, two places", .stale = 0) {
  cheap_now_and_then(1, 2, static_cast<unsigned>(x::choose(32)));
}
SCENARIO("stream: samples that take no time now and then, two workers", .stale = 0) {
  cheap_now_and_then(2, 2, static_cast<unsigned>(x::choose(32)));
}

SCENARIO("stream: in input order", .stale = 0) {
  explored::executor ex(2);
  const std::vector<int> samples{1, 2, 3};
  x::channel server;
  auto stream = cobatch::predict_stream(ex, samples,
                                        [&](int sample) -> cobatch::task<int> {
                                          if (sample % 2 == 1) co_await explored::handed_to{&server};
                                          co_return sample;
                                        },
                                        {.max_concurrency = 2}, {.order = cobatch::result_order::input, .window = 2});
  const auto consumer = [&]() -> explored::fire_and_forget {
    co_await cobatch::schedule(ex);
    std::size_t next = 0;
    while (auto item = co_await stream.next()) x::check(item->index == next++, "not in the order of the input");
    x::check(next == 3, "not all samples were given");
    ex.close();
  };
  consumer();
  x::threads({[&] { ex.work(); }, [&] { ex.work(); }, [&] { explored::serve(server, 2); }});
}

SCENARIO("stream: it is closed in the middle", .stale = 0) {
  explored::executor ex(2);
  const std::vector<int> samples{1, 2, 3, 4};
  auto stream = cobatch::predict_stream(ex, samples, double_of, {.max_concurrency = 2}, {.window = 2});
  const auto consumer = [&]() -> explored::fire_and_forget {
    co_await cobatch::schedule(ex);
    x::check((co_await stream.next()).has_value(), "there is an item");
    co_await stream.close();
    x::check(!(co_await stream.next()).has_value(), "a closed stream gives something");
    ex.close();
  };
  consumer();
  x::threads({[&] { ex.work(); }, [&] { ex.work(); }});
}

SCENARIO("stream: it goes while samples are in flight, on its executor", .stale = 0) {
  explored::executor ex(2);
  const std::vector<int> samples{1, 2, 3};
  const auto consumer = [&]() -> explored::fire_and_forget {
    co_await cobatch::schedule(ex);
    {
      auto stream = cobatch::predict_stream(ex, samples,
                                            [&](int sample) -> cobatch::task<int> {
                                              co_await cobatch::schedule(ex);
                                              co_return sample;
                                            },
                                            {.max_concurrency = 2}, {.window = 2});
      co_await stream.next();
    }
    // What is in flight ends by itself, with nobody to tell: the threads end where nothing is left for them to do.
  };
  consumer();
  x::threads({[&] { ex.work_while_there_is_some(); }, [&] { ex.work_while_there_is_some(); }});
}
