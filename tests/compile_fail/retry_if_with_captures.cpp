// expected: retry_if must be a function, or a lambda without captures
#include <cobatch/batch_options.hpp>

#include <cobatch/error.hpp>

cobatch::batch_options f(bool again) {
  return {.retry = {.max_attempts = 3, .retry_if = [again](const cobatch::error&) { return again; }}};
}
