#include <cobatch/batch_predict.hpp>

#include <array>
#include <chrono>
#include <cstddef>
#include <functional>
#include <list>
#include <memory>
#include <ranges>
#include <span>
#include <stop_token>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <cobatch/batch_options.hpp>
#include <cobatch/error.hpp>
#include <cobatch/semaphore.hpp>
#include <cobatch/simulation.hpp>
#include <cobatch/task.hpp>

#include "support/catch.hpp"
#include "support/lifetimes.hpp"
#include "support/outline.hpp"

// Every way to write a batch_predict inside a coroutine. GCC 12 copies temporaries of some types bit by bit inside a
// co_await expression and destroys them twice; what is written here must be right on it, under AddressSanitizer too.
// (What is not: a temporary predict with captures that are not trivial. It gives a warning; see batch_predict.hpp.
// The GCC 12 guide lists more, under "GCC 12", with what to write instead.)

using cobatch::async_semaphore;
using cobatch::batch_options;
using cobatch::batch_predict;
using cobatch::simulation;
using cobatch::task;
using namespace std::chrono_literals;

static_assert(std::is_trivially_copyable_v<batch_options>);
static_assert(std::is_aggregate_v<batch_options>);
static_assert(std::is_trivially_copyable_v<cobatch::stop_ref>);
static_assert(std::is_trivially_copyable_v<cobatch::retry_policy>);
static_assert(std::is_trivially_copyable_v<cobatch::hedge_policy>);
static_assert(!std::is_aggregate_v<cobatch::error>);

namespace {

std::string name(int x) {
  return "a name that is too long for the small string buffer, number " + std::to_string(x);
}

int free_function(int x) {
  return x + 1;
}

task<int> free_coroutine(int x, std::stop_token token) {
  co_return token.stop_requested() ? -1 : x + 1;
}

struct model {
  std::string prefix;
  std::string operator()(int x) const { return prefix + std::to_string(x); }
  std::string member(int x) const { return prefix + std::to_string(x); }
  task<std::string> later(simulation& sim, int x) const {
    co_await sim.schedule_after(1ms);
    co_return prefix + std::to_string(x);
  }
};

struct sample {
  std::string text;
  std::size_t length() const { return text.size(); }
};

task<bool> is_large(int x) {
  co_return x > 2;
}

// No local variable but what names the condition.
task<int> chooses(int x) {
  if (const bool large = co_await is_large(x); large) co_return 1;
  co_return 2;
}

/// Runs a coroutine that returns its outline.
template <class Coroutine>
std::string run(Coroutine coroutine) {
  simulation sim;
  return sim.run(coroutine(sim));
}

}  // namespace

TEST_CASE("batch_predict in a coroutine: options in every form") {
  const std::vector<int> samples{1, 2, 3};
  const auto same = [](int x) { return x; };
  CHECK(
      run([&](simulation& sim) -> task<std::string> {
        std::stop_source stop;
        std::stop_token token = stop.get_token();
        async_semaphore semaphore(2);
        std::string text;
        const auto note = [&](const auto& results) { text += outline(results) + ";"; };
        note(co_await batch_predict(sim, samples, same));
        note(co_await batch_predict(sim, samples, same, {}));
        note(co_await batch_predict(sim, samples, same, {.max_concurrency = 2}));
        note(co_await batch_predict(sim, samples, same, batch_options{.max_concurrency = 2, .timeout = 1s}));
        note(co_await batch_predict(sim, samples, same, batch_options{}));
        note(co_await batch_predict(sim, samples, same, {.max_concurrency = 1, .semaphore = &semaphore, .stop = stop}));
        note(co_await batch_predict(sim, samples, same, {.stop = token, .deadline = 1h, .max_failures = 1}));
        note(co_await batch_predict(sim, samples, same,
                                    {.retry = {.max_attempts = 3, .initial_backoff = 1ms}, .hedge = {.delay = 1s}}));
        const batch_options named{.semaphore = &semaphore, .stop = token, .timeout = 2s};
        note(co_await batch_predict(sim, samples, same, named));
        batch_options changed = named;
        changed.max_concurrency = 1;
        note(co_await batch_predict(sim, samples, same, changed));
        note(co_await batch_predict(sim, samples, same, std::move(changed)));
        co_return text;
      }) == "1 2 3;1 2 3;1 2 3;1 2 3;1 2 3;1 2 3;1 2 3;1 2 3;1 2 3;1 2 3;1 2 3;");
}

TEST_CASE("batch_predict in a coroutine: samples in every form") {
  CHECK(run([](simulation& sim) -> task<std::string> {
          std::string text;
          const auto note = [&](const auto& results) { text += outline(results) + ";"; };
          const auto length = [&](const std::string& s) -> task<std::size_t> {
            co_await sim.schedule_after(1ms);
            co_return s.size();
          };
          std::vector<std::string> words{name(1), name(22)};
          std::array<std::string, 2> array{name(1), name(22)};
          const auto make = [&] { return words; };
          note(co_await batch_predict(sim, words, length));
          note(co_await batch_predict(sim, std::as_const(words), length));
          note(co_await batch_predict(sim, make(), length));
          note(co_await batch_predict(sim, std::vector<std::string>(2, name(1)), length));
          note(co_await batch_predict(sim, std::list<std::string>(words.begin(), words.end()), length));
          note(co_await batch_predict(sim, std::move(array), length));
          note(co_await batch_predict(sim, std::span(words), length));
          note(co_await batch_predict(sim, words | std::views::take(1), length));
          note(co_await batch_predict(sim, std::views::iota(1, 3) | std::views::transform(name), length));
          note(co_await batch_predict(sim, std::move(words), length));
          co_return text;
        }) == "61 62;61 62;61 62;61 61;61 62;61 62;61 62;61;61 61;61 62;");
}

TEST_CASE("batch_predict in a coroutine: predicts in every form") {
  const std::vector<int> samples{1, 2, 3};
  CHECK(run([&](simulation& sim) -> task<std::string> {
          std::string text;
          const auto note = [&](const auto& results) { text += outline(results) + ";"; };
          const std::string prefix = "p";
          const model own{"m"};
          note(co_await batch_predict(sim, samples, [](int x) { return x; }));
          note(co_await batch_predict(sim, samples, [&](int x) { return prefix + std::to_string(x); }));
          note(co_await batch_predict(sim, samples, [&, factor = 2](int x) -> task<int> {
            co_await sim.schedule_after(1ms);
            co_return factor* x;
          }));
          note(co_await batch_predict(sim, samples, [view = std::string_view(prefix)](int x) {
            return std::string(view) + std::to_string(x);
          }));
          note(co_await batch_predict(sim, samples, free_function));
          note(co_await batch_predict(sim, samples, &free_function));
          note(co_await batch_predict(sim, samples, free_coroutine));
          note(co_await batch_predict(sim, samples, own));
          note(co_await batch_predict(sim, samples, std::ref(own)));
          note(co_await batch_predict(sim, samples, [&](int x) { return own.member(x); }));
          note(co_await batch_predict(sim, samples, [&](int x) { return own.later(sim, x); }));
          const std::function<int(int)> function = [](int x) { return x * x; };
          note(co_await batch_predict(sim, samples, function));
          const auto bound = std::bind_front(&model::member, &own);
          note(co_await batch_predict(sim, samples, bound));
          std::vector<sample> texts{{name(1)}, {name(22)}};
          note(co_await batch_predict(sim, texts, &sample::length));
          note(co_await batch_predict(sim, std::move(texts), &sample::length));
          co_return text;
        }) ==
        "1 2 3;p1 p2 p3;2 4 6;p1 p2 p3;2 3 4;2 3 4;2 3 4;m1 m2 m3;m1 m2 m3;m1 m2 m3;m1 m2 m3;1 4 9;m1 m2 m3;"
        "61 62;61 62;");
}

TEST_CASE(
    "batch_predict in a coroutine: a named predict with captures that are not trivial is copied once, and destroyed") {
  const std::vector<int> samples{1, 2, 3};
  census captures;
  const auto shared = std::make_shared<int>(7);
  CHECK(run([&](simulation& sim) -> task<std::string> {
          life counted(captures);
          const auto predict = [&sim, counted, shared, prefix = name(0)](int x) -> task<std::string> {
            co_await sim.schedule_after(1ms);
            co_return prefix.substr(0, 1) + std::to_string(*shared * x);
          };
          captures.copies = 0;
          std::string text = outline(co_await batch_predict(sim, samples, predict));
          CHECK(captures.copies == 1);
          CHECK(captures.alive == 2);
          text += ";" + outline(co_await batch_predict(sim, samples, predict, {.max_concurrency = 1, .timeout = 1s}));
          CHECK(captures.copies == 2);
          CHECK(captures.alive == 2);
          co_return text;
        }) == "a7 a14 a21;a7 a14 a21");
  CHECK(captures.alive == 0);
  CHECK(shared.use_count() == 1);
}

TEST_CASE("batch_predict in a coroutine: samples that are moved in are destroyed once") {
  census lives;
  CHECK(run([&](simulation& sim) -> task<std::string> {
          const auto make = [&] {
            std::vector<tracked> made;
            made.reserve(3);
            for (int i = 0; i < 3; ++i) made.emplace_back(lives, i);
            return made;
          };
          const auto number = [&](const tracked& each) -> task<int> {
            co_await sim.schedule_after(1ms);
            co_return each.number();
          };
          std::string text = outline(co_await batch_predict(sim, make(), number));
          CHECK(lives.alive == 0);
          auto named = make();
          text += ";" + outline(co_await batch_predict(sim, named, number));
          CHECK(lives.alive == 3);
          text += ";" + outline(co_await batch_predict(sim, std::move(named), number, {.max_concurrency = 2}));
          CHECK(lives.alive == 0);
          co_return text;
        }) == "0 1 2;0 1 2;0 1 2");
  CHECK(lives.copies == 0);
}

TEST_CASE("batch_predict in a coroutine: what is around the co_await does not matter") {
  const std::vector<int> samples{1, 2, 3};
  CHECK(run([&](simulation& sim) -> task<std::string> {
          const auto same = [](int x) { return x; };
          auto batch = batch_predict(sim, samples, same, {.max_concurrency = 2});
          const auto first = co_await batch;
          const auto& second = co_await batch_predict(sim, samples, same);
          std::string text = outline(first) + outline(second);
          for (const auto& each : co_await batch_predict(sim, samples, same)) text += outline(each);
          if ((co_await batch_predict(sim, samples, same)).size() == 3) text += "!";
          text += (co_await batch_predict(sim, samples, same))[1] ? "y" : "n";
          auto [a, b] =
              std::pair(co_await batch_predict(sim, samples, same), co_await batch_predict(sim, samples, same));
          text += outline(a) + outline(b);
          co_return text + outline(co_await batch_predict(sim, samples, [&](int x) -> task<int> {
            co_return static_cast<int>((co_await batch_predict(sim, std::views::iota(0, x), same)).size());
          }));
        }) == "1 2 31 2 3123!y1 2 31 2 31 2 3");
}

TEST_CASE("conditions in a coroutine: awaited into a variable first, they decide, and short circuits skip them") {
  int asked = 0;
  const auto ask = [&](int x) -> task<bool> {
    ++asked;
    co_return x > 2;
  };
  CHECK(run([&](simulation& sim) -> task<std::string> {
          co_await sim.schedule();
          std::string text = std::to_string(co_await chooses(1)) + std::to_string(co_await chooses(3));
          for (int i = 0;; ++i) {
            if (i == 2) break;
            const bool large = co_await ask(i);
            if (large) break;
          }
          co_return text + std::to_string(asked);
        }) == "212");
}

TEST_CASE("arguments in a coroutine: chosen into a variable first, each is destroyed once") {
  std::stop_source source;
  const std::stop_token token = source.get_token();
  source.request_stop();
  CHECK(run([&](simulation& sim) -> task<std::string> {
          async_semaphore semaphore(1);
          std::string text;
          for (const bool stoppable : {true, false}) {
            const std::stop_token chosen = stoppable ? token : std::stop_token();
            const auto held = co_await semaphore.acquire(1, chosen);
            text += held ? "granted " : "stopped ";
            co_await sim.schedule();
          }
          co_return text;
        }) == "stopped granted ");
}

TEST_CASE("a batch that a coroutine lambda captures: moved from, or awaited through a local reference") {
  const std::vector<int> samples{1, 2, 3};
  const auto same = [](int x) { return x; };
  simulation sim;
  auto first = batch_predict(sim, samples, same);
  auto second = batch_predict(sim, samples, same);
  const auto both = [&]() -> task<std::string> {
    std::string text = outline(co_await std::move(first));
    auto& local = second;
    co_return text + ";" + outline(co_await local);
  };
  CHECK(sim.run(both()) == "1 2 3;1 2 3");
}
