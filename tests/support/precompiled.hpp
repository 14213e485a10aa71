// SPDX-License-Identifier: BSL-1.0
// What nearly every test includes and no test changes.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <ranges>
#include <sstream>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "support/catch.hpp"
