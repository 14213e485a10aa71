// The semaphore itself is no awaitable: only what acquire() returns is.
// expected: await_ready
#include <cobatch/semaphore.hpp>
#include <cobatch/task.hpp>

cobatch::task<> coroutine(cobatch::async_semaphore& semaphore) {
  co_await semaphore;
}
