// SPDX-License-Identifier: BSL-1.0
// One random program over everything: a few batches and streams with options drawn from the whole space, that share a
// semaphore, a rate limiter and a simulation. What may be said of each outcome is said by run::judge(), which knows only
// the plan and what predict saw.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <ranges>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include <cobatch/cobatch.hpp>

#include "support/generated.hpp"
#include "support/script.hpp"

namespace random_programs {

using cobatch::errc;
using cobatch::error;
using cobatch::expected;
using cobatch::simulation;
using cobatch::task;
using std::chrono::milliseconds;

enum class input : unsigned char { vector, single_pass, into, stream, ordered_stream, awaited_stream, kinds };
inline constexpr std::array input_names{"vector", "single_pass", "into", "stream", "ordered_stream", "awaited_stream"};

/// All numbers, so that making a plan smaller is to set one of them to nothing.
struct sample_plan {
  int fails = 0;       // so many calls come to nothing; 9: all
  int error = 0;       // they return an error, and do not throw
  int takes = 0;       // ms
  int deaf = 0;        // it does not look at its token
  int stubborn = 0;    // a value even if it was stopped
  int nested = 0;      // it awaits a batch of so many
  int extra_cost = 0;  // beyond 1
};

/// The options; 0: off.
enum option : unsigned char {
  cap,
  semaphore,
  timeout,
  deadline,
  queue_timeout,
  max_weight,
  max_failures,
  attempts,
  backoff,
  jitter,
  hedge,
  rate,
  observer,
  stop_after,
  begins_after,
  unreadable,
  slow_consumer,
  closes_after,
  options
};
inline constexpr std::array option_names{"cap",        "semaphore",     "timeout",     "deadline",   "queue_timeout",
                                         "max_weight", "max_failures",  "attempts",    "backoff",    "jitter",
                                         "hedge",      "rate",          "observer",    "stop_after", "begins_after",
                                         "unreadable", "slow_consumer", "closes_after"};

struct batch_plan {
  input from = input::vector;
  std::array<int, options> set{};
  std::vector<sample_plan> samples;
};

struct program {
  std::uint64_t order = 0;  // of the simulation
  int permits = 1;
  std::vector<int> limits;  // the semaphore's, one after another; then `permits` again
  std::vector<batch_plan> batches;
};

/// pick(least, most) decides.
template <class Pick>
program draw(Pick&& pick) {
  const auto one_in = [&](int n) { return pick(1, n) == 1; };
  program all;
  all.order = one_in(4) ? 0 : static_cast<std::uint64_t>(pick(1, 1'000'000));
  all.permits = pick(1, 5);
  for (int changes = one_in(3) ? pick(1, 4) : 0; changes > 0; --changes) all.limits.push_back(pick(0, 5));
  for (int count = pick(1, 3); count > 0; --count) {
    batch_plan& batch = all.batches.emplace_back();
    batch.from = static_cast<input>(pick(0, static_cast<int>(input::kinds) - 1));
    const auto maybe = [&](option which, int chance, int least, int most) {
      if (one_in(chance)) batch.set[which] = pick(least, most);
    };
    maybe(cap, 2, 1, 5);
    maybe(semaphore, 2, 1, 1);
    maybe(timeout, 3, 1, 15);
    maybe(deadline, 4, 1, 60);
    maybe(queue_timeout, 4, 1, 20);
    maybe(max_weight, 4, 1, 5);
    maybe(max_failures, 4, 1, 3);
    maybe(attempts, 2, 2, 4);
    maybe(backoff, 2, 1, 10);
    maybe(jitter, 2, 1, 1);
    maybe(hedge, 3, 1, 12);
    maybe(rate, 4, 1, 1);
    maybe(observer, 2, 1, 1);
    maybe(stop_after, 4, 1, 60);
    maybe(begins_after, 3, 1, 20);
    maybe(unreadable, 12, 1, 12);
    maybe(slow_consumer, 3, 1, 10);
    maybe(closes_after, 5, 1, 8);
    batch.samples.resize(static_cast<std::size_t>(pick(0, 12)));
    for (sample_plan& each : batch.samples) {
      if (one_in(4)) each.fails = one_in(2) ? 9 : pick(1, 3);
      each.error = pick(0, 1);
      if (!one_in(4)) each.takes = pick(0, 20);
      if (one_in(4)) each.deaf = 1;
      if (one_in(3)) each.stubborn = 1;
      if (one_in(8)) each.nested = pick(1, 3);
      if (one_in(4)) each.extra_cost = pick(1, 2);
    }
  }
  return all;
}

/// The first thing that is wrong.
class findings {
 public:
  void require(bool good, const std::string& what) {
    if (!good && first.empty()) first = what;
  }
  std::string first;
};

struct shared_things {
  explicit shared_things(const program& all)
      : highest(static_cast<std::size_t>(all.permits)), permits(static_cast<std::size_t>(all.permits)), sim(all.order) {
    for (const int each : all.limits) highest = std::max(highest, static_cast<std::size_t>(each));
  }
  static constexpr double per_second = 500, burst = 3;

  std::size_t highest;
  cobatch::async_semaphore permits;
  simulation sim;
  cobatch::rate_limiter limiter{per_second, burst};
  std::size_t weight_under_permits = 0;
  std::vector<std::chrono::nanoseconds> rated_starts;
  bool limits_change = false;
};

/// One batch of a program.
class run {
 public:
  run(const batch_plan& plan, shared_things& shared, findings& found, std::string name)
      : plan_(plan), shared_(shared), found_(found), name_(std::move(name)), seen_(plan.samples.size()) {}

  task<void> go() {
    if (on(begins_after)) co_await shared_.sim.schedule_after(milliseconds(on(begins_after)));
    switch (plan_.from) {
      case input::vector:
      case input::single_pass:
      case input::into:
        if (on(max_weight)) {
          task<void> weighted = all_at_once(cobatch::weighted(call{this}, cost{this}));
          co_await std::move(weighted);
        } else {
          task<void> plain = all_at_once(call{this});
          co_await std::move(plain);
        }
        break;
      default:
        co_await one_by_one();
    }
  }
  task<void> stop_some_time() {
    if (!on(stop_after)) co_return;
    co_await shared_.sim.schedule_after(milliseconds(on(stop_after)));
    stopped_ = true;
    stop_.request_stop();
  }
  void at_the_end() {
    require(in_flight_ == 0, "predicts are still running");
    if (on(observer)) {
      const auto told = metrics_.snapshot();
      require(told.in_flight == 0, "the metrics know of somebody in flight");
      require(told.attempts == calls_,
              "the metrics count " + std::to_string(told.attempts) + " attempts of " + std::to_string(calls_));
    }
  }

 private:
  struct call {
    run* self;
    task<expected<int, error>> operator()(int number, std::stop_token token) const {
      return self->predict(number, std::move(token));
    }
  };
  struct cost {
    run* self;
    std::size_t operator()(int number) const { return self->weight(number); }
  };
  struct seen_sample {
    int calls = 0, inside = 0, outcomes = 0, failures = 0;
    bool value = false;
  };

  int on(option which) const { return plan_.set[which]; }
  void require(bool good, const std::string& what) { found_.require(good, name_ + ": " + what); }
  const sample_plan& planned(int number) const { return plan_.samples.at(static_cast<std::size_t>(number)); }
  std::size_t weight(int number) const {
    return on(max_weight) && plan_.from <= input::into ? static_cast<std::size_t>(1 + planned(number).extra_cost) : 1;
  }
  static constexpr int value_of(int number) { return 1000 + number; }

  cobatch::batch_options options_of() {
    cobatch::batch_options all;
    if (on(cap)) all.max_concurrency = static_cast<std::size_t>(on(cap));
    if (on(semaphore)) all.semaphore = &shared_.permits;
    if (on(stop_after)) all.stop = stop_;
    if (on(timeout)) all.timeout = milliseconds(on(timeout));
    if (on(deadline)) all.deadline = milliseconds(on(deadline));
    if (on(queue_timeout)) all.queue_timeout = milliseconds(on(queue_timeout));
    if (on(max_weight)) all.max_weight = static_cast<std::size_t>(on(max_weight));
    if (on(max_failures)) all.max_failures = static_cast<std::size_t>(on(max_failures));
    if (on(attempts)) all.retry.max_attempts = static_cast<std::uint32_t>(on(attempts));
    all.retry.initial_backoff = milliseconds(on(backoff));
    all.retry.jitter = on(jitter) != 0;
    all.retry.seed = 1;
    if (on(hedge)) {
      all.hedge.delay = milliseconds(on(hedge));
      all.hedge.max_extra = 1;
    }
    if (on(rate)) all.rate = &shared_.limiter;
    if (on(observer)) all.observer = &metrics_;
    return all;
  }

  task<expected<int, error>> predict(int number, std::stop_token token) {
    const sample_plan own = planned(number);
    seen_sample& seen = seen_[static_cast<std::size_t>(number)];
    ++calls_;
    const int nth = ++seen.calls;
    require(!seen.value, "predict is called after it gave a value");
    require(++seen.inside <= (on(hedge) ? 2 : 1), "predict is called too often at a time");
    if (seen.inside == 1) require(++in_flight_ <= (on(cap) ? on(cap) : 1'000), "more in flight than the cap");
    weights_ += weight(number);
    if (on(max_weight))
      require(weights_ <= static_cast<std::size_t>(on(max_weight)), "more weight in flight than allowed");
    if (on(semaphore)) {
      shared_.weight_under_permits += weight(number);
      require(shared_.weight_under_permits <= shared_.highest, "more under the semaphore than permits");
    }
    if (on(rate)) {
      for (std::size_t i = weight(number); i > 0; --i) shared_.rated_starts.push_back(elapsed(shared_.sim));
    }
    bool stopped = token.stop_requested();
    if (own.nested) co_await inner_batch(own.nested);
    if (own.takes) {
      const std::stop_token listened_to = own.deaf ? std::stop_token() : token;
      co_await shared_.sim.schedule_after(milliseconds(own.takes), listened_to);
    }
    stopped = token.stop_requested();
    if (--seen.inside == 0) --in_flight_;
    weights_ -= weight(number);
    if (on(semaphore)) shared_.weight_under_permits -= weight(number);
    const bool gives_up = stopped && !own.stubborn && !own.deaf;
    if (!gives_up && (own.fails != 9 && nth > own.fails)) {
      seen.value = true;
      co_return value_of(number);
    }
    if (stopped && own.stubborn) {
      seen.value = true;
      co_return value_of(number);
    }
    ++seen.failures;
    if (own.error) co_return cobatch::unexpected(error(errc::queue_full));
    throw std::runtime_error("planned");
  }

  /// A batch in a predict, on the same executor.
  task<void> inner_batch(int size) {
    const std::vector<int> numbers = samples_below(size);
    script inner(shared_.sim, [](int, int) { return value_after(milliseconds(1)); });
    auto batch = playing(shared_.sim, inner, numbers);
    const script_outcomes results = co_await std::move(batch);
    for (const auto& each : results) require(each.has_value(), "a nested batch lost a value");
  }

  bool may_halt() const { return stopped_ || on(deadline) || on(max_failures) || on(unreadable) || closed_; }

  /// The plain model: whether sample `number` may come to this.
  void judge(int number, const expected<int, error>& outcome) {
    seen_sample& seen = seen_[static_cast<std::size_t>(number)];
    const std::string who = "sample " + std::to_string(number);
    require(++seen.outcomes == 1, who + " has two outcomes");
    require(seen.inside == 0, who + " has an outcome before its predict has ended");
    require(outcome.has_value() == seen.value,
            who + (seen.value ? " gave a value, and has an error" : " has a value that nobody gave"));
    const int most = std::max(1, on(attempts)) * (on(hedge) ? 2 : 1);
    require(seen.calls <= most, who + " was predicted too often");
    if (outcome) return require(*outcome == value_of(number), who + " has another one's value");
    const error& why = outcome.error();
    const auto allow = [&](bool good) {
      require(good, who + ": an outcome that nothing explains: " + std::string(name_of(why.code)) + " after " +
                        std::to_string(seen.calls) + " calls");
    };
    switch (why.code) {
      case errc::not_started:
        return allow(seen.calls == 0 && may_halt());
      case errc::input_failed:
        return allow(seen.calls == 0 && on(unreadable) == number + 1);
      case errc::exception:
      case errc::queue_full: {
        allow(seen.failures > 0);
        if (!may_halt() && !on(hedge)) {
          require(seen.calls == std::max(1, on(attempts)), who + " failed and was not tried again");
        }
        return;
      }
      case errc::cancelled:
        return allow(seen.calls > 0 && (stopped_ || on(max_failures) || closed_));
      case errc::timed_out:
        return allow(seen.calls > 0 && on(timeout));
      case errc::deadline_exceeded:
        return allow(seen.calls > 0 && on(deadline));
      case errc::queue_timed_out:
        return allow(on(queue_timeout) && (on(semaphore) || on(rate) || on(max_weight)));
      case errc::cost_exceeds_capacity: {
        const std::size_t own = weight(number);
        return allow((on(max_weight) && own > static_cast<std::size_t>(on(max_weight))) ||
                     (on(semaphore) && (own > shared_.permits.limit() || shared_.limits_change)));
      }
      default:
        return allow(false);
    }
  }

  int readable(int number) const {
    if (number + 1 == on(unreadable)) throw std::runtime_error("unreadable");
    return number;
  }

  template <class Predict>
  task<void> all_at_once(Predict predict) {
    const int size = static_cast<int>(plan_.samples.size());
    const std::vector<int> numbers = samples_below(size);
    const auto read = [this](int number) { return readable(number); };
    std::vector<expected<int, error>> results;
    bool sized = true;
    if (plan_.from == input::vector) {
      auto batch = cobatch::batch_predict(shared_.sim, numbers | std::views::transform(read), predict, options_of());
      results = co_await std::move(batch);
    } else if (plan_.from == input::into) {
      results.assign(numbers.size(), expected<int, error>(-1));
      auto batch = cobatch::batch_predict_into(shared_.sim, numbers | std::views::transform(read), results, predict,
                                               options_of());
      co_await std::move(batch);
    } else {
      sized = false;
      auto batch =
          cobatch::batch_predict(shared_.sim, numbers_below(size) | std::views::transform(read), predict, options_of());
      results = co_await std::move(batch);
    }
    require(results.size() <= numbers.size(), "more results than samples");
    if (sized || !may_halt()) require(results.size() == numbers.size(), "fewer results than samples");
    for (std::size_t i = 0; i < results.size(); ++i) judge(static_cast<int>(i), results[i]);
    for (std::size_t i = results.size(); i < numbers.size(); ++i) require(seen_[i].calls == 0, "an outcome was lost");
  }

  struct source {
    run* self;
    int next_number = 0;
    task<std::optional<int>> next() {
      if (next_number == static_cast<int>(self->plan_.samples.size())) co_return std::nullopt;
      const int number = next_number++;
      if (number % 3 == 1) co_await self->shared_.sim.schedule_after(milliseconds(number % 5));
      co_return self->readable(number);
    }
  };

  task<void> one_by_one() {
    const bool ordered = plan_.from != input::stream;
    cobatch::stream_options how;
    how.order = ordered ? cobatch::result_order::input : cobatch::result_order::completion;
    how.window = static_cast<std::size_t>(on(cap) ? on(cap) + 2 : 4);
    if (plan_.from == input::awaited_stream) {
      auto stream = cobatch::predict_stream(shared_.sim, source{this}, call{this}, options_of(), how);
      co_await take_all(stream, ordered);
    } else {
      const std::vector<int> numbers = samples_below(static_cast<int>(plan_.samples.size()));
      const auto read = [this](int number) { return readable(number); };
      auto stream =
          cobatch::predict_stream(shared_.sim, numbers | std::views::transform(read), call{this}, options_of(), how);
      co_await take_all(stream, ordered);
    }
  }

  template <class Stream>
  task<void> take_all(Stream& stream, bool ordered) {
    std::size_t last = 0, taken = 0;
    for (;;) {
      if (on(closes_after) && taken == static_cast<std::size_t>(on(closes_after))) {
        closed_ = true;
        break;
      }
      auto item = co_await stream.next();
      if (!item) break;
      if (ordered && taken > 0) require(item->index > last, "out of order");
      last = item->index;
      ++taken;
      judge(static_cast<int>(item->index), item->result);
      if (on(slow_consumer)) co_await shared_.sim.schedule_after(milliseconds(on(slow_consumer)));
    }
    co_await stream.close();
    if (!may_halt()) require(taken == plan_.samples.size(), "a stream ended too early");
    for (const seen_sample& each : seen_) {
      require(each.outcomes == 1 || each.calls == 0 || closed_, "an outcome was lost");
    }
  }

  const batch_plan plan_;
  shared_things& shared_;
  findings& found_;
  const std::string name_;
  std::vector<seen_sample> seen_;
  std::stop_source stop_;
  cobatch::batch_metrics metrics_;
  bool stopped_ = false, closed_ = false;
  int in_flight_ = 0;
  std::size_t weights_ = 0, calls_ = 0;
};

/// What is wrong with it; empty: nothing.
inline std::string failure_of(const program& all) {
  findings found;
  try {
    shared_things shared(all);
    std::vector<std::unique_ptr<run>> runs;
    std::vector<side_job> jobs;
    for (std::size_t i = 0; i < all.batches.size(); ++i) {
      runs.push_back(std::make_unique<run>(all.batches[i], shared, found, "batch " + std::to_string(i)));
      run* const each = runs.back().get();
      jobs.emplace_back([each] { return each->go(); });
      jobs.emplace_back([each] { return each->stop_some_time(); });
    }
    const auto change_limits = [&]() -> task<void> {
      shared.limits_change = !all.limits.empty();
      for (const int each : all.limits) {
        co_await shared.sim.schedule_after(milliseconds(7));
        shared.permits.set_limit(each);
      }
      co_await shared.sim.schedule_after(milliseconds(7));
      shared.permits.set_limit(all.permits);
    };
    jobs.emplace_back(change_limits);
    run_together(shared.sim, jobs);
    for (const auto& each : runs) each->at_the_end();
    found.require(shared.permits.available() == static_cast<std::size_t>(all.permits), "permits are missing");
    found.require(shared.permits.waiting() == 0 && shared.limiter.waiting() == 0, "somebody waits");
    for (std::size_t k = 0; k < shared.rated_starts.size(); ++k) {
      const double earliest =
          (static_cast<double>(k) - shared.burst - 2) / shared.per_second;  // a start may go into debt
      found.require(std::chrono::duration<double>(shared.rated_starts[k]).count() >= earliest - 1e-6,
                    "faster than the rate");
    }
  } catch (const std::exception& failure) {
    found.require(false, failure.what());
  }
  return found.first;
}

/// Smaller programs than this one, the boldest first: visit(each) until it says true.
template <class Visit>
bool smaller(const program& all, Visit visit) {
  const auto tried = [&](auto change) {
    program less = all;
    change(less);
    return visit(less);
  };
  for (std::size_t b = 0; b < all.batches.size(); ++b) {
    if (tried([&](program& less) { less.batches.erase(less.batches.begin() + static_cast<std::ptrdiff_t>(b)); }))
      return true;
  }
  if (!all.limits.empty() && tried([](program& less) { less.limits.pop_back(); })) return true;
  if (all.order != 0 && tried([](program& less) { less.order = 0; })) return true;
  for (std::size_t b = 0; b < all.batches.size(); ++b) {
    const batch_plan& batch = all.batches[b];
    for (std::size_t s = 0; s < batch.samples.size(); ++s) {
      const auto at = static_cast<std::ptrdiff_t>(s);
      if (tried([&](program& less) { less.batches[b].samples.erase(less.batches[b].samples.begin() + at); }))
        return true;
    }
    for (std::size_t o = 0; o < options; ++o) {
      if (batch.set[o] && tried([&](program& less) { less.batches[b].set[o] = 0; })) return true;
    }
    for (std::size_t s = 0; s < batch.samples.size(); ++s) {
      using member = int sample_plan::*;
      for (const member each : {&sample_plan::fails, &sample_plan::error, &sample_plan::takes, &sample_plan::deaf,
                                &sample_plan::stubborn, &sample_plan::nested, &sample_plan::extra_cost}) {
        if (batch.samples[s].*each && tried([&](program& less) { less.batches[b].samples[s].*each = 0; })) return true;
      }
    }
    if (batch.from != input::vector && tried([&](program& less) { less.batches[b].from = input::vector; })) return true;
  }
  return false;
}

inline std::string text_of(const program& all) {
  std::string text = "order " + std::to_string(all.order) + ", permits " + std::to_string(all.permits);
  for (const int each : all.limits) text += ", then " + std::to_string(each);
  for (const batch_plan& batch : all.batches) {
    text += "\n  " + std::string(input_names[static_cast<std::size_t>(batch.from)]);
    for (std::size_t o = 0; o < options; ++o) {
      if (batch.set[o]) text += std::string(" ") + option_names[o] + "=" + std::to_string(batch.set[o]);
    }
    for (const sample_plan& each : batch.samples) {
      text += "\n    fails " + std::to_string(each.fails) + " error " + std::to_string(each.error) + " takes " +
              std::to_string(each.takes) + " deaf " + std::to_string(each.deaf) + " stubborn " +
              std::to_string(each.stubborn) + " nested " + std::to_string(each.nested) + " extra_cost " +
              std::to_string(each.extra_cost);
    }
  }
  return text;
}

}  // namespace random_programs
