#include <support/memory.hpp>

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <fstream>
#include <string>

namespace bench {

namespace {

/// A line of /proc/self/status in bytes.
std::size_t status(const std::string& key) {
  std::ifstream lines("/proc/self/status");
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with(key + ":")) return std::stoull(line.substr(key.size() + 1)) * 1024;
  }
  return 0;
}

}  // namespace

std::size_t resident_memory() {
  return status("VmRSS");
}
std::size_t peak_memory() {
  return status("VmHWM");
}

void reset_peak_memory() {
  // Where it cannot be reset the peak is that of the whole process, which has done little else.
  std::ofstream("/proc/self/clear_refs") << "5";
}

std::optional<std::size_t> peak_memory_in_a_process_of_its_own(const std::string& name) {
  std::array<int, 2> pipe_ends{};
  if (::pipe2(pipe_ends.data(), O_CLOEXEC) != 0) return std::nullopt;
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_adddup2(&actions, pipe_ends[1], STDOUT_FILENO);
  std::string program = "/proc/self/exe", option = "--peak-memory-of=" + name;
  std::array<char*, 3> arguments{program.data(), option.data(), nullptr};
  pid_t child = 0;
  const bool started = ::posix_spawn(&child, program.c_str(), &actions, nullptr, arguments.data(), environ) == 0;
  ::posix_spawn_file_actions_destroy(&actions);
  ::close(pipe_ends[1]);
  std::string output;
  std::array<char, 256> buffer{};
  for (ssize_t n = 0; started && (n = ::read(pipe_ends[0], buffer.data(), buffer.size())) > 0;) {
    output.append(buffer.data(), static_cast<std::size_t>(n));
  }
  ::close(pipe_ends[0]);
  int result = -1;
  if (started) ::waitpid(child, &result, 0);
  if (result != 0 || output.empty()) return std::nullopt;
  return std::stoull(output);
}

}  // namespace bench
