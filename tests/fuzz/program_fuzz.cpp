// SPDX-License-Identifier: BSL-1.0
// Batches and streams: the bytes are a program, see support/random_program.hpp.
#include "fuzz/bytes.hpp"
#include "support/random_program.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  bytes from(data, size);
  const random_programs::program all = random_programs::draw(
      [&](int least, int most) { return most - least < 256 ? from.pick(least, most) : least + from.pick(0, 255); });
  const std::string failure = random_programs::failure_of(all);
  if (!failure.empty()) std::fprintf(stderr, "%s\n", random_programs::text_of(all).c_str());
  demand(failure.empty(), failure.c_str());
  return 0;
}
