#pragma once

#include <cstddef>
#include <iterator>
#include <memory>
#include <optional>
#include <type_traits>
#include <utility>

/// A single-pass range as a generator would be one: its iterator can only be moved, its elements come by
/// value.
template <class Next>
class generated {
 public:
  using value_type = typename std::invoke_result_t<Next&>::value_type;

  explicit generated(Next next) : state_(std::make_unique<state>(std::move(next))) {}
  generated(generated&&) = default;
  generated& operator=(generated&&) = default;

 private:
  struct state {
    explicit state(Next made) : next(std::move(made)) {}
    void advance() { current = next(); }

    Next next;
    std::optional<value_type> current;
  };

 public:
  class iterator {
   public:
    using difference_type = std::ptrdiff_t;
    using value_type = typename generated::value_type;

    explicit iterator(generated& owner) : state_(owner.state_.get()) {}
    iterator(iterator&&) = default;
    iterator& operator=(iterator&&) = default;

    value_type operator*() const { return std::move(*state_->current); }
    iterator& operator++() {
      state_->advance();
      return *this;
    }
    void operator++(int) { ++*this; }
    bool operator==(std::default_sentinel_t) const { return !state_->current; }

   private:
    state* state_;
  };

  iterator begin() {
    state_->advance();
    return iterator(*this);
  }
  std::default_sentinel_t end() const { return {}; }

 private:
  std::unique_ptr<state> state_;
};

/// 0, 1, ... end - 1, in a single pass.
inline auto numbers_below(int end) {
  return generated([i = 0, end]() mutable { return i < end ? std::optional(i++) : std::nullopt; });
}
