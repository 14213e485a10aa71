#pragma once

// Boost.Asio or standalone Asio as detail::net.

#include <cobatch/detail/config.hpp>

#if !COBATCH_EXCEPTIONS
#error "<cobatch/asio.hpp> needs exceptions: the coroutines of Asio do not compile without"
#endif

#if !defined(COBATCH_ASIO_STANDALONE) && !__has_include(<boost/asio.hpp>)
#define COBATCH_ASIO_STANDALONE
#endif

#if defined(COBATCH_ASIO_STANDALONE)
#if !__has_include(<asio.hpp>)
#error "<cobatch/asio.hpp> needs Asio: install Boost 1.78 or newer (Debian: libboost1.81-dev), or standalone Asio (libasio-dev)"
#endif
#include <asio/version.hpp>
#define COBATCH_ASIO_VERSION ASIO_VERSION
#else
#include <boost/asio/version.hpp>
#define COBATCH_ASIO_VERSION BOOST_ASIO_VERSION
#endif

#if COBATCH_ASIO_VERSION < 102200
#error "<cobatch/asio.hpp> needs Asio 1.22 (Boost 1.78) or newer: older ones have no cancellation of operations"
#endif

#if defined(COBATCH_ASIO_STANDALONE)
#include <asio/any_io_executor.hpp>
#include <asio/associated_cancellation_slot.hpp>
#include <asio/associated_executor.hpp>
#include <asio/async_result.hpp>
#include <asio/awaitable.hpp>
#include <asio/bind_cancellation_slot.hpp>
#include <asio/cancellation_signal.hpp>
#include <asio/co_spawn.hpp>
#include <asio/execution_context.hpp>
#include <asio/executor_work_guard.hpp>
#include <asio/post.hpp>
#include <asio/steady_timer.hpp>
#include <asio/strand.hpp>
#include <asio/use_awaitable.hpp>
#else
#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/associated_cancellation_slot.hpp>
#include <boost/asio/associated_executor.hpp>
#include <boost/asio/async_result.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/execution_context.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/use_awaitable.hpp>
#endif

namespace cobatch::inline COBATCH_ABI::detail {

#if defined(COBATCH_ASIO_STANDALONE)
namespace net = ::asio;
#else
namespace net = ::boost::asio;
#endif

}  // namespace cobatch::detail
