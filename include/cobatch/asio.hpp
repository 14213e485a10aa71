#pragma once

// For programs that use Asio; needs Boost.Asio (Boost 1.78 or newer) or standalone Asio (1.22 or newer). <cobatch/cobatch.hpp>
// does not include it: no other header needs more than the standard library.
//
// It is for Boost.Asio where <boost/asio.hpp> is found, for standalone Asio elsewhere, and where COBATCH_ASIO_STANDALONE
// is defined. Units of one program may differ. Exceptions are needed, as Asio's coroutines do not compile without.

#include <chrono>
#include <concepts>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <stop_token>
#include <type_traits>
#include <utility>

#include <cobatch/callback.hpp>
#include <cobatch/detail/asio_loop.hpp>
#include <cobatch/detail/asio_net.hpp>
#include <cobatch/detail/awaitable.hpp>
#include <cobatch/detail/call_with_token.hpp>
#include <cobatch/detail/config.hpp>
#include <cobatch/detail/current_executor.hpp>
#include <cobatch/detail/driver.hpp>
#include <cobatch/detail/timer_awaiter.hpp>
#include <cobatch/detail/timer_queue.hpp>
#include <cobatch/executor.hpp>
#include <cobatch/task.hpp>

namespace cobatch::inline COBATCH_ABI {

namespace detail {

template <class T>
concept asio_context = std::convertible_to<T&, net::execution_context&>;

template <class T>
inline constexpr bool is_asio_awaitable = false;
template <class T, class Executor>
inline constexpr bool is_asio_awaitable<net::awaitable<T, Executor>> = true;

/// What as_asio() gives for an awaitable. Asio's coroutines have no references for results: those are copied.
template <class Awaitable, class Executor>
using asio_result = net::awaitable<std::remove_cvref_t<driven_result<Awaitable>>, Executor>;

/// Something to run a coroutine with such an executor on.
template <class Where, class Executor>
concept asio_place = std::convertible_to<Where, Executor> || requires(std::remove_reference_t<Where>& where) {
  { where.get_executor() } -> std::convertible_to<Executor>;
};

/// A function that makes what as_asio() awaits, with or without a token.
template <class Make>
concept asio_maker = std::invocable<std::decay_t<Make>&, std::stop_token> || std::invocable<std::decay_t<Make>&>;

template <class Make>
using made_awaitable = decltype(detail::call_with_token(std::declval<Make&>(), std::stop_token()));

}  // namespace detail

/// Makes an executor with timers out of an io_context, a strand, an asio::thread_pool, or any other executor of Asio:
/// `cobatch::asio_executor ex(context);`
///
/// It does not run the context: somebody calls io_context::run(), on one thread or on several. What is queued, and
/// timers that are set, count as work, so that run() does not return meanwhile; a coroutine that waits elsewhere does
/// not count.
///
/// Resumes: on a thread that runs the context, never inside execute(); on a strand, inside it.
/// Stops: where the context was stopped, all that is queued waits for it to be run again. The destructor, or that of the
/// context if it comes first, refuses new work, resumes every sleeper with false, and runs what is queued to its end, on
/// its own thread; no frame is lost.
/// Lifetime: it must outlive what runs on it. The context must outlive it, as any other object that uses it; but it may
/// be a local variable of one of Asio's coroutines, which the context destroys.
/// Thread safety: execute(), schedule(), schedule_after() and stop requests from any thread.
/// Allocates: what asio::post() does.
template <class Executor = detail::net::any_io_executor>
class asio_executor {
 public:
  using executor_type = Executor;

  /// `concurrency`: how many threads run the context, which Asio does not tell.
  explicit asio_executor(Executor executor, std::size_t concurrency = 1)
      : concurrency_(concurrency > 0 ? concurrency : 1),
        loop_(std::make_shared<detail::asio_loop<Executor>>(detail::ref(*this), std::move(executor))) {}
  template <detail::asio_context Context>
    requires std::convertible_to<typename Context::executor_type, Executor>
  explicit asio_executor(Context& context, std::size_t concurrency = 1)
      : asio_executor(Executor(context.get_executor()), concurrency) {}
  asio_executor(const asio_executor&) = delete;
  asio_executor& operator=(const asio_executor&) = delete;
  ~asio_executor() { loop_->close(); }

  /// Queues the handle; false once the destructor has begun. Throws std::bad_alloc where there is no memory to queue it.
  bool execute(std::coroutine_handle<> handle) { return loop_->execute(handle); }
  std::size_t concurrency() const noexcept { return concurrency_; }
  bool running_in_this_thread() const noexcept {
    if (detail::current_executor().refers_to(this)) return true;
    if constexpr (requires { static_cast<bool>(loop_->executor().running_in_this_thread()); }) {
      return static_cast<bool>(loop_->executor().running_in_this_thread());
    } else {
      return false;
    }
  }

  /// `co_await ex.schedule()` goes on behind what is queued.
  schedule_awaiter<asio_executor> schedule() noexcept { return schedule_awaiter<asio_executor>(*this); }

  /// `co_await ex.schedule_after(delay, token)`: true once the delay has elapsed, false as soon as it is stopped.
  ///
  /// Resumes: on this executor. A delay of zero or less is a schedule(); one too long for the clock never elapses.
  detail::timer_awaiter<asio_executor> schedule_after(std::chrono::nanoseconds delay,
                                                      std::stop_token token = {}) noexcept {
    return detail::timer_awaiter<asio_executor>(*this, delay, std::move(token));
  }

  /// Asio's own.
  Executor get_executor() const noexcept { return loop_->executor(); }

 private:
  friend detail::timer_awaiter<asio_executor>;

  bool add_timer(detail::timer_node& node, detail::timer_queue::nanoseconds delay) {
    return loop_->add_timer(node, delay);
  }
  void stop_timer(detail::timer_node& node) noexcept { loop_->stop_timer(node); }
  void erase_timer(detail::timer_node& node) noexcept { loop_->erase_timer(node); }

  const std::size_t concurrency_;
  const std::shared_ptr<detail::asio_loop<Executor>> loop_;
};

template <class Executor>
  requires(!detail::asio_context<Executor>)
asio_executor(Executor) -> asio_executor<Executor>;
template <class Executor>
  requires(!detail::asio_context<Executor>)
asio_executor(Executor, std::size_t) -> asio_executor<Executor>;
template <detail::asio_context Context>
asio_executor(Context&) -> asio_executor<typename Context::executor_type>;
template <detail::asio_context Context>
asio_executor(Context&, std::size_t) -> asio_executor<typename Context::executor_type>;

namespace detail {
template <class Executor>
inline constexpr const char* executor_blocks<asio_executor<Executor>> = "a thread that runs an asio_executor";
}

/// Awaits a batch, a task, or any other standard awaitable from one of Asio's coroutines:
/// `auto results = co_await cobatch::as_asio(cobatch::batch_predict(pool, images, predict));`
///
/// Resumes: on the executor of the awaiting coroutine. The io_context's run() does not return meanwhile.
/// Stops: not by Asio's cancellation; the form that takes a function is for that.
/// Lifetime: an rvalue is moved in, an lvalue is referred to. Nothing runs before the co_await, and the await returns only
/// when the awaitable has ended. The context must outlive that.
/// Errors: rethrows the awaitable's exception.
/// Allocates: three coroutine frames, and what asio::post() does.
///
/// The coroutine may be of another executor type than any_io_executor: `as_asio<my_executor_type>(...)`.
template <class Executor = detail::net::any_io_executor, class Awaitable>
  requires(detail::awaitable<Awaitable> && !detail::is_asio_awaitable<std::remove_cvref_t<Awaitable>>)
detail::asio_result<Awaitable, Executor> as_asio(Awaitable&& awaitable);

/// The same with Asio's cancellation as a stop: `make(stop_token)` gives the awaitable.
///
///     const auto run = [&](std::stop_token stop) {
///       return cobatch::batch_predict(pool, images, predict, {.stop = stop});
///     };
///     auto results = co_await (cobatch::as_asio(run) || timer.async_wait(asio::use_awaitable));
///
/// Stops: a cancellation of any type that reaches the awaiting coroutine's slot (by default only those of the type
/// `terminal` do) requests a stop of the token. The await still returns only when the awaitable has ended, with whatever
/// that gives: a batch gives its outcomes, those that are not done as `cancelled` or `not_started`. The awaiting
/// coroutine's next co_await throws then, as always after a cancellation. One that was cancelled before throws at once,
/// with nothing started.
/// Where `make` takes no token, a cancellation changes nothing.
/// Lifetime: `make` is kept until the await has ended: it may be a coroutine lambda with captures. What it makes is
/// awaited where it is made: `as_asio([&] { return stream.next(); })` awaits what cannot be moved.
template <class Executor = detail::net::any_io_executor, class Make>
  requires(detail::asio_maker<Make> && !detail::risky_temporary<Make>)
auto as_asio(Make&& make) -> detail::asio_result<detail::made_awaitable<std::decay_t<Make>>, Executor>;

#if COBATCH_WARNS_OF_TEMPORARY_PREDICT
/// The same, with a warning: see detail::risky_temporary.
template <class Executor = detail::net::any_io_executor, class Make>
  requires(detail::asio_maker<Make> && detail::risky_temporary<Make>)
[[deprecated(
    "cobatch: GCC 12 destroys a temporary function with non-trivial captures twice inside a co_await expression: name "
    "the function before co_await (`auto run = [...](std::stop_token stop) {...};`) and pass it by that name; define "
    "COBATCH_NO_TEMPORARY_PREDICT_WARNING to silence")]]
auto as_asio(Make&& make) -> detail::asio_result<detail::made_awaitable<std::decay_t<Make>>, Executor>;
#endif

/// Makes a task out of one of Asio's coroutines, for a predict above all:
///
///     const auto predict = [&](const image& x, std::stop_token stop) {
///       return cobatch::from_asio(context, client.ask(x), stop);  // ask() returns an asio::awaitable<answer>
///     };
///
/// `where` is what asio::co_spawn() takes, an execution context or an executor of Asio, or an asio_executor.
///
/// Resumes: the body starts and goes on on `where`; with a token that can be stopped on a strand of `where`, if the
/// coroutine's executor type can be one (any_io_executor can; of others, one thread must run the context). Who awaits
/// goes on on the executor on which it suspended.
/// Stops: a stop request, from any thread, is a cancellation of the type `terminal`, emitted on the coroutine's own
/// strand. Without a token nothing is cancelled.
/// Lifetime: nothing runs before the co_await. The context must outlive the await, be run, and not be destroyed by it.
/// Errors: rethrows the coroutine's exception: after a stop mostly Asio's operation_aborted, which a batch reports as the
/// reason of the stop. std::system_error with errc::callback_dropped if the context was destroyed before the coroutine's
/// end.
/// Allocates: what asio::co_spawn() does, three frames, and a strand and a signal for the token.
template <class Where, class T, class Executor>
  requires(detail::asio_place<Where, Executor>)
task<T> from_asio(Where&& where, detail::net::awaitable<T, Executor> coroutine, std::stop_token stop = {});

// ---- Implementation ----

namespace detail {

// ---- as_asio ----

/// Carries a result to one of Asio's coroutines. It belongs to nobody, and destroys itself at its end.
struct asio_courier {
  struct promise_type {
    asio_courier get_return_object() const noexcept { return {}; }
    std::suspend_never initial_suspend() const noexcept { return {}; }
    std::suspend_never final_suspend() const noexcept { return {}; }
    void return_void() const noexcept {}
    [[noreturn]] void unhandled_exception() const noexcept { std::terminate(); }
  };
};

/// The handler on its way, with the work that keeps its context running.
template <class Handler, class Work>
struct asio_delivery {
  void operator()() {
    Handler arrived = std::move(handler);
    arrived();
  }
  Handler handler;
  Work work;
};

COBATCH_COROUTINES_BEGIN
#if defined(__GNUC__) && !defined(__clang__)
// Where GCC inlines one of the two functions that Asio has for the memory of frames, and not the other.
#pragma GCC diagnostic ignored "-Wmismatched-new-delete"
#endif

/// Awaits `awaited`, writes `result`, and calls the handler on its own executor. The first two live in the coroutine that
/// the handler resumes, and are not touched after that.
template <class Awaitable, class Handler>
asio_courier await_for(Awaitable&& awaited, outcome<driven_result<Awaitable>>& result, Handler handler) {
  auto work = net::make_work_guard(handler);
  try {
    if constexpr (std::is_void_v<driven_result<Awaitable>>) {
      co_await static_cast<Awaitable&&>(awaited);
    } else {
      result.set_value(co_await static_cast<Awaitable&&>(awaited));
    }
  } catch (...) {
    result.set_exception(std::current_exception());
  }
  const auto executor = work.get_executor();
  net::post(executor, asio_delivery<Handler, decltype(work)>{std::move(handler), std::move(work)});
}

template <class Executor, class Awaitable>
asio_result<Awaitable, Executor> await_in_asio(Awaitable awaitable) {
  outcome<driven_result<Awaitable>> result;
  const auto begin = [&](auto handler) {
    detail::await_for(static_cast<Awaitable&&>(awaitable), result, std::move(handler));
  };
  using token = net::use_awaitable_t<Executor>;
  auto ended = net::async_initiate<const token, void()>(begin, token());
  co_await std::move(ended);
  co_return result.take();
}

/// The same for what `make` makes, with the awaiting coroutine's cancellation as a stop.
template <class Executor, class Make>
asio_result<made_awaitable<Make>, Executor> await_made_in_asio(Make make) {
  using awaitable_type = made_awaitable<Make>;
  outcome<driven_result<awaitable_type>> result;
  std::stop_source stop;
  static_assert(awaitable<awaitable_type>, "cobatch: as_asio(): the function does not return an awaitable");
  awaitable_type awaited = detail::call_with_token(make, stop.get_token());
  const auto begin = [&](auto handler) {
    // Copied into the slot, which may be asked once more when this coroutine is gone.
    const auto request_stop = [stop](net::cancellation_type) mutable { stop.request_stop(); };
    if (auto slot = net::get_associated_cancellation_slot(handler); slot.is_connected()) slot.assign(request_stop);
    detail::await_for(static_cast<awaitable_type&&>(awaited), result, std::move(handler));
  };
  using token = net::use_awaitable_t<Executor>;
  auto ended = net::async_initiate<const token, void()>(begin, token());
  co_await std::move(ended);
  co_return result.take();
}

// ---- from_asio ----

/// Awaits `work` and keeps what it gives: co_spawn() would need a T without a value for when there is none.
template <class T, class Executor>
net::awaitable<void, Executor> keep_result(net::awaitable<T, Executor> work, outcome<T>& result) {
  if constexpr (std::is_void_v<T>) {
    (void)result;
    co_await std::move(work);
  } else {
    result.set_value(co_await std::move(work));
  }
}

/// Emits a signal on the executor of the coroutine that it is for, from any thread.
template <class Executor>
struct asio_canceller {
  void operator()() const noexcept {
    const auto emit = [signal = signal] { signal->emit(net::cancellation_type::terminal); };
    guarded([&] { net::post(executor, emit); }, [] {});  // no memory: it is not cancelled
  }
  Executor executor;
  std::shared_ptr<net::cancellation_signal> signal;
};

template <class T, class Executor>
task<T> await_asio(Executor executor, net::awaitable<T, Executor> work, std::stop_token stop) {
  outcome<T> result;
  std::optional<std::stop_callback<asio_canceller<Executor>>> canceller;
  const auto begin = [&](callback<void> done) {
    auto kept = detail::keep_result(std::move(work), result);
    if (!stop.stop_possible()) {
      const auto ended = [done](std::exception_ptr failure) { failure ? done(failure) : done(); };
      net::co_spawn(executor, std::move(kept), ended);
      return;
    }
    if constexpr (std::convertible_to<net::strand<Executor>, Executor>) executor = net::make_strand(executor);
    const auto signal = std::make_shared<net::cancellation_signal>();
    const auto ended = [done, signal](std::exception_ptr failure) { failure ? done(failure) : done(); };
    net::co_spawn(executor, std::move(kept), net::bind_cancellation_slot(signal->slot(), ended));
    // Only now: before, nobody listens to the signal. If the coroutine has ended already, nobody does any more.
    canceller.emplace(stop, asio_canceller<Executor>{executor, signal});
  };
  const expected<void, error> ended = co_await from_callback<void>(begin);
  canceller.reset();
  if (!ended) {
    if (ended.error().exception) std::rethrow_exception(ended.error().exception);
    throw_system_error(ended.error().code, "a coroutine of Asio was destroyed before its end");
  }
  co_return result.take();
}

COBATCH_COROUTINES_END

template <class Executor, class Where>
Executor asio_executor_from(Where&& where) {
  if constexpr (std::convertible_to<Where, Executor>) {
    return std::forward<Where>(where);
  } else {
    return where.get_executor();
  }
}

}  // namespace detail

template <class Executor, class Awaitable>
  requires(detail::awaitable<Awaitable> && !detail::is_asio_awaitable<std::remove_cvref_t<Awaitable>>)
detail::asio_result<Awaitable, Executor> as_asio(Awaitable&& awaitable) {
  static_assert(std::is_reference_v<Awaitable> || std::move_constructible<Awaitable>,
                "cobatch: as_asio(): what cannot be moved is made by a function: "
                "as_asio([&] { return stream.next(); })");
  return detail::await_in_asio<Executor, Awaitable>(std::forward<Awaitable>(awaitable));
}

template <class Executor, class Make>
  requires(detail::asio_maker<Make> && !detail::risky_temporary<Make>)
auto as_asio(Make&& make) -> detail::asio_result<detail::made_awaitable<std::decay_t<Make>>, Executor> {
  return detail::await_made_in_asio<Executor, std::decay_t<Make>>(std::forward<Make>(make));
}

#if COBATCH_WARNS_OF_TEMPORARY_PREDICT
template <class Executor, class Make>
  requires(detail::asio_maker<Make> && detail::risky_temporary<Make>)
auto as_asio(Make&& make) -> detail::asio_result<detail::made_awaitable<std::decay_t<Make>>, Executor> {
  return detail::await_made_in_asio<Executor, std::decay_t<Make>>(std::forward<Make>(make));
}
#endif

template <class Where, class T, class Executor>
  requires(detail::asio_place<Where, Executor>)
task<T> from_asio(Where&& where, detail::net::awaitable<T, Executor> coroutine, std::stop_token stop) {
  return detail::await_asio<T, Executor>(detail::asio_executor_from<Executor>(std::forward<Where>(where)),
                                         std::move(coroutine), std::move(stop));
}

}  // namespace cobatch
