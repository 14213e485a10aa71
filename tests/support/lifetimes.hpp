#pragma once

#include <atomic>
#include <cstddef>
#include <utility>

/// What has happened to the objects of one kind. Any thread may count.
struct census {
  std::atomic<long> alive = 0;
  std::atomic<long> most = 0;  ///< the most that were ever alive at a time
  std::atomic<long> made = 0;  ///< neither by copying nor by moving
  std::atomic<long> copies = 0;
  std::atomic<long> moves = 0;

  void born() noexcept {
    const long now = ++alive;
    for (long seen = most; seen < now && !most.compare_exchange_weak(seen, now);) {}
  }
  void died() noexcept { --alive; }
};

/// Counts one object's life; a member or a local of what is to be counted.
class life {
 public:
  explicit life(census& where) noexcept : where_(&where) {
    ++where_->made;
    where_->born();
  }
  life(const life& other) noexcept : where_(other.where_) {
    ++where_->copies;
    where_->born();
  }
  life(life&& other) noexcept : where_(other.where_) {
    ++where_->moves;
    where_->born();
  }
  life& operator=(const life& other) noexcept {
    if (this != &other) ++where_->copies;
    return *this;
  }
  life& operator=(life&& other) noexcept {
    if (this != &other) ++where_->moves;
    return *this;
  }
  ~life() { where_->died(); }

 private:
  census* where_;
};

/// A number whose life is counted. Once destroyed or moved from it is no longer the number it was.
class tracked {
 public:
  static constexpr int dead = -1, moved_from = -2;

  tracked(census& where, int number) noexcept : life_(where), number_(number) {}
  tracked(const tracked&) = default;
  tracked(tracked&& other) noexcept
      : life_(std::move(other.life_)), number_(std::exchange(other.number_, moved_from)) {}
  tracked& operator=(const tracked&) = default;
  tracked& operator=(tracked&& other) noexcept {
    life_ = std::move(other.life_);
    number_ = std::exchange(other.number_, moved_from);
    return *this;
  }
  ~tracked() { number_ = dead; }

  int number() const noexcept { return number_; }

 private:
  life life_;
  volatile int number_;  // volatile: the destructor's write is not to be optimised away
};

/// Counts who is inside at a time, and the most there were.
class gauge {
 public:
  class visit {
   public:
    explicit visit(gauge& visited) noexcept : visited_(&visited) { visited.census_.born(); }
    visit(const visit&) = delete;
    visit& operator=(const visit&) = delete;
    ~visit() { visited_->census_.died(); }

   private:
    gauge* visited_;
  };

  [[nodiscard]] visit enter() noexcept { return visit(*this); }
  long inside() const noexcept { return census_.alive; }
  long most() const noexcept { return census_.most; }

 private:
  census census_;
};
