// Replaces operator new of the whole program; its other forms come to these two. And, where the C library is glibc,
// aligned_alloc, from which Boost.Asio takes its coroutine frames.

#include <support/allocations.hpp>

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>

namespace {

// Read by every allocation, written between the runs of a benchmark. Relaxed: what starts and joins the threads
// that allocate orders it.
std::atomic<bool> counting{false};
std::atomic<std::size_t> calls_so_far{0};

void count() noexcept {
  if (counting.load(std::memory_order_relaxed)) calls_so_far.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace

namespace bench {

allocation_count::allocation_count() noexcept {
  calls_so_far.store(0, std::memory_order_relaxed);
  counting.store(true, std::memory_order_relaxed);
}
allocation_count::~allocation_count() {
  counting.store(false, std::memory_order_relaxed);
}
std::size_t allocation_count::calls() const noexcept {
  return calls_so_far.load(std::memory_order_relaxed);
}

}  // namespace bench

void* operator new(std::size_t size) {
  count();
  if (void* const memory = std::malloc(size == 0 ? 1 : size)) return memory;
  throw std::bad_alloc();
}
#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define COBATCH_BENCHMARK_ALIGNED_ALLOC 1
extern "C" void* __libc_memalign(std::size_t alignment, std::size_t size) noexcept;
extern "C" void* aligned_alloc(std::size_t alignment, std::size_t size) noexcept {
  count();
  return __libc_memalign(alignment, size);
}
#endif

void* operator new(std::size_t size, std::align_val_t alignment) {
#if !defined(COBATCH_BENCHMARK_ALIGNED_ALLOC)
  count();
#endif
  const auto aligned = static_cast<std::size_t>(alignment);
  if (void* const memory = std::aligned_alloc(aligned, (size + aligned - 1) / aligned * aligned)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::align_val_t) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
  std::free(memory);
}
