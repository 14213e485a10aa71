#include <cobatch/batch_predict_many.hpp>

#include <algorithm>
#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <cobatch/batch_predict_into.hpp>

#include "faults/faulty_batch.hpp"
#include "support/catch.hpp"

using cobatch::batch_predict_into;
using cobatch::batch_predict_many;
using cobatch::task;

namespace {

/// All samples of a call: number + 100 each; a call that has number 2 in it fails the first time, or always.
struct many_model {
  world* own;
  task<std::vector<fragile>> operator()(std::span<const fragile> samples, std::stop_token) const {
    using namespace std::chrono_literals;
    const world::visit inside_of(*own);
    bool poisonous = false;
    std::vector<fragile> all;
    all.reserve(samples.size());
    for (const fragile& each : samples) {
      ++own->calls.at(static_cast<std::size_t>(each.number()));
      poisonous = poisonous || each.number() == 2;
    }
    may_strike(fault::predict);
    co_await own->sim.calm().schedule_after(1ms);
    if (poisonous) throw std::runtime_error("poison");
    for (const fragile& each : samples) {
      ++own->ends.at(static_cast<std::size_t>(each.number()));
      all.emplace_back(each.number() + 100);
    }
    co_return all;
  }
};
struct key_of {
  std::size_t operator()(const fragile& sample) const {
    may_strike(fault::key);
    return static_cast<std::size_t>(sample.number() % 2);
  }
};

task<void> await_into(world& w, std::vector<fragile_result>& into, std::optional<cobatch::batch_counts>& counts) {
  const auto scope = inside(w.sim);
  auto batch = batch_predict_into(w.sim, w.samples, into, world_predict{&w}, w.options());
  counts.emplace(co_await std::move(batch));
  ++w.resumed;
}

}  // namespace

TEST_CASE("faults: a batch into outcomes that are there already") {
  for (const wishes& each : all_wishes()) {
    if (each.weights) continue;
    const auto run = [&](verdict& v) {
      world w(each, 0);
      w.fill();
      std::vector<fragile_result> outcomes;
      for (int i = 0; i < samples_of_a_batch; ++i) outcomes.emplace_back(std::in_place, -7);
      std::optional<cobatch::batch_counts> counts;
      plan.arm();
      try {
        w.sim.run(await_into(w, outcomes, counts));
      } catch (const std::bad_alloc&) {
        v.require(is_of_memory(plan.kind()), "bad_alloc without a cause");
        ++w.resumed;
      } catch (...) {
        w.over = true;
        throw;
      }
      plan.disarm();
      w.over = true;
      if (counts) {
        std::size_t values = 0, none = 0;
        for (int i = 0; i < samples_of_a_batch; ++i) {
          const fragile_result& outcome = outcomes[static_cast<std::size_t>(i)];
          check_outcome(v, w, i, outcome);
          if (outcome) ++values;
          // What the executor refused did not start either.
          if (!outcome && outcome.error().attempts == 0) ++none;
        }
        v.require(counts->succeeded == values, "values are counted wrongly", static_cast<int>(counts->succeeded));
        v.require(counts->not_started <= none, "what did not start is counted wrongly",
                  static_cast<int>(counts->not_started));
        v.require(counts->succeeded + counts->failed + counts->not_started == outcomes.size(),
                  "the counts add up wrongly");
      }
      check_the_end(v, w);
    };
    inject(std::string("into, ") + each.name, all_faults, run);
  }
}

TEST_CASE("faults: batches for a model that takes many") {
  struct variant {
    const char* name;
    bool isolate, keys;
  };
  for (const variant& how :
       {variant{"", false, false}, variant{", isolated", true, false}, variant{", by keys, isolated", true, true}}) {
    for (const wishes& each :
         {wishes{},
          wishes{.name = "semaphore, observer, deadline", .semaphore = true, .observer = true, .deadline = true},
          wishes{.name = "two at a time, retry, rate", .max_concurrency = 2, .rate = true, .retry = true}}) {
      inject(std::string("many") + how.name + ", " + each.name, all_faults, [&](verdict& v) {
        world w(each, 1);
        w.fill();
        std::optional<fragile_results> results;
        const auto await_many = [&]() -> task<void> {
          const auto scope = inside(w.sim);
          const cobatch::many_options many{.max_batch_size = 3, .isolate_failures = how.isolate};
          if (how.keys) {
            auto all =
                batch_predict_many(w.sim, w.samples, cobatch::bucketed(many_model{&w}, key_of()), many, w.options());
            results.emplace(co_await std::move(all));
          } else {
            auto all = batch_predict_many(w.sim, w.samples, many_model{&w}, many, w.options());
            results.emplace(co_await std::move(all));
          }
          ++w.resumed;
        };
        plan.arm();
        try {
          w.sim.run(await_many());
        } catch (const std::bad_alloc&) {
          v.require(is_of_memory(plan.kind()), "bad_alloc without a cause");
          ++w.resumed;
        }
        plan.disarm();
        if (results) {
          v.require(results->size() == samples_of_a_batch, "a wrong number of results");
          for (int i = 0; i < static_cast<int>(results->size()); ++i) {
            const fragile_result& outcome = (*results)[static_cast<std::size_t>(i)];
            if (outcome) {
              v.require(outcome->number() == i + 100, "another one's value is that of", i);
              v.require(i != 2, "a value of poison");
            } else {
              const bool shares_poison = !how.isolate && (how.keys ? i % 2 == 0 : i < 3);
              if ((i == 2 || shares_poison) && outcome.error().code == cobatch::errc::exception) continue;
              v.require(plan.struck() && explains(plan.kind(), outcome.error()), name_of(outcome.error().code).data(),
                        i);
            }
          }
        }
        check_the_end(v, w);
      });
    }
  }
}
