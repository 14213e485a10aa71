#include <cobatch/semaphore.hpp>

#include <array>
#include <chrono>
#include <coroutine>
#include <cstddef>
#include <new>
#include <optional>
#include <span>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include <cobatch/callback.hpp>
#include <cobatch/micro_batcher.hpp>
#include <cobatch/rate_limiter.hpp>
#include <cobatch/sync_wait.hpp>
#include <cobatch/task.hpp>

#include "faults/faults.hpp"
#include "support/catch.hpp"
#include "support/detached.hpp"

// What callers share: each caller is a coroutine of its own, and comes to one end, whatever strikes.

using cobatch::errc;
using cobatch::error;
using cobatch::expected;
using cobatch::task;
using namespace std::chrono_literals;

namespace {

constexpr int callers = 6;

/// How a caller ended.
enum class end : unsigned char { none, value, refused, no_memory, injected, lost };

struct ends {
  std::array<end, callers> all{};
  std::array<errc, callers> why{};
  int running = 0;
  bool twice = false;

  void note(int who, end how) noexcept {
    end& own = all[static_cast<std::size_t>(who)];
    twice = twice || own != end::none;
    own = how;
  }
};

/// Runs call(i) for each caller at once, a millisecond between two of them; what it throws is an end too.
template <class Call>
detached one_caller(faulty_simulation& sim, int who, ends& into, Call& call) {
  ++into.running;
  try {
    co_await sim.calm().schedule_after(who / 2 * 1ms);
    const end how = co_await call(who);
    into.note(who, how);
  } catch (const std::bad_alloc&) {
    into.note(who, end::no_memory);
  } catch (const injected_failure&) {
    into.note(who, end::injected);
  } catch (const std::exception&) {
    into.note(who, end::refused);
  }
  --into.running;
}

/// Starts them, and waits for them by looking again and again: needs nothing of what is tested.
template <class Call, class Late>
task<void> all_callers(faulty_simulation& sim, ends& into, Call& call, Late& late) {
  const auto scope = inside(sim);
  plan.arm();
  for (int who = 0; who < callers; ++who) {
    try {
      one_caller(sim, who, into, call);
    } catch (const std::bad_alloc&) {
      into.note(who, end::no_memory);
    }
  }
  for (int looks = 0; looks < 1000 && into.running > 0; ++looks) {
    if (looks == 50) late();
    try {
      co_await sim.calm().schedule_after(1ms);
    } catch (const std::bad_alloc&) {
      plan.disarm();  // without memory no time passes
    }
  }
  plan.disarm();
}

/// late() is called when there has been time enough.
template <class Call, class Late>
void run_callers(verdict& v, faulty_simulation& sim, Call call, Late late) {
  ends all;
  try {
    sim.run(all_callers(sim, all, call, late));
  } catch (const std::bad_alloc&) {  // of the loop itself: the callers go on in the next run
    plan.disarm();
    late();
    sim.run(sim.calm().schedule_after(2s));
  }
  const bool of_memory = is_of_memory(plan.kind()) && plan.struck();
  v.require(!all.twice, "a caller ended twice");
  v.require(all.running == 0, "callers wait for ever", all.running);
  for (int who = 0; who < callers; ++who) {
    const end how = all.all[static_cast<std::size_t>(who)];
    v.require(how != end::lost, "another one's value", who);
    v.require(how != end::none || of_memory, "a caller has no end", who);
    if (!plan.struck()) v.require(how == end::value, "a caller has no value without a fault", who);
    if (how == end::no_memory) v.require(of_memory, "bad_alloc without a cause", who);
  }
}

}  // namespace

TEST_CASE("faults: callers that share a semaphore") {
  for (std::uint64_t seed = 0; seed < 3; ++seed) {
    inject("semaphore", all_faults, [&](verdict& v) {
      cobatch::async_semaphore semaphore(2);
      faulty_simulation sim(seed);
      std::stop_source never;
      const auto call = [&](int who) -> task<end> {
        const std::stop_token token = never.get_token();
        const expected<cobatch::permit, error> permit = co_await semaphore.acquire(1 + who % 2, token);
        if (!permit) co_return end::refused;
        co_await sim.calm().schedule_after(2ms);
        co_return end::value;
      };
      run_callers(v, sim, call, [] {});
      v.require(semaphore.available() == 2, "permits are missing", static_cast<int>(semaphore.available()));
      v.require(semaphore.waiting() == 0, "somebody waits");
    });
  }
}

TEST_CASE("faults: callers that share a rate limiter") {
  for (std::uint64_t seed = 0; seed < 3; ++seed) {
    inject("rate_limiter", all_faults, [&](verdict& v) {
      faulty_simulation sim(seed);
      cobatch::rate_limiter limiter(500);
      std::stop_source never;
      const auto call = [&](int) -> task<end> {
        const std::stop_token token = never.get_token();
        const bool granted = co_await limiter.acquire(sim, 1, token);
        co_return granted ? end::value : end::refused;
      };
      run_callers(v, sim, call, [] {});
      v.require(limiter.waiting() == 0, "somebody waits");
    });
  }
}

TEST_CASE("faults: callers that wait for callbacks") {
  inject("callback", all_faults, [&](verdict& v) {
    faulty_simulation sim;
    std::array<cobatch::callback<fragile>, callers> open;
    const auto call = [&](int who) -> task<end> {
      const auto initiate = [&](cobatch::callback<fragile> done) {
        may_strike(fault::predict);
        if (who % 2 == 0) return done(fragile(who));
        open[static_cast<std::size_t>(who)] = std::move(done);
        if (who == 5) {
          for (auto& each : open) {
            if (each) each(fragile(static_cast<int>(&each - open.data())));
          }
        }
      };
      auto awaitable = cobatch::from_callback<fragile>(initiate);
      const expected<fragile, error> result = co_await awaitable;
      if (!result) co_return end::refused;
      co_return result->number() == who ? end::value : end::lost;
    };
    // What nobody answers is answered by the end of its callback.
    run_callers(v, sim, call, [&] { open = {}; });
  });
}

TEST_CASE("faults: callers of a micro_batcher, and its close()") {
  struct variant {
    const char* name;
    cobatch::micro_batch_options options;
  };
  const std::array variants{
      variant{"micro_batcher", {.max_batch_size = 2, .max_delay = 1ms}},
      variant{"micro_batcher, isolated", {.max_batch_size = 4, .max_delay = 2ms, .isolate_failures = true}},
      variant{"micro_batcher, two at a time", {.max_batch_size = 3, .max_delay = 0ms, .max_concurrent_batches = 2}},
  };
  for (const variant& how : variants) {
    for (std::uint64_t seed = 0; seed < 3; ++seed) {
      inject(how.name, all_faults, [&](verdict& v) {
        faulty_simulation sim(seed);
        int running = 0;
        const auto model = [&](std::span<const fragile> samples) -> task<std::vector<fragile>> {
          ++running;
          std::exception_ptr failure;
          std::vector<fragile> all;
          try {
            may_strike(fault::predict);
            co_await sim.calm().schedule_after(1ms);
            for (const fragile& each : samples) all.emplace_back(each.number() + 100);
          } catch (...) {
            failure = std::current_exception();
          }
          --running;
          if (failure) std::rethrow_exception(failure);
          co_return all;
        };
        std::optional<cobatch::micro_batcher<fragile, fragile>> batcher;
        const auto cost = [](const fragile&) {
          may_strike(fault::cost);
          return std::size_t{1};
        };
        const auto key = [](const fragile& sample) {
          may_strike(fault::key);
          return static_cast<std::size_t>(sample.number() % 2);
        };
        batcher.emplace(sim, cobatch::weighted(cobatch::bucketed(model, key), cost), how.options);
        std::stop_source never;
        const auto call = [&](int who) -> task<end> {
          const std::stop_token token = never.get_token();
          auto asked = batcher->predict(fragile(who), token, who == 1 ? 500ms : cobatch::no_timeout);
          const expected<fragile, error> result = co_await asked;
          if (!result) co_return end::refused;
          co_return result->number() == who + 100 ? end::value : end::lost;
        };
        run_callers(v, sim, call, [] {});
        v.require(batcher->waiting() == 0, "somebody waits");
        // With the same fault, if it has not struck yet.
        const auto closing = [&]() -> task<void> {
          const auto scope = inside(sim);
          auto closed = batcher->close();
          co_await closed;
        };
        sim.run(closing());
        v.require(running == 0, "a call of the model has not ended", running);
      });
    }
  }
}

TEST_CASE("faults: tasks that are awaited, and sync_wait") {
  inject("task", all_faults, [&](verdict& v) {
    const auto inner = [](int depth, auto& self) -> task<fragile> {
      may_strike(fault::predict);
      if (depth == 0) co_return fragile(1);
      const fragile below = co_await self(depth - 1, self);
      co_return fragile(below.number() + 1);
    };
    bool ended = false;
    plan.arm();
    try {
      const fragile all = cobatch::sync_wait(inner(4, inner));
      v.require(all.number() == 5, "a wrong number", all.number());
      ended = true;
    } catch (const std::bad_alloc&) {
      v.require(is_of_memory(plan.kind()), "bad_alloc without a cause");
    } catch (const injected_failure&) {}
    plan.disarm();
    v.require(ended != plan.struck(), "it ended and failed, or neither");
  });
}
