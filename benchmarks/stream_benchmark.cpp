// What a stream costs beside batch_predict of the same samples: one stage beside one pass, and a stream that is the
// source of another beside two passes with all results of the first in between. And that its memory does not grow with
// the input.

#include <cobatch/cobatch.hpp>

#include <cstddef>
#include <memory>
#include <ranges>
#include <string>
#include <utility>

#include <support/measure.hpp>
#include <support/samples.hpp>

namespace bench {
namespace {

using cobatch::batch_predict;
using cobatch::predict_stream;
using cobatch::result_order;
using cobatch::run_loop;
using cobatch::stream_item;
using cobatch::stream_options;
using cobatch::sync_wait;
using cobatch::task;
using cobatch::thread_pool;

constexpr std::size_t limit = 64;

/// Samples that are made as they are read, one after another; the same for both ways. A vector is easier for
/// batch_predict, which reads that in chunks.
auto made_numbers(std::size_t count) {
  return std::views::iota(0, static_cast<int>(count));
}

/// The predicts of the second stage.
constexpr auto result_plus_one = [](const result& x) -> task<int> { co_return *x + 1; };
constexpr auto item_plus_one = [](const stream_item<result>& x) -> task<int> { co_return *x.result + 1; };

// ---- Running to the end, and what came out ----

template <class Work>
auto run_on(run_loop& loop, Work work) {
  return loop.run(std::move(work));
}
template <class Work>
auto run_on(thread_pool&, Work work) {
  return sync_wait(std::move(work));
}

struct totals {
  std::size_t samples = 0;
  long long sum = 0;
  bool in_order = true;
};

template <class Stream>
task<totals> consume(Stream stream) {
  totals all;
  while (const auto item = co_await stream.next()) {
    all.in_order = all.in_order && item->index == all.samples;
    ++all.samples;
    all.sum += item->result.value_or(-1);
  }
  co_return all;
}

bool are_right(const totals& all, std::size_t count, std::size_t stages, result_order order) {
  // Twice 0 + 1 + ... + (count - 1), and one more for each in the second stage.
  const auto n = static_cast<long long>(count);
  return all.samples == count && all.sum == n * (n - 1) + (stages == 2 ? n : 0) &&
         (all.in_order || order == result_order::completion);
}

totals totals_of(const results& all) {
  totals sums;
  for (const result& each : all) {
    ++sums.samples;
    sums.sum += each.value_or(-1);
  }
  return sums;
}

// ---- Both ways ----

/// The coroutine runs on the executor from its first line: no other thread helps.
template <class Executor>
task<totals> streamed(Executor& ex, std::size_t count, std::size_t stages, stream_options how) {
  co_await ex.schedule();
  auto first = predict_stream(ex, made_numbers(count), twice, {.max_concurrency = limit}, how);
  if (stages == 1) co_return co_await consume(std::move(first));
  co_return co_await consume(predict_stream(ex, std::move(first), item_plus_one, {.max_concurrency = limit}, how));
}

template <class Executor, class Samples>
task<results> passed(Executor& ex, Samples samples, std::size_t stages) {
  co_await ex.schedule();
  results first = co_await batch_predict(ex, samples, twice, {.max_concurrency = limit});
  if (stages == 1) co_return first;
  co_return co_await batch_predict(ex, first, result_plus_one, {.max_concurrency = limit});
}

// ---- Time ----

template <class MakeExecutor>
void add_time(const std::string& name, std::size_t stages, MakeExecutor make_executor) {
  const measures wanted{.samples = scaled(1'000'000)};
  const auto add_passes = [=](const char* label, auto make_samples) {
    add(name + label, wanted, [=](std::size_t n) {
      return job{[=, ex = make_executor(), samples = make_samples(n)] {
                   return run_on(*ex, passed(*ex, std::views::all(samples), stages));
                 },
                 [=](const results& all) { return are_right(totals_of(all), n, stages, result_order::completion); }};
    });
  };
  add_passes("batch_predict", made_numbers);
  add_passes("batch_predict_of_a_vector", numbers);
  for (const auto& [label, order] :
       {std::pair("input_order", result_order::input), std::pair("completion_order", result_order::completion)}) {
    add(name + label, wanted, [=, how = stream_options{.order = order}](std::size_t n) {
      return job{[=, ex = make_executor()] { return run_on(*ex, streamed(*ex, n, stages, how)); },
                 [=](const totals& all) { return are_right(all, n, stages, how.order); }};
    });
  }
}

// ---- Memory ----

/// Nothing is subtracted for results: nobody keeps them.
template <class MakeExecutor>
void add_memory(const std::string& name, MakeExecutor make_executor) {
  measures wanted{.runs = 1, .warm_up = false, .allocations = false, .memory = true};
  for (const auto& [label, count] : {std::pair("ten_thousand", 10'000u), std::pair("ten_million", 10'000'000u)}) {
    wanted.samples = count;
    add(name + label, wanted, [=](std::size_t n) {
      return job{[=, ex = make_executor()] {
                   return run_on(*ex, streamed(*ex, n, 2, stream_options{.order = result_order::input}));
                 },
                 [n](const totals& all) { return are_right(all, n, 2, result_order::input); }};
    });
  }
}

template <class MakeExecutor>
void add_all(const std::string& executor, MakeExecutor make_executor) {
  add_time("stream/one_stage/" + executor + "/", 1, make_executor);
  add_time("stream/two_stages/" + executor + "/", 2, make_executor);
  add_memory("stream/memory/" + executor + "/", make_executor);
}

}  // namespace

void add_benchmarks() {
  add_all("run_loop", [] { return std::make_unique<run_loop>(); });
  for (const std::size_t threads : {1u, 2u}) {
    add_all("pool_" + std::to_string(threads), [threads] { return std::make_unique<thread_pool>(threads); });
  }
}

}  // namespace bench
