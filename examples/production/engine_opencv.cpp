// SPDX-License-Identifier: BSL-1.0
//
// A real engine: the digits network as an ONNX file (digits_onnx.py writes it), run by OpenCV's DNN module. A
// cv::dnn::Net is for one thread at a time, so each worker of the pool has its own.
//
// Prints how many images a second a plain loop, batch_predict_many and a micro_batcher get done. Exit status 0: all
// answers are those of ../digits.hpp.
#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <exception>
#include <functional>
#include <numeric>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <opencv2/core.hpp>
#include <opencv2/dnn.hpp>

#include <cobatch/cobatch.hpp>

#include "../digits.hpp"
#include "options.hpp"

using namespace std::chrono_literals;
using logits = std::array<float, 10>;
using images = std::vector<digits::image>;
using answers = std::vector<logits>;

// ---- The engine ----

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

// ---- The ways to call it ----

/// Measures several ways in turns, and counts wrong answers.
class comparison {
 public:
  comparison(const images& all, const answers& right) : all_(all), right_(right) {}

  /// `run(answers&)` fills them in.
  void add(std::string name, std::function<void(answers&)> run) { ways_.push_back({std::move(name), std::move(run), {}}); }

  void measure() {
    for (way& each : ways_) {
      answers given(all_.size());
      const auto began = std::chrono::steady_clock::now();
      each.run(given);
      const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
      each.per_second.push_back(static_cast<double>(all_.size()) / took.count());
      for (std::size_t i = 0; i < given.size(); ++i) wrong_ += is_close(given[i], right_[i]) ? 0 : 1;
    }
  }

  void print() const {
    std::printf("%-46s %10s %9s %9s\n", "images/s", "median", "lowest", "highest");
    for (const way& each : ways_) {
      std::vector<double> all = each.per_second;
      std::sort(all.begin(), all.end());
      std::printf("%-46s %10.0f %9.0f %9.0f\n", each.name.c_str(), all[all.size() / 2], all.front(), all.back());
    }
  }

  std::size_t wrong() const { return wrong_; }

 private:
  struct way {
    std::string name;
    std::function<void(answers&)> run;
    std::vector<double> per_second;
  };

  /// Up to the order in which floats are added up.
  static bool is_close(const logits& a, const logits& b) {
    return std::equal(a.begin(), a.end(), b.begin(),
                      [](float x, float y) { return std::abs(x - y) <= 1e-4f * (1 + std::abs(y)); });
  }

  const images& all_;
  const answers& right_;
  std::vector<way> ways_;
  std::size_t wrong_ = 0;
};

void plain_loop(opencv_model& model, const images& all, std::size_t batch, answers& given) {
  for (std::size_t i = 0; i < all.size(); i += batch) {
    const answers some = model(std::span(all).subspan(i, std::min(batch, all.size() - i)));
    std::copy(some.begin(), some.end(), given.begin() + static_cast<std::ptrdiff_t>(i));
  }
}

/// All images are there: they are cut into batches, and each worker computes one after another.
void all_at_once(cobatch::thread_pool& pool, opencv_engine& engine, const images& all, answers& given) {
  const auto predict_many = [&](std::span<const digits::image> batch) { return engine(batch); };
  const auto results = cobatch::sync_wait(cobatch::batch_predict_many(pool, all, predict_many, {.max_batch_size = 32}));
  for (std::size_t i = 0; i < results.size(); ++i) given[i] = results[i].value();
}

/// As many callers, each of which waits for its answer before it asks again; `ask(image)` is an awaitable of an
/// expected answer.
template <class Ask>
void many_callers(cobatch::thread_pool& pool, std::size_t callers, const images& all, answers& given, Ask ask) {
  std::vector<std::size_t> numbers(callers);
  std::iota(numbers.begin(), numbers.end(), 0);
  const auto caller = [&](std::size_t first) -> cobatch::task<void> {
    for (std::size_t i = first; i < all.size(); i += callers) {
      const auto answer = co_await ask(all[i]);
      given[i] = answer.value();
    }
  };
  for (const auto& each : cobatch::sync_wait(cobatch::batch_predict(pool, numbers, caller))) each.value();
}

void callers_batched(cobatch::thread_pool& pool, opencv_engine& engine, std::size_t callers, const images& all,
                     answers& given) {
  const auto predict_many = [&](std::span<const digits::image> batch) { return engine(batch); };
  cobatch::micro_batcher<digits::image, logits> batcher(
      pool, predict_many, {.max_batch_size = 32, .max_delay = 200us, .max_concurrent_batches = pool.concurrency()});
  many_callers(pool, callers, all, given, [&](const digits::image& image) { return batcher.predict(image); });
  cobatch::sync_wait(batcher.close());
}

void callers_alone(cobatch::thread_pool& pool, opencv_engine& engine, std::size_t callers, const images& all,
                   answers& given) {
  const auto ask = [&](const digits::image& image) -> cobatch::task<cobatch::expected<logits, cobatch::error>> {
    co_await pool.schedule();  // another caller's turn
    co_return engine(std::span(&image, 1)).front();
  };
  many_callers(pool, callers, all, given, ask);
}

int run(const production::options& given) {
  const std::string folder = std::string(COBATCH_EXAMPLE_DATA) + "/digits/";
  const auto network = digits::mlp::load(folder + "digits_mlp.txt");
  const auto file = digits::csv_file::open(folder + "digits_test.csv");
  if (!network || !file) throw std::runtime_error(!network ? network.error() : file.error());
  images all;
  for (std::size_t i = 0; i < given.size("images"); ++i) {
    all.push_back(file->parse(file->lines()[i % file->lines().size()]).value());
  }
  const answers right = (*network)(all);

  cv::setNumThreads(1);  // the pool has the threads
  const std::string& onnx = given.text("onnx");
  const std::size_t callers = given.size("callers");
  opencv_model model(onnx);
  cobatch::thread_pool one(1), two(2);
  opencv_engine on_one(onnx, one), on_two(onnx, two);
  comparison table(all, right);
  table.add("plain loop, one by one", [&](answers& into) { plain_loop(model, all, 1, into); });
  table.add("plain loop, batches of 8", [&](answers& into) { plain_loop(model, all, 8, into); });
  table.add("plain loop, batches of 32", [&](answers& into) { plain_loop(model, all, 32, into); });
  table.add("batch_predict_many, batches of 32, 1 worker", [&](answers& into) { all_at_once(one, on_one, all, into); });
  table.add("batch_predict_many, batches of 32, 2 workers", [&](answers& into) { all_at_once(two, on_two, all, into); });
  table.add("many callers, one by one, 1 worker", [&](answers& into) { callers_alone(one, on_one, callers, all, into); });
  table.add("many callers, one by one, 2 workers", [&](answers& into) { callers_alone(two, on_two, callers, all, into); });
  table.add("many callers, micro_batcher, 1 worker", [&](answers& into) { callers_batched(one, on_one, callers, all, into); });
  table.add("many callers, micro_batcher, 2 workers", [&](answers& into) { callers_batched(two, on_two, callers, all, into); });
  for (std::size_t i = 0; i < given.size("rounds"); ++i) table.measure();
  table.print();
  std::printf("%zu wrong answers\n", table.wrong());
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
