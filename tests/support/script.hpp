#pragma once

#include <chrono>
#include <cstddef>
#include <functional>
#include <map>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include <cobatch/batch_options.hpp>
#include <cobatch/batch_predict.hpp>
#include <cobatch/error.hpp>
#include <cobatch/expected.hpp>
#include <cobatch/simulation.hpp>
#include <cobatch/task.hpp>

#include "support/lifetimes.hpp"

/// What one call of a predict is to do: take so long, then come to a value, fail, or say when to come back.
struct act {
  enum class end { value, failure, later } ends = end::value;
  std::chrono::nanoseconds takes{};
  std::chrono::nanoseconds come_back{};  // with end::later
  bool listens = true;                   // ends when it is stopped: with an exception
};

inline act value_after(std::chrono::nanoseconds takes) {
  return {.takes = takes};
}
inline act fails_after(std::chrono::nanoseconds takes) {
  return {.ends = act::end::failure, .takes = takes};
}
inline act throttled(std::chrono::nanoseconds come_back) {
  return {.ends = act::end::later, .come_back = come_back};
}

/// A predict that does what its plan says and writes down who called it when.
///
/// The plan gets the sample and the number of the call for this sample, from 1. A value is sample * 100 + that number.
/// One type for all tests of a file: every type of predict compiles the whole engine again.
class script {
 public:
  struct call {
    int sample;
    int number;
    std::chrono::nanoseconds began, ended;
    bool stopped;
  };

  script(cobatch::simulation& sim, std::function<act(int sample, int number)> plan)
      : sim_(sim), plan_(std::move(plan)) {}

  cobatch::task<int> operator()(int sample, std::stop_token token) {
    const auto inside = flight_.enter();
    const int number = ++numbers_[sample];
    const act todo = plan_(sample, number);
    const std::size_t index = calls_.size();
    calls_.push_back({sample, number, now(), never, false});
    if (todo.takes > std::chrono::nanoseconds::zero()) {
      if (!todo.listens) token = {};
      const bool elapsed = co_await sim_.schedule_after(todo.takes, token);
      calls_[index].stopped = !elapsed;
      calls_[index].ended = now();
      if (!elapsed) throw std::runtime_error("stopped");
    }
    calls_[index].ended = now();
    switch (todo.ends) {
      case act::end::value:
        break;
      case act::end::failure:
        throw std::runtime_error("call " + std::to_string(number));
      case act::end::later:
        throw cobatch::retry_later(todo.come_back);
    }
    co_return sample * 100 + number;
  }

  const std::vector<call>& calls() const { return calls_; }
  /// How often predict was called for a sample.
  int calls_of(int sample) const {
    const auto found = numbers_.find(sample);
    return found == numbers_.end() ? 0 : found->second;
  }
  /// When each call began, for one sample or for all.
  std::vector<std::chrono::milliseconds> began(int sample) const {
    std::vector<std::chrono::milliseconds> times;
    for (const call& each : calls_) {
      if (each.sample == sample) times.push_back(std::chrono::duration_cast<std::chrono::milliseconds>(each.began));
    }
    return times;
  }
  std::vector<int> order() const {
    std::vector<int> samples;
    for (const call& each : calls_) samples.push_back(each.sample);
    return samples;
  }
  const gauge& flight() const { return flight_; }

  static constexpr std::chrono::nanoseconds never = std::chrono::nanoseconds::max();

 private:
  std::chrono::nanoseconds now() const { return sim_.now().time_since_epoch(); }

  cobatch::simulation& sim_;
  std::function<act(int, int)> plan_;
  std::vector<call> calls_;
  std::map<int, int> numbers_;
  gauge flight_;
};

using script_outcomes = std::vector<cobatch::expected<int, cobatch::error>>;

/// The batch of a script, as an awaitable.
inline auto playing(cobatch::simulation& sim, script& predict, const std::vector<int>& samples,
                    cobatch::batch_options options = {}) {
  return cobatch::batch_predict(sim, samples, std::ref(predict), options);
}

inline script_outcomes play(cobatch::simulation& sim, script& predict, const std::vector<int>& samples,
                            cobatch::batch_options options = {}) {
  return sim.run(playing(sim, predict, samples, options));
}

/// 0, 1, ... end - 1.
inline std::vector<int> samples_below(int end) {
  std::vector<int> samples;
  for (int i = 0; i < end; ++i) samples.push_back(i);
  return samples;
}

inline std::chrono::nanoseconds elapsed(const cobatch::simulation& sim) {
  return sim.now().time_since_epoch();
}

/// A task as an awaitable, to run beside others: the predict of a batch of them.
using side_job = std::function<cobatch::task<void>()>;

/// Runs all of them at once; what one throws is rethrown.
inline void run_together(cobatch::simulation& sim, const std::vector<side_job>& jobs) {
  struct start {
    cobatch::task<void> operator()(const side_job& each) const { return each(); }
  };
  for (auto& each : sim.run(cobatch::batch_predict(sim, jobs, start()))) {
    if (!each) std::rethrow_exception(each.error().exception);
  }
}
