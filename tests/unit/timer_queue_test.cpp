#include <cobatch/detail/timer_queue.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <new>
#include <random>
#include <utility>
#include <vector>

#include "support/allocations.hpp"
#include "support/catch.hpp"

using cobatch::detail::timer_node;
using cobatch::detail::timer_queue;
using cobatch::detail::timer_state;

TEST_CASE("timer_queue: takes by deadline, and equal deadlines in the order in which they were set") {
  timer_queue queue;
  std::vector<timer_node> nodes(8);
  const timer_queue::nanoseconds deadlines[] = {30, 10, 20, 10, 30, 10, 5, 20};
  for (std::size_t i = 0; i < 8; ++i) REQUIRE(queue.add(nodes[i], deadlines[i]));
  CHECK(queue.size() == 8);
  CHECK(queue.earliest() == 5);
  std::vector<std::ptrdiff_t> order;
  while (timer_node* node = queue.take_due(30)) {
    order.push_back(node - nodes.data());
    CHECK(node->state == timer_state::elapsed);
    CHECK_FALSE(node->linked());
  }
  CHECK(order == std::vector<std::ptrdiff_t>{6, 1, 3, 5, 2, 7, 0, 4});
  CHECK(queue.empty());
  CHECK(queue.earliest() == timer_queue::never);
}

TEST_CASE("timer_queue: without memory one more is refused, and has changed nothing; one in place of another is not") {
  timer_queue queue;
  std::vector<timer_node> nodes(65);
  // In several runs, and none of them has had all.
  for (std::size_t i = 0; i < 64; ++i) {
    const auto nth = static_cast<timer_queue::nanoseconds>(i);
    REQUIRE(queue.add(nodes[i], i % 2 == 0 ? 100 + nth : 50 - nth));
  }
  const auto add_without_memory = [&](timer_node& node, timer_queue::nanoseconds deadline) {
    fail_allocation_in(1);
    const bool added = queue.add(node, deadline);
    allocation_failure_is_pending();
    return added;
  };
  fail_allocation_in(1);
  CHECK_THROWS_AS(queue.add(nodes[64], 1000), std::bad_alloc);
  CHECK_FALSE(allocation_failure_is_pending());
  CHECK(queue.size() == 64);
  CHECK(nodes[64].state == timer_state::idle);
  for (std::size_t i = 0; i < 64; ++i) {
    queue.erase(nodes[i]);
    nodes[i].state = timer_state::idle;
    CHECK(add_without_memory(nodes[i], 200 + static_cast<timer_queue::nanoseconds>(i)));
  }
  for (std::size_t i = 0; i < 64; ++i) CHECK(queue.take_due(1000) == &nodes[i]);
  CHECK(queue.take_due(1000) == nullptr);
}

TEST_CASE("timer_queue: a deadline has come when the time is equal, not before; never does not come") {
  timer_queue queue;
  timer_node soon;
  timer_node never;
  queue.add(soon, 100);
  queue.add(never, timer_queue::never);
  CHECK(queue.take_due(99) == nullptr);
  CHECK(queue.take_due(100) == &soon);
  CHECK(queue.take_due(std::numeric_limits<timer_queue::nanoseconds>::max()) == nullptr);
  CHECK(queue.take_stopped() == &never);
  CHECK(never.state == timer_state::stopped);
}

TEST_CASE("timer_queue: a timer that was stopped while idle is refused") {
  timer_queue queue;
  timer_node node;
  CHECK_FALSE(queue.stop(node));
  CHECK(node.state == timer_state::stopped);
  CHECK_FALSE(queue.add(node, 10));
  CHECK(queue.empty());
}

TEST_CASE("timer_queue: a stopped timer is due at once, and stays stopped") {
  timer_queue queue;
  std::vector<timer_node> nodes(20);
  for (std::size_t i = 0; i < nodes.size(); ++i) queue.add(nodes[i], static_cast<std::int64_t>(i) + 1);
  CHECK(queue.stop(nodes[17]));
  CHECK(queue.earliest() == timer_queue::immediately);
  CHECK(queue.take_due(0) == &nodes[17]);
  CHECK(nodes[17].state == timer_state::stopped);
  CHECK(queue.take_due(0) == nullptr);
}

TEST_CASE("timer_queue: stopping one that was taken, or a second time, changes nothing") {
  timer_queue queue;
  timer_node node;
  queue.add(node, 1);
  CHECK(queue.take_due(1) == &node);
  CHECK_FALSE(queue.stop(node));
  CHECK(node.state == timer_state::elapsed);
  timer_node other;
  queue.add(other, 1);
  CHECK(queue.stop(other));
  CHECK_FALSE(queue.stop(other));
  CHECK(queue.size() == 1);
}

TEST_CASE("timer_queue: sums that would overflow never come") {
  constexpr auto max = std::numeric_limits<timer_queue::nanoseconds>::max();
  static_assert(timer_queue::deadline_after(5, 10) == 15);
  static_assert(timer_queue::deadline_after(0, max) == timer_queue::never);
  static_assert(timer_queue::deadline_after(1, max) == timer_queue::never);
  static_assert(timer_queue::deadline_after(max, 1) == timer_queue::never);
  static_assert(timer_queue::deadline_after(max - 5, 4) == max - 1);
  static_assert(timer_queue::deadline_after(-10, 4) == -6);
}

TEST_CASE("timer_queue: agrees with a sorted list over random operations") {
  std::mt19937 random(20240607);
  timer_queue queue;
  struct item {
    timer_node node;
    std::int64_t deadline = 0;
    std::uint64_t sequence = 0;
  };
  std::vector<std::unique_ptr<item>> model;
  std::uint64_t sequence = 0;
  const auto first = [&] {
    return std::min_element(model.begin(), model.end(), [](const auto& a, const auto& b) {
      return std::pair(a->deadline, a->sequence) < std::pair(b->deadline, b->sequence);
    });
  };
  bool agrees = true;
  for (int step = 0; step < 50'000 && agrees; ++step) {
    const unsigned choice = static_cast<unsigned>(random()) % 10;
    if (choice < 5 || model.empty()) {
      auto added = std::make_unique<item>();
      added->deadline = static_cast<std::int64_t>(random() % 1000);
      added->sequence = sequence++;
      queue.add(added->node, added->deadline);
      model.push_back(std::move(added));
    } else if (choice < 6) {
      item& stopped = *model[random() % model.size()];
      if (queue.stop(stopped.node)) stopped.deadline = timer_queue::immediately;
    } else if (choice < 7) {
      const auto erased = model.begin() + static_cast<std::ptrdiff_t>(random() % model.size());
      queue.erase((*erased)->node);
      model.erase(erased);
    } else {
      const auto expected = first();
      agrees = queue.earliest() == (*expected)->deadline && queue.take_due(1000) == &(*expected)->node;
      model.erase(expected);
    }
    agrees = agrees && queue.size() == model.size();
  }
  CHECK(agrees);
}
