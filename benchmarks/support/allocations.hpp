#pragma once

#include <cstddef>

namespace bench {

/// Counts the calls of operator new in this program, on all threads, while it is alive. One at a time.
class allocation_count {
 public:
  allocation_count() noexcept;
  allocation_count(const allocation_count&) = delete;
  allocation_count& operator=(const allocation_count&) = delete;
  ~allocation_count();

  std::size_t calls() const noexcept;
};

}  // namespace bench
