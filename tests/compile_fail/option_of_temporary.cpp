// expected: option_ref
// expected: delete
#include <cobatch/batch_options.hpp>

#include <cobatch/semaphore.hpp>

cobatch::batch_options f() { return cobatch::batch_options{.semaphore = cobatch::async_semaphore(3)}; }
