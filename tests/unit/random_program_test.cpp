#include <cstdint>
#include <cstdlib>
#include <random>
#include <string>
#include <utility>

#include "support/catch.hpp"
#include "support/effort.hpp"
#include "support/random_program.hpp"

// COBATCH_RANDOM_SEEDS=1000000: so many programs. COBATCH_RANDOM_SEED=7: this one alone. One that fails is made smaller while
// it fails, and printed.

namespace {

std::uint64_t number_in(const char* variable, std::uint64_t otherwise) {
  const char* const text = std::getenv(variable);
  return text ? std::strtoull(text, nullptr, 10) : otherwise;
}

random_programs::program draw(std::uint64_t seed) {
  std::mt19937_64 random(seed * 0x9e3779b97f4a7c15u);
  return random_programs::draw([&](int least, int most) {
    return least + static_cast<int>(random() % static_cast<std::uint64_t>(most - least + 1));
  });
}

}  // namespace

TEST_CASE("random programs: every outcome of every batch is one that the plan allows") {
  const std::uint64_t only = number_in("COBATCH_RANDOM_SEED", 0);
  const std::uint64_t last = only ? only : number_in("COBATCH_RANDOM_SEEDS", static_cast<std::uint64_t>(effort(600)));
  int failed = 0;
  for (std::uint64_t seed = only ? only : 1; seed <= last && failed < 3; ++seed) {
    random_programs::program all = draw(seed);
    std::string failure = random_programs::failure_of(all);
    if (failure.empty()) continue;
    ++failed;
    while (random_programs::smaller(all, [&](const random_programs::program& less) {
      std::string still = random_programs::failure_of(less);
      if (still.empty()) return false;
      failure = std::move(still);
      all = less;
      return true;
    })) {}
    FAIL_CHECK("COBATCH_RANDOM_SEED=" << seed << ": " << failure << "\n" << random_programs::text_of(all));
  }
}
