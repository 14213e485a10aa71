// SPDX-License-Identifier: BSL-1.0
#pragma once

// The ways to call an engine that runs the digits network, compared: how many images a second a plain loop,
// batch_predict_many and a micro_batcher get done, and whether all answers are those of ../digits.hpp.
//
// A model takes a batch and returns its logits. So does an engine, which several threads of a pool call at once; one that
// waits for something else returns a task of them.

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <functional>
#include <numeric>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <cobatch/cobatch.hpp>

#include "../digits.hpp"

namespace production {

using logits = std::array<float, 10>;
using images = std::vector<digits::image>;
using answers = std::vector<logits>;

/// Measures several ways in turns, and counts wrong answers.
class comparison {
 public:
  /// `count` images of `folder`, those of its file over and over.
  comparison(const std::string& folder, std::size_t count) {
    const auto network = digits::mlp::load(folder + "digits_mlp.txt");
    const auto file = digits::csv_file::open(folder + "digits_test.csv");
    if (!network || !file) throw std::runtime_error(!network ? network.error() : file.error());
    for (std::size_t i = 0; i < count; ++i) {
      all_.push_back(file->parse(file->lines()[i % file->lines().size()]).value());
    }
    right_ = (*network)(all_);
  }

  /// `run(images, answers&)` fills them in.
  void add(std::string name, std::function<void(const images&, answers&)> run) {
    ways_.push_back({std::move(name), std::move(run), {}});
  }

  void measure() {
    for (way& each : ways_) {
      answers given(all_.size());
      const auto began = std::chrono::steady_clock::now();
      each.run(all_, given);
      const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
      each.per_second.push_back(static_cast<double>(all_.size()) / took.count());
      for (std::size_t i = 0; i < given.size(); ++i) wrong_ += is_close(given[i], right_[i]) ? 0 : 1;
    }
  }

  void print() const {
    std::printf("%-52s %10s %9s %9s\n", "images/s", "median", "lowest", "highest");
    for (const way& each : ways_) {
      std::vector<double> all = each.per_second;
      std::sort(all.begin(), all.end());
      if (all.empty()) continue;
      std::printf("%-52s %10.0f %9.0f %9.0f\n", each.name.c_str(), all[all.size() / 2], all.front(), all.back());
    }
    std::printf("%zu wrong answers\n", wrong_);
  }

  std::size_t wrong() const { return wrong_; }

 private:
  struct way {
    std::string name;
    std::function<void(const images&, answers&)> run;
    std::vector<double> per_second;
  };

  /// Up to the order in which floats are added up.
  static bool is_close(const logits& a, const logits& b) {
    return std::equal(a.begin(), a.end(), b.begin(),
                      [](float x, float y) { return std::abs(x - y) <= 1e-4f * (1 + std::abs(y)); });
  }

  images all_;
  answers right_;
  std::vector<way> ways_;
  std::size_t wrong_ = 0;
};

struct limits {
  std::size_t batch;
  std::size_t in_flight;  ///< batches
};

template <class Model>
void plain_loop(Model& model, std::size_t batch, const images& all, answers& given) {
  for (std::size_t i = 0; i < all.size(); i += batch) {
    const answers some = model(std::span(all).subspan(i, std::min(batch, all.size() - i)));
    std::copy(some.begin(), some.end(), given.begin() + static_cast<std::ptrdiff_t>(i));
  }
}

/// All images are there: they are cut into batches.
template <class Engine>
void all_at_once(cobatch::thread_pool& pool, Engine& engine, limits at_most, const images& all, answers& given) {
  const auto predict_many = [&](std::span<const digits::image> batch) { return engine(batch); };
  const auto results = cobatch::sync_wait(cobatch::batch_predict_many(
      pool, all, predict_many, {.max_batch_size = at_most.batch}, {.max_concurrency = at_most.in_flight}));
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

template <class Engine>
void callers_batched(cobatch::thread_pool& pool, Engine& engine, limits at_most, std::size_t callers, const images& all,
                     answers& given) {
  const auto predict_many = [&](std::span<const digits::image> batch) { return engine(batch); };
  cobatch::micro_batcher<digits::image, logits> batcher(pool, predict_many,
                                                        {.max_batch_size = at_most.batch,
                                                         .max_delay = std::chrono::microseconds(200),
                                                         .max_concurrent_batches = at_most.in_flight});
  many_callers(pool, callers, all, given, [&](const digits::image& image) { return batcher.predict(image); });
  cobatch::sync_wait(batcher.close());
}

template <class Engine>
void callers_alone(cobatch::thread_pool& pool, Engine& engine, std::size_t callers, const images& all, answers& given) {
  const auto ask = [&](const digits::image& image) -> cobatch::task<cobatch::expected<logits, cobatch::error>> {
    co_await pool.schedule();  // another caller's turn
    co_return engine(std::span(&image, 1)).front();
  };
  many_callers(pool, callers, all, given, ask);
}

template <class Model>
void add_plain_loops(comparison& table, Model& model) {
  table.add("plain loop, one by one", [&](const images& all, answers& given) { plain_loop(model, 1, all, given); });
  for (const std::size_t batch : {8, 32}) {
    table.add("plain loop, batches of " + std::to_string(batch),
              [&model, batch](const images& all, answers& given) { plain_loop(model, batch, all, given); });
  }
}

/// For an engine that is a thread of the pool to the end of a batch.
template <class Engine>
void add_ways_on_pool(comparison& table, cobatch::thread_pool& pool, Engine& engine, std::size_t callers) {
  const std::size_t count = pool.concurrency();
  const limits at_most{.batch = 32, .in_flight = count};
  const std::string workers = ", " + std::to_string(count) + (count == 1 ? " worker" : " workers");
  table.add("batch_predict_many, batches of 32" + workers,
            [&, at_most](const images& all, answers& given) { all_at_once(pool, engine, at_most, all, given); });
  table.add("many callers, one by one" + workers,
            [&, callers](const images& all, answers& given) { callers_alone(pool, engine, callers, all, given); });
  table.add("many callers, micro_batcher" + workers, [&, at_most, callers](const images& all, answers& given) {
    callers_batched(pool, engine, at_most, callers, all, given);
  });
}

}  // namespace production
