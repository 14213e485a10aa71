// One piece of work, so many samples of it: `guard NAME SAMPLES`. Prints the calls of the heap that its second run
// made; the instructions are counted from outside. Everything is on one thread and by a clock of its own, so both come out
// the same every time: a batch looks at the clock as often as its samples are slow, which under valgrind depends on the
// machine.

#include <cobatch/cobatch.hpp>

#include <chrono>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include <support/allocations.hpp>
#include <support/samples.hpp>

namespace {

using namespace cobatch;
using bench::twice;

constexpr std::size_t limit = 64;

/// An executor whose clock goes on by a microsecond with each look: what 64 trivial samples take.
template <class Executor>
class clockwork : public Executor {
 public:
  std::chrono::steady_clock::time_point now() noexcept { return time_ += std::chrono::microseconds(1); }

 private:
  std::chrono::steady_clock::time_point time_{};
};

bool fan_out_inline(const std::vector<int>& samples) {
  clockwork<inline_executor> ex;
  return bench::are_doubles(sync_wait(batch_predict(ex, samples, twice, {.max_concurrency = limit})), samples.size());
}

bool fan_out_run_loop(const std::vector<int>& samples) {
  clockwork<run_loop> loop;
  return bench::are_doubles(loop.run(batch_predict(loop, samples, twice, {.max_concurrency = limit})), samples.size());
}

bool callable(const std::vector<int>& samples) {
  clockwork<run_loop> loop;
  const auto predict = [](int x) { return x * 2; };
  return bench::are_doubles(loop.run(batch_predict(loop, samples, predict, {.max_concurrency = limit})),
                            samples.size());
}

bool reschedule(const std::vector<int>& samples) {
  clockwork<run_loop> loop;
  const auto predict = [&loop](int x) -> task<int> {
    co_await loop.schedule();
    co_return x * 2;
  };
  return bench::are_doubles(loop.run(batch_predict(loop, samples, predict, {.max_concurrency = limit})),
                            samples.size());
}

bool shared_semaphore(const std::vector<int>& samples) {
  clockwork<run_loop> loop;
  async_semaphore shared(4);
  return bench::are_doubles(
      loop.run(batch_predict(loop, samples, twice, {.max_concurrency = limit, .semaphore = &shared})), samples.size());
}

bool shared_semaphore_reschedule(const std::vector<int>& samples) {
  clockwork<run_loop> loop;
  async_semaphore shared(4);
  const auto predict = [&loop](int x) -> task<int> {
    co_await loop.schedule();
    co_return x * 2;
  };
  return bench::are_doubles(
      loop.run(batch_predict(loop, samples, predict, {.max_concurrency = limit, .semaphore = &shared})),
      samples.size());
}

bool semaphore_acquire(const std::vector<int>& samples) {
  async_semaphore permits(4);
  const auto take = [&]() -> task<std::size_t> {
    std::size_t taken = 0;
    for (std::size_t i = 0; i < samples.size(); ++i) {
      const permit held = co_await permits.acquire();
      taken += held.weight();
    }
    co_return taken;
  };
  return sync_wait(take()) == samples.size();
}

bool semaphore_try_acquire(const std::vector<int>& samples) {
  async_semaphore permits(4);
  std::size_t taken = 0;
  for (std::size_t i = 0; i < samples.size(); ++i) {
    if (const std::optional<permit> held = permits.try_acquire()) taken += held->weight();
  }
  return taken == samples.size();
}

/// Two coroutines that hand one permit to each other.
bool semaphore_hand_over(const std::vector<int>& samples) {
  clockwork<run_loop> loop;
  async_semaphore permits(1);
  const auto one = [&](int x) -> task<int> {
    const permit held = co_await permits.acquire();
    co_await loop.schedule();
    co_return x * 2;
  };
  return bench::are_doubles(loop.run(batch_predict(loop, samples, one, {.max_concurrency = 2})), samples.size());
}

bool await_task(const std::vector<int>& samples) {
  const auto sum = [&]() -> task<long long> {
    long long all = 0;
    for (const int x : samples) all += co_await twice(x);
    co_return all;
  };
  const auto n = static_cast<long long>(samples.size());
  return sync_wait(sum()) == n * (n - 1);
}

/// The sum of what a stream gives.
template <class Stream>
task<long long> sum_of(Stream stream) {
  long long all = 0;
  while (const auto item = co_await stream.next()) all += item->result.value_or(-1);
  co_return all;
}

bool stream(const std::vector<int>& samples) {
  clockwork<run_loop> loop;
  const auto n = static_cast<long long>(samples.size());
  return loop.run(sum_of(predict_stream(loop, samples, twice, {.max_concurrency = limit}))) == n * (n - 1);
}

bool stream_two_stages(const std::vector<int>& samples) {
  clockwork<run_loop> loop;
  const auto plus_one = [](const stream_item<bench::result>& x) -> task<int> { co_return *x.result + 1; };
  auto first = predict_stream(loop, samples, twice, {.max_concurrency = limit});
  const auto n = static_cast<long long>(samples.size());
  return loop.run(sum_of(predict_stream(loop, std::move(first), plus_one, {.max_concurrency = limit}))) == n * n;
}

bool observed(const std::vector<int>& samples) {
  clockwork<run_loop> loop;
  batch_metrics metrics;
  return bench::are_doubles(
             loop.run(batch_predict(loop, samples, twice, {.max_concurrency = limit, .observer = &metrics})),
             samples.size()) &&
         metrics.snapshot().succeeded == samples.size();
}

bool batch_of_one(const std::vector<int>& samples) {
  clockwork<run_loop> loop;
  const auto all = [&]() -> task<bool> {
    bool right = true;
    std::vector<int> sample(1);
    for (const int x : samples) {
      sample[0] = x;
      const bench::results outcome = co_await batch_predict(loop, sample, twice);
      right = right && outcome[0] && *outcome[0] == 2 * x;
    }
    co_return right;
  };
  return loop.run(all());
}

constexpr std::pair<std::string_view, bool (*)(const std::vector<int>&)> works[] = {
    {"fan_out_inline", fan_out_inline},
    {"fan_out_run_loop", fan_out_run_loop},
    {"callable", callable},
    {"reschedule", reschedule},
    {"shared_semaphore", shared_semaphore},
    {"shared_semaphore_reschedule", shared_semaphore_reschedule},
    {"semaphore_acquire", semaphore_acquire},
    {"semaphore_try_acquire", semaphore_try_acquire},
    {"semaphore_hand_over", semaphore_hand_over},
    {"stream", stream},
    {"stream_two_stages", stream_two_stages},
    {"observed", observed},
    {"await_task", await_task},
    {"batch_of_one", batch_of_one},
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const std::vector<int> samples = bench::numbers(std::strtoul(argv[2], nullptr, 10));
  for (const auto& [name, work] : works) {
    if (name != argv[1]) continue;
    if (!work(samples)) return 3;
    const bench::allocation_count count;
    if (!work(samples)) return 3;
    std::printf("allocations %zu\n", count.calls());
    return 0;
  }
  return 2;
}
