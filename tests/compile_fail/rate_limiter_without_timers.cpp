// expected: rate_limiter::acquire() needs an executor with timers
#include <cobatch/rate_limiter.hpp>

int main() {
  cobatch::inline_executor ex;
  cobatch::rate_limiter limiter(10);
  (void)limiter.try_acquire(ex);  // this is what it may be used for
  (void)limiter.acquire(ex);
}
