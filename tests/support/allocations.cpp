// SPDX-License-Identifier: BSL-1.0
// Replaces the global operator new and delete of a test program.
#include "support/allocations.hpp"

#include <cstdlib>
#include <new>

namespace {

thread_local constinit std::size_t made = 0;
thread_local constinit std::size_t fails_in = 0;
thread_local constinit bool fails_forever = false;
thread_local constinit bool failed = false;
thread_local constinit std::ptrdiff_t live = 0;

void* take(std::size_t size, std::size_t alignment) {
  ++made;
  if (fails_in > 0 && --fails_in == 0) {
    failed = true;
    if (fails_forever) fails_in = 1;
    return nullptr;
  }
  ++live;
  if (alignment <= alignof(std::max_align_t)) return std::malloc(size == 0 ? 1 : size);
  return std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
}

void* take_or_throw(std::size_t size, std::size_t alignment) {
  if (void* const memory = take(size, alignment)) return memory;
  throw std::bad_alloc();
}

void give_back(void* memory) noexcept {
  if (memory) --live;
  std::free(memory);
}

}  // namespace

std::size_t allocations() noexcept {
  return made;
}
std::ptrdiff_t live_allocations() noexcept {
  return live;
}
void fail_allocation_in(std::size_t n, bool and_all_later_ones) noexcept {
  fails_in = n;
  fails_forever = and_all_later_ones;
  failed = false;
}
bool allocation_has_failed() noexcept {
  return failed;
}
bool allocation_failure_is_pending() noexcept {
  fails_in = 0;
  return !failed;
}

void* operator new(std::size_t size) {
  return take_or_throw(size, 1);
}
void* operator new[](std::size_t size) {
  return take_or_throw(size, 1);
}
void* operator new(std::size_t size, std::align_val_t alignment) {
  return take_or_throw(size, static_cast<std::size_t>(alignment));
}
void* operator new[](std::size_t size, std::align_val_t alignment) {
  return take_or_throw(size, static_cast<std::size_t>(alignment));
}
void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  return take(size, 1);
}
void* operator new[](std::size_t size, const std::nothrow_t&) noexcept {
  return take(size, 1);
}
void* operator new(std::size_t size, std::align_val_t alignment, const std::nothrow_t&) noexcept {
  return take(size, static_cast<std::size_t>(alignment));
}
void* operator new[](std::size_t size, std::align_val_t alignment, const std::nothrow_t&) noexcept {
  return take(size, static_cast<std::size_t>(alignment));
}
void operator delete(void* memory) noexcept {
  give_back(memory);
}
void operator delete[](void* memory) noexcept {
  give_back(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
  give_back(memory);
}
void operator delete[](void* memory, std::size_t) noexcept {
  give_back(memory);
}
void operator delete(void* memory, std::align_val_t) noexcept {
  give_back(memory);
}
void operator delete[](void* memory, std::align_val_t) noexcept {
  give_back(memory);
}
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
  give_back(memory);
}
void operator delete[](void* memory, std::size_t, std::align_val_t) noexcept {
  give_back(memory);
}
