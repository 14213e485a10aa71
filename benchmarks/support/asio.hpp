#pragma once

/// COBATCH_BENCH_ASIO: whether Boost.Asio is there, with the channels that came with Boost 1.80.
#if defined(COBATCH_BENCH_HAS_ASIO) && __has_include(<boost/asio/experimental/concurrent_channel.hpp>)
#define COBATCH_BENCH_ASIO 1
#else
#define COBATCH_BENCH_ASIO 0
#endif

#if COBATCH_BENCH_ASIO

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/experimental/concurrent_channel.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/asio/use_awaitable.hpp>

#include <atomic>
#include <cstddef>
#include <exception>
#include <semaphore>
#include <utility>

namespace bench {

namespace asio = boost::asio;

/// The usual semaphore of Asio's users: a channel that holds as many messages as there are permits out.
using asio_semaphore = asio::experimental::concurrent_channel<asio::any_io_executor, void(boost::system::error_code)>;

inline asio::awaitable<void> acquire(asio_semaphore& semaphore) {
  co_await semaphore.async_send(boost::system::error_code(), asio::use_awaitable);
}
inline void release(asio_semaphore& semaphore) {
  semaphore.try_receive([](boost::system::error_code) {});
}

/// Starts `coroutines` times make(i) on the pool and blocks until all have ended.
template <class Make>
void asio_run_all(asio::thread_pool& pool, std::size_t coroutines, Make make) {
  std::atomic<std::size_t> left{coroutines};
  std::binary_semaphore ended{0};
  for (std::size_t i = 0; i < coroutines; ++i) {
    asio::co_spawn(pool, make(i), [&](std::exception_ptr exception) {
      if (exception) std::terminate();
      if (left.fetch_sub(1, std::memory_order_acq_rel) == 1) ended.release();
    });
  }
  ended.acquire();
}

}  // namespace bench

#endif
