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

  explicit generated(Next next) : next_(std::make_unique<Next>(std::move(next))) {}
  generated(generated&&) = default;
  generated& operator=(generated&&) = default;

  class iterator {
  public:
    using difference_type = std::ptrdiff_t;
    using value_type = typename generated::value_type;

    explicit iterator(generated& owner) : owner_(&owner) {}
    iterator(iterator&&) = default;
    iterator& operator=(iterator&&) = default;

    value_type operator*() const { return std::move(*owner_->current_); }
    iterator& operator++() {
      owner_->current_ = (*owner_->next_)();
      return *this;
    }
    void operator++(int) { ++*this; }
    bool operator==(std::default_sentinel_t) const { return !owner_->current_; }

  private:
    generated* owner_;
  };

  iterator begin() {
    current_ = (*next_)();
    return iterator(*this);
  }
  std::default_sentinel_t end() const { return {}; }

private:
  std::unique_ptr<Next> next_;
  std::optional<value_type> current_;
};

/// 0, 1, ... end - 1, in a single pass.
inline auto numbers_below(int end) {
  return generated([i = 0, end]() mutable { return i < end ? std::optional(i++) : std::nullopt; });
}
