// SPDX-License-Identifier: BSL-1.0
//
// A real engine: a TorchScript file, as torch.jit.save writes it in Python, run by libtorch. One module serves all threads.
// Where libtorch has CUDA and there is a card, batches also go there, several in flight, and no thread waits for them.
//
//   engine_torch --write digits.pt    makes such a file of the digits network
//   engine_torch --module digits.pt   prints what engine_comparison.hpp compares
//
// Exit status 0: all answers are those of ../digits.hpp.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <fstream>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <ATen/Parallel.h>
#include <torch/script.h>
#ifdef COBATCH_TORCH_CUDA
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>
#include <torch/cuda.h>
#endif

#include <cobatch/cobatch.hpp>

#include "../digits.hpp"
#include "engine_comparison.hpp"
#include "options.hpp"

using production::answers;
using production::images;

// ---- The file ----

/// Reads `text`, the network as ../digits.hpp does, and writes it as a module that takes images by 64 pixels from 0 to 1.
void write_module(const std::string& text, const std::string& target) {
  std::ifstream in(text);
  std::string kind;
  std::int64_t inputs = 0, hidden = 0, outputs = 0;
  in >> kind >> inputs >> hidden >> outputs;
  const auto read = [&](std::vector<std::int64_t> shape) {
    at::Tensor numbers = at::zeros(shape, at::kFloat);
    float* const data = numbers.data_ptr<float>();
    for (std::int64_t i = 0; i < numbers.numel(); ++i) in >> data[i];
    return numbers;
  };
  torch::jit::Module module("digits");
  module.register_attribute("training", c10::BoolType::get(), false);
  module.register_parameter("w1", read({hidden, inputs}), false);
  module.register_parameter("b1", read({hidden}), false);
  module.register_parameter("w2", read({outputs, hidden}), false);
  module.register_parameter("b2", read({outputs}), false);
  if (kind != "mlp" || !in) throw std::runtime_error(text + ": not the network that examples/digits.hpp describes");
  module.define(R"(
def forward(self, pixels: Tensor) -> Tensor:
    hidden = torch.relu(torch.linear(pixels, self.w1, self.b1))
    return torch.linear(hidden, self.w2, self.b2)
)");
  module.save(target);
}

// ---- The engine ----

at::Tensor pixels_of(std::span<const digits::image> batch, at::TensorOptions options) {
  at::Tensor pixels = at::empty({static_cast<std::int64_t>(batch.size()), 64}, options);
  float* next = pixels.data_ptr<float>();
  for (const digits::image& image : batch) {
    for (const auto pixel : image.pixels) *next++ = static_cast<float>(pixel) / 16;
  }
  return pixels;
}

answers answers_of(const at::Tensor& given) {
  const at::Tensor logits = given.contiguous();
  answers all(static_cast<std::size_t>(logits.size(0)));
  const float* next = logits.data_ptr<float>();
  for (auto& each : all) {
    std::copy_n(next, each.size(), each.begin());
    next += each.size();
  }
  return all;
}

/// Any number of threads may call it at once: a module that is not being trained is only read, and all else that a call
/// needs is its own. So all workers share one; a clone for each would cost memory, and is no faster.
class torch_model {
 public:
  explicit torch_model(const std::string& file, at::Device device = at::kCPU)
      : module_(torch::jit::load(file, device)), forward_(module_.get_method("forward")) {
    module_.eval();
    // The first calls watch what comes, and compile for it.
    for (const int size : {1, 8, 32, 32}) logits_of(at::zeros({size, 64}, device));
  }

  answers operator()(std::span<const digits::image> batch) const {
    return answers_of(logits_of(pixels_of(batch, at::kFloat)));
  }

  at::Tensor logits_of(const at::Tensor& pixels) const {
    const c10::InferenceMode no_gradients;  // on this thread, until it is left
    return forward_({pixels}).toTensor();
  }

 private:
  torch::jit::Module module_;
  torch::jit::Method forward_;
};

#ifdef COBATCH_TORCH_CUDA
/// Batches on the card. The coroutine queues the copy there, the network and the copy back on a stream of its own, and is
/// resumed on the pool when the card comes to the end of them: one thread keeps several batches in flight.
class card_engine {
 public:
  explicit card_engine(const std::string& file) : model_(file, at::kCUDA) {}

  cobatch::task<answers> operator()(std::span<const digits::image> batch) const {
    const c10::cuda::CUDAStream stream = c10::cuda::getStreamFromPool();
    const on_its_way now = start(batch, stream);
    cobatch::callback<void> arrived;
    const auto launch = [&](cobatch::callback<void> done) {
      arrived = std::move(done);
      // On a thread of CUDA's, which must not call CUDA: it hands the coroutine to the pool. After an error of the card
      // CUDA calls no such function any more, and the process cannot use the card either.
      const auto resume = [](void* to_call) { (*static_cast<cobatch::callback<void>*>(to_call))(); };
      C10_CUDA_CHECK(cudaLaunchHostFunc(stream.stream(), resume, &arrived));
    };
    const auto outcome = co_await cobatch::from_callback<void>(launch);
    outcome.value();
    co_return answers_of(now.logits);
  }

 private:
  /// What the card reads and writes: it must live until the card is done.
  struct on_its_way {
    at::Tensor pixels, on_card, logits;
  };

  on_its_way start(std::span<const digits::image> batch, c10::cuda::CUDAStream stream) const {
    const c10::cuda::CUDAStreamGuard guard(stream);
    // A copy from or to memory that is not pinned would block.
    const auto pinned = at::TensorOptions().dtype(at::kFloat).pinned_memory(true);
    on_its_way now;
    now.pixels = pixels_of(batch, pinned);
    now.on_card = now.pixels.to(at::kCUDA, /*non_blocking=*/true);
    now.logits = at::empty({now.pixels.size(0), 10}, pinned);
    now.logits.copy_(model_.logits_of(now.on_card), /*non_blocking=*/true);
    return now;
  }

  torch_model model_;
};

void add_ways_on_card(production::comparison& table, cobatch::thread_pool& pool, const card_engine& card) {
  for (const std::size_t in_flight : {1, 4}) {
    const production::limits at_most{.batch = 1024, .in_flight = in_flight};
    const std::string rest = "batches of 1024, " + std::to_string(in_flight) + " in flight";
    table.add("card, batch_predict_many, " + rest, [&, at_most](const images& all, answers& given) {
      production::all_at_once(pool, card, at_most, all, given);
    });
    table.add("card, 4096 callers, " + rest, [&, at_most](const images& all, answers& given) {
      production::callers_batched(pool, card, at_most, 4096, all, given);
    });
  }
}
#endif

int run(const production::options& given) {
  const std::string folder = std::string(COBATCH_EXAMPLE_DATA) + "/digits/";
  if (!given.text("write").empty()) {
    write_module(folder + "digits_mlp.txt", given.text("write"));
    return 0;
  }

  at::set_num_threads(1);  // the pool has the threads
  const torch_model model(given.text("module"));
  const std::size_t callers = given.size("callers");
  cobatch::thread_pool one(1), two(2);
  production::comparison table(folder, given.size("images"));
  production::add_plain_loops(table, model);
  production::add_ways_on_pool(table, one, model, callers);
  production::add_ways_on_pool(table, two, model, callers);
#ifdef COBATCH_TORCH_CUDA
  std::optional<card_engine> card;
  if (torch::cuda::is_available()) add_ways_on_card(table, one, card.emplace(given.text("module")));
#endif
  for (std::size_t i = 0; i < given.size("rounds"); ++i) table.measure();
  table.print();
  return table.wrong() == 0 ? 0 : 1;
}

int main(int argc, char** argv) {
  const production::options given(
      argc, argv, {{"module", "digits.pt"}, {"write", ""}, {"images", "50000"}, {"callers", "128"}, {"rounds", "5"}});
  try {
    return run(given);
  } catch (const c10::Error& e) {
    std::fprintf(stderr, "engine_torch: %s\n", e.what_without_backtrace());
    return 1;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "engine_torch: %s\n", e.what());
    return 1;
  }
}
