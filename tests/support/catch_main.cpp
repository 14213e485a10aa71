// SPDX-License-Identifier: BSL-1.0
#define CATCH_CONFIG_RUNNER  // Catch2 version 2 defines itself in this file; version 3 comes as a library
#include "support/catch.hpp"

#if __has_include(<catch2/catch_session.hpp>)
#include <catch2/catch_session.hpp>
#endif

int main(int argc, char* argv[]) {
  return Catch::Session().run(argc, argv);
}
