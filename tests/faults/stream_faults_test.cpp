#include <cobatch/predict_stream.hpp>

#include <cstddef>
#include <exception>
#include <new>
#include <optional>
#include <string>
#include <utility>

#include "faults/faulty_batch.hpp"
#include "support/catch.hpp"

using cobatch::predict_stream;
using cobatch::task;

namespace {

/// Samples that come after a while, now and then at once.
class slow_source {
 public:
  explicit slow_source(world& w) : own_(&w) {}

  task<std::optional<fragile>> next() {
    const int number = number_;
    if (number == samples_of_a_batch) co_return std::nullopt;
    may_strike(fault::read);
    ++number_;
    if (number % 3 != 0) co_await own_->sim.calm().schedule_after(std::chrono::microseconds(700));
    std::optional<fragile> made(std::in_place, number);
    co_return made;
  }

 private:
  world* own_;
  int number_ = 0;
};

struct seen {
  std::array<int, 16> outcomes{};
  std::size_t last = 0;
  bool failed = false;
};

/// Takes all that a stream gives, or the first three; what its next() throws ends it.
template <class Start>
task<void> take_all(verdict& v, world& w, bool ordered, bool some, Start start, seen& all) {
  const auto scope = inside(w.sim);
  auto stream = start();
  try {
    for (int n = 0; !some || n < 3; ++n) {
      auto item = co_await stream.next();
      if (!item) break;
      v.require(item->index < 16 && all.outcomes[item->index]++ == 0, "a sample came twice",
                static_cast<int>(item->index));
      if (ordered && !all.failed) v.require(item->index >= all.last, "out of order", static_cast<int>(item->index));
      all.last = item->index;
      check_outcome(v, w, static_cast<int>(item->index), item->result);
    }
  } catch (const std::bad_alloc&) {
    v.require(is_of_memory(plan.kind()), "bad_alloc without a cause");
    all.failed = true;
  } catch (const injected_failure&) {
    v.require(plan.kind() == fault::move, "next() throws what it should give as an outcome");
    all.failed = true;
  }
  co_await stream.close();
  ++w.resumed;
}

template <class Start>
void run_stream(verdict& v, world& w, bool ordered, bool some, Start start) {
  seen all;
  plan.arm();
  try {
    w.sim.run(take_all(v, w, ordered, some, start, all));
  } catch (const std::bad_alloc&) {
    v.require(is_of_memory(plan.kind()), "bad_alloc without a cause");
    all.failed = true;
    ++w.resumed;
  } catch (...) {
    w.over = true;
    throw;
  }
  plan.disarm();
  w.settle();
  if (!some && !plan.struck() && !w.wants.fail_fast) {
    for (int i = 0; i < samples_of_a_batch; ++i) {
      v.require(all.outcomes[static_cast<std::size_t>(i)] == 1, "a sample has no outcome", i);
    }
  }
  check_the_end(v, w);
}

}  // namespace

TEST_CASE("faults: a stream over a vector, and over a source that is awaited") {
  std::size_t faults = 0;
  for (const wishes& each : all_wishes()) {
    if (each.weights) continue;
    for (const bool ordered : {false, true}) {
      for (const bool some : {false, true}) {
        const std::string name =
            std::string(ordered ? "ordered stream" : "stream") + (some ? ", closed early, " : ", ") + each.name;
        const cobatch::stream_options how{
            .order = ordered ? cobatch::result_order::input : cobatch::result_order::completion,
            .window = each.max_concurrency == cobatch::unlimited ? std::size_t{4} : each.max_concurrency + 1};
        faults += inject("vector, " + name, all_faults, [&](verdict& v) {
          world w(each, 0);
          w.fill();
          run_stream(v, w, ordered, some,
                     [&] { return predict_stream(w.sim, w.samples, world_predict{&w}, w.options(), how); });
        });
        faults += inject("awaited, " + name, all_faults, [&](verdict& v) {
          world w(each, 1);
          run_stream(v, w, ordered, some,
                     [&] { return predict_stream(w.sim, slow_source(w), world_predict{&w}, w.options(), how); });
        });
      }
    }
  }
  CHECK(faults > 1000);
}

TEST_CASE("faults: a stream that goes where nobody runs its executor any more") {
  for (const wishes& each : all_wishes()) {
    if (each.weights) continue;
    inject(std::string("a stream goes, ") + each.name, all_faults, [&](verdict& v) {
      world w(each, 0);
      {
        w.fill();
        auto stream = predict_stream(w.sim, w.samples, world_predict{&w}, w.options(), {.window = 8});
        const auto first = [&]() -> task<void> {
          const auto scope = inside(w.sim);
          (void)co_await stream.next();
        };
        w.sim.run(first());
        plan.arm();
      }
      plan.disarm();
      w.settle();
      ++w.resumed;
      check_the_end(v, w);
    });
  }
}
