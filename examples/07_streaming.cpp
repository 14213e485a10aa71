// A pipeline over more images than anybody would keep in memory: lines | decode | predict | count, with back-pressure
// throughout. Peak memory does not depend on how many images there are.
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <ranges>
#include <utility>
#include <vector>

#include <cobatch/cobatch.hpp>

#include "digits.hpp"

int main(int argc, char* argv[]) {
  const std::size_t rounds = argc > 1 ? static_cast<std::size_t>(std::strtoul(argv[1], nullptr, 10)) : 100;

  const auto file = digits::csv_file::open(COBATCH_EXAMPLE_DATA "/digits/digits_test.csv");
  const auto model = digits::mlp::load(COBATCH_EXAMPLE_DATA "/digits/digits_mlp.txt");
  if (!file || !model) {
    std::fprintf(stderr, "%s\n", (!file ? file.error() : model.error()).c_str());
    return 1;
  }
  const auto& lines = file->lines();

  cobatch::thread_pool pool;
  struct answer {
    int label;
    int digit;
  };
  const auto decode = [&](std::size_t number) { return file->parse(lines[number % lines.size()]); };
  // A stream's item: the number of the sample, and an expected.
  const auto predict = [&](const auto& item) -> cobatch::expected<answer, digits::failure> {
    return item.result.transform([&](const digits::image& x) { return answer{x.label, digits::digit_of((*model)(x))}; });
  };

  const auto pipeline = [&]() -> cobatch::task<int> {
    // Lazy: a line is decoded when the window of the first stage has room for it.
    auto images = cobatch::predict_stream(pool, std::views::iota(std::size_t{0}, rounds * lines.size()), decode,
                                          {.max_concurrency = 64});
    // The first stage is the input of the second one.
    auto answers = cobatch::predict_stream(pool, images, predict, {.max_concurrency = 64});
    std::size_t seen = 0;
    std::size_t right = 0;
    const auto begin = std::chrono::steady_clock::now();
    for (;;) {
      const auto item = co_await answers.next();
      if (!item) break;
      ++seen;
      if (item->result && item->result->label == item->result->digit) ++right;
    }
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    std::printf("%zu images, %zu right: accuracy %.3f, %.0f images per second\n", seen, right,
                static_cast<double>(right) / static_cast<double>(seen), static_cast<double>(seen) / seconds.count());
    co_return seen == rounds * lines.size() && right == rounds * 487 ? 0 : 1;
  };
  return cobatch::sync_wait(pipeline());
}
