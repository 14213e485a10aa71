#include <cobatch/task.hpp>

#include <atomic>
#include <coroutine>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <cobatch/detail/awaitable.hpp>

#include "support/catch.hpp"
#include "support/detached.hpp"
#include "support/parking_place.hpp"
#include "support/started.hpp"

using cobatch::task;

namespace {

static_assert(cobatch::detail::awaitable<task<int>>);
static_assert(cobatch::detail::awaitable<task<int>&>);
static_assert(!std::is_copy_constructible_v<task<int>>);
static_assert(!std::is_aggregate_v<task<int>>);
static_assert(noexcept(std::declval<const task<int>&>().await_ready()));
static_assert(std::is_same_v<cobatch::detail::await_result<task<int&>>, int&>);

/// Awaits `awaitable`, which has to end by itself, and leaves the result in `result`.
template <class Awaitable, class T>
started await_into(Awaitable awaitable, T& result) {
  result = co_await awaitable;
}

template <class T>
T result_of(task<T> awaited) {
  T result{};
  const started run = await_into(std::move(awaited), result);
  REQUIRE(run.done());
  return result;
}

struct counted {
  explicit counted(int& alive) noexcept : alive_(&alive) { ++*alive_; }
  counted(const counted& other) noexcept : alive_(other.alive_) { ++*alive_; }
  counted& operator=(const counted&) = delete;
  ~counted() { --*alive_; }

 private:
  int* alive_;
};

task<int> forty_two() {
  co_return 42;
}

}  // namespace

TEST_CASE("task: a value comes to the awaiting coroutine") {
  CHECK(result_of(forty_two()) == 42);
}

TEST_CASE("task: nothing runs before it is awaited, and nothing of an un-awaited one at all") {
  bool ran = false;
  int alive = 0;
  {
    auto body = [](bool& flag, counted) -> task<> {
      flag = true;
      co_return;
    };
    const task<> never_awaited = body(ran, counted(alive));
    CHECK(static_cast<bool>(never_awaited));
    CHECK(alive == 1);
  }
  CHECK_FALSE(ran);
  CHECK(alive == 0);
}

TEST_CASE("task: void, a reference and a move-only value are results") {
  int object = 7;
  auto give_nothing = [](int& x) -> task<> {
    ++x;
    co_return;
  };
  auto give_reference = [](int& x) -> task<int&> { co_return x; };
  auto give_unique = []() -> task<std::unique_ptr<int>> { co_return std::make_unique<int>(3); };

  int* address = nullptr;
  std::unique_ptr<int> unique;
  auto all = [&]() -> started {
    co_await give_nothing(object);
    address = &co_await give_reference(object);
    unique = co_await give_unique();
  };
  const started run = all();
  REQUIRE(run.done());
  CHECK(object == 8);
  CHECK(address == &object);
  REQUIRE(unique);
  CHECK(*unique == 3);
}

TEST_CASE("task: a result that cannot be made by default is a result") {
  struct stubborn {
    explicit stubborn(int v) : value(v) {}
    int value;
  };
  auto body = []() -> task<stubborn> { co_return stubborn(5); };
  int value = 0;
  auto outer = [&]() -> started { value = (co_await body()).value; };
  const started run = outer();
  CHECK(value == 5);
}

TEST_CASE("task: its result is destroyed with it, taken or not") {
  int alive = 0;
  auto body = [](int& count) -> task<counted> { co_return counted(count); };
  auto outer = [&]() -> started {
    task<counted> inner = body(alive);
    const counted result = co_await inner;
    CHECK(alive == 2);
  };
  {
    const started run = outer();
    CHECK(run.done());
    CHECK(alive == 0);
  }
  auto discarding = [&]() -> started { (void)co_await body(alive); };
  const started run = discarding();
  CHECK(alive == 0);
}

TEST_CASE("task: an exception comes to the awaiting coroutine") {
  auto fail = []() -> task<int> {
    throw std::runtime_error("broken");
    co_return 0;
  };
  auto fail_void = []() -> task<> {
    throw std::runtime_error("broken too");
    co_return;
  };
  auto fail_reference = []() -> task<int&> {
    throw std::runtime_error("also broken");
    co_return *static_cast<int*>(nullptr);
  };
  std::vector<std::string> messages;
  auto outer = [&]() -> started {
    try {
      (void)co_await fail();
    } catch (const std::runtime_error& e) {
      messages.emplace_back(e.what());
    }
    try {
      co_await fail_void();
    } catch (const std::runtime_error& e) {
      messages.emplace_back(e.what());
    }
    try {
      (void)co_await fail_reference();
    } catch (const std::runtime_error& e) {
      messages.emplace_back(e.what());
    }
  };
  const started run = outer();
  CHECK(run.done());
  CHECK(messages == std::vector<std::string>{"broken", "broken too", "also broken"});
}

TEST_CASE("task: awaiting an empty or a finished one throws std::logic_error") {
  int refused = 0;
  auto outer = [&]() -> started {
    task<int> first = forty_two();
    task<int> second = std::move(first);
    try {
      (void)co_await first;
    } catch (const std::logic_error&) {
      ++refused;
    }
    const int value = co_await second;  // not inside CHECK: Catch2 would evaluate it more than once
    CHECK(value == 42);
    try {
      (void)co_await second;
    } catch (const std::logic_error&) {
      ++refused;
    }
  };
  const started run = outer();
  CHECK(run.done());
  CHECK(refused == 2);
}

TEST_CASE("task: assigning to one destroys the coroutine that it held") {
  int alive = 0;
  auto body = [](counted) -> task<int> { co_return 1; };
  task<int> held = body(counted(alive));
  held = forty_two();
  CHECK(alive == 0);
  CHECK(result_of(std::move(held)) == 42);
}

TEST_CASE("task: one that suspends goes on where it is resumed, and its awaiting coroutine after it") {
  parking_place place;
  std::vector<int> order;
  auto inner = [&]() -> task<int> {
    order.push_back(1);
    co_await place;
    order.push_back(3);
    co_return 4;
  };
  auto outer = [&]() -> started { order.push_back(co_await inner()); };
  const started run = outer();
  order.push_back(2);
  CHECK_FALSE(run.done());
  place.parked.resume();
  CHECK(run.done());
  CHECK(order == std::vector<int>{1, 2, 3, 4});
}

TEST_CASE("task: destroying what waits destroys the whole chain") {
  parking_place place;
  int alive = 0;
  auto inner = [&]() -> task<> {
    const counted local(alive);
    co_await place;
  };
  auto middle = [&]() -> task<> {
    const counted local(alive);
    co_await inner();
  };
  auto outer = [&]() -> started { co_await middle(); };
  {
    const started run = outer();
    CHECK(alive == 2);
  }
  CHECK(alive == 0);
}

TEST_CASE("task: awaits awaiters of each form of await_suspend, and operator co_await of both kinds") {
  struct never_suspends {
    bool await_ready() const noexcept { return false; }
    bool await_suspend(std::coroutine_handle<>) const noexcept { return false; }
    int await_resume() const noexcept { return 1; }
  };
  struct ready {
    bool await_ready() const noexcept { return true; }
    void await_suspend(std::coroutine_handle<>) const noexcept {}
    int await_resume() const noexcept { return 10; }
  };
  struct transfers {
    bool await_ready() const noexcept { return false; }
    std::coroutine_handle<> await_suspend(std::coroutine_handle<> handle) const noexcept { return handle; }
    int await_resume() const noexcept { return 100; }
  };
  struct resumes_inside {
    bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<> handle) const { handle.resume(); }
    int await_resume() const noexcept { return 1000; }
  };
  struct wrapped {
    transfers operator co_await() const noexcept { return {}; }
  };
  auto body = []() -> task<int> {
    int sum = co_await never_suspends{};
    sum += co_await ready{};
    sum += co_await transfers{};
    sum += co_await resumes_inside{};
    sum += co_await wrapped{};
    co_return sum;
  };
  CHECK(result_of(body()) == 1211);
}

TEST_CASE("task: is awaited by a coroutine of a foreign type as an lvalue and as an rvalue") {
  int sum = 0;
  auto outer = [&]() -> started {
    task<int> named = forty_two();
    sum += co_await named;
    sum += co_await forty_two();
    task<int> moved = forty_two();
    sum += co_await std::move(moved);
  };
  const started run = outer();
  CHECK(run.done());
  CHECK(sum == 126);
}

TEST_CASE("task: a completion inside another task's start goes to the right one") {
  // While `second` is being started it resumes `first`, which ends under a mark that is not its own.
  parking_place place;
  std::vector<int> ended;
  auto first = [&]() -> task<> {
    co_await place;
    ended.push_back(1);
  };
  auto second = [&]() -> task<> {
    place.parked.resume();
    ended.push_back(2);
    co_return;
  };
  auto await_first = [&]() -> started {
    co_await first();
    ended.push_back(10);
  };
  auto await_second = [&]() -> started {
    co_await second();
    ended.push_back(20);
  };
  const started one = await_first();
  const started two = await_second();
  CHECK(one.done());
  CHECK(two.done());
  CHECK(ended == std::vector<int>{1, 10, 2, 20});
}

TEST_CASE("task: a completion on another thread that races with the start loses nothing") {
  struct hop {
    std::atomic<void*>* mailbox;
    bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<> handle) const noexcept {
      mailbox->store(handle.address());  // *this may be gone: the other thread has it
    }
    void await_resume() const noexcept {}
  };
  constexpr int rounds = 20'000;
  std::atomic<void*> mailbox{nullptr};
  std::atomic<int> completions{0};
  std::thread other([&] {
    for (int i = 0; i < rounds; ++i) {
      void* address = nullptr;
      while ((address = mailbox.exchange(nullptr)) == nullptr) std::this_thread::yield();
      std::coroutine_handle<>::from_address(address).resume();
    }
  });
  auto inner = [](std::atomic<void*>& box, int i) -> task<int> {
    co_await hop{&box};
    co_return i;
  };
  auto outer = [&](int i) -> detached {
    const int result = co_await inner(mailbox, i);
    if (result == i) completions.fetch_add(1);
  };
  for (int i = 0; i < rounds; ++i) {
    outer(i);
    while (completions.load() != i + 1) std::this_thread::yield();
  }
  other.join();
  CHECK(completions == rounds);
}

TEST_CASE("task: whatever the depth at which tasks suspend, they go on in order") {
  // Each of the tasks in a chain parks before it awaits the next, and after.
  struct chain {
    static task<> link(std::vector<parking_place>& places, std::vector<int>& order, int level) {
      if (level % 7 == 3) co_await places[static_cast<std::size_t>(level)];
      order.push_back(level);
      if (static_cast<std::size_t>(level) + 1 != places.size()) co_await link(places, order, level + 1);
      if (level % 5 == 1) co_await places[static_cast<std::size_t>(level)];
      order.push_back(-level);
    }
  };
  for (const int levels : {1, 5, 63, 64, 65, 66, 130, 1000}) {
    CAPTURE(levels);
    std::vector<parking_place> places(static_cast<std::size_t>(levels));
    std::vector<int> order, expected;
    auto outer = [&]() -> started { co_await chain::link(places, order, 0); };
    const started run = outer();
    for (int level = 0; level != levels; ++level) {
      if (level % 7 == 3) std::exchange(places[static_cast<std::size_t>(level)].parked, nullptr).resume();
      expected.push_back(level);
    }
    for (int level = levels; level-- != 0;) {
      if (level % 5 == 1) std::exchange(places[static_cast<std::size_t>(level)].parked, nullptr).resume();
      expected.push_back(-level);
    }
    CHECK(run.done());
    CHECK(order == expected);
  }
}

TEST_CASE("task: a chain of tasks and strangers in turn is started and ended in order") {
  struct chain {
    static task<int> link(int levels) {
      if (levels == 0) co_return 0;
      int below = -1;
      // A coroutine that is no task stands between this one and the next, and must find it ended.
      const auto stranger = [&]() -> started { below = co_await down(levels - 1, 70); };
      const started run = stranger();
      if (!run.done()) co_return -1'000'000;
      co_return below + 1;
    }
    static task<int> down(int levels, int depth) {
      if (depth == 0) co_return co_await link(levels);
      co_return co_await down(levels, depth - 1);
    }
  };
  CHECK(result_of(chain::link(30)) == 30);
}
