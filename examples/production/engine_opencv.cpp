// SPDX-License-Identifier: BSL-1.0
//
// A real engine: the digits network as an ONNX file (digits_onnx.py writes it), run by OpenCV's DNN module. A
// cv::dnn::Net is for one thread at a time, so each worker of the pool has its own.
//
// Prints what engine_comparison.hpp compares. Exit status 0: all answers are those of ../digits.hpp.
#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <span>
#include <string>
#include <vector>

#include <opencv2/core.hpp>
#include <opencv2/dnn.hpp>

#include <cobatch/cobatch.hpp>

#include "../digits.hpp"
#include "engine_comparison.hpp"
#include "options.hpp"

using production::answers;

/// One thread at a time.
///
/// OpenCV plans anew whenever the size of the batch changes, which takes longer than a batch of 32 of this network. So
/// there is a net for each of a few sizes, and a batch between two of them is filled up with zeros.
class opencv_model {
 public:
  explicit opencv_model(const std::string& file) {
    for (const int size : {1, 2, 4, 8, 16, 32}) {
      const int shape[] = {size, 64};
      plan& made = plans_.emplace_back(plan{size, cv::dnn::readNetFromONNX(file), cv::Mat(2, shape, CV_32F, cv::Scalar(0))});
      made.net.setInput(made.input);
      made.net.forward();  // plans
    }
  }

  answers operator()(std::span<const digits::image> batch) {
    answers all;
    while (!batch.empty()) {
      const std::size_t count = std::min<std::size_t>(batch.size(), 32);
      run(batch.first(count), all);
      batch = batch.subspan(count);
    }
    return all;
  }

 private:
  struct plan {
    int size;
    cv::dnn::Net net;
    cv::Mat input;
  };

  void run(std::span<const digits::image> batch, answers& all) {
    const auto fits = [&](const plan& each) { return static_cast<std::size_t>(each.size) >= batch.size(); };
    plan& it = *std::find_if(plans_.begin(), plans_.end(), fits);
    it.input.setTo(0);
    for (std::size_t i = 0; i < batch.size(); ++i) {
      float* const row = it.input.ptr<float>(static_cast<int>(i));
      for (std::size_t k = 0; k < 64; ++k) row[k] = static_cast<float>(batch[i].pixels[k]) / 16;
    }
    it.net.setInput(it.input);
    const cv::Mat output = it.net.forward();
    for (std::size_t i = 0; i < batch.size(); ++i) {
      std::copy_n(output.ptr<float>(static_cast<int>(i)), 10, all.emplace_back().begin());
    }
  }

  std::vector<plan> plans_;
};

/// A model for each worker. Called on a thread of the pool; it does not suspend, so it is that thread to the end.
class opencv_engine {
 public:
  opencv_engine(const std::string& file, const cobatch::thread_pool& pool) : pool_(pool) {
    for (std::size_t i = 0; i < pool.concurrency(); ++i) models_.emplace_back(file);
  }

  answers operator()(std::span<const digits::image> batch) { return models_[pool_.worker_index()](batch); }

 private:
  const cobatch::thread_pool& pool_;
  std::vector<opencv_model> models_;
};

int run(const production::options& given) {
  cv::setNumThreads(1);  // the pool has the threads
  const std::string& onnx = given.text("onnx");
  const std::size_t callers = given.size("callers");
  opencv_model model(onnx);
  cobatch::thread_pool one(1), two(2);
  opencv_engine on_one(onnx, one), on_two(onnx, two);
  production::comparison table(std::string(COBATCH_EXAMPLE_DATA) + "/digits/", given.size("images"));
  production::add_plain_loops(table, model);
  production::add_ways_on_pool(table, one, on_one, callers);
  production::add_ways_on_pool(table, two, on_two, callers);
  for (std::size_t i = 0; i < given.size("rounds"); ++i) table.measure();
  table.print();
  return table.wrong() == 0 ? 0 : 1;
}

int main(int argc, char** argv) {
  const production::options given(
      argc, argv, {{"onnx", COBATCH_DIGITS_ONNX}, {"images", "50000"}, {"callers", "128"}, {"rounds", "5"}});
  try {
    return run(given);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "engine_opencv: %s\n", e.what());
    return 1;
  }
}
