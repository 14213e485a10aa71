#include <cobatch/executor.hpp>

#include <chrono>
#include <coroutine>
#include <deque>
#include <functional>
#include <stdexcept>
#include <stop_token>
#include <system_error>
#include <utility>
#include <vector>

#include "support/catch.hpp"
#include "support/started.hpp"
#include "support/step_executor.hpp"

using cobatch::executor;
using cobatch::function_executor;
using cobatch::inline_executor;
using cobatch::schedule;
using cobatch::timed_executor;
namespace detail = cobatch::detail;

namespace {

struct returns_nothing {
  void execute(std::coroutine_handle<> handle) { handle.resume(); }
};
struct returns_int {
  int execute(std::coroutine_handle<>) { return 0; }
};
struct has_no_execute {};
struct sleeps_badly : returns_nothing {
  int schedule_after(std::chrono::nanoseconds, std::stop_token = {}) { return 0; }
};
struct sleeps : returns_nothing {
  struct sleep {
    bool await_ready() const noexcept { return true; }
    void await_suspend(std::coroutine_handle<>) const noexcept {}
    bool await_resume() const noexcept { return true; }
  };
  sleep schedule_after(std::chrono::nanoseconds, std::stop_token = {}) { return {}; }
};

static_assert(executor<returns_nothing>);
static_assert(executor<step_executor>);
static_assert(executor<inline_executor>);
static_assert(!executor<returns_int>);
static_assert(!executor<has_no_execute>);
static_assert(timed_executor<sleeps>);
static_assert(!timed_executor<sleeps_badly>);
static_assert(!timed_executor<returns_nothing>);

using schedule_on_step = decltype(schedule(std::declval<step_executor&>()));
static_assert(detail::awaitable<schedule_on_step&>);
static_assert(std::is_move_constructible_v<schedule_on_step> && !std::is_aggregate_v<schedule_on_step>);

using function = std::function<void()>;

/// What a user's own thread pool looks like from here: posts are run by the test.
struct mailbox {
  std::deque<function> posts;
  void deliver() {
    while (!posts.empty()) {
      const function next = std::move(posts.front());
      posts.pop_front();
      next();
    }
  }
};

}  // namespace

TEST_CASE("schedule: goes on on the executor, behind what is queued there") {
  step_executor steps;
  std::vector<int> order;
  auto body = [&](int id) -> started {
    co_await schedule(steps);
    order.push_back(id);
  };
  const started one = body(1);
  const started two = body(2);
  CHECK(order.empty());
  CHECK(steps.step());
  CHECK(order == std::vector<int>{1});
  steps.drain();
  CHECK(order == std::vector<int>{1, 2});
}

TEST_CASE("schedule: a refusal is a std::system_error with errc::executor_stopped") {
  step_executor steps;
  steps.refusing = true;
  std::error_code code;
  auto body = [&]() -> started {
    try {
      co_await schedule(steps);
    } catch (const std::system_error& e) {
      code = e.code();
    }
  };
  const started run = body();
  CHECK(run.done());
  CHECK(code == cobatch::errc::executor_stopped);
}

TEST_CASE("schedule: can be awaited as an lvalue, and again") {
  step_executor steps;
  int turns = 0;
  auto body = [&]() -> started {
    auto turn = schedule(steps);
    co_await turn;
    ++turns;
    co_await turn;
    ++turns;
  };
  const started run = body();
  steps.drain();
  CHECK(turns == 2);
}

TEST_CASE("inline_executor: resumes inside execute, and schedule on it does not suspend") {
  inline_executor here;
  bool ran = false;
  auto body = [&]() -> started {
    co_await schedule(here);
    ran = true;
  };
  const started run = body();
  CHECK(ran);
  CHECK(here.concurrency() == 1);
  CHECK(detail::runs_here(here));
  const inline_executor constant;
  CHECK(schedule(constant).await_ready());
}

TEST_CASE("function_executor: posts a small copyable callable that resumes the coroutine inside its scope") {
  mailbox box;
  function_executor ex{[&box](auto f) {
    static_assert(sizeof f <= 2 * sizeof(void*) && std::is_trivially_copyable_v<decltype(f)>);
    box.posts.push_back(function(f));
  }};
  bool inside = false;
  auto body = [&]() -> started {
    co_await schedule(ex);
    inside = detail::runs_here(ex);
  };
  const started run = body();
  CHECK_FALSE(run.done());
  CHECK_FALSE(detail::runs_here(ex));
  box.deliver();
  CHECK(run.done());
  CHECK(inside);
  CHECK_FALSE(detail::runs_here(ex));
}

TEST_CASE("function_executor: concurrency is what it was told, and never 0") {
  auto post = [](const function&) {};
  CHECK(function_executor(post, 3).concurrency() == 3);
  CHECK(function_executor(post, 0).concurrency() == 1);
  CHECK(function_executor(post).concurrency() >= 1);
}

TEST_CASE("function_executor: a post that throws or returns false refuses") {
  std::vector<std::error_code> codes;
  auto body = [&](auto& ex) -> started {
    try {
      co_await schedule(ex);
    } catch (const std::system_error& e) {
      codes.push_back(e.code());
    }
  };
  function_executor throwing{[](const function&) { throw std::runtime_error("full"); }};
  function_executor refusing{[](const function&) { return false; }};
  const started one = body(throwing);
  const started two = body(refusing);
  CHECK(one.done());
  CHECK(two.done());
  CHECK(codes == std::vector<std::error_code>(2, make_error_code(cobatch::errc::executor_stopped)));
  CHECK_FALSE(detail::execute_on(throwing, std::noop_coroutine()));
  CHECK_FALSE(detail::execute_on(refusing, std::noop_coroutine()));
}

TEST_CASE("function_executor: a post that calls at once resumes inside execute") {
  function_executor ex{[](const function& f) {
    f();
    return true;
  }};
  bool inside = false;
  auto body = [&]() -> started {
    struct hand_over {
      decltype(ex)* target;
      bool await_ready() const noexcept { return false; }
      void await_suspend(std::coroutine_handle<> handle) const { target->execute(handle); }
      void await_resume() const noexcept {}
    };
    co_await hand_over{&ex};
    inside = detail::runs_here(ex);
  };
  const started run = body();
  CHECK(run.done());
  CHECK(inside);
}

TEST_CASE("function_executor: a post that first runs older work keeps the coroutines apart") {
  // Each post runs what was posted before it, so that a schedule runs inside another's post.
  mailbox box;
  function_executor ex{[&box](const function& f) {
    box.deliver();
    box.posts.push_back(f);
  }};
  std::vector<int> order;
  auto body = [&](int id) -> started {
    for (int turn = 0; turn < 3; ++turn) {
      co_await schedule(ex);
      order.push_back(10 * id + turn);
    }
  };
  const started one = body(1);
  const started two = body(2);
  box.deliver();
  CHECK(one.done());
  CHECK(two.done());
  CHECK(order.size() == 6);
}

TEST_CASE("execute_on: knows executors that return nothing, and those that return a bool") {
  step_executor steps;
  returns_nothing plain;
  CHECK(detail::execute_on(plain, std::noop_coroutine()));
  CHECK(detail::execute_on(steps, std::noop_coroutine()));
  steps.refusing = true;
  CHECK_FALSE(detail::execute_on(steps, std::noop_coroutine()));
}

TEST_CASE("an erased executor: executes, is recognised, and says whether blocking would stop it") {
  step_executor steps;
  step_executor others;
  const detail::executor_ref ref = detail::ref(steps);
  CHECK(ref);
  CHECK(ref.refers_to(&steps));
  CHECK_FALSE(ref.refers_to(&others));
  CHECK(ref.blocks() == nullptr);
  CHECK(ref.execute(std::noop_coroutine()));
  CHECK(steps.queued() == 1);
  CHECK_FALSE(detail::executor_ref());
}

TEST_CASE("the optional members of an executor: defaults where it has none") {
  struct full : returns_nothing {
    std::size_t concurrency() const { return 7; }
    bool running_in_this_thread() const { return true; }
    std::chrono::time_point<std::chrono::steady_clock, std::chrono::milliseconds> now() const {
      return std::chrono::time_point<std::chrono::steady_clock, std::chrono::milliseconds>(
          std::chrono::milliseconds(5));
    }
  };
  full all;
  returns_nothing none;
  CHECK(detail::concurrency_of(all) == 7);
  CHECK(detail::concurrency_of(none) >= 1);
  CHECK(detail::runs_here(all));
  CHECK_FALSE(detail::runs_here(none));
  CHECK(detail::now_of(all) == std::chrono::milliseconds(5));
  const std::chrono::nanoseconds before = detail::now_of(none);
  CHECK(detail::now_of(none) >= before);
}
