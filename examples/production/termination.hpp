// SPDX-License-Identifier: BSL-1.0
#pragma once

// SIGTERM and SIGINT as something that poll() waits for.

#include <cerrno>
#include <csignal>
#include <system_error>

#include <sys/signalfd.h>
#include <unistd.h>

namespace production {

/// To be made before the first thread, so that no thread is interrupted.
class termination {
 public:
  termination() {
    sigset_t wanted;
    sigemptyset(&wanted);
    sigaddset(&wanted, SIGTERM);
    sigaddset(&wanted, SIGINT);
    pthread_sigmask(SIG_BLOCK, &wanted, nullptr);
    descriptor_ = signalfd(-1, &wanted, SFD_NONBLOCK | SFD_CLOEXEC);
    if (descriptor_ < 0) throw std::system_error(errno, std::generic_category(), "signalfd");
  }
  termination(const termination&) = delete;
  termination& operator=(const termination&) = delete;
  ~termination() { ::close(descriptor_); }

  int descriptor() const { return descriptor_; }

  /// For one thread. True from the first signal on.
  bool requested() {
    signalfd_siginfo info;
    if (::read(descriptor_, &info, sizeof info) == sizeof info) requested_ = true;
    return requested_;
  }

 private:
  int descriptor_ = -1;
  bool requested_ = false;
};

}  // namespace production
