#pragma once

#include <cstddef>
#include <functional>
#include <optional>
#include <string>

namespace bench {

/// Bytes of memory that this process has in use now, and has had at the most since reset_peak_memory().
std::size_t resident_memory();
std::size_t peak_memory();
void reset_peak_memory();

/// Runs this program once more, as `PROGRAM --peak-memory-of=NAME`, and gives the number that it prints.
std::optional<std::size_t> peak_memory_in_a_process_of_its_own(const std::string& name);

}  // namespace bench
