// SPDX-License-Identifier: BSL-1.0
#pragma once

// "--name value" on a command line, with a default for each name; anything else ends the program with a message.

#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <utility>

namespace production {

class options {
 public:
  options(int argc, char** argv, std::map<std::string, std::string> defaults) : values_(std::move(defaults)) {
    for (int i = 1; i < argc; i += 2) {
      const std::string argument = argv[i];
      const auto found = argument.starts_with("--") ? values_.find(argument.substr(2)) : values_.end();
      if (found == values_.end() || i + 1 == argc) {
        std::fprintf(stderr, "%s: \"%s\"; known are, with these defaults:\n", argv[0], argument.c_str());
        for (const auto& [name, value] : values_) std::fprintf(stderr, "  --%s %s\n", name.c_str(), value.c_str());
        std::exit(2);
      }
      found->second = argv[i + 1];
    }
  }

  const std::string& text(const std::string& name) const { return values_.at(name); }

  long number(const std::string& name) const {
    const std::string& value = text(name);
    char* end = nullptr;
    const long parsed = std::strtol(value.c_str(), &end, 10);
    if (value.empty() || *end != '\0' || parsed < 0) {
      std::fprintf(stderr, "--%s: \"%s\" is not a number of 0 or more\n", name.c_str(), value.c_str());
      std::exit(2);
    }
    return parsed;
  }
  std::size_t size(const std::string& name) const { return static_cast<std::size_t>(number(name)); }

 private:
  std::map<std::string, std::string> values_;
};

}  // namespace production
