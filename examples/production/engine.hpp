// SPDX-License-Identifier: BSL-1.0
#pragma once

// The model behind the programs of this folder, chosen by name. A model is one function: many images in, as many rows
// of ten logits out. To serve your own, write another one of these.

#include <array>
#include <chrono>
#include <functional>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <cobatch/cobatch.hpp>

#include "../digits.hpp"

namespace production {

using logits = std::array<float, 10>;
using images = std::span<const digits::image>;

/// A call of the model. Each is given to a micro_batcher, which may run several at once.
using predict_many = std::function<cobatch::task<std::vector<logits>>(images)>;

/// The network of ../digits.hpp: plain C++, some microseconds for an image. Without state, so all threads share it.
inline predict_many digits_engine(const std::string& file) {
  auto network = digits::mlp::load(file);
  if (!network) throw std::runtime_error(network.error());
  const auto shared = std::make_shared<const digits::mlp>(*std::move(network));
  return [shared](images batch) -> cobatch::task<std::vector<logits>> { co_return (*shared)(batch); };
}

/// The same answers from a simulated accelerator: one call at a time, 2 ms for a call and 20 us more for each image.
/// It suspends and blocks no thread, as a device does that is waited for through a callback.
inline predict_many accelerator_engine(const std::string& file, cobatch::thread_pool& pool) {
  using namespace std::chrono_literals;
  const auto busy = std::make_shared<cobatch::async_semaphore>(1);
  auto network = digits::mlp::load(file);
  if (!network) throw std::runtime_error(network.error());
  const auto shared = std::make_shared<const digits::mlp>(*std::move(network));
  return [busy, shared, &pool](images batch) -> cobatch::task<std::vector<logits>> {
    const auto turn = co_await busy->acquire();
    const auto ends = std::chrono::steady_clock::now() + 2ms + 20us * static_cast<int>(batch.size());
    std::vector<logits> results = (*shared)(batch);  // within the time that the call is to take
    co_await pool.schedule_after(ends - std::chrono::steady_clock::now());
    co_return results;
  };
}

/// "digits" or "accelerator".
inline predict_many make_engine(const std::string& name, cobatch::thread_pool& pool) {
  const std::string file = std::string(COBATCH_EXAMPLE_DATA) + "/digits/digits_mlp.txt";
  if (name == "digits") return digits_engine(file);
  if (name == "accelerator") return accelerator_engine(file, pool);
  throw std::runtime_error("no engine is named " + name + "; there are digits and accelerator");
}

}  // namespace production
