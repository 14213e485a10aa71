// GCC 12 warns of a temporary predict with captures that are not trivial; other compilers have nothing to warn of, and
// must get by without this text.
// expected: name the predict before co_await
// flags: -Werror=deprecated-declarations
#include <cobatch/batch_predict.hpp>

#include <memory>
#include <vector>

#include <cobatch/executor.hpp>

void f(cobatch::inline_executor& executor, std::vector<int>& samples, std::shared_ptr<int> factor) {
  (void)cobatch::batch_predict(executor, samples, [factor](int x) { return *factor * x; });
}

#if !COBATCH_WARNS_OF_TEMPORARY_PREDICT
#error "name the predict before co_await: not needed here"
#endif
