// SPDX-License-Identifier: BSL-1.0
// What is written for Prometheus and as JSON, whatever the names, numbers and labels are.
#include <cobatch/metrics.hpp>

#include <array>
#include <cctype>
#include <chrono>
#include <cstddef>
#include <set>
#include <sstream>
#include <string>
#include <string_view>

#include <cobatch/trace.hpp>

#include "fuzz/bytes.hpp"
#include "support/json.hpp"
#include "support/told.hpp"

namespace {

bool is_name(std::string_view text) {
  if (text.empty() || std::isdigit(static_cast<unsigned char>(text[0]))) return false;
  for (const char each : text) {
    if (!std::isalnum(static_cast<unsigned char>(each)) && each != '_' && each != ':') return false;
  }
  return true;
}

/// One line of a sample: name{label="value",...} number.
bool is_sample(std::string_view line) {
  const std::size_t name = line.find_first_of("{ ");
  if (name == line.npos || !is_name(line.substr(0, name))) return false;
  std::set<std::string> labels;
  std::size_t at = name;
  if (line[at] == '{') {
    ++at;
    while (at < line.size() && line[at] != '}') {
      const std::size_t equals = line.find('=', at);
      if (equals == line.npos || !is_name(line.substr(at, equals - at))) return false;
      if (!labels.emplace(line.substr(at, equals - at)).second) return false;
      at = equals + 1;
      if (at >= line.size() || line[at++] != '"') return false;
      while (at < line.size() && line[at] != '"') {
        if (line[at] == '\\') {
          ++at;
          if (at >= line.size() || std::string_view("\\\"n").find(line[at]) == std::string_view::npos) return false;
        }
        ++at;
      }
      if (at >= line.size()) return false;
      ++at;
      if (at < line.size() && line[at] == ',') ++at;
    }
    if (at >= line.size()) return false;
    ++at;
  }
  if (at >= line.size() || line[at++] != ' ') return false;
  const std::string number(line.substr(at));
  std::size_t used = 0;
  try {
    static_cast<void>(std::stod(number, &used));
  } catch (const std::exception&) {
    return number == "+Inf" || number == "-Inf" || number == "NaN";
  }
  return used == number.size();
}

void check_exposition(const std::string& text) {
  demand(text.empty() || text.back() == '\n', "the last line has no end");
  std::set<std::string> seen;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("# ")) continue;
    demand(is_sample(line), line.c_str());
    demand(seen.insert(line.substr(0, line.rfind(' '))).second, "the same sample twice");
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  bytes from(data, size);
  const std::string prefix = from.text(8), name = from.text(8), value = from.text(12), trace_name = from.text(12);
  cobatch::batch_metrics metrics;
  cobatch::trace_recorder trace(trace_name, static_cast<std::size_t>(from.pick(0, 20)));
  cobatch::observers both(metrics, trace);
  teller tells(both, static_cast<std::size_t>(from.pick(0, 9)), static_cast<std::size_t>(from.pick(0, 9)));
  while (!from.empty()) {
    const auto index = static_cast<std::size_t>(from.pick(0, 9));
    const std::chrono::nanoseconds time(std::int64_t{1} << from.pick(0, 40));
    const auto failure = static_cast<cobatch::errc>(from.pick(0, 40));
    switch (from.pick(0, 5)) {
      case 0:
        tells.sample(index, time, index, failure);
        break;
      case 1:
        tells.attempt(index, time, 1, failure, static_cast<std::uint32_t>(index));
        break;
      case 2:
        tells.retry(index, 1, failure, time);
        break;
      case 3:
        tells.taken(index, time, time);
        break;
      case 4:
        tells.now += time;
        break;
      default:
        tells.end();
    }
  }
  std::ostringstream exposition, chrome;
  const std::array labels{cobatch::metric_label{name, value}};
  try {
    metrics.write_prometheus(exposition, prefix, labels);
    check_exposition(exposition.str());
  } catch (const std::invalid_argument&) {
    // A name that Prometheus would not take.
  }
  trace.write_chrome(chrome);
  demand(json_checker::accepts(chrome.str()), "no JSON");
  return 0;
}
