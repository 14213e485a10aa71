// What hedging and the rate limiter buy, on the virtual clock: what counts is not the time that the simulation takes
// but what it comes to, the worst of several seeds.
//
// policies/hedge: a server whose calls take 8 to 12 ms, one in a hundred 100 times as long. Every sample is timed from
// its first call to its value. policies/throttle: a server that answers "too many requests" above 100 per second.

#include <cobatch/cobatch.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <random>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include <support/measure.hpp>
#include <support/samples.hpp>
#include <support/statistics.hpp>

namespace bench {
namespace {

using cobatch::batch_predict;
using cobatch::rate_limiter;
using cobatch::simulation;
using cobatch::task;
using namespace std::chrono_literals;
using std::chrono::nanoseconds;

constexpr std::uint64_t seeds = 5;
constexpr nanoseconds not_yet = nanoseconds::max();

/// A server on a virtual clock, and what it has seen.
class server {
 public:
  struct settings {
    double stalling = 0;       // the share of calls that take 100 times as long
    double per_second = 1e12;  // more is rejected
    bool tells_when = false;   // a rejection says when to come back
  };

  server(simulation& sim, const settings& s, std::uint64_t seed, std::size_t samples)
      : sim_(sim), settings_(s), random_(seed), allowance_(s.per_second), began_(samples, not_yet) {}

  task<int> predict(int sample, std::stop_token stop) {
    ++calls;
    const nanoseconds now = sim_.now().time_since_epoch();
    nanoseconds& began = began_[static_cast<std::size_t>(sample)];
    began = std::min(began, now);
    const nanoseconds usual = 8ms + static_cast<std::int64_t>(unit() * 4e6) * 1ns;
    const nanoseconds takes = unit() < settings_.stalling ? 100 * usual : usual;
    if (!allowance_.try_acquire(sim_)) {
      ++rejected;
      if (settings_.tells_when) throw cobatch::retry_later(1s);
      throw std::runtime_error("too many requests");
    }
    if (!co_await sim_.schedule_after(takes, stop)) throw std::runtime_error("hung up");
    latencies.push_back(std::chrono::duration<double>(sim_.now().time_since_epoch() - began).count());
    co_return sample * 2;
  }

  std::size_t calls = 0, rejected = 0;
  std::vector<double> latencies;  // of samples, in seconds

 private:
  // The same on every platform, unlike std's distributions.
  double unit() { return static_cast<double>(random_() >> 11) * 0x1p-53; }

  simulation& sim_;
  settings settings_;
  std::mt19937_64 random_;
  rate_limiter allowance_;
  std::vector<nanoseconds> began_;
};

struct outcome {
  bench::results results;
  double calls_per_sample = 0, rejected = 0, p50 = 0, p999 = 0, seconds = 0;
};

outcome run(const server::settings& s, std::uint64_t seed, double pace, cobatch::batch_options options,
            const std::vector<int>& samples) {
  simulation sim;
  server backend(sim, s, seed, samples.size());
  std::optional<rate_limiter> rate;
  if (pace != 0) options.rate = &rate.emplace(pace);
  options.retry.seed = seed;
  const auto predict = [&](int sample, std::stop_token stop) { return backend.predict(sample, std::move(stop)); };
  outcome out;
  out.results = sim.run(batch_predict(sim, samples, predict, options));
  out.calls_per_sample = static_cast<double>(backend.calls) / static_cast<double>(samples.size());
  out.rejected = static_cast<double>(backend.rejected);
  out.p50 = quantile(backend.latencies, 0.5);
  out.p999 = quantile(backend.latencies, 0.999);
  out.seconds = std::chrono::duration<double>(sim.now().time_since_epoch()).count();
  return out;
}

/// The same samples with `options` and, where there is a baseline, with that, for each seed.
void add_policy(const std::string& name, std::size_t samples, const server::settings& s, double pace,
                const cobatch::batch_options& options, const std::optional<cobatch::batch_options>& baseline = {}) {
  add("policies/" + name, {.samples = samples, .runs = 1, .warm_up = false, .allocations = false}, [=](std::size_t n) {
    struct state {
      std::vector<int> samples;
      double p999_cut = 1e9, p999 = 0, p50 = 0, calls = 0, rejected = 0, seconds = 0;
    };
    auto mine = std::make_shared<state>();
    mine->samples = numbers(n);
    return job{[=] {
                 *mine = {.samples = std::move(mine->samples)};
                 bench::results last;
                 for (std::uint64_t seed = 1; seed <= seeds; ++seed) {
                   outcome found = run(s, seed, pace, options, mine->samples);
                   if (baseline) {
                     const outcome without = run(s, seed, 0, *baseline, mine->samples);
                     mine->p999_cut = std::min(mine->p999_cut, without.p999 / found.p999);
                   }
                   mine->p999 = std::max(mine->p999, found.p999);
                   mine->p50 = std::max(mine->p50, found.p50);
                   mine->calls = std::max(mine->calls, found.calls_per_sample);
                   mine->rejected = std::max(mine->rejected, found.rejected);
                   mine->seconds = std::max(mine->seconds, found.seconds);
                   last = std::move(found.results);
                   if (!are_doubles(last, n)) break;
                 }
                 return last;
               },
               doubles(n),  // so every sample has succeeded
               [=](benchmark::State& bench) {
                 if (baseline) bench.counters["p999_cut"] = mine->p999_cut;
                 bench.counters["p999_ms"] = mine->p999 * 1e3;
                 bench.counters["p50_ms"] = mine->p50 * 1e3;
                 bench.counters["calls_per_sample"] = mine->calls;
                 bench.counters["rejected"] = mine->rejected;
                 bench.counters["virtual_seconds"] = mine->seconds;
               }};
  });
}

}  // namespace

void add_benchmarks() {
  const server::settings long_tail{.stalling = 0.01};
  const cobatch::batch_options capped{.max_concurrency = 50};
  const auto hedged = [](const cobatch::hedge_policy& hedge) {
    return cobatch::batch_options{.max_concurrency = 50, .hedge = hedge};
  };
  const std::size_t many = scaled(50'000);
  add_policy("hedge/off", many, long_tail, 0, capped);
  add_policy("hedge/p95", many, long_tail, 0, hedged({.quantile = 0.95}), capped);
  add_policy("hedge/p98", many, long_tail, 0, hedged({.quantile = 0.98}), capped);
  add_policy("hedge/after_15ms", many, long_tail, 0, hedged({.delay = 15ms}), capped);

  const std::size_t some = scaled(2000);
  const cobatch::batch_options wide{.max_concurrency = 20};
  cobatch::batch_options again = wide;
  again.retry = {.max_attempts = 1000};
  add_policy("throttle/rate_limiter", some, {.per_second = 100}, 100, wide);
  add_policy("throttle/retry", some, {.per_second = 100}, 0, again);
  add_policy("throttle/retry_after", some, {.per_second = 100, .tells_when = true}, 0, again);
}

}  // namespace bench
