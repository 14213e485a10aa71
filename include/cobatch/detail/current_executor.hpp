#pragma once

#include <coroutine>
#include <cstddef>

#include <cobatch/detail/abi.hpp>
#include <cobatch/detail/atomic.hpp>

namespace cobatch::inline COBATCH_ABI::detail {

/// What is known of an executor type once the type is erased.
struct executor_table {
  /// Queues the handle; false: refused, the handle was not taken.
  bool (*execute)(void* executor, std::coroutine_handle<> handle) noexcept;
  /// The loop's name where a blocked thread means a stuck loop ("a thread_pool worker"), else null.
  const char* blocks;
};

/// A non-owning reference to an executor of any type; empty where there is none.
class executor_ref {
 public:
  constexpr executor_ref() noexcept = default;
  constexpr executor_ref(void* object, const executor_table* table) noexcept : object_(object), table_(table) {}

  explicit constexpr operator bool() const noexcept { return table_ != nullptr; }
  constexpr bool refers_to(const void* object) const noexcept { return table_ != nullptr && object_ == object; }
  constexpr const char* blocks() const noexcept { return table_ ? table_->blocks : nullptr; }

  bool execute(std::coroutine_handle<> handle) const noexcept { return table_->execute(object_, handle); }

  friend constexpr bool operator==(const executor_ref&, const executor_ref&) noexcept = default;

 private:
  void* object_ = nullptr;
  const executor_table* table_ = nullptr;
};

/// The executor whose loop runs on this thread right now, for whoever must come back to it later.
inline thread_local constinit executor_ref this_thread_executor{};

inline executor_ref current_executor() noexcept { return this_thread_executor; }

/// The name of the loop that stops while this thread is blocked, also where another executor runs inside that loop.
inline thread_local constinit const char* this_thread_loop = nullptr;

/// Its worker's number plus one in a pool; 0: not asked for yet.
inline thread_local constinit std::size_t this_thread_number_plus_one = 0;

/// A small number, different for most threads that run at the same time: for choosing a place that others rarely
/// choose.
inline std::size_t this_thread_number() noexcept {
  static constinit atomic<std::size_t> next{0};  // any value will do: orders nothing
  if (this_thread_number_plus_one == 0) {
    this_thread_number_plus_one = next.fetch_add(1, std::memory_order_relaxed) + 1;
  }
  return this_thread_number_plus_one - 1;
}

/// While it lives, this thread runs the loop of `executor`. Scopes nest.
class executor_scope {
 public:
  explicit executor_scope(executor_ref executor) noexcept
      : outer_(this_thread_executor), outer_loop_(this_thread_loop) {
    this_thread_executor = executor;
    if (const char* const loop = executor.blocks()) this_thread_loop = loop;
  }
  executor_scope(const executor_scope&) = delete;
  executor_scope& operator=(const executor_scope&) = delete;
  ~executor_scope() {
    this_thread_executor = outer_;
    this_thread_loop = outer_loop_;
  }

 private:
  executor_ref outer_;
  const char* outer_loop_;
};

}  // namespace cobatch::detail
