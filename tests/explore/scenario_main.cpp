#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "scenario.hpp"

// explore [part of a name] [schedule]: runs the scenarios whose names have that part; with a schedule, that one run.
//
// In the environment: COBATCH_EXPLORE_PREEMPTIONS, COBATCH_EXPLORE_STALE (bounds of the exhaustive part),
// COBATCH_EXPLORE_RUNS (its most runs), COBATCH_EXPLORE_RANDOM (random runs), COBATCH_EXPLORE_DEPTH, COBATCH_EXPLORE_SEED;
// COBATCH_EXPLORE_STOP: after the first scenario that fails. COBATCH_EXPLORE_WHOLE_TRACE: not only the end of the trace of what fails.

namespace explored {
namespace {

scenario* first = nullptr;
scenario** last = &first;

std::uint64_t number(const char* name, std::uint64_t otherwise) {
  const char* const text = std::getenv(name);
  return text ? std::strtoull(text, nullptr, 10) : otherwise;
}

bool report(const scenario& each, const char* how, const x::result& of, double seconds) {
  const char* const finds = each.bounds.finds;
  if (finds) {
    const bool found = of.failed && of.what.find(finds) != std::string::npos;
    std::printf("%-100s  %-7s %9llu schedules %11llu steps %7.2f s  %s\n", each.name, how,
                static_cast<unsigned long long>(of.runs), static_cast<unsigned long long>(of.steps), seconds,
                found ? "found" : "NOT FOUND");
    if (!found) std::printf("%s\n", of.what.c_str());
    return found;
  }
  std::printf("%-100s  %-7s %9llu schedules %11llu steps %7.2f s  %s\n", each.name, how,
              static_cast<unsigned long long>(of.runs), static_cast<unsigned long long>(of.steps), seconds,
              of.failed     ? "FAILED"
              : of.complete ? "all"
                            : "");
  if (of.failed) {
    const bool whole = std::getenv("COBATCH_EXPLORE_WHOLE_TRACE") != nullptr;
    constexpr std::size_t enough = 12'000;  // of its end
    const std::size_t left_out = whole || of.trace.size() < enough ? 0 : of.trace.size() - enough;
    std::printf("%s%s\n%s\nschedule: %s\n", left_out ? "...\n" : "", of.trace.c_str() + left_out, of.what.c_str(),
                of.schedule.c_str());
  }
  std::fflush(stdout);
  return !of.failed;
}

template <class Explore>
bool timed(const scenario& each, const char* how, Explore explore, bool always_told = true) {
  const auto begin = std::chrono::steady_clock::now();
  const x::result of = explore();
  if (!always_told && !of.failed) return true;
  return report(each, how, of, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
}

bool run(const scenario& each, const char* schedule) {
  x::options bounds;
  bounds.steps = each.bounds.steps;
  if (schedule) return timed(each, "replay", [&] { return x::replay(each.body, schedule, bounds); });
  bounds.preemptions =
      static_cast<int>(number("COBATCH_EXPLORE_PREEMPTIONS", static_cast<std::uint64_t>(each.bounds.preemptions)));
  bounds.stale = static_cast<int>(number("COBATCH_EXPLORE_STALE", static_cast<std::uint64_t>(each.bounds.stale)));
  bounds.most_runs = number("COBATCH_EXPLORE_RUNS", each.bounds.most_runs);
  // First what few interruptions can do: of that nothing is left out.
  const x::options most = bounds;
  for (int some = 0; some <= most.preemptions && bounds.most_runs > 0; ++some) {
    if (each.bounds.finds && some < most.preemptions) continue;
    bounds.preemptions = some;
    bounds.stale = std::min(some, most.stale);
    if (some == most.preemptions) bounds.stale = most.stale;
    const std::string how = std::to_string(bounds.preemptions) + "+" + std::to_string(bounds.stale);
    if (!timed(
            each, how.c_str(), [&] { return x::explore_all(each.body, bounds); }, some == most.preemptions))
      return false;
  }
  const std::uint64_t runs = number("COBATCH_EXPLORE_RANDOM", each.bounds.random_runs);
  if (runs == 0 || each.bounds.finds) return true;
  const auto depth = static_cast<int>(number("COBATCH_EXPLORE_DEPTH", 3));
  const std::uint64_t seed = number("COBATCH_EXPLORE_SEED", 1);
  return timed(each, "random", [&] { return x::explore_at_random(each.body, runs, seed, depth, bounds); });
}

}  // namespace

scenario::scenario(const char* called, plan how, void (*runs)()) : name(called), bounds(how), body(runs) {
  *last = this;
  last = &next;
}

}  // namespace explored

int main(int argc, char** argv) {
  bool fine = true;
  int found = 0;
  for (const explored::scenario* each = explored::first; each; each = each->next) {
    if (argc > 1 && !std::strstr(each->name, argv[1])) continue;
    ++found;
    fine = explored::run(*each, argc > 2 ? argv[2] : nullptr) && fine;
    if (!fine && std::getenv("COBATCH_EXPLORE_STOP")) break;
  }
  if (found == 0) std::printf("no such scenario\n");
  return fine && found != 0 ? 0 : 1;
}
