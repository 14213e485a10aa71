// More workers than there is work: how long the end of a batch takes, in steps.

#include <cobatch/batch_predict.hpp>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <numeric>
#include <vector>

#include "scenario.hpp"

namespace x = cobatch_explore;

namespace {

constexpr std::size_t workers = 24;

/// A batch on so many workers whose last outcome is noted; from there to the resumption of who awaits it, no worker needs
/// more than `steps_each`.
template <class Predict>
void end_is_near(std::size_t count, const Predict& predict_with, std::uint64_t steps_each, cobatch::batch_options options = {}) {
  explored::executor ex(workers);
  std::vector<int> samples(count);
  std::iota(samples.begin(), samples.end(), 0);
  x::atomic<std::uint64_t> last_outcome{0};
  const auto run = [&]() -> explored::fire_and_forget {
    co_await cobatch::schedule(ex);
    auto predict = predict_with(ex, last_outcome);
    const auto results = co_await cobatch::batch_predict(ex, samples, predict, options);
    x::check(x::steps_done() - last_outcome.load() <= workers * steps_each, "the end of the batch takes too many steps");
    for (const auto& each : results) x::check(each.has_value(), "an outcome is an error");
    x::check(results.size() == samples.size(), "there are not as many outcomes as samples");
    ex.close();
  };
  run();
  x::threads(std::vector<std::function<void()>>(workers, [&] { ex.work(); }));
}

}  // namespace

SCENARIO("crowd: 24 workers, 65 samples that end at once: the end takes a bounded number of steps", .most_runs = 0,
         .random_runs = 1'000, .steps = 60'000) {
  const auto ends_at_once = [](explored::executor&, x::atomic<std::uint64_t>& last) {
    return [&last](int sample) {
      x::let_pass(10'000);
      last.store(x::steps_done());
      return sample;
    };
  };
  end_is_near(65, ends_at_once, 60);
}

SCENARIO("crowd: 24 workers, 24 samples that suspend: the end takes a bounded number of steps", .most_runs = 0,
         .random_runs = 1'000, .steps = 60'000) {
  struct later {
    explored::executor* ex;
    x::atomic<std::uint64_t>* last;
    int sample;
    bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<> handle) const { ex->execute(handle); }
    int await_resume() const noexcept {
      last->store(x::steps_done());
      return sample;
    }
  };
  const auto suspends = [](explored::executor& ex, x::atomic<std::uint64_t>& last) {
    return [&ex, &last](int sample) { return later{&ex, &last, sample}; };
  };
  end_is_near(24, suspends, 60, {.max_concurrency = 64});
}
