#include <cobatch/engine/head_count.hpp>

#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include <cobatch/batch_predict.hpp>
#include <cobatch/detail/current_executor.hpp>
#include <cobatch/executor.hpp>
#include <cobatch/task.hpp>

#include "support/catch.hpp"
#include "support/started.hpp"

// How a batch ends: by counting who is left.

using cobatch::batch_predict;
using cobatch::task;
using cobatch::detail::head_count;

namespace {

/// Many handles at once, in a random order that the seed decides; counts its steps.
class shuffling_executor {
 public:
  explicit shuffling_executor(std::uint64_t seed) : random_(seed) {}
  shuffling_executor(const shuffling_executor&) = delete;
  shuffling_executor& operator=(const shuffling_executor&) = delete;

  void execute(std::coroutine_handle<> handle) { queue_.push_back(handle); }
  std::size_t concurrency() const noexcept { return 24; }

  bool step() {
    if (queue_.empty()) return false;
    random_ = random_ * 6364136223846793005u + 1442695040888963407u;
    std::swap(queue_[(random_ >> 33) % queue_.size()], queue_.back());
    const std::coroutine_handle<> next = queue_.back();
    queue_.pop_back();
    ++steps;
    const cobatch::detail::executor_scope scope(cobatch::detail::ref(*this));
    next.resume();
    return true;
  }

  std::size_t steps = 0;

 private:
  std::vector<std::coroutine_handle<>> queue_;
  std::uint64_t random_;
};

}  // namespace

TEST_CASE("head_count: lanes are capped, and the last one to go is told") {
  head_count head(2);
  CHECK(head.add_lane());
  CHECK(head.add_lane());
  CHECK_FALSE(head.add_lane());
  CHECK(head.lanes() == 2);
  CHECK_FALSE(head.drop_holder());
  head.lane_to_holder();
  CHECK(head.below_cap());
  head.lane_to_holder();
  CHECK_FALSE(head.nobody());
  CHECK_FALSE(head.drop_holder());
  CHECK(head.drop_holder());
  CHECK(head.nobody());
  CHECK_FALSE(head.add_holder_unless_over());
}

TEST_CASE("batch_predict: with 24 workers the end comes within a few steps of the last outcome") {
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    for (const std::size_t cap : {std::size_t{1}, std::size_t{7}, std::size_t{24}, cobatch::unlimited}) {
      shuffling_executor ex(seed);
      const std::vector<int> samples(65);
      std::size_t outcomes = 0, last = 0;
      const auto predict = [&](int) -> task<int> {
        if ((seed + outcomes) % 3 == 0) co_await cobatch::schedule(ex);
        ++outcomes;
        last = ex.steps;
        co_return 1;
      };
      const auto wait = [&]() -> started {
        const auto results = co_await batch_predict(ex, samples, predict, {.max_concurrency = cap});
        CHECK(results.size() == samples.size());
      };
      const started running = wait();
      while (!running.done()) REQUIRE(ex.step());
      CHECK(outcomes == samples.size());
      CHECK(ex.steps - last <= 2 * ex.concurrency());
      CHECK_FALSE(ex.step());
    }
  }
}
