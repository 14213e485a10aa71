// The main job: a trained network classifies the images of a file; then, how fast that goes at which concurrency limit.
//
//   03_digits [images.csv]
//
// A line of the file is a label, then 64 pixels of 0 to 16, separated by commas. Without an argument: the 500 bundled
// test images. Exit status: 0 all lines were classified; 1 some lines were bad (each is reported with file and line,
// the others are classified); 2 nothing could be done.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <iostream>
#include <string>
#include <thread>
#include <vector>

#include <cobatch/cobatch.hpp>

#include "digits.hpp"

using std::chrono::steady_clock;
using namespace std::chrono_literals;

struct prediction {
  digits::image image;
  int digit;
};

struct timed_digit {
  int digit;
  std::chrono::nanoseconds latency;  // from the call of predict to its result
};

void print_row(const std::string& name, std::vector<timed_digit> all, std::chrono::duration<double> took) {
  std::sort(all.begin(), all.end(), [](auto& a, auto& b) { return a.latency < b.latency; });
  const auto quantile = [&](std::size_t percent) {
    return std::chrono::duration<double, std::micro>(all[(all.size() - 1) * percent / 100].latency).count();
  };
  std::printf("  %-18s %12.0f %12.1f %12.1f\n", name.c_str(), static_cast<double>(all.size()) / took.count(),
              quantile(50), quantile(99));
}

// A plain loop over `blocking`, then batches of `async` at several limits. False: a batch came to another digit.
template <class Blocking, class Async>
bool compare(cobatch::thread_pool& pool, const std::vector<digits::image>& images, Blocking blocking, Async async) {
  std::printf("  %-18s %12s %12s %12s\n", "", "images/s", "p50 [us]", "p99 [us]");
  std::vector<timed_digit> one_by_one;
  auto begin = steady_clock::now();
  for (const digits::image& x : images) one_by_one.push_back(blocking(x));
  print_row("plain for loop", one_by_one, steady_clock::now() - begin);

  bool same = true;
  for (const std::size_t limit : std::vector<std::size_t>{1, 2, 4, 16, 64, cobatch::unlimited}) {
    begin = steady_clock::now();
    const auto results = cobatch::sync_wait(cobatch::batch_predict(pool, images, async, {.max_concurrency = limit}));
    const auto took = steady_clock::now() - begin;

    std::vector<timed_digit> batch;
    for (const auto& each : results) batch.push_back(each.value());
    print_row(limit == cobatch::unlimited ? "unlimited" : "limit " + std::to_string(limit), batch, took);
    same = same && std::ranges::equal(batch, one_by_one, {}, &timed_digit::digit, &timed_digit::digit);
  }
  return same;
}

int main(int argc, char** argv) {
  const std::string data = COBATCH_EXAMPLE_DATA "/digits/";
  const auto model = digits::mlp::load(data + "digits_mlp.txt");
  const auto file = digits::csv_file::open(argc > 1 ? argv[1] : data + "digits_test.csv");
  if (!model || !file) {
    std::fprintf(stderr, "%s\n", (model ? file.error() : model.error()).c_str());
    return 2;
  }

  // Parsing a line is part of its prediction, and predict returns an expected with our own error type: a bad line is
  // the failure of one sample. A predict that is no coroutine runs on the pool's threads all the same.
  cobatch::thread_pool pool;
  const auto classify = [&](const digits::text_line& line) {
    return file->parse(line).transform(
        [&](const digits::image& x) { return prediction{x, digits::digit_of((*model)(x))}; });
  };
  cobatch::batch_metrics metrics;
  cobatch::progress_bar bar(file->lines().size());  // on the terminal, if there is one
  cobatch::observers seen(metrics, bar);
  const auto results = cobatch::sync_wait(cobatch::batch_predict(pool, file->lines(), classify, {.observer = &seen}));

  std::vector<digits::image> images;
  std::size_t right = 0;
  std::size_t bad = 0;
  for (const auto& result : results) {
    if (result) {
      images.push_back(result->image);
      right += result->digit == result->image.label ? 1 : 0;
    } else if (++bad <= 20) {
      std::fprintf(stderr, "%s\n", result.error().message().c_str());
    }
  }
  if (bad > 20) std::fprintf(stderr, "... and %zu more\n", bad - 20);
  if (images.empty()) {
    std::fprintf(stderr, "no line holds an image\n");
    return 2;
  }
  std::printf("accuracy %.3f (%zu of %zu)\n", static_cast<double>(right) / static_cast<double>(images.size()), right,
              images.size());
  metrics.write_summary(std::cout);

  // The model alone keeps a processor busy for a few microseconds: the pool's threads help, more in flight does not.
  images.resize(std::min<std::size_t>(images.size(), 500));
  const auto model_alone = [&](const digits::image& x) {
    const auto begin = steady_clock::now();
    const int digit = digits::digit_of((*model)(x));
    return timed_digit{digit, steady_clock::now() - begin};
  };
  std::vector<digits::image> many;  // repeated until they keep the pool busy for 50 ms; this warms up as well
  for (const auto begin = steady_clock::now(); steady_clock::now() - begin < 50ms;) {
    cobatch::sync_wait(cobatch::batch_predict(pool, images, model_alone));
    many.insert(many.end(), images.begin(), images.end());
  }
  std::printf("\nThe model alone, %zu images, %zu threads:\n", many.size(), pool.concurrency());
  bool same = compare(pool, many, model_alone, model_alone);

  // Behind a server that answers after 2 ms, the time is spent waiting, and a coroutine that waits costs no thread.
  // This server works on 32 requests at once: what is sent beyond that waits there, which the latency shows.
  cobatch::async_semaphore server(32);
  const auto remote = [&](const digits::image& x) -> cobatch::task<timed_digit> {
    const auto begin = steady_clock::now();
    const auto place = co_await server.acquire();
    co_await pool.schedule_after(2ms);
    const int digit = digits::digit_of((*model)(x));
    co_return timed_digit{digit, steady_clock::now() - begin};
  };
  const auto remote_blocking = [&](const digits::image& x) {
    const auto begin = steady_clock::now();
    std::this_thread::sleep_for(2ms);
    const int digit = digits::digit_of((*model)(x));
    return timed_digit{digit, steady_clock::now() - begin};
  };
  std::printf("\nThe same model behind a simulated server, 2 ms an answer, %zu at once, %zu images:\n", server.limit(),
              images.size());
  same = compare(pool, images, remote_blocking, remote) && same;

  if (!same) std::fprintf(stderr, "a batch and the plain loop disagree\n");
  return same && bad == 0 ? 0 : 1;
}
