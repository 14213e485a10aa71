#pragma once

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include <support/compute.hpp>
#include <support/statistics.hpp>

/// A table of kinds of work, one row each, over numbers of threads: how its cells are measured and printed.

namespace bench {

inline std::size_t cores() {
  return std::max(1u, std::thread::hardware_concurrency());
}

// ---- Measuring ----

/// What the whole process has used so far.
struct usage {
  double cpu_seconds = 0;
  double voluntary_switches = 0;
  double involuntary_switches = 0;

  static usage now() {
    rusage used{};
    ::getrusage(RUSAGE_SELF, &used);
    const auto seconds = [](const timeval& t) {
      return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) / 1e6;
    };
    return {seconds(used.ru_utime) + seconds(used.ru_stime), static_cast<double>(used.ru_nvcsw),
            static_cast<double>(used.ru_nivcsw)};
  }
  usage& operator+=(const usage& other) {
    cpu_seconds += other.cpu_seconds;
    voluntary_switches += other.voluntary_switches;
    involuntary_switches += other.involuntary_switches;
    return *this;
  }
  friend usage operator-(usage a, const usage& b) {
    return {a.cpu_seconds - b.cpu_seconds, a.voluntary_switches - b.voluntary_switches,
            a.involuntary_switches - b.involuntary_switches};
  }
  usage operator/(double by) const { return {cpu_seconds / by, voluntary_switches / by, involuntary_switches / by}; }
};

/// What the machine's processors have done so far, in ticks: all of it, and what was not idling.
struct processor_time {
  double all = 0;
  double busy = 0;

  static processor_time now() {
    processor_time sum;
    std::ifstream stat("/proc/stat");
    std::string label;
    stat >> label;
    double ticks = 0;
    // user, nice, system, idle, iowait, irq, softirq, steal
    for (int i = 0; i < 8 && stat >> ticks; ++i) {
      sum.all += ticks;
      if (i != 3 && i != 4) sum.busy += ticks;
    }
    return sum;
  }
};

/// One batch: `run()`, which is timed, then `right(its result)`. `ideal`: the seconds that it should take.
template <class Run, class Right>
struct batch_job {
  Run run;
  Right right;
  double ideal = 0;
};
template <class Run, class Right>
batch_job(Run, Right, double = 0) -> batch_job<Run, Right>;

struct measured {
  double seconds = 0;  ///< the median of the runs
  double spread = 0;   ///< half of the middle half of the runs, relative to the median
  double over_ideal = 0;
  usage used;         ///< the mean of the runs
  double others = 0;  ///< the share of the processors that other programs had meanwhile
};

template <class Job>
bool run_once(Job& job, double& seconds, usage& used) {
  const usage before = usage::now();
  const auto begin = std::chrono::steady_clock::now();
  const auto outcomes = job.run();
  seconds = seconds_since(begin);
  used = usage::now() - before;
  return job.right(outcomes);
}

template <class Job>
measured measure(std::string_view name, std::size_t runs, Job job) {
  std::vector<double> seconds(runs);
  double warm_up = 0;
  usage one, all;
  bool right = run_once(job, warm_up, one);
  for (double& each : seconds) {
    right = run_once(job, each, one) && right;
    all += one;
  }
  if (!right) {
    std::fprintf(stderr, "%.*s: wrong results\n", static_cast<int>(name.size()), name.data());
    std::exit(EXIT_FAILURE);
  }
  measured cell;
  cell.seconds = median(seconds);
  cell.spread = (quantile(seconds, 0.75) - quantile(seconds, 0.25)) / 2 / cell.seconds;
  cell.over_ideal = job.ideal > 0 ? cell.seconds / job.ideal : 0;
  cell.used = all / static_cast<double>(runs);
  return cell;
}

// ---- Rows ----

enum class unit : std::uint8_t { ns_per_sample, us_per_batch, wall_over_ideal };

struct row {
  std::string_view name;
  std::string_view title;
  unit shown = unit::ns_per_sample;
  std::string_view goal{};  ///< at 16 threads on as many cores
  std::size_t samples = 1'000'000;
  std::size_t runs = 5;
  bool beyond_cores = false;  ///< also with 24 and 64 threads, however many cores there are
  std::function<measured(std::size_t threads)> measure_with{};

  double value(const measured& cell) const {
    switch (shown) {
      case unit::us_per_batch:
        return cell.seconds * 1e6;
      case unit::wall_over_ideal:
        return cell.over_ideal;
      default:
        return ns_per_sample(cell);
    }
  }
  /// The calmest of some tries; the first that other programs hardly disturb will do.
  measured measure_calmly(std::size_t threads, int tries) const {
    measured calmest;
    for (int i = 0; i < tries; ++i) {
      if (i > 0) std::this_thread::sleep_for(std::chrono::seconds(1));
      const processor_time before = processor_time::now();
      const usage own_before = usage::now();
      measured cell = measure_with(threads);
      const processor_time after = processor_time::now();
      const double own = (usage::now() - own_before).cpu_seconds * static_cast<double>(::sysconf(_SC_CLK_TCK));
      if (after.all > before.all) {
        cell.others = std::max(0.0, after.busy - before.busy - own) / (after.all - before.all);
      }
      if (i == 0 || cell.others < calmest.others) calmest = cell;
      if (calmest.others < 0.05) break;
    }
    return calmest;
  }
  double ns_per_sample(const measured& cell) const { return cell.seconds * 1e9 / static_cast<double>(samples); }
};

class table {
 public:
  explicit table(bool quick) : quick_(quick) {}

  /// `set_up(samples, threads)`, outside the time, gives a batch_job.
  template <class SetUp>
  void add(row what, SetUp set_up) {
    if (quick_) {
      if (what.samples >= 10'000) what.samples /= 10;
      what.runs = std::min<std::size_t>(what.runs, 3);
    }
    what.measure_with = [name = what.name, runs = what.runs, samples = what.samples, set_up](std::size_t threads) {
      return measure(name, runs, set_up(samples, threads));
    };
    rows_.push_back(std::move(what));
  }

  const std::vector<row>& rows() const { return rows_; }

 private:
  bool quick_;
  std::vector<row> rows_;
};

// ---- The table ----

inline std::string formatted(double value) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), value >= 100 ? "%.0f" : value >= 10 ? "%.1f" : "%.2f", value);
  return text.data();
}

inline void print_line(std::string_view title, const std::vector<std::string>& cells, std::string_view last) {
  std::printf("%-*.*s", 46, static_cast<int>(title.size()), title.data());
  for (const std::string& each : cells) std::printf("%*s", 9, each.c_str());
  std::printf("%s%.*s\n", last.empty() ? "" : "  ", static_cast<int>(last.size()), last.data());
  std::fflush(stdout);
}

struct command_line {
  std::vector<std::size_t> threads;
  std::string csv;
  std::string_view only;
  bool quick = false;
  bool patient = false;
};

inline bool parse(std::span<char*> arguments, command_line& wanted) {
  for (const std::string_view argument : arguments) {
    if (argument == "--quick") {
      wanted.quick = true;
    } else if (argument == "--patient") {
      wanted.patient = true;
    } else if (argument.starts_with("--csv=")) {
      wanted.csv = argument.substr(6);
    } else if (argument.starts_with("--only=")) {
      wanted.only = argument.substr(7);
    } else {
      std::size_t count = 0;
      const char* const end = argument.data() + argument.size();
      if (const auto [stop, bad] = std::from_chars(argument.data(), end, count);
          bad != std::errc() || stop != end || count == 0) {
        return false;
      }
      wanted.threads.push_back(count);
    }
  }
  if (wanted.threads.empty()) {
    for (std::size_t count = 1; count < cores(); count *= 2) wanted.threads.push_back(count);
    wanted.threads.push_back(cores());
  }
  return true;
}

/// The columns: what was asked for, then what some rows have beyond it.
inline std::vector<std::size_t> columns_of(const command_line& wanted) {
  std::vector<std::size_t> columns = wanted.threads;
  for (const std::size_t more : {std::size_t{24}, std::size_t{64}}) {
    if (std::ranges::find(columns, more) == columns.end()) columns.push_back(more);
  }
  return columns;
}

inline void write_csv(std::FILE* csv, const row& of, std::size_t threads, const measured& cell) {
  constexpr std::array units{"ns_per_sample", "us_per_batch", "wall_over_ideal"};
  std::fprintf(csv, "%s,\"%s\",\"%s\",%s,%zu,%zu,%.5g,%.5g,%.3f,%zu,%.6g,%.2f,%.2f,%.2f\n",
               std::string(of.name).c_str(), std::string(of.title).c_str(), std::string(of.goal).c_str(),
               units[static_cast<std::size_t>(of.shown)], threads, cores(), of.value(cell), of.ns_per_sample(cell),
               cell.spread, of.runs, cell.used.cpu_seconds * 1e6, cell.used.voluntary_switches,
               cell.used.involuntary_switches, cell.others);
  std::fflush(csv);
}

inline void print(const table& all, const command_line& wanted, std::FILE* csv) {
  const std::vector<std::size_t> columns = columns_of(wanted);
  std::vector<std::string> head;
  for (const std::size_t threads : columns) head.push_back("T = " + std::to_string(threads));
  std::printf("%zu hardware threads. ns per sample where no unit is said; below it what one batch used.\n\n", cores());
  print_line("", head, "goal at T = 16");
  if (csv != nullptr) {
    std::fputs(
        "name,title,goal,unit,threads,cores,value,ns_per_sample,spread,runs,cpu_us_per_batch,"
        "voluntary_switches_per_batch,involuntary_switches_per_batch,others\n",
        csv);
  }
  std::vector<double> others;
  for (const row& each : all.rows()) {
    if (each.name.find(wanted.only) == std::string_view::npos) continue;
    std::vector<std::string> values, cpu, switches;
    for (std::size_t i = 0; i < columns.size(); ++i) {
      if (i >= wanted.threads.size() && !each.beyond_cores) break;
      const measured cell = each.measure_calmly(columns[i], wanted.patient ? 60 : 1);
      others.push_back(cell.others);
      if (csv != nullptr) write_csv(csv, each, columns[i], cell);
      values.push_back(formatted(each.value(cell)));
      cpu.push_back(formatted(cell.used.cpu_seconds * 1e3));
      switches.push_back(formatted(cell.used.voluntary_switches + cell.used.involuntary_switches));
    }
    if (!each.goal.empty()) values.resize(columns.size());
    print_line(each.title, values, each.goal);
    print_line("    processor time, ms", cpu, "");
    print_line("    context switches", switches, "");
  }
  if (const double typical = 100 * median(others), worst = 100 * quantile(others, 1); worst >= 1) {
    std::printf("\nMeanwhile other programs had %.0f %% of the processors (%.0f %% in the worst cell).\n", typical,
                worst);
  }
}

/// The main of a program: `add_rows(table)` adds its rows.
template <class AddRows>
int run_table(std::span<char*> arguments, AddRows add_rows) {
  command_line wanted;
  if (!parse(arguments, wanted)) {
    std::fputs("usage: [--csv=FILE] [--only=TEXT] [--quick] [--patient] [THREADS...]\n", stderr);
    return 2;
  }
  table all(wanted.quick);
  add_rows(all);
  std::FILE* const csv = wanted.csv.empty() ? nullptr : std::fopen(wanted.csv.c_str(), "w");
  if (!wanted.csv.empty() && csv == nullptr) {
    std::perror(wanted.csv.c_str());
    return EXIT_FAILURE;
  }
  print(all, wanted, csv);
  if (csv != nullptr) std::fclose(csv);
  return EXIT_SUCCESS;
}

}  // namespace bench
