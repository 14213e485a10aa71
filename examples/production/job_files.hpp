// SPDX-License-Identifier: BSL-1.0
#pragma once

// The files of bulk_job. The output is the checkpoint: line n is the record of row n, written in order, and what stands
// there is done. Beside it OUTPUT.job says which job that is, so that nothing else is appended to it.

#include <charconv>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cobatch/semaphore.hpp>

#include <nlohmann/json.hpp>

namespace production {

using json = nlohmann::json;

/// A message for whoever has started the program: nothing was done.
struct refused : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// A string as JSON writes it, whatever its bytes are.
inline std::string quoted(const std::string& text) {
  return json(text).dump(-1, ' ', false, json::error_handler_t::replace);
}

/// The path with the number of the error that the last system call left.
inline std::string why_not(const std::string& path) { return path + ": " + std::generic_category().message(errno); }

/// An open file, closed with it.
class descriptor {
 public:
  descriptor(const std::string& path, int flags) : path_(path), number_(::open(path.c_str(), flags | O_CLOEXEC, 0666)) {
    if (number_ < 0) throw refused(why_not(path));
  }
  descriptor(const descriptor&) = delete;
  descriptor& operator=(const descriptor&) = delete;
  ~descriptor() { ::close(number_); }

  int number() const noexcept { return number_; }
  void write(std::string_view text) {
    while (!text.empty()) {
      const ssize_t written = ::write(number_, text.data(), text.size());
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) throw std::runtime_error(why_not(path_));
      text.remove_prefix(static_cast<std::size_t>(written));
    }
  }
  void sync() {
    if (::fsync(number_) != 0) throw std::runtime_error(why_not(path_));
  }

 private:
  std::string path_;
  int number_;
};

/// Readers, and whoever comes after a crash, see the old file or the new one, never a part.
inline void write_whole(const std::string& path, const std::string& text) {
  const std::string draft = path + ".new";
  {
    descriptor file(draft, O_WRONLY | O_CREAT | O_TRUNC);
    file.write(text);
    file.sync();
  }
  if (std::rename(draft.c_str(), path.c_str()) != 0) throw std::runtime_error(why_not(path));
  const std::string folder = std::filesystem::path(path).parent_path().string();
  descriptor(folder.empty() ? "." : folder, O_RDONLY | O_DIRECTORY).sync();
}

/// By which the input is known again, and how many lines it has. The hash is FNV-1a: it tells files apart that differ
/// by mistake, not by malice.
struct input_facts {
  explicit input_facts(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file || std::filesystem::is_directory(path)) throw refused(path + ": cannot be read");
    std::vector<char> buffer(1 << 20);
    bool open_line = false;
    do {
      file.read(buffer.data(), static_cast<std::streamsize>(buffer.size()));
      for (const char c : std::string_view(buffer.data(), static_cast<std::size_t>(file.gcount()))) {
        hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
        open_line = c != '\n';
        if (!open_line) ++lines;
      }
      bytes += static_cast<std::uint64_t>(file.gcount());
    } while (file);
    if (file.bad()) throw refused(path + ": cannot be read to its end");
    if (open_line) ++lines;
  }

  std::uint64_t bytes = 0;
  std::uint64_t hash = 0xcbf29ce484222325u;
  std::size_t lines = 0;
};

/// The records, one line each, in the order of the rows.
///
/// Thread safety: any thread, but next_record() by one at a time.
/// Errors: std::runtime_error where the file cannot be written. What was written before is right.
class output_file {
 public:
  struct counts {
    std::size_t results = 0, errors = 0;
    std::size_t all() const noexcept { return results + errors; }
  };

  /// Goes on where the file ends; cuts off a last line that was being written. `job` is what must be the same.
  ///
  /// Errors: `refused` where the file is another job's, is damaged, or another process is at it.
  output_file(const std::string& path, const json& job, std::size_t fsync_every, std::size_t give_up)
      : file_(path, O_RDWR | O_CREAT | O_APPEND), fsync_every_(fsync_every), give_up_(give_up) {
    if (::flock(file_.number(), LOCK_EX | LOCK_NB) != 0) {
      throw refused(path + ": another bulk_job is writing it; wait for its end, or stop it");
    }
    const std::string side = path + ".job";
    if (std::filesystem::file_size(path) == 0) {
      write_whole(side, job.dump(2) + "\n");
      return;
    }
    check_job(path, side, job);
    go_on(path);
  }

  /// What stands in the file.
  counts written() const {
    const std::lock_guard lock(mutex_);
    return written_;
  }

  /// For whoever reads the rows: so many bad ones may wait for the records before them.
  cobatch::async_semaphore room{1000};

  /// A row that is not sent. It is kept until it is its turn, and then gives its permit back to `room`.
  void bad_row(std::size_t number, const std::string& problem, cobatch::permit place) {
    const std::lock_guard lock(mutex_);
    ahead_.emplace(number, early{"\"error\":" + quoted(problem), std::move(place)});
    append_ahead();
  }

  /// The record of the first row that has none: `"result":...` or `"error":...`. All bad rows before it have been told.
  ///
  /// Rows without an answer are kept until one with an answer comes. False: too many came in a row; then the endpoint is
  /// down, and they are not written, so that the next run sends them again.
  bool next_record(std::string text, bool answered) {
    const std::lock_guard lock(mutex_);
    if (!answered) {
      unanswered_.push_back(std::move(text));
      ++in_a_row_;
    } else {
      append_unanswered();
      append(text);
    }
    append_ahead();
    return in_a_row_ < give_up_;
  }

  /// No more records come. If they are all here, those that were kept are written too.
  void close(std::size_t rows) {
    const std::lock_guard lock(mutex_);
    if (written_.all() + unanswered_.size() == rows) append_unanswered();
    file_.sync();
  }

 private:
  struct early {
    std::string text;
    cobatch::permit place;
  };

  static void check_job(const std::string& path, const std::string& side, const json& job) {
    std::ifstream file(side);
    const json begun = json::parse(file, nullptr, false);
    if (!begun.is_object()) {
      throw refused(path + " is not empty, and there is no " + side + " that says what it is: name another --output");
    }
    for (const auto& [name, value] : job.items()) {
      if (begun.contains(name) && begun[name] == value) continue;
      throw refused(path + " was begun with another " + name + ": " + begun.value(name, json()).dump() + ", now " +
                    value.dump() + ". Go on with what it was begun with, or name another --output");
    }
  }

  void go_on(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::uintmax_t whole = 0;
    for (std::string line; std::getline(file, line) && !file.eof();) {  // a last line without an end was being written
      const std::string start = beginning(written_.all());
      const std::string_view rest = line.starts_with(start) ? std::string_view(line).substr(start.size()) : "";
      const bool is_result = rest.starts_with("\"result\":");
      if (!rest.ends_with("}") || !(is_result || rest.starts_with("\"error\":"))) {
        throw refused(path + ", line " + std::to_string(written_.all() + 1) + " is not the record " +
                      std::to_string(written_.all()) +
                      ": the file was changed. Cut it off before this line, or name another --output");
      }
      ++(is_result ? written_.results : written_.errors);
      whole += line.size() + 1;
    }
    if (file.bad()) throw refused(path + ": cannot be read to its end");
    if (::ftruncate(file_.number(), static_cast<off_t>(whole)) != 0) throw refused(why_not(path));
  }

  static std::string beginning(std::size_t number) { return "{\"record\":" + std::to_string(number) + ","; }

  // Under the lock. One write for each record: after a kill, what came before stands there.
  void append(const std::string& text) {
    file_.write(beginning(written_.all()) + text + "}\n");
    ++(text.starts_with("\"result\":") ? written_.results : written_.errors);
    if (fsync_every_ != 0 && written_.all() % fsync_every_ == 0) file_.sync();
  }
  void append_unanswered() {
    in_a_row_ = 0;
    const std::vector<std::string> kept = std::exchange(unanswered_, {});
    for (const std::string& each : kept) append(each);
  }
  void append_ahead() {
    while (!ahead_.empty() && ahead_.begin()->first == written_.all() + unanswered_.size()) {
      const auto first = ahead_.extract(ahead_.begin());
      if (unanswered_.empty()) {
        append(first.mapped().text);
      } else {
        unanswered_.push_back(first.mapped().text);
      }
    }
  }

  descriptor file_;
  const std::size_t fsync_every_, give_up_;

  mutable std::mutex mutex_;  // guards all below, and writing
  counts written_;
  std::map<std::size_t, early> ahead_;
  std::vector<std::string> unanswered_;  // and bad rows between them
  std::size_t in_a_row_ = 0;
};

}  // namespace production
