#pragma once

#include <cobatch/detail/abi.hpp>
#include <cobatch/detail/mutex.hpp>
#include <cobatch/detail/spin_pause.hpp>

namespace cobatch::inline COBATCH_ABI::detail {

#if defined(COBATCH_EXPLORE)
using brief_mutex = mutex;  // to spin for it is of no interest
#else
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

  mutex mutex_;
};
#endif

}  // namespace cobatch::detail
