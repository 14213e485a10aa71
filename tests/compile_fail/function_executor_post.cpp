// expected: the post of a function_executor must take any copyable callable
#include <cobatch/executor.hpp>

int main() {
  cobatch::function_executor executor([](int) {});
  executor.execute(std::noop_coroutine());
}
