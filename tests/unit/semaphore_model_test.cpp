#include <cobatch/semaphore.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <random>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include <cobatch/simulation.hpp>
#include <cobatch/task.hpp>

#include "support/catch.hpp"
#include "support/started.hpp"

using cobatch::async_semaphore;
using cobatch::permit;

namespace {

enum class fate { waits, granted, too_heavy, cancelled, destroyed };

// What a semaphore ought to do, as simply as it can be said.
class model {
 public:
  explicit model(long limit) : limit_(limit), free_(limit) {}

  std::size_t available() const { return static_cast<std::size_t>(std::max(free_, 0L)); }
  std::size_t waiting() const { return queue_.size(); }
  std::size_t limit() const { return static_cast<std::size_t>(limit_); }
  fate fate_of(std::size_t id) const { return fates_[id]; }

  bool try_acquire(long weight) {
    if (!queue_.empty() || !fits(weight)) return false;
    free_ -= weight;
    return true;
  }
  std::size_t acquire(long weight) {
    weights_.push_back(weight);
    fates_.push_back(fate::waits);
    const std::size_t id = fates_.size() - 1;
    if (try_acquire(weight)) {
      fates_[id] = fate::granted;
    } else if (heavy(id)) {
      fates_[id] = fate::too_heavy;
    } else {
      queue_.push_back(id);
    }
    return id;
  }
  void release(long n) {
    free_ += n;
    grant();
  }
  void set_limit(long n) {
    free_ += n - limit_;
    limit_ = n;
    grant();
    for (const std::size_t id : queue_) {
      if (heavy(id)) fates_[id] = fate::too_heavy;
    }
    std::erase_if(queue_, [this](std::size_t id) { return heavy(id); });
    grant();
  }
  void leave(std::size_t id, fate why) {
    const auto place = std::find(queue_.begin(), queue_.end(), id);
    if (place == queue_.end()) return;
    queue_.erase(place);
    fates_[id] = why;
    grant();
  }

 private:
  bool fits(long weight) const { return free_ >= std::max(weight, 1L); }
  bool heavy(std::size_t id) const { return limit_ != 0 && weights_[id] > limit_; }
  void grant() {
    while (!queue_.empty() && fits(weights_[queue_.front()])) {
      free_ -= weights_[queue_.front()];
      fates_[queue_.front()] = fate::granted;
      queue_.pop_front();
    }
  }

  long limit_;
  long free_;
  std::deque<std::size_t> queue_;
  std::vector<long> weights_;
  std::vector<fate> fates_;
};

// Random operations on a semaphore and on its model, which must always agree.
class trial {
 public:
  explicit trial(std::uint64_t seed)
      : random_(seed), sim_(seed), expected_(number(0, 4)), semaphore_(expected_.limit()) {}
  trial(const trial&) = delete;
  trial& operator=(const trial&) = delete;

  // What went wrong; empty if nothing.
  std::string run() {
    sim_.run(operations());
    return std::move(problem_);
  }

 private:
  struct acquisition {
    bool stoppable = false;
    std::stop_source stop;
    std::optional<fate> ended;
    permit held;
    std::optional<started> coroutine;
  };

  cobatch::task<> operations() {
    for (int i = 0; i < 60 && problem_.empty(); ++i) {
      switch (number(0, 11)) {
        case 0:
        case 1:
        case 2:
          acquire(number(0, 5));
          break;
        case 3:
          try_acquire(number(0, 3));
          break;
        case 4:
        case 5:
          give_back();
          break;
        case 6:
          signal(number(0, 3));
          break;
        case 7:
          set_limit(number(0, 6));
          break;
        case 8:
          stop();
          break;
        case 9:
          destroy();
          break;
        default:
          co_await sim_.schedule();
          break;
      }
      compare();
    }
    // In the end nobody is stranded, and every permit is there.
    set_limit(50);
    for (int i = 0; i < 1000 && !all_ended(); ++i) {
      give_back();
      compare();
      co_await sim_.schedule();
    }
    if (!all_ended()) fail("somebody is stranded");
    for (auto& each : acquisitions_) {
      expected_.release(static_cast<long>(each.held.weight()));
      each.held.release();
    }
    for (permit& each : tried_) {
      expected_.release(static_cast<long>(each.weight()));
      each.release();
    }
    compare();
    if (semaphore_.waiting() != 0) fail("somebody still waits");
    if (semaphore_.available() != static_cast<std::size_t>(50 + signals_)) fail("permits are lost or made");
  }

  started acquire_and_throw(std::size_t id, std::size_t weight) {
    try {
      permit held = co_await semaphore_.acquire(weight);
      end(id, fate::granted, std::move(held));
    } catch (const std::invalid_argument&) {
      end(id, fate::too_heavy, permit());
    }
  }
  started acquire_until_stopped(std::size_t id, std::size_t weight) {
    auto result = co_await semaphore_.acquire(weight, acquisitions_[id].stop.get_token());
    if (result.has_value()) {
      end(id, fate::granted, std::move(*result));
    } else {
      end(id, result.error().code == cobatch::errc::cancelled ? fate::cancelled : fate::too_heavy, permit());
    }
  }
  void end(std::size_t id, fate how, permit held) {
    acquisitions_[id].ended = how;
    acquisitions_[id].held = std::move(held);
    if (how != expected_.fate_of(id)) fail("acquisition " + std::to_string(id) + " ended in the wrong way");
  }

  void acquire(long weight) {
    const std::size_t id = expected_.acquire(weight);
    acquisitions_.emplace_back();
    acquisition& each = acquisitions_.back();
    const auto n = static_cast<std::size_t>(weight);
    each.stoppable = number(0, 1) == 0;
    each.coroutine.emplace(each.stoppable ? acquire_until_stopped(id, n) : acquire_and_throw(id, n));
    if ((expected_.fate_of(id) == fate::waits) == each.ended.has_value()) fail("waited, or did not");
  }
  void try_acquire(long weight) {
    const bool should = expected_.try_acquire(weight);
    std::optional<permit> taken = semaphore_.try_acquire(weight);
    if (taken.has_value() != should) fail("try_acquire");
    if (taken) tried_.push_back(std::move(*taken));
  }
  void give_back() {
    permit* held = nullptr;
    if (!tried_.empty() && number(0, 1) == 0) {
      held = &tried_[index(tried_.size())];
    } else if (!acquisitions_.empty()) {
      held = &acquisitions_[index(acquisitions_.size())].held;
    }
    if (!held || !*held) return;
    expected_.release(static_cast<long>(held->weight()));
    held->release();
  }
  void signal(long n) {
    signals_ += n;
    expected_.release(n);
    semaphore_.release(n);
  }
  void set_limit(long n) {
    expected_.set_limit(n);
    semaphore_.set_limit(n);
  }
  void stop() {
    if (acquisitions_.empty()) return;
    const std::size_t id = index(acquisitions_.size());
    if (acquisitions_[id].stoppable) expected_.leave(id, fate::cancelled);
    acquisitions_[id].stop.request_stop();
  }
  void destroy() {
    if (acquisitions_.empty()) return;
    const std::size_t id = index(acquisitions_.size());
    if (expected_.fate_of(id) != fate::waits) return;
    expected_.leave(id, fate::destroyed);
    acquisitions_[id].coroutine->destroy();
    acquisitions_[id].ended = fate::destroyed;
  }

  bool all_ended() const {
    return std::all_of(acquisitions_.begin(), acquisitions_.end(),
                       [](const acquisition& each) { return each.ended.has_value(); });
  }
  void compare() {
    if (semaphore_.available() != expected_.available()) fail("available()");
    if (semaphore_.waiting() != expected_.waiting()) fail("waiting()");
    if (semaphore_.limit() != expected_.limit()) fail("limit()");
  }
  void fail(const std::string& what) {
    if (problem_.empty()) problem_ = what;
  }

  long number(long from, long to) {
    return from + static_cast<long>(random_() % static_cast<std::uint64_t>(to - from + 1));
  }
  std::size_t index(std::size_t size) { return static_cast<std::size_t>(random_() % size); }

  std::mt19937_64 random_;
  cobatch::simulation sim_;
  model expected_;
  async_semaphore semaphore_;
  std::deque<acquisition> acquisitions_;  // addresses stay
  std::vector<permit> tried_;
  long signals_ = 0;
  std::string problem_;
};

}  // namespace

TEST_CASE("semaphore: does what its model does, in every order of random operations") {
  for (std::uint64_t seed = 0; seed < 5000; ++seed) {
    INFO("seed " << seed);
    REQUIRE(trial(seed).run() == "");
  }
}
