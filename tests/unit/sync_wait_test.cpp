#include <cobatch/sync_wait.hpp>

#include <coroutine>
#include <memory>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include <cobatch/batch_predict.hpp>
#include <cobatch/executor.hpp>
#include <cobatch/run_loop.hpp>
#include <cobatch/semaphore.hpp>
#include <cobatch/simulation.hpp>
#include <cobatch/task.hpp>
#include <cobatch/thread_pool.hpp>

#include "support/catch.hpp"
#include "support/detached.hpp"

using cobatch::sync_wait;
using cobatch::task;

namespace {

task<int> forty_two() {
  co_return 42;
}

/// Goes on on a thread of its own.
class new_thread {
 public:
  explicit new_thread(std::thread& thread) noexcept : thread_(&thread) {}
  bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> handle) const {
    *thread_ = std::thread([handle] { handle.resume(); });
  }
  void await_resume() const noexcept {}

 private:
  std::thread* thread_;
};

}  // namespace

TEST_CASE("sync_wait: returns values, references, move-only values and nothing") {
  int object = 1;
  CHECK(sync_wait(forty_two()) == 42);
  auto reference = [](int& x) -> task<int&> { co_return x; };
  static_assert(std::is_same_v<decltype(sync_wait(reference(object))), int&>);
  CHECK(&sync_wait(reference(object)) == &object);
  auto unique = []() -> task<std::unique_ptr<int>> { co_return std::make_unique<int>(5); };
  CHECK(*sync_wait(unique()) == 5);
  auto nothing = [](int& x) -> task<> {
    x = 2;
    co_return;
  };
  static_assert(std::is_void_v<decltype(sync_wait(nothing(object)))>);
  sync_wait(nothing(object));
  CHECK(object == 2);
}

TEST_CASE("sync_wait: takes an lvalue, and an awaitable with operator co_await") {
  task<int> named = forty_two();
  CHECK(sync_wait(named) == 42);
  struct wrapped {
    auto operator co_await() const noexcept { return std::suspend_never(); }
  };
  sync_wait(wrapped());
}

TEST_CASE("sync_wait: a result that is an rvalue reference comes back as a value") {
  struct gives_rvalue {
    std::string text = "kept";
    bool await_ready() const noexcept { return true; }
    void await_suspend(std::coroutine_handle<>) const noexcept {}
    std::string&& await_resume() noexcept { return std::move(text); }
  };
  static_assert(std::is_same_v<decltype(sync_wait(gives_rvalue())), std::string>);
  CHECK(sync_wait(gives_rvalue()) == "kept");
}

TEST_CASE("sync_wait: rethrows") {
  auto fail = []() -> task<int> {
    throw std::runtime_error("broken");
    co_return 0;
  };
  CHECK_THROWS_AS(sync_wait(fail()), std::runtime_error);
}

TEST_CASE("sync_wait: starts on the calling thread and waits for an end on another") {
  for (int i = 0; i < 200; ++i) {
    std::thread other;
    std::thread::id began;
    std::thread::id ended;
    auto body = [&]() -> task<int> {
      began = std::this_thread::get_id();
      co_await new_thread(other);
      ended = std::this_thread::get_id();
      co_return i;
    };
    CHECK(sync_wait(body()) == i);
    CHECK(began == std::this_thread::get_id());
    CHECK(ended == other.get_id());
    other.join();
  }
}

TEST_CASE("sync_wait: may be called inside itself on a thread that is nobody's loop") {
  auto inner = []() -> task<int> { co_return sync_wait(forty_two()); };
  CHECK(sync_wait(inner()) == 42);
}

TEST_CASE("sync_wait: on the thread of a loop it is an error that says so, and starts nothing") {
  bool started = false;
  auto blocked = [&started](auto& ex) -> task<std::string> {
    co_await ex.schedule();
    auto never = [](bool& flag) -> task<> {
      flag = true;
      co_return;
    };
    try {
      sync_wait(never(started));
    } catch (const std::system_error& e) {
      CHECK(e.code() == cobatch::errc::would_deadlock);
      co_return std::string(e.what());
    }
    co_return std::string("no error");
  };
  cobatch::run_loop loop;
  const std::string on_loop = loop.run(blocked(loop));
  CHECK(on_loop.find("run_loop") != std::string::npos);
  CHECK(on_loop.find("co_await instead") != std::string::npos);

  cobatch::thread_pool pool(1);
  CHECK(sync_wait(blocked(pool)).find("thread_pool worker") != std::string::npos);

  cobatch::simulation sim;
  CHECK(sim.run(blocked(sim)).find("simulation") != std::string::npos);
  CHECK_FALSE(started);
}

TEST_CASE("sync_wait: inside a predict on a pool's thread it is that sample's failure, and no other's") {
  cobatch::thread_pool pool(1);
  const std::vector<int> samples{1, 2, 3};
  const auto predict = [](int x) { return x == 2 ? sync_wait(forty_two()) : x; };
  const auto results = sync_wait(cobatch::batch_predict(pool, samples, predict));
  CHECK(results[0] == 1);
  CHECK(results[2] == 3);
  REQUIRE_FALSE(results[1]);
  CHECK(results[1].error().code == cobatch::errc::exception);
  CHECK(results[1].error().message().find("co_await instead") != std::string::npos);
  try {
    std::rethrow_exception(results[1].error().exception);
  } catch (const std::system_error& e) {
    CHECK(e.code() == cobatch::errc::would_deadlock);
  }
}

TEST_CASE("sync_wait: on the thread of a loop it is an error, whatever other executor is inside that loop") {
  cobatch::thread_pool pool(1);
  cobatch::function_executor at_once([](auto job) { job(); });
  const auto code_in = [](std::coroutine_handle<>& waits, std::error_code& code) -> detached {
    struct until_resumed {
      std::coroutine_handle<>* place;
      bool await_ready() const noexcept { return false; }
      void await_suspend(std::coroutine_handle<> handle) const noexcept { *place = handle; }
      void await_resume() const noexcept {}
    };
    const until_resumed resumed{&waits};
    co_await resumed;
    try {
      sync_wait(forty_two());
    } catch (const std::system_error& e) {
      code = e.code();
    }
  };
  const auto nested = [&]() -> task<std::error_code> {
    co_await pool.schedule();
    std::coroutine_handle<> waits;
    std::error_code code;
    code_in(waits, code);
    at_once.execute(waits);
    co_return code;
  };
  CHECK(sync_wait(nested()) == cobatch::errc::would_deadlock);
}

TEST_CASE("sync_wait: called inside a release() it still lets those go on that it releases itself") {
  cobatch::async_semaphore outer(0);
  cobatch::async_semaphore inner(0);
  cobatch::async_semaphore done(0);
  const auto helper = [&]() -> detached {
    const auto held = co_await inner.acquire();
    done.release();
  };
  const auto blocking = [&]() -> detached {
    const auto held = co_await outer.acquire();
    const auto needs_helper = [&]() -> task<> {
      inner.release();
      const auto end = co_await done.acquire();
    };
    sync_wait(needs_helper());
  };
  helper();
  blocking();
  outer.release();
  CHECK(outer.available() == 1);
}
