#include <cobatch/batch_predict.hpp>

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <forward_list>
#include <initializer_list>
#include <list>
#include <map>
#include <ranges>
#include <set>
#include <span>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include <cobatch/simulation.hpp>
#include <cobatch/task.hpp>

#include "support/catch.hpp"
#include "support/generated.hpp"
#include "support/outline.hpp"

using cobatch::batch_predict;
using cobatch::simulation;
using cobatch::task;
using namespace std::chrono_literals;

namespace {

const std::string six = "0 2 4 6 8 10";

/// Doubles; every other sample after a while, so that samples do not end in the order of the input.
struct doubling {
  simulation& sim;
  task<int> operator()(int x) const {
    if (x % 2 == 0) co_await sim.schedule_after((7 - x) * 1ms);
    co_return 2 * x;
  }
};

/// The outcomes of doubling `samples` under several caps, which must all be the same.
template <class Make>
std::string doubled(Make make) {
  std::set<std::string> seen;
  for (const std::size_t cap : {std::size_t{1}, std::size_t{2}, cobatch::unlimited}) {
    for (std::uint64_t seed = 0; seed < 3; ++seed) {
      simulation sim(seed);
      seen.insert(outline(sim.run(batch_predict(sim, make(), doubling{sim}, {.max_concurrency = cap}))));
    }
  }
  CHECK(seen.size() == 1);
  return *seen.begin();
}

}  // namespace

TEST_CASE("batch_predict: containers by lvalue are inputs") {
  std::vector<int> vector{0, 1, 2, 3, 4, 5};
  CHECK(doubled([&]() -> auto& { return vector; }) == six);
  const std::vector<int> constant = vector;
  CHECK(doubled([&]() -> auto& { return constant; }) == six);
  std::array<int, 6> array{0, 1, 2, 3, 4, 5};
  CHECK(doubled([&]() -> auto& { return array; }) == six);
  int c_array[]{0, 1, 2, 3, 4, 5};
  CHECK(doubled([&]() -> auto& { return c_array; }) == six);
  std::list<int> list{0, 1, 2, 3, 4, 5};
  CHECK(doubled([&]() -> auto& { return list; }) == six);
  const std::forward_list<int> forward_list{0, 1, 2, 3, 4, 5};
  CHECK(doubled([&]() -> auto& { return forward_list; }) == six);
  const std::initializer_list<int> initializer_list{0, 1, 2, 3, 4, 5};
  CHECK(doubled([&]() -> auto& { return initializer_list; }) == six);
}

TEST_CASE("batch_predict: containers by rvalue are inputs") {
  CHECK(doubled([] { return std::vector<int>{0, 1, 2, 3, 4, 5}; }) == six);
  CHECK(doubled([] { return std::array<int, 6>{0, 1, 2, 3, 4, 5}; }) == six);
  CHECK(doubled([] { return std::deque<int>{0, 1, 2, 3, 4, 5}; }) == six);
  CHECK(doubled([] { return std::list<int>{0, 1, 2, 3, 4, 5}; }) == six);
}

TEST_CASE("batch_predict: views are inputs") {
  const std::vector<int> vector{0, 1, 2, 3, 4, 5};
  CHECK(doubled([&] { return std::span(vector); }) == six);
  CHECK(doubled([] { return std::views::iota(0, 6); }) == six);
  CHECK(doubled([&] { return vector | std::views::transform([](int x) { return x; }); }) == six);
  CHECK(doubled([&] { return vector | std::views::transform([](const int& x) -> const int& { return x; }); }) == six);
  CHECK(doubled([] { return std::views::iota(-6, 6) | std::views::filter([](int x) { return x >= 0; }); }) == six);
  CHECK(doubled([] { return std::views::iota(0) | std::views::take_while([](int x) { return x < 6; }); }) == six);
  CHECK(doubled([] { return std::views::empty<int>; }) == "");
}

TEST_CASE("batch_predict: ranges of proxies are inputs") {
  simulation sim;
  const std::vector<bool> bits{true, false, true};
  CHECK(outline(sim.run(batch_predict(sim, bits, [](bool bit) { return bit ? 1 : 0; }))) == "1 0 1");
  std::vector<bool> mutable_bits{true, false};
  CHECK(outline(sim.run(batch_predict(sim, mutable_bits, [](bool bit) { return bit ? 1 : 0; }))) == "1 0");
  const std::map<int, std::string> map{{1, "a"}, {2, "b"}};
  CHECK(outline(sim.run(batch_predict(sim, map, [](const auto& pair) { return pair.second; }))) == "a b");
}

TEST_CASE("batch_predict: single-pass ranges are inputs") {
  CHECK(doubled([] { return numbers_below(6); }) == six);
  for (const std::size_t cap : {std::size_t{1}, std::size_t{3}, cobatch::unlimited}) {
    simulation sim;
    std::istringstream stream("0 1 2 3 4 5");
    CHECK(outline(sim.run(
              batch_predict(sim, std::views::istream<int>(stream), doubling{sim}, {.max_concurrency = cap}))) == six);
  }
}
