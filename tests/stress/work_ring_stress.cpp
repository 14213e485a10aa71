#include <cobatch/detail/work_ring.hpp>

#include <array>
#include <atomic>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <random>
#include <thread>
#include <vector>

#include "support/catch.hpp"
#include "support/effort.hpp"

using cobatch::detail::work_ring;

namespace {

std::coroutine_handle<> handle(std::size_t id) {
  return std::coroutine_handle<>::from_address(reinterpret_cast<void*>(8 * (id + 1)));
}

std::size_t id_of(std::coroutine_handle<> one) {
  return reinterpret_cast<std::uintptr_t>(one.address()) / 8 - 1;
}

}  // namespace

TEST_CASE("work_ring stress: whatever is pushed is popped, stolen or taken back, by one of them, once") {
  const std::uint32_t seed = stress_seed();
  INFO("COBATCH_TEST_SEED=" << seed);
  for (const int thieves : {1, 3}) {
    const std::size_t many = static_cast<std::size_t>(effort(2'000'000));
    work_ring ring;
    std::vector<std::atomic<std::uint8_t>> taken(many);
    // Not atomic: whoever takes a handle owns this, and ThreadSanitizer watches that the ring hands it over.
    std::vector<std::uint8_t> content(many);
    std::atomic<bool> end{false};
    const auto take = [&](std::coroutine_handle<> one) {
      const std::size_t id = id_of(one);
      content[id] += 1;
      taken[id].fetch_add(1, std::memory_order_relaxed);
    };
    std::vector<std::thread> others;
    for (int t = 0; t < thieves; ++t) {
      others.emplace_back([&, t] {
        std::mt19937 random(seed + static_cast<std::uint32_t>(t));
        std::array<std::coroutine_handle<>, 64> loot;
        work_ring::glance seen;
        std::int64_t now = 0;
        while (!end.load()) {
          now += static_cast<std::int64_t>(random() % 2000);
          const std::size_t count = random() % 2 == 0 ? ring.steal_one(loot) : ring.steal(loot, seen, now);
          for (std::size_t i = 0; i < count; ++i) take(loot[i]);
        }
      });
    }
    std::mt19937 random(seed);
    bool refused = false;
    std::size_t back = 0;
    std::size_t burst = 1;
    for (std::size_t next = 0; next < many;) {
      // Mostly few at a time, so that owner and thieves meet at the last one; now and then more than fit.
      if (random() % 4096 == 0) burst = random() % 2000;
      for (; burst > 0 && next < many; --burst, ++next) {
        content[next] = 1;
        refused = refused || !ring.push(handle(next));
        if (random() % 2 == 0 && ring.take_back(handle(next))) {
          take(handle(next));
          ++back;
        }
      }
      burst = random() % 3;
      if (random() % 2 == 0) {
        if (const auto one = ring.pop()) take(one);
      }
    }
    while (const auto one = ring.pop()) take(one);
    end = true;
    for (std::thread& each : others) each.join();
    CHECK_FALSE(refused);
    CHECK(back > 0);
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < many; ++i) wrong += taken[i] != 1 || content[i] != 2;
    CHECK(wrong == 0);
  }
}
