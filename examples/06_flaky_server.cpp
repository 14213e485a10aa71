// A server that fails, stalls and throttles, and what each policy of a batch buys against it.
//
// 2000 samples are sent to a model server, 20 at a time. One call in twenty fails, one in a hundred stalls for 100 times as
// long as the others, and beyond 250 calls per second it answers "too many requests, come back in ...". Server and batch run
// on a simulation, an executor on a virtual clock: the table is the same on every machine, and there in no time.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <numeric>
#include <stdexcept>
#include <stop_token>
#include <vector>

#include <cobatch/cobatch.hpp>

using namespace std::chrono_literals;

// ---- The server ----

class flaky_server {
 public:
  explicit flaky_server(cobatch::simulation& sim) : sim_(sim), tokens_(250, 25) {}

  // What a client of such a server looks like: it hands its token on, and throws what went wrong.
  cobatch::task<int> predict(int sample, std::stop_token stop) {
    const std::uint64_t luck = random(calls_++);
    if (!tokens_.try_acquire(sim_)) {
      ++rejections_;
      throw cobatch::retry_later(100ms, "429 too many requests");  // what a Retry-After header says
    }
    const auto usual = 20ms + (luck >> 32) % 20 * 1ms;
    if (!co_await sim_.schedule_after(luck % 100 == 0 ? 100 * usual : usual, stop)) throw std::runtime_error("stopped");
    if (luck % 20 == 1) throw std::runtime_error("503 service unavailable");
    co_return sample;
  }

  int calls() const { return calls_; }
  int rejections() const { return rejections_; }

 private:
  static std::uint64_t random(std::uint64_t x) {  // SplitMix64
    x = (x + 1) * 0x9e3779b97f4a7c15;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
  }

  cobatch::simulation& sim_;
  cobatch::rate_limiter tokens_;
  int calls_ = 0;
  int rejections_ = 0;
};

// ---- One batch, and its line of the table ----

struct line {
  int succeeded, calls, rejections;
};

line run(const char* name, bool paced, cobatch::batch_options options) {
  constexpr std::size_t count = 2000;
  cobatch::simulation sim;
  flaky_server server(sim);
  cobatch::rate_limiter pace(245, 10);  // a little less than the server allows
  if (paced) options.rate = &pace;
  options.max_concurrency = 20;
  options.retry.seed = 1;

  std::vector<int> samples(count);
  std::iota(samples.begin(), samples.end(), 0);
  // How long each sample took, from its first call to its value or its last failure.
  const auto never = cobatch::simulation::time_point::max();
  std::vector<cobatch::simulation::time_point> begin(count, never), end(count, never);
  const auto predict = [&](int sample, std::stop_token stop) -> cobatch::task<int> {
    const auto i = static_cast<std::size_t>(sample);
    begin[i] = std::min(begin[i], sim.now());
    try {
      const int value = co_await server.predict(sample, stop);
      end[i] = std::min(end[i], sim.now());
      co_return value;
    } catch (...) {
      if (!stop.stop_requested() && end[i] == never) last_failure_ = sim.now();
      throw;
    }
  };
  const auto results = sim.run(cobatch::batch_predict(sim, samples, predict, options));

  int succeeded = 0;
  std::vector<double> latencies;
  for (std::size_t i = 0; i < count; ++i) {
    if (!results[i]) continue;
    ++succeeded;
    latencies.push_back(std::chrono::duration<double, std::milli>(end[i] - begin[i]).count());
  }
  std::sort(latencies.begin(), latencies.end());
  const auto quantile = [&](double q) {
    return latencies[static_cast<std::size_t>(std::ceil(q * static_cast<double>(latencies.size()))) - 1];
  };
  std::printf("%-28s %9d %7d %9d %8.0f %8.0f %8.0f %8.1f\n", name, succeeded, server.calls(), server.rejections(),
              quantile(0.5), quantile(0.99), quantile(0.999),
              std::chrono::duration<double>(sim.now().time_since_epoch()).count());
  return {succeeded, server.calls(), server.rejections()};
}

int main() {
  std::printf("%-28s %9s %7s %9s %8s %8s %8s %8s\n", "2000 samples, 20 at a time", "succeeded", "calls", "rejected", "p50 ms",
              "p99 ms", "p99.9 ms", "total s");
}
