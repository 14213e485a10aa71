// SPDX-License-Identifier: BSL-1.0
// Linked into tests and examples under ThreadSanitizer. The reference count of an exception lives in the C++
// runtime library, which is not instrumented: ThreadSanitizer does not see that the last owner destroys an
// exception after all its other owners have let go of it, and reports that destruction as a race. Here the
// two functions of libstdc++ that let go are wrapped to say so, exception by exception; nothing is silenced.
#include <exception>

#if defined(__GLIBCXX__)

#include <dlfcn.h>
#include <sched.h>

#include <cstring>

extern "C" void __tsan_acquire(void* address);
extern "C" void __tsan_release(void* address);

namespace {

// Held from the announcement to the decrement, so that announcements come in the order of the decrements. A
// spin lock in functions that ThreadSanitizer does not look into: it must order nothing in its eyes.
int owner_count_lock = 0;
thread_local int depth = 0;  // destroying an exception may let go of another

__attribute__((no_sanitize("thread"))) void lock() {
  if (depth++ == 0) {
    while (__atomic_exchange_n(&owner_count_lock, 1, __ATOMIC_ACQUIRE) != 0) sched_yield();
  }
}

__attribute__((no_sanitize("thread"))) void unlock() {
  if (--depth == 0) __atomic_store_n(&owner_count_lock, 0, __ATOMIC_RELEASE);
}

template <class Function>
Function* next(const char* symbol) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, symbol));
}

}  // namespace

void std::__exception_ptr::exception_ptr::_M_release() noexcept {
  static const auto release =
      next<void(exception_ptr*)>("_ZNSt15__exception_ptr13exception_ptr10_M_releaseEv");
  void* exception = nullptr;
  std::memcpy(&exception, this, sizeof exception);
  lock();
  __tsan_release(exception);
  __tsan_acquire(exception);
  release(this);
  unlock();
}

extern "C" void __cxa_end_catch() {
  static const auto end_catch = next<void()>("__cxa_end_catch");
  lock();
  { const std::exception_ptr announced = std::current_exception(); }  // lets go at once, in _M_release
  end_catch();
  unlock();
}

#endif
