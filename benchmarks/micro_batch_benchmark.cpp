// Many callers and a model that takes batches: one call for each request, against a micro_batcher.
//
// 1, 8 and 64 callers, each of which waits for its answer before it asks again. One by one, a request queues on the
// pool. Three models, of which the first two really compute: a network that fits into a core's cache (64-64-10, the
// shape of the digits network; a batch gains nothing), one dense layer whose weights do not (2048 x 4096, 34 MB: a
// batch reads them once for eight samples), and a simulated accelerator that runs one call at a time, of 2 ms plus
// 20 us per sample. The dense layer also with two threads: then callers one by one keep both busy, while a batch, until
// it is full, is only one.
//
// p50_ms and p99_ms are the callers' latencies. wait_p99_ms is what a caller waits beside the call of the model that
// has its sample. There is room for all callers in the batches that run, so it should be max_delay at the most; what it
// is beyond is to be compared with timer/1_ms, a bare timer of max_delay.

#include <cobatch/cobatch.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <memory>
#include <mutex>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <support/measure.hpp>
#include <support/samples.hpp>
#include <support/statistics.hpp>

namespace bench {
namespace {

using cobatch::sync_wait;
using cobatch::task;
using cobatch::thread_pool;
using namespace std::chrono_literals;
using std::chrono::steady_clock;

constexpr auto max_delay = 1ms;

double milliseconds_since(steady_clock::time_point begin) {
  return std::chrono::duration<double, std::milli>(steady_clock::now() - begin).count();
}

std::vector<float> random_numbers(std::size_t count, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::vector<float> all(count);
  for (float& each : all) each = uniform(random);
  return all;
}

/// out[n] = in[n] * weights, for some rows at once: a tile of the sums stays in the cache while the weights pass by
/// once.
template <std::size_t Rows>
void multiply(const std::vector<float>& weights, std::size_t inputs, std::size_t outputs, const float* const* in,
              std::vector<float>* out) {
  const std::size_t tile = Rows == 1 ? outputs : 512;
  for (std::size_t first = 0; first < outputs; first += tile) {
    const std::size_t width = std::min(tile, outputs - first);
    for (std::size_t i = 0; i < inputs; i += 4) {
      const float* const w = weights.data() + i * outputs + first;
      for (std::size_t n = 0; n < Rows; ++n) {
        const float* const x = in[n] + i;
        float* const sums = out[n].data() + first;
        for (std::size_t o = 0; o < width; ++o) {
          sums[o] =
              sums[o] + x[0] * w[o] + x[1] * w[o + outputs] + x[2] * w[o + 2 * outputs] + x[3] * w[o + 3 * outputs];
        }
      }
    }
  }
}

/// Dense layers, their inputs multiples of 4, with a ReLU between them; the answer is the largest output's number.
class network {
 public:
  explicit network(std::vector<std::size_t> sizes) : sizes_(std::move(sizes)) {
    for (std::size_t i = 0; i + 1 < sizes_.size(); ++i) {
      weights_.push_back(random_numbers(sizes_[i] * sizes_[i + 1], static_cast<std::uint32_t>(i)));
    }
    for (std::uint32_t i = 0; i < 64; ++i) {
      samples_.push_back(random_numbers(sizes_.front(), 1000 + i));
      const sample last = samples_.back().data();
      answers_.push_back(predict(std::span(&last, 1)).front());
    }
  }

  using sample = const float*;
  sample input(std::size_t i) const { return samples_[i % samples_.size()].data(); }
  int answer_to(std::size_t i) const { return answers_[i % answers_.size()]; }

  std::vector<int> predict(std::span<const sample> batch) const {
    std::vector<int> all;
    all.reserve(batch.size());
    while (batch.size() >= 8) {
      predict_some<8>(batch.first(8), all);
      batch = batch.subspan(8);
    }
    for (; !batch.empty(); batch = batch.subspan(1)) predict_some<1>(batch.first(1), all);
    return all;
  }

 private:
  template <std::size_t Rows>
  void predict_some(std::span<const sample> rows, std::vector<int>& answers) const {
    std::array<const float*, Rows> in{};
    std::copy(rows.begin(), rows.end(), in.begin());
    std::array<std::vector<float>, Rows> values;
    for (std::size_t layer = 0; layer < weights_.size(); ++layer) {
      std::array<std::vector<float>, Rows> next;
      for (auto& each : next) each.resize(sizes_[layer + 1]);
      multiply<Rows>(weights_[layer], sizes_[layer], sizes_[layer + 1], in.data(), next.data());
      if (layer + 1 < weights_.size()) {
        for (auto& each : next) {
          for (float& x : each) x = std::max(x, 0.0f);
        }
      }
      values = std::move(next);
      for (std::size_t n = 0; n < Rows; ++n) in[n] = values[n].data();
    }
    for (const auto& each : values) {
      answers.push_back(static_cast<int>(std::max_element(each.begin(), each.end()) - each.begin()));
    }
  }

  std::vector<std::size_t> sizes_;
  std::vector<std::vector<float>> weights_;
  std::vector<std::vector<float>> samples_;
  std::vector<int> answers_;
};

struct answer {
  int number;
  double call;  // how long it took, in milliseconds, with the wait for the device
};

/// A model with what measures it: how many samples its calls get, and how long they take.
struct model {
  std::shared_ptr<const network> net;
  bool device = false;  // simulated: one call at a time, and it takes its time
  std::shared_ptr<thread_pool> pool;

  cobatch::async_semaphore turn{1};
  std::atomic<std::size_t> calls{0};
  std::atomic<std::size_t> samples{0};

  task<std::vector<answer>> predict(std::span<const network::sample> batch) {
    const auto begin = steady_clock::now();
    cobatch::permit permit;
    if (device) {
      permit = co_await turn.acquire();
      co_await pool->schedule_after(2ms + 20us * static_cast<int>(batch.size()));
    }
    std::vector<answer> answers;
    for (const int each : net->predict(batch)) answers.push_back({each, 0});
    const double took = milliseconds_since(begin);
    for (answer& each : answers) each.call = took;
    ++calls;
    samples += batch.size();
    co_return answers;
  }
};

struct tally {
  std::size_t right = 0;
  std::vector<double> latencies;
  std::vector<double> waits;  // the latencies without the calls

  void add(const tally& other) {
    right += other.right;
    latencies.insert(latencies.end(), other.latencies.begin(), other.latencies.end());
    waits.insert(waits.end(), other.waits.begin(), other.waits.end());
  }
};

/// All requests, by so many callers; `ask(sample)` is an awaitable of an expected answer.
template <class Ask>
tally ask_all(model& of, std::size_t callers, std::size_t requests, Ask ask) {
  tally all;
  std::mutex mutex;
  const auto caller = [&](int number) -> task<int> {
    tally own;
    for (auto i = static_cast<std::size_t>(number); i < requests; i += callers) {
      const auto begin = steady_clock::now();
      const network::sample input = of.net->input(i);
      const cobatch::expected<answer, cobatch::error> came = co_await ask(input);
      own.latencies.push_back(milliseconds_since(begin));
      if (came) own.waits.push_back(own.latencies.back() - came->call);
      if (came && came->number == of.net->answer_to(i)) ++own.right;
    }
    const std::lock_guard lock(mutex);
    all.add(own);
    co_return 0;
  };
  (void)sync_wait(cobatch::batch_predict(*of.pool, numbers(callers), caller));
  return all;
}

/// A job whose report tells the callers' latencies.
template <class Run>
auto latency_job(std::shared_ptr<model> of, std::size_t requests, bool batched, Run run) {
  auto total = std::make_shared<tally>();
  return job{run,
             [=](const tally& all) {
               total->add(all);
               return all.right == requests;
             },
             [=](benchmark::State& state) {
               state.counters["p50_ms"] = quantile(total->latencies, 0.5);
               state.counters["p99_ms"] = quantile(total->latencies, 0.99);
               if (!batched) return;
               state.counters["wait_p99_ms"] = quantile(total->waits, 0.99);
               state.counters["samples_per_call"] = static_cast<double>(of->samples) / static_cast<double>(of->calls);
             }};
}

/// How late a timer of max_delay is by itself: no batch can be earlier.
void add_timer() {
  add("micro_batch/timer/1_ms", {.samples = scaled(1'000), .runs = 1, .allocations = false}, [](std::size_t n) {
    auto pool = std::make_shared<thread_pool>(1);
    auto latencies = std::make_shared<std::vector<double>>();
    const auto sleep_all = [=]() -> task<std::size_t> {
      std::size_t elapsed = 0;
      for (std::size_t i = 0; i < n; ++i) {
        const auto begin = steady_clock::now();
        elapsed += co_await pool->schedule_after(max_delay);
        latencies->push_back(milliseconds_since(begin));
      }
      co_return elapsed;
    };
    return job{[=] { return sync_wait(sleep_all()); }, [=](std::size_t elapsed) { return elapsed == n; },
               [=](benchmark::State& state) {
                 state.counters["p50_ms"] = quantile(*latencies, 0.5);
                 state.counters["p99_ms"] = quantile(*latencies, 0.99);
               }};
  });
}

void add_model(const std::string& name, std::shared_ptr<const network> net, bool device, std::size_t threads,
               std::array<std::size_t, 3> requests) {
  const std::array<std::size_t, 3> callers{1, 8, 64};
  for (std::size_t c = 0; c < callers.size(); ++c) {
    const std::string with = "micro_batch/" + name + "/callers_" + std::to_string(callers[c]) + "/";
    const measures wanted{.samples = scaled(requests[c]), .runs = 1, .allocations = false};
    const auto make = [=] {
      auto made = std::make_shared<model>();
      made->net = net;
      made->device = device;
      made->pool = std::make_shared<thread_pool>(threads);
      return made;
    };
    add(with + "one_by_one", wanted, [=, count = callers[c]](std::size_t n) {
      auto of = make();
      return latency_job(of, n, false, [=] {
        return ask_all(*of, count, n, [&](network::sample x) -> task<cobatch::expected<answer, cobatch::error>> {
          co_await of->pool->schedule();
          const auto answers = co_await of->predict(std::span(&x, 1));
          co_return answers.front();
        });
      });
    });
    add(with + "batched", wanted, [=, count = callers[c]](std::size_t n) {
      auto of = make();
      return latency_job(of, n, true, [=] {
        cobatch::micro_batcher<network::sample, answer> batcher(
            *of->pool, [&](std::span<const network::sample> batch) { return of->predict(batch); },
            {.max_batch_size = 64 / threads, .max_delay = max_delay, .max_concurrent_batches = threads});
        tally all = ask_all(*of, count, n, [&](network::sample x) { return batcher.predict(x); });
        sync_wait(batcher.close());
        return all;
      });
    });
  }
}

}  // namespace

void add_benchmarks() {
  add_timer();
  const auto small = std::make_shared<const network>(std::vector<std::size_t>{64, 64, 10});
  const auto large = std::make_shared<const network>(std::vector<std::size_t>{2048, 4096});
  add_model("mlp_64_64_10/threads_1", small, false, 1, {1'000, 8'000, 100'000});
  add_model("dense_2048_4096/threads_1", large, false, 1, {300, 600, 1'280});
  add_model("dense_2048_4096/threads_2", large, false, 2, {300, 600, 1'280});
  add_model("accelerator/threads_1", small, true, 1, {100, 200, 640});
}

}  // namespace bench
