// A server that fails, stalls and throttles, and what each policy of a batch buys against it.
//
// 5000 samples go to a model server, 20 at a time. One call in twenty fails. One in a hundred takes 100 times as long
// as the others. And above 400 calls per second the server answers "too many requests, come back in 50 ms". Both run on
// a simulation, an executor on a virtual clock: minutes pass in no time, and the table is the same on every machine. On
// a thread_pool the code is the same, with sync_wait(...) in place of sim.run(...).
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <numeric>
#include <stdexcept>
#include <stop_token>
#include <vector>

#include <cobatch/cobatch.hpp>

using namespace std::chrono_literals;

// ---- The server, and its client ----

class flaky_server {
 public:
  explicit flaky_server(cobatch::simulation& sim) : sim_(sim) {}

  // The client passes the stop token on to what it waits for, and throws what went wrong. retry_later is what "429 too
  // many requests" with a Retry-After header comes to: a retry will not come any sooner.
  cobatch::task<int> call(int sample, std::stop_token stop) {
    ++calls;
    const std::uint64_t luck = random();
    if (!allowance_.try_acquire(sim_)) {
      ++rejected;
      co_await sim_.schedule_after(10ms);  // there and back
      throw cobatch::retry_later(50ms, "429 too many requests");
    }
    const auto usual = 20ms + luck % 16 * 1ms;
    const auto latency = (luck >> 8) % 100 == 0 ? 100 * usual : usual;
    if (!co_await sim_.schedule_after(latency, stop)) throw std::runtime_error("hung up");
    if ((luck >> 16) % 20 == 0) throw std::runtime_error("503 service unavailable");
    co_return 10 * sample;
  }

  int calls = 0;
  int rejected = 0;

 private:
  std::uint64_t random() {
    luck_ ^= luck_ << 13;  // xorshift64 (Marsaglia, 2003)
    luck_ ^= luck_ >> 7;
    return luck_ ^= luck_ << 17;
  }

  cobatch::simulation& sim_;
  cobatch::rate_limiter allowance_{400, 20};
  std::uint64_t luck_ = 42;
};

// ---- One batch is one line of the table ----

struct line {
  std::size_t succeeded;
  int rejected;
};

line run(const char* name, cobatch::batch_options options) {
  cobatch::simulation sim;
  flaky_server server(sim);
  std::vector<int> samples(5000);
  std::iota(samples.begin(), samples.end(), 0);

  // From a sample's first call to its value, in milliseconds.
  std::vector<double> began(samples.size(), -1), latencies;
  const auto now = [&] { return std::chrono::duration<double, std::milli>(sim.now().time_since_epoch()).count(); };
  const auto predict = [&](int sample, std::stop_token stop) -> cobatch::task<int> {
    double& start = began[static_cast<std::size_t>(sample)];
    if (start < 0) start = now();
    const int value = co_await server.call(sample, stop);
    latencies.push_back(now() - start);
    co_return value;
  };

  options.max_concurrency = 20;
  const auto results = sim.run(cobatch::batch_predict(sim, samples, predict, options));

  const auto succeeded = static_cast<std::size_t>(
      std::count_if(results.begin(), results.end(), [](const auto& result) { return result.has_value(); }));
  std::sort(latencies.begin(), latencies.end());
  const auto quantile = [&](double q) {
    return latencies[static_cast<std::size_t>(q * static_cast<double>(latencies.size()))];
  };
  std::printf("%-32s %9zu %7d %9d %7.0f %7.0f %8.0f %8.1f\n", name, succeeded, server.calls, server.rejected,
              quantile(0.5), quantile(0.99), quantile(0.999), now() / 1000);
  return {succeeded, server.rejected};
}

int main() {
  std::printf("%-32s %9s %7s %9s %7s %7s %8s %8s\n", "5000 samples", "succeeded", "calls", "rejected", "p50 ms",
              "p99 ms", "p99.9 ms", "total s");

  run("no policy", {});

  // Exponential backoff with full jitter. The seed makes it the same in every run.
  const cobatch::retry_policy retry{.max_attempts = 10, .seed = 1};
  run("retry", {.retry = retry});

  // At most one extra call for each two samples: where a server is overloaded, retries must not keep it so.
  cobatch::retry_policy thrifty = retry;
  thrifty.budget = 0.5;
  run("retry, budget of 0.5", {.retry = thrifty});

  // A call that stalls is given up and made again. So more calls are made, and more of them are rejected.
  run("timeout of 100 ms, retry", {.timeout = 100ms, .retry = retry});

  // A sample that takes longer than 95 in 100 calls do is sent a second time, and the first value wins.
  const cobatch::hedge_policy hedge{.quantile = 0.95};
  run("hedge at p95", {.hedge = hedge});

  // Starts are spaced evenly, just below what the server allows: nothing is rejected.
  cobatch::rate_limiter rate(390);
  run("rate limiter", {.rate = &rate});

  cobatch::rate_limiter shared_rate(390);
  const line all = run("rate limiter, timeout, retry, hedge",
                       {.timeout = 100ms, .retry = thrifty, .hedge = hedge, .rate = &shared_rate});

  return all.succeeded == 5000 && all.rejected == 0 ? 0 : 1;
}
