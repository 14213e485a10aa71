#pragma once

#include <cstddef>
#include <new>

#include <cobatch/detail/abi.hpp>

/// COBATCH_RECYCLE_FRAMES: 0 takes every coroutine frame from the heap. The default under AddressSanitizer, which could
/// not see a use after free in recycled memory. Units of one program may differ.
#if !defined(COBATCH_RECYCLE_FRAMES)
#if defined(__SANITIZE_ADDRESS__)
#define COBATCH_RECYCLE_FRAMES 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define COBATCH_RECYCLE_FRAMES 0
#endif
#endif
#endif
#if !defined(COBATCH_RECYCLE_FRAMES)
#define COBATCH_RECYCLE_FRAMES 1
#endif

namespace cobatch::inline COBATCH_ABI::detail {

/// Memory for coroutine frames: per-thread free lists by size class, so that a frame costs no call of the heap.
///
/// A frame may be freed on another thread than it came from; it then belongs to that thread's list. Each list is
/// bounded (16 KiB a class, 256 KiB a thread at the most), the rest goes back to the heap, and so does everything when
/// the thread ends. No locks, no atomics.
class frame_pool {
 public:
  static void* allocate(std::size_t size) {
#if COBATCH_RECYCLE_FRAMES
    if (const std::size_t index = class_of(size); index < class_count) {
      list& free_list = cache_.lists[index];
      if (block* const first = free_list.first) {
        free_list.first = first->next;
        ++free_list.room;
        return first;
      }
      return ::operator new((index + 1) * class_bytes);
    }
#endif
    // As large as its class all the same: another unit of the program may recycle it.
    return ::operator new(size <= class_count * class_bytes ? (class_of(size) + 1) * class_bytes : size);
  }

  [[gnu::always_inline]] static void deallocate(void* memory, std::size_t size) noexcept {
#if COBATCH_RECYCLE_FRAMES
    if (const std::size_t index = class_of(size); index < class_count) {
      list& free_list = cache_.lists[index];
      if (free_list.room != 0) [[likely]] {
        --free_list.room;
        free_list.first = ::new (memory) block{free_list.first};
      } else {
        deallocate_slowly(memory, index);
      }
      return;
    }
#endif
    ::operator delete(memory);
    (void)size;
  }

 private:
  struct block {
    block* next;
  };
  struct list {
    block* first;
    std::size_t room;  // for so many more; none until the thread's janitor stands, nor once it has left
  };

  static constexpr std::size_t class_bytes = 64;
  static constexpr std::size_t class_count = 16;
  static constexpr std::size_t bytes_per_class = 16 * 1024;

  static constexpr std::size_t class_of(std::size_t size) noexcept { return (size - 1) / class_bytes; }

  struct cache {
    list lists[class_count];
    bool open;  // the janitor stands, or has stood
  };

  /// Gives the thread's lists back when the thread ends; frames freed still later go straight to the heap.
  struct janitor {
    janitor() noexcept {
      for (std::size_t i = 0; i < class_count; ++i) cache_.lists[i].room = bytes_per_class / ((i + 1) * class_bytes);
      cache_.open = true;
    }
    janitor(const janitor&) = delete;
    janitor& operator=(const janitor&) = delete;
    ~janitor() {
      for (list& each : cache_.lists) {
        while (block* const first = each.first) {
          each.first = first->next;
          ::operator delete(first);
        }
        each.room = 0;
      }
    }
  };

  [[gnu::noinline]] static void deallocate_slowly(void* memory, std::size_t index) noexcept {
    if (!cache_.open) {
      static thread_local janitor stands_from_here_on;
      (void)stands_from_here_on;
      deallocate(memory, (index + 1) * class_bytes);
      return;
    }
    ::operator delete(memory);
  }

  // Trivially destructible and constant-initialised: usable at any moment of a thread's life, without a guard.
  static inline thread_local constinit cache cache_ = {};
};

/// Gives a promise type the frame pool: derive from it.
struct pooled_frame {
  static void* operator new(std::size_t size) { return frame_pool::allocate(size); }
  static void operator delete(void* memory, std::size_t size) noexcept { frame_pool::deallocate(memory, size); }
};

}  // namespace cobatch::detail
