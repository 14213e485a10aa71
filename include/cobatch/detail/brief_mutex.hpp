#pragma once

#include <mutex>

namespace cobatch::detail {

/// One turn of a spin loop: leaves the core to its other hardware thread for a moment.
inline void spin_pause() noexcept {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__arm__)
  asm volatile("yield");
#endif
}

/// For what is mostly locked for no more than a microsecond or so: lock() spins somewhat longer before the thread goes
/// to sleep, from which it would come back only after many times that.
class brief_mutex {
 public:
  void lock() {
    for (int tries = 0; tries < most_tries; ++tries) {
      if (mutex_.try_lock()) return;
      for (int i = 0; i < 4; ++i) spin_pause();
    }
    mutex_.lock();
  }
  bool try_lock() { return mutex_.try_lock(); }
  void unlock() { mutex_.unlock(); }

 private:
  static constexpr int most_tries = 20;

  std::mutex mutex_;
};

}  // namespace cobatch::detail
