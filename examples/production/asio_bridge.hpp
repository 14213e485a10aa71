// SPDX-License-Identifier: BSL-1.0
#pragma once

// Awaits a cobatch::task from a coroutine of Asio (or from any other completion token):
//
//     const auto outcomes = co_await async_run(std::move(task), asio::use_awaitable);

#include <exception>
#include <coroutine>
#include <optional>
#include <utility>

#include <boost/asio/associated_executor.hpp>
#include <boost/asio/async_result.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/post.hpp>

#include <cobatch/task.hpp>

namespace production {

namespace asio = boost::asio;

/// A coroutine that nobody awaits: it starts at once and destroys itself at its end.
struct detached {
  struct promise_type {
    detached get_return_object() const noexcept { return {}; }
    std::suspend_never initial_suspend() const noexcept { return {}; }
    std::suspend_never final_suspend() const noexcept { return {}; }
    void return_void() const noexcept {}
    void unhandled_exception() const noexcept { std::terminate(); }
  };
};

template <class T, class Handler>
detached run_and_tell(cobatch::task<T> work, Handler handler) {
  const auto executor = asio::get_associated_executor(handler);
  const auto alive = asio::make_work_guard(executor);  // io_context::run() does not return meanwhile
  std::exception_ptr failure;
  std::optional<T> result;
  try {
    result.emplace(co_await std::move(work));
  } catch (...) {
    failure = std::current_exception();
    result.emplace();
  }
  auto tell = [handler = std::move(handler), failure, result = std::move(result)]() mutable {
    std::move(handler)(failure, *std::move(result));
  };
  asio::post(executor, std::move(tell));  // back to the session's own strand
}

/// Completes with void(std::exception_ptr, T) on the handler's executor; T must have a default.
template <class T, class Token>
auto async_run(cobatch::task<T> work, Token token) {
  auto initiate = [](auto handler, cobatch::task<T> started) { run_and_tell(std::move(started), std::move(handler)); };
  return asio::async_initiate<Token, void(std::exception_ptr, T)>(initiate, token, std::move(work));
}

}  // namespace production
