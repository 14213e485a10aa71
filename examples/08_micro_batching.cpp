// Many callers, one model that takes batches: when a micro_batcher pays, and when it does not.
//
// The same requests, by 1, 8 and 64 callers at a time, each of which waits for its answer before it asks again; once
// with a call of the model for each request, and once through a micro_batcher. Two models give the same answers: the
// digits network on this computer, and a simulated accelerator that runs one call at a time, of 2 ms plus 20 us per
// sample.
#include <chrono>
#include <cstdio>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include <cobatch/cobatch.hpp>

#include "digits.hpp"

using namespace std::chrono_literals;
using cobatch::task;
using cobatch::thread_pool;

/// A device that computes for a time that hardly depends on the size of the batch.
class accelerator {
 public:
  accelerator(thread_pool& pool, const digits::mlp& network) : pool_(pool), network_(network) {}

  task<std::vector<int>> predict(std::span<const digits::image> batch) {
    const auto turn = co_await busy_.acquire();  // one call at a time
    co_await pool_.schedule_after(2ms + 20us * static_cast<int>(batch.size()));
    std::vector<int> digits;
    for (const auto& logits : network_(batch)) digits.push_back(digits::digit_of(logits));
    co_return digits;
  }

 private:
  thread_pool& pool_;
  const digits::mlp& network_;
  cobatch::async_semaphore busy_{1};
};

struct measurement {
  double per_second = 0;
  int correct = 0;
};

/// `callers` at a time, `requests` in all; `ask(image)` is one request, an awaitable of an expected digit.
template <class Ask>
measurement measure(thread_pool& pool, const std::vector<digits::image>& images, int callers, int requests, Ask ask) {
  std::vector<int> numbers(static_cast<std::size_t>(callers));
  std::iota(numbers.begin(), numbers.end(), 0);
  const auto caller = [&](int first) -> task<int> {
    int correct = 0;
    for (int i = first; i < requests; i += callers) {
      const digits::image& image = images[static_cast<std::size_t>(i) % images.size()];
      const cobatch::expected<int, cobatch::error> digit = co_await ask(image);
      if (digit && *digit == image.label) ++correct;
    }
    co_return correct;
  };
  const auto begin = std::chrono::steady_clock::now();
  const auto counts = cobatch::sync_wait(cobatch::batch_predict(pool, numbers, caller));
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - begin;
  measurement result{requests / elapsed.count(), 0};
  for (const auto& each : counts) result.correct += each.value_or(0);
  return result;
}

/// One row of a table; false if the two ways differ in their answers.
bool compare(int callers, const measurement& alone, const measurement& batched) {
  std::printf("%8d %14.0f %14.0f %9.3g x\n", callers, alone.per_second, batched.per_second,
              batched.per_second / alone.per_second);
  return alone.correct == batched.correct && alone.correct > 0;
}

int main() {
  const std::string folder = std::string(COBATCH_EXAMPLE_DATA) + "/digits/";
  const auto network = digits::mlp::load(folder + "digits_mlp.txt");
  const auto file = digits::csv_file::open(folder + "digits_test.csv");
  if (!network || !file) {
    std::fprintf(stderr, "%s\n", (!network ? network.error() : file.error()).c_str());
    return 2;
  }
  std::vector<digits::image> images;
  for (const digits::text_line& line : file->lines()) {
    if (const auto image = file->parse(line)) images.push_back(*image);
  }

  thread_pool pool;
  bool all_right = true;
  const char* const header = " callers    one by one        batched\n";

  std::printf("the digits network, requests per second:\n%s", header);
  for (const int callers : {1, 8, 64}) {
    const int requests = callers == 1 ? 500 : 50'000;
    const auto alone = measure(pool, images, callers, requests,
                               [&](const digits::image& x) -> task<cobatch::expected<int, cobatch::error>> {
                                 co_return digits::digit_of((*network)(x));
                               });
    const auto predict_many = [&](std::span<const digits::image> batch) {
      std::vector<int> digits;
      for (const auto& logits : (*network)(batch)) digits.push_back(digits::digit_of(logits));
      return digits;
    };
    cobatch::micro_batcher<digits::image, int> batcher(pool, predict_many, {.max_batch_size = 32, .max_delay = 1ms});
    const auto batched =
        measure(pool, images, callers, requests, [&](const digits::image& x) { return batcher.predict(x); });
    all_right = compare(callers, alone, batched) && all_right;
    cobatch::sync_wait(batcher.close());
  }
  std::printf(
      "It fits into the cache: 32 images at once take as long as 32 images. A batch gains nothing, and to gather it\n"
      "costs more than the network; a caller alone only waits for max_delay.\n\n");

  std::printf("a simulated accelerator, 2 ms a call plus 20 us a sample, requests per second:\n%s", header);
  accelerator device(pool, *network);
  for (const int callers : {1, 8, 64}) {
    const int requests = 256;
    const auto alone = measure(pool, images, callers, requests,
                               [&](const digits::image& x) -> task<cobatch::expected<int, cobatch::error>> {
                                 const auto digits = co_await device.predict(std::span(&x, 1));
                                 co_return digits.front();
                               });
    cobatch::micro_batcher<digits::image, int> batcher(
        pool, [&](std::span<const digits::image> batch) { return device.predict(batch); },
        {.max_batch_size = 32, .max_delay = 1ms});
    const auto batched =
        measure(pool, images, callers, requests, [&](const digits::image& x) { return batcher.predict(x); });
    all_right = compare(callers, alone, batched) && all_right;
    cobatch::sync_wait(batcher.close());
  }
  std::printf(
      "Here a batch of 32 costs hardly more than one sample. A caller alone loses max_delay on each request.\n");
  if (!all_right) std::printf("\nthe two ways came to different answers\n");
  return all_right ? 0 : 1;
}
