// The cap that finds itself, on the virtual clock: a server with room for so many calls, and a queue in front of it.
// What counts is not the time that the simulation takes but what it comes to, after 200 round trips: throughput and
// 99th percentile beside those of the best fixed cap, the worst of several seeds.

#include <cobatch/cobatch.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <support/measure.hpp>
#include <support/samples.hpp>
#include <support/statistics.hpp>

namespace bench {
namespace {

using cobatch::adaptive_limit;
using cobatch::async_semaphore;
using cobatch::batch_predict;
using cobatch::simulation;
using cobatch::task;
using namespace std::chrono_literals;
using std::chrono::nanoseconds;

enum class latency { constant, uniform, exponential, lognormal };

struct scenario {
  std::size_t capacity = 50;
  latency kind = latency::uniform;
  nanoseconds service = 20ms;  // on average, without a queue
  bool halves = false;         // the capacity, after 400 round trips, of 800 in all
  bool aimd = false;           // not the gradient, and a server that has replied too late counts as overloaded
};

constexpr double round_trips = 400;    // in one phase
constexpr double settle_within = 200;  // of them

class server {
 public:
  server(simulation& sim, const scenario& s, std::uint64_t seed)
      : sim_(sim), room_(s.capacity), scenario_(s), random_(seed) {}

  task<> call() {
    const auto held = co_await room_.acquire();
    co_await sim_.schedule_after(draw());
  }
  void halve() { room_.set_limit(scenario_.capacity / 2); }

 private:
  // The same on every platform, unlike std's distributions.
  double unit() { return static_cast<double>(random_() >> 11) * 0x1p-53; }

  nanoseconds draw() {
    double factor = 1;
    switch (scenario_.kind) {
      case latency::constant:
        break;
      case latency::uniform:
        factor = 0.8 + 0.4 * unit();
        break;
      case latency::exponential:
        factor = -std::log1p(-unit());
        break;
      case latency::lognormal: {
        const double radius = std::sqrt(-2 * std::log1p(-unit()));
        factor = std::exp(radius * std::cos(6.283185307179586 * unit()) - 0.5);
      }
    }
    return nanoseconds(static_cast<std::int64_t>(static_cast<double>(scenario_.service.count()) * factor) + 1);
  }

  simulation& sim_;
  async_semaphore room_;
  scenario scenario_;
  std::mt19937_64 random_;
};

struct outcome {
  std::vector<cobatch::expected<int, cobatch::error>> results;
  double per_second = 0;
  double p99 = 0;  // seconds
  double cap = 0;  // on average
};

/// One batch. What it comes to is measured in the second half of its last phase.
outcome run(const scenario& s, std::uint64_t seed, adaptive_limit& limit, const std::vector<int>& samples) {
  simulation sim;
  server backend(sim, s, seed);
  const double trip = static_cast<double>(s.service.count());
  const double last_phase = s.halves ? round_trips * trip : 0;
  const double begin = last_phase + settle_within * trip;
  const double end = last_phase + round_trips * trip;
  outcome out;
  std::vector<double> latencies;
  const auto predict = [&](int x) -> task<int> {
    const auto now = [&] { return static_cast<double>(sim.now().time_since_epoch().count()); };
    const double started = now();
    co_await backend.call();
    if (now() > begin && now() <= end) {
      latencies.push_back((now() - started) / 1e9);
      out.cap += static_cast<double>(limit.limit());
    }
    co_return x * 2;
  };
  const auto halve_later = [&]() -> task<int> {
    co_await sim.schedule_after(nanoseconds(static_cast<std::int64_t>(last_phase)));
    backend.halve();
    co_return 0;
  };
  const auto both = [&](int which) -> task<int> {
    if (which == 1) {
      const int done = co_await halve_later();
      co_return done;
    }
    out.results = co_await batch_predict(sim, samples, predict, {.limit = &limit});
    co_return 0;
  };
  const std::vector<int> parts = s.halves ? std::vector<int>{0, 1} : std::vector<int>{0};
  (void)sim.run(batch_predict(sim, parts, both));
  out.cap /= std::max<double>(1, static_cast<double>(latencies.size()));
  out.per_second = static_cast<double>(latencies.size()) / ((end - begin) / 1e9);
  out.p99 = quantile(latencies, 0.99);
  return out;
}

std::size_t calls_for(const scenario& s) {
  // As many as are answered until the last phase ends, and as many as may still be in flight then.
  const double phases = s.halves ? 1.5 : 1;
  return static_cast<std::size_t>(phases * round_trips * static_cast<double>(s.capacity)) + 2000;
}

/// The best fixed cap is the server's capacity: fewer calls leave it idle, and more only make the queue longer.
outcome best_fixed(scenario s, std::uint64_t seed, const std::vector<int>& samples) {
  if (s.halves) s.capacity /= 2;
  s.halves = false;
  adaptive_limit fixed({.initial = s.capacity, .min = s.capacity, .max = s.capacity});
  return run(s, seed, fixed, samples);
}

constexpr std::uint64_t seeds = 5;

void add_scenario(const std::string& name, const scenario& s, std::size_t start, bool fixed) {
  add("adaptive/" + name +
          (fixed    ? "/fixed:"
           : s.aimd ? "/aimd_from:"
                    : "/gradient_from:") +
          std::to_string(start),
      {.samples = calls_for(s), .runs = 1, .warm_up = false, .allocations = false}, [=](std::size_t n) {
        struct state {
          std::vector<int> samples;
          double least_throughput = 1e9, throughput = 0, most_p99 = 0, p99 = 0, cap = 0, per_second = 0;
        };
        auto mine = std::make_shared<state>();
        mine->samples = numbers(n);
        return job{[=] {
                     *mine = {.samples = std::move(mine->samples)};
                     std::vector<cobatch::expected<int, cobatch::error>> results;
                     for (std::uint64_t seed = 1; seed <= seeds; ++seed) {
                       cobatch::adaptive_options options{.initial = start};
                       if (fixed) options.min = options.max = start;
                       if (s.aimd) {
                         options.algorithm = cobatch::adaptive_algorithm::aimd;
                         options.timeout = 3 * s.service / 2;
                       }
                       adaptive_limit limit(options);
                       outcome found = run(s, seed, limit, mine->samples);
                       const outcome best = best_fixed(s, seed, mine->samples);
                       const double throughput = found.per_second / best.per_second;
                       const double p99 = found.p99 / best.p99;
                       mine->least_throughput = std::min(mine->least_throughput, throughput);
                       mine->most_p99 = std::max(mine->most_p99, p99);
                       mine->throughput += throughput / seeds;
                       mine->p99 += p99 / seeds;
                       mine->cap += found.cap / seeds;
                       mine->per_second += found.per_second / seeds;
                       results = std::move(found.results);
                     }
                     return results;
                   },
                   doubles(n),
                   [=](benchmark::State& bench) {
                     bench.counters["virtual_per_second"] = mine->per_second;
                     bench.counters["of_best_throughput"] = mine->throughput;
                     bench.counters["of_best_throughput_worst_seed"] = mine->least_throughput;
                     bench.counters["of_best_p99"] = mine->p99;
                     bench.counters["of_best_p99_worst_seed"] = mine->most_p99;
                     bench.counters["cap"] = mine->cap;
                   }};
      });
}

std::string name_of(latency kind) {
  switch (kind) {
    case latency::constant:
      return "constant";
    case latency::uniform:
      return "uniform";
    case latency::exponential:
      return "exponential";
    case latency::lognormal:
      break;
  }
  return "lognormal";
}

}  // namespace

void add_benchmarks() {
  constexpr latency kinds[] = {latency::constant, latency::uniform, latency::exponential, latency::lognormal};
  for (const std::size_t capacity : {10u, 50u, 200u}) {
    // The scale of the latencies makes no difference, so they may as well differ.
    const nanoseconds service = capacity == 10 ? 1s : capacity == 50 ? nanoseconds(20ms) : nanoseconds(1ms);
    for (const latency kind : kinds) {
      const scenario s{.capacity = capacity, .kind = kind, .service = service};
      const std::string name = "capacity:" + std::to_string(capacity) + "/" + name_of(kind);
      for (const std::size_t cap : {capacity / 2, 4 * capacity}) add_scenario(name, s, cap, true);
      for (const std::size_t start : {1u, 20u, 1000u}) add_scenario(name, s, start, false);
    }
  }
  for (const latency kind : kinds) {
    scenario s{.kind = kind, .halves = true};
    add_scenario("capacity:50_halves/" + name_of(kind), s, 50, true);
    add_scenario("capacity:50_halves/" + name_of(kind), s, 20, false);
  }
  for (const std::size_t start : {1u, 1000u}) {
    add_scenario("capacity:50/uniform", {.kind = latency::uniform, .aimd = true}, start, false);
  }
}

}  // namespace bench
