#include <cobatch/callback.hpp>

#include <cobatch/sync_wait.hpp>
#include <cobatch/task.hpp>

#include "support/catch.hpp"

TEST_CASE("callback: a million that are called inside initiate run on a flat stack, also without optimisation") {
  const auto loop = [](int rounds) -> cobatch::task<long> {
    long sum = 0;
    for (int i = 0; i < rounds; ++i) {
      const auto initiate = [&](cobatch::callback<int> done) { done(i & 1); };
      sum += *co_await cobatch::from_callback<int>(initiate);
    }
    co_return sum;
  };
  CHECK(cobatch::sync_wait(loop(1'000'000)) == 500'000);
}
