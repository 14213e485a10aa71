#pragma once

#include <concepts>
#include <coroutine>
#include <exception>
#include <optional>
#include <type_traits>
#include <utility>

#include <cobatch/detail/callback_core.hpp>
#include <cobatch/detail/config.hpp>
#include <cobatch/error.hpp>
#include <cobatch/expected.hpp>

namespace cobatch::inline COBATCH_ABI {

namespace detail {

template <class T>
class callback_state;
template <class T, class Initiate>
class callback_awaiter;

/// What a callback takes for a failure, or for an outcome as it is, and never for the value.
template <class U, class T>
concept no_plain_value = std::same_as<std::remove_cvref_t<U>, error> || std::same_as<std::remove_cvref_t<U>, errc> ||
                         std::same_as<std::remove_cvref_t<U>, std::exception_ptr> ||
                         std::same_as<std::remove_cvref_t<U>, expected<T, error>>;

}  // namespace detail

/// What `initiate` of from_callback<T>() gets: call it with the value (with nothing where T is void), with an error, an
/// errc, a std::exception_ptr, or an expected<T, error>.
///
/// The first call of all its copies counts; all others are ignored. If all copies are destroyed without a call, the
/// await ends with errc::callback_dropped. An exception from making the T is the outcome, and does not leave the call.
///
/// Resumes: see from_callback(). The call may destroy the callback that is called.
/// Lifetime: copies may outlive the await.
/// Thread safety: any thread may call, copy and destroy any copy; one and the same copy is like an int.
/// Size: one pointer: fits into a std::function without an allocation.
template <class T>
class callback {
 public:
  /// Nobody's: calls are ignored.
  callback() noexcept = default;
  callback(const callback& other) noexcept : state_(other.state_) {
    if (state_) state_->add_callback();
  }
  callback(callback&& other) noexcept : state_(std::exchange(other.state_, nullptr)) {}
  callback& operator=(callback other) noexcept {
    std::swap(state_, other.state_);
    return *this;
  }
  ~callback() {
    if (state_) state_->drop();
  }

  /// False for one that is nobody's, or moved from.
  explicit operator bool() const noexcept { return state_ != nullptr; }

  template <class U = T>
    requires(!std::is_void_v<T> && !detail::no_plain_value<U, T> && std::constructible_from<T, U>)
  void operator()(U&& value) const {
    settle([&](auto& outcome) { outcome.emplace(std::in_place, std::forward<U>(value)); });
  }
  void operator()() const
    requires std::is_void_v<T>
  {
    settle([](auto& outcome) { outcome.emplace(); });
  }
  void operator()(error why) const {
    settle([&](auto& outcome) { outcome.emplace(unexpect, std::move(why)); });
  }
  void operator()(errc why) const { (*this)(error(why)); }
  void operator()(std::exception_ptr exception) const { (*this)(error(errc::exception, std::move(exception))); }
  void operator()(expected<T, error> all) const {
    settle([&](auto& outcome) { outcome.emplace(std::move(all)); });
  }

 private:
  template <class, class>
  friend class detail::callback_awaiter;

  explicit callback(detail::callback_state<T>& state) noexcept : state_(&state) { state.add_callback(); }

  template <class Write>
  void settle(Write&& write) const {
    if (state_) state_->settle_first(std::forward<Write>(write));
    // From here on *this may be gone.
  }

  detail::callback_state<T>* state_ = nullptr;
};

/// `co_await from_callback<T>(initiate)` calls `initiate(done)` and gives what `done` is called with, as an
/// expected<T, error>.
///
/// `done` is a callback<T>: a one-shot function that any thread may call, also inside `initiate`, before the await has
/// suspended. It can be returned by a predict as it is: `return from_callback<int>(...)` is one sample's outcome.
///
/// Resumes: on the executor on which it suspended. Where it suspended on none, or that one refuses it, inside the call
/// (or the destructor) of `done`; a chain of those, however long, runs on a flat stack. Called inside `initiate`,
/// `done` does not suspend the coroutine, and no number of such awaits deepens the stack.
/// Lifetime: nothing is called before the co_await; `initiate` is kept until the await has ended. A coroutine that
/// waits may be destroyed; that `done` is not called or destroyed elsewhere at that very moment is the caller's part.
/// Errors: errc::exception with what `initiate` throws before `done` was called; errc::callback_dropped where all
/// copies of `done` are gone; std::bad_alloc from the co_await.
/// Allocates: one block for the outcome, from a per-thread pool.
///
/// Example: `auto text = co_await from_callback<std::string>([&](auto done) { client.get(url, done); });`
template <class T, class Initiate>
  requires std::invocable<std::decay_t<Initiate>&, callback<T>>
detail::callback_awaiter<T, std::decay_t<Initiate>> from_callback(Initiate&& initiate) {
  return detail::callback_awaiter<T, std::decay_t<Initiate>>(std::forward<Initiate>(initiate));
}

#if COBATCH_WARNS_OF_TEMPORARY_PREDICT
/// The same, with a warning: see COBATCH_WARNS_OF_TEMPORARY_PREDICT.
template <class T, class Initiate>
  requires std::invocable<std::decay_t<Initiate>&, callback<T>> &&
           (!std::is_lvalue_reference_v<Initiate> && !std::is_trivially_copyable_v<std::decay_t<Initiate>>)
[[deprecated(
    "cobatch: GCC 12 destroys a temporary function with non-trivial captures twice inside a co_await expression: name "
    "the function before co_await (`auto initiate = [...]...;`) and pass it by that name; define "
    "COBATCH_NO_TEMPORARY_PREDICT_WARNING to silence")]]
detail::callback_awaiter<T, std::decay_t<Initiate>> from_callback(Initiate&& initiate) {
  return detail::callback_awaiter<T, std::decay_t<Initiate>>(std::forward<Initiate>(initiate));
}
#endif

// ---- Implementation ----

namespace detail {

/// Shared by the await and all copies of its callback.
template <class T>
class callback_state final : public callback_core {
  static_assert(std::is_void_v<T> || (std::is_object_v<T> && !std::is_array_v<T>),
                "cobatch: from_callback<T>: T must be void or an object type; for a reference use a pointer");
  static_assert(alignof(std::optional<expected<T, error>>) <= __STDCPP_DEFAULT_NEW_ALIGNMENT__,
                "cobatch: from_callback<T>: an over-aligned T has no place here; use a std::unique_ptr<T>");
  static_assert(!no_plain_value<T, T>,
                "cobatch: from_callback<T>: an error or an exception cannot be the value as well");

 public:
  template <class Write>
  void settle_first(Write&& write) noexcept {
    if (!claim()) return;
    guarded([&] { write(outcome_); },
            [&] { outcome_.emplace(unexpect, error(errc::exception, std::current_exception())); });
    settle();
  }

  /// One callback less.
  void drop() noexcept {
    dropped result = drop_callback();
    if (result == dropped::unanswered) {
      settle_first([](auto& outcome) { outcome.emplace(unexpect, error(errc::callback_dropped)); });
      result = drop_callback();
    }
    if (result == dropped::last) delete this;
  }

  expected<T, error> take() { return *std::move(outcome_); }

 private:
  std::optional<expected<T, error>> outcome_;  // written between claim() and settle(), by one thread
};

/// What from_callback() returns. Movable until it is awaited.
template <class T, class Initiate>
class [[nodiscard]] callback_awaiter {
 public:
  template <class From>
    requires std::constructible_from<Initiate, From>
  explicit callback_awaiter(From&& initiate) : initiate_(std::forward<From>(initiate)) {}
  callback_awaiter(callback_awaiter&& other) noexcept(std::is_nothrow_move_constructible_v<Initiate>)
      : initiate_(std::move(other.initiate_)) {}
  ~callback_awaiter() {
    if (state_ && state_->leave()) delete state_;
  }

  bool await_ready() const noexcept { return false; }

  bool await_suspend(std::coroutine_handle<> awaiting) {
    state_ = new callback_state<T>();
    state_->prepare(awaiting);
    // Nobody resumes the coroutine, and so destroys initiate_, before suspend().
    {
      const callback<T> done(*state_);
      guarded([&] { static_cast<void>(initiate_(callback<T>(done))); }, [&] { done(std::current_exception()); });
    }
    return state_->suspend();
    // If true, *this may be gone: another thread may have resumed the coroutine.
  }

  [[nodiscard]] expected<T, error> await_resume() { return state_->take(); }

 private:
  Initiate initiate_;
  callback_state<T>* state_ = nullptr;
};

}  // namespace detail

}  // namespace cobatch
