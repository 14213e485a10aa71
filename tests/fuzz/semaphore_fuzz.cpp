// SPDX-License-Identifier: BSL-1.0
// The semaphore against a plain queue: each byte pair is an operation.
#include <cobatch/semaphore.hpp>

#include <algorithm>
#include <cstddef>
#include <deque>
#include <memory>
#include <optional>
#include <stop_token>
#include <utility>
#include <vector>

#include "fuzz/bytes.hpp"
#include "support/started.hpp"

namespace {

enum class state { waits, granted, cancelled, too_heavy, gone };

struct caller {
  std::size_t weight = 0;
  std::stop_source stop;
  state real = state::waits;
  state expected = state::waits;
  cobatch::permit permit;
  std::optional<started> frame;
};

started acquire(cobatch::async_semaphore& semaphore, caller& self) {
  const std::stop_token token = self.stop.get_token();
  auto got = co_await semaphore.acquire(self.weight, token);
  if (got) {
    self.permit = std::move(*got);
    self.real = state::granted;
  } else {
    self.real = got.error().code == cobatch::errc::cancelled ? state::cancelled : state::too_heavy;
  }
}

/// What a semaphore is, in a queue and two numbers.
struct model {
  std::size_t limit, used = 0;
  std::deque<caller*> queue;

  bool fits(std::size_t weight) const { return weight == 0 ? used < limit : used + weight <= limit; }
  bool too_heavy(std::size_t weight) const { return limit != 0 && weight > limit; }
  void grant() {
    while (!queue.empty() && fits(queue.front()->weight)) {
      used += queue.front()->weight;
      queue.front()->expected = state::granted;
      queue.pop_front();
    }
  }
  void acquire(caller& who) {
    if (too_heavy(who.weight)) {
      who.expected = state::too_heavy;
    } else {
      queue.push_back(&who);
      if (queue.size() == 1) grant();
    }
  }
  void give(std::size_t weight) {
    used -= weight;
    grant();
  }
  void leave(caller& who, state how) {
    if (const auto at = std::find(queue.begin(), queue.end(), &who); at != queue.end()) {
      queue.erase(at);
      who.expected = how;
      grant();
    }
  }
  void set_limit(std::size_t n) {
    limit = n;
    std::erase_if(queue, [&](caller* each) {
      if (!too_heavy(each->weight)) return false;
      each->expected = state::too_heavy;
      return true;
    });
    grant();
  }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  bytes from(data, size);
  const auto first = static_cast<std::size_t>(from.pick(0, 4));
  cobatch::async_semaphore semaphore(first);
  model plain{.limit = first, .used = 0, .queue = {}};
  std::vector<std::unique_ptr<caller>> callers;
  const auto some = [&]() -> caller* {
    return callers.empty() ? nullptr : callers[static_cast<std::size_t>(from.pick(0, 255)) % callers.size()].get();
  };
  while (!from.empty() && callers.size() < 60) {
    switch (from.pick(0, 5)) {
      case 0:
      case 1: {
        caller& made = *callers.emplace_back(std::make_unique<caller>());
        made.weight = static_cast<std::size_t>(from.pick(0, 4));
        plain.acquire(made);
        made.frame.emplace(acquire(semaphore, made));
        break;
      }
      case 2:
        if (caller* const who = some(); who && who->permit) {
          plain.give(who->weight);
          who->permit.release();
        }
        break;
      case 3:
        if (caller* const who = some()) {
          plain.leave(*who, state::cancelled);
          who->stop.request_stop();
        }
        break;
      case 4:
        if (caller* const who = some(); who && who->real == state::waits) {
          plain.leave(*who, state::gone);
          who->real = state::gone;
          who->frame.reset();
        }
        break;
      default: {
        const auto limit = static_cast<std::size_t>(from.pick(0, 5));
        plain.set_limit(limit);
        semaphore.set_limit(limit);
      }
    }
    for (const auto& each : callers) demand(each->real == each->expected, "a caller is not where it should be");
    demand(semaphore.waiting() == plain.queue.size(), "waiting()");
    demand(semaphore.available() == (plain.limit > plain.used ? plain.limit - plain.used : 0), "available()");
  }
  callers.clear();
  demand(semaphore.available() == plain.limit, "permits are missing");
  return 0;
}
