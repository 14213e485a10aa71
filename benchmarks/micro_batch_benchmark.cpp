// Many callers and a model that takes batches: one call for each request, against a micro_batcher.
//
// 1, 8 and 64 callers, each of which waits for its answer before it asks again. Three models: a network that fits into the
// cache (64-64-10, the shape of the digits network; a batch gains nothing), one dense layer whose weights do not (2048 x
// 4096, 34 MB: a batch reads them once for eight samples), and a simulated accelerator that runs one call at a time, of
// 2 ms plus 20 us per sample. The latencies are those of the callers.

#include <cobatch/cobatch.hpp>

#include <algorithm>
#include <array>
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

/// out[n] = in[n] * weights, for some rows at once: a tile of the sums stays in the cache while the weights pass by once.
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
  int answer(std::size_t i) const { return answers_[i % answers_.size()]; }

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

/// A model with what measures it: how long its calls take, and how many samples they get.
struct model {
  std::shared_ptr<const network> net;
  bool device = false;  // simulated: one call at a time, and it takes its time
  std::shared_ptr<thread_pool> pool;

  cobatch::async_semaphore turn{1};
  std::mutex mutex{};           // guards what follows
  std::vector<double> calls{};  // in milliseconds, with the wait for the device
  std::size_t samples = 0;

  task<std::vector<int>> predict(std::span<const network::sample> batch) {
    const auto begin = steady_clock::now();
    std::vector<int> answers;
    if (device) {
      const auto permit = co_await turn.acquire();
      co_await pool->schedule_after(2ms + 20us * static_cast<int>(batch.size()));
      answers = net->predict(batch);
    } else {
      answers = net->predict(batch);
    }
    const double took = milliseconds_since(begin);
    const std::lock_guard lock(mutex);
    calls.push_back(took);
    samples += batch.size();
    co_return answers;
  }
};

struct tally {
  std::size_t right = 0;
  std::vector<double> latencies;
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
      const auto answer = co_await ask(input);
      own.latencies.push_back(milliseconds_since(begin));
      if (answer && *answer == of.net->answer(i)) ++own.right;
    }
    const std::lock_guard lock(mutex);
    all.right += own.right;
    all.latencies.insert(all.latencies.end(), own.latencies.begin(), own.latencies.end());
    co_return 0;
  };
  (void)sync_wait(cobatch::batch_predict(*of.pool, numbers(callers), caller));
  return all;
}

/// A job whose report tells the callers' latencies, and what the calls of the model took.
template <class Run>
auto latency_job(std::shared_ptr<model> of, std::size_t requests, bool batched, bool bounded, Run run) {
  auto latencies = std::make_shared<std::vector<double>>();
  return job{
      run,
      [=](const tally& all) {
        latencies->insert(latencies->end(), all.latencies.begin(), all.latencies.end());
        return all.right == requests;
      },
      [=](benchmark::State& state) {
        state.counters["p50_ms"] = quantile(*latencies, 0.5);
        state.counters["p99_ms"] = quantile(*latencies, 0.99);
        state.counters["call_p99_ms"] = quantile(of->calls, 0.99);
        if (!batched) return;
        state.counters["samples_per_call"] = static_cast<double>(of->samples) / static_cast<double>(of->calls.size());
        // About 1 or less: nobody waited longer than for max_delay and the own batch.
        if (!bounded) return;
        const double bound = std::chrono::duration<double, std::milli>(max_delay).count() + quantile(of->calls, 0.99);
        state.counters["p99_over_bound"] = quantile(*latencies, 0.99) / bound;
      }};
}

struct batching {
  std::size_t size;        // of a batch
  std::size_t concurrent;  // batches
};

void add_model(const std::string& name, std::shared_ptr<const network> net, bool device, batching chosen,
               std::array<std::size_t, 3> requests) {
  const std::array<std::size_t, 3> callers{1, 8, 64};
  for (std::size_t c = 0; c < callers.size(); ++c) {
    const std::string with = "micro_batch/" + name + "/callers_" + std::to_string(callers[c]) + "/";
    const measures wanted{.samples = scaled(requests[c]), .runs = 1, .allocations = false};
    const auto make = [=] {
      auto made = std::make_shared<model>();
      made->net = net;
      made->device = device;
      made->pool = std::make_shared<thread_pool>(2);
      return made;
    };
    add(with + "one_by_one", wanted, [=, count = callers[c]](std::size_t n) {
      auto of = make();
      return latency_job(of, n, false, false, [=] {
        return ask_all(*of, count, n, [&](network::sample x) -> task<cobatch::expected<int, cobatch::error>> {
          const auto answers = co_await of->predict(std::span(&x, 1));
          co_return answers.front();
        });
      });
    });
    add(with + "batched", wanted, [=, count = callers[c]](std::size_t n) {
      auto of = make();
      return latency_job(of, n, true, count <= chosen.size, [=] {
        cobatch::micro_batcher<network::sample, int> batcher(
            *of->pool, [&](std::span<const network::sample> batch) { return of->predict(batch); },
            {.max_batch_size = chosen.size, .max_delay = max_delay, .max_concurrent_batches = chosen.concurrent});
        tally all = ask_all(*of, count, n, [&](network::sample x) { return batcher.predict(x); });
        sync_wait(batcher.close());
        return all;
      });
    });
  }
}

}  // namespace

void add_benchmarks() {
  const auto small = std::make_shared<const network>(std::vector<std::size_t>{64, 64, 10});
  add_model("mlp_64_64_10", small, false, {64, 1}, {1'000, 8'000, 100'000});
  add_model("dense_2048_4096", std::make_shared<const network>(std::vector<std::size_t>{2048, 4096}), false, {8, 2},
            {300, 600, 1'280});
  add_model("accelerator", small, true, {64, 1}, {100, 200, 640});
}

}  // namespace bench
