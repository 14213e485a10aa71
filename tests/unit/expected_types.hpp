// Value and error types for the tests of expected: counted, failing on demand, or lacking some operation.
#pragma once

#include <utility>

namespace expected_types {

struct failure {};

// How many fallible operations are left until one throws; 0: none does.
inline int fail_in = 0;

inline void may_fail() {
  if (fail_in > 0 && --fail_in == 0) throw failure{};
}

/// Runs the action with its n-th fallible operation failing; says whether it came to that.
template <class Action>
bool fails_at(int n, Action action) {
  fail_in = n;
  bool failed = false;
  try {
    action();
  } catch (const failure&) {
    failed = true;
  }
  fail_in = 0;
  return failed;
}

/// Runs scenario(n) for n = 1, 2, ... until it reports that nothing failed; the number of runs that did fail.
template <class Scenario>
int fail_at_each_point(Scenario scenario) {
  int n = 1;
  while (scenario(n)) ++n;
  return n - 1;
}

enum class moves { safely, dangerously };

/// A number that counts its living siblings. All but its destructor may fail, and its move unless it moves
/// safely; one that failed has changed nothing. Moved from, it is -1.
template <int Id, moves How>
class tracked {
public:
  static inline int alive = 0;

  tracked(int n) : n_((may_fail(), n)) { ++alive; }
  tracked(const tracked& other) : n_((may_fail(), other.n_)) { ++alive; }
  tracked(tracked&& other) noexcept(How == moves::safely) : n_(taken(other)) { ++alive; }
  tracked& operator=(const tracked& other) {
    may_fail();
    n_ = other.n_;
    return *this;
  }
  tracked& operator=(tracked&& other) noexcept(How == moves::safely) {
    n_ = taken(other);
    return *this;
  }
  ~tracked() { --alive; }

  int number() const { return n_; }
  friend bool operator==(const tracked& x, const tracked& y) { return x.n_ == y.n_; }
  friend bool operator==(const tracked& x, int n) { return x.n_ == n; }

private:
  static int taken(tracked& other) noexcept(How == moves::safely) {
    if constexpr (How == moves::dangerously) may_fail();
    return std::exchange(other.n_, -1);
  }

  int n_;
};

using safe_value = tracked<0, moves::safely>;
using safe_error = tracked<1, moves::safely>;
using risky_value = tracked<0, moves::dangerously>;
using risky_error = tracked<1, moves::dangerously>;

/// Like a std::unique_ptr of int, but usable in every constant expression.
class move_only {
public:
  constexpr explicit move_only(int n) : n_(n) {}
  constexpr move_only(move_only&& other) noexcept : n_(std::exchange(other.n_, -1)) {}
  constexpr move_only& operator=(move_only&& other) noexcept {
    n_ = std::exchange(other.n_, -1);
    return *this;
  }
  constexpr ~move_only() {}
  constexpr int number() const { return n_; }
  friend constexpr bool operator==(const move_only&, const move_only&) = default;

private:
  int n_;
};

/// Not trivial in any way, usable in constant expressions, copyable.
class nontrivial {
public:
  constexpr nontrivial() : n_(0) {}
  constexpr nontrivial(int n) : n_(n) {}
  constexpr nontrivial(const nontrivial& other) : n_(other.n_) {}
  constexpr nontrivial(nontrivial&& other) noexcept : n_(std::exchange(other.n_, -1)) {}
  constexpr nontrivial& operator=(const nontrivial& other) {
    n_ = other.n_;
    return *this;
  }
  constexpr nontrivial& operator=(nontrivial&& other) noexcept {
    n_ = std::exchange(other.n_, -1);
    return *this;
  }
  constexpr ~nontrivial() { n_ = -2; }
  constexpr int number() const { return n_; }
  friend constexpr bool operator==(const nontrivial&, const nontrivial&) = default;

private:
  int n_;
};

/// Can only be made where it stays.
class immovable {
public:
  constexpr explicit immovable(int n) noexcept : n_(n) {}
  immovable(immovable&&) = delete;
  constexpr int number() const { return n_; }

private:
  int n_;
};

}  // namespace expected_types
