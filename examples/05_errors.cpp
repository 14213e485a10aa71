// What can end a sample other than its value, each way on the same six samples: sample x takes x * 100 ms.
//
// It runs on a simulation, an executor on a virtual clock: nearly three seconds pass in no time, and the table is the
// same on every machine. On a thread_pool the code is the same, with sync_wait(...) in place of sim.run(...).
#include <chrono>
#include <cstdio>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <vector>

#include <cobatch/cobatch.hpp>

using namespace std::chrono_literals;

// ---- An error type of your own ----

// What predict returns in an expected<T, E> is the sample's outcome as it is. E must be constructible from
// cobatch::error for the samples that did not get so far.
class api_error {
 public:
  explicit api_error(int status) : text_("HTTP " + std::to_string(status)) {}
  explicit api_error(const cobatch::error& why) : text_(why.message()) {}
  const std::string& text() const { return text_; }

 private:
  std::string text_;
};

// ---- The table ----

std::string cell(int value) {
  return std::to_string(value);
}
std::string cell(const api_error& e) {
  return e.text();
}
std::string cell(const cobatch::error& e) {
  switch (e.code) {
    case cobatch::errc::exception:
      return "exception";
    case cobatch::errc::cancelled:
      return "cancelled";
    case cobatch::errc::not_started:
      return "not started";
    case cobatch::errc::timed_out:
      return "timed out";
    case cobatch::errc::deadline_exceeded:
      return "deadline";
    default:
      return e.message();
  }
}

bool all_right = true;

template <class T, class E>
void print_row(const char* name, const std::vector<cobatch::expected<T, E>>& results,
               const std::vector<std::string>& wanted) {
  std::printf("%-26s", name);
  for (std::size_t i = 0; i < results.size(); ++i) {
    const std::string text = results[i] ? cell(*results[i]) : cell(results[i].error());
    std::printf(" %-11s", text.c_str());
    all_right = all_right && text == wanted.at(i);
  }
  std::printf("\n");
}

int main() {
  const std::vector<int> samples{1, 2, 3, 4, 5, 6};
  cobatch::simulation sim;

  std::printf("%-26s", "");
  for (int x : samples) std::printf(" %-11d", x);
  std::printf("\n");

  // A predict that throws: its own sample's failure, with the exception in error::exception.
  const auto throwing = [&](int x) -> cobatch::task<int> {
    co_await sim.schedule_after(x * 100ms);
    if (x == 3) throw std::runtime_error("no memory on the GPU");
    co_return 10 * x;
  };
  const auto thrown = sim.run(cobatch::batch_predict(sim, samples, throwing));
  print_row("predict throws", thrown, {"10", "20", "exception", "40", "50", "60"});

  // The first failure stops the batch: what is in flight is asked to stop, what waits is not started. This predict
  // takes no token, so nothing can reach it; the batch waits for it, and a value counts however late it comes.
  const auto fail_fast =
      sim.run(cobatch::batch_predict(sim, samples, throwing, {.max_concurrency = 2, .max_failures = 1}));
  print_row("fail fast, 2 at once", fail_fast, {"10", "20", "exception", "40", "not started", "not started"});

  // With a second parameter, predict is told when it should stop; it passes the token on to what it waits for.
  const auto stoppable = [&](int x, std::stop_token stop) -> cobatch::task<int> {
    if (!co_await sim.schedule_after(x * 100ms, stop)) throw std::runtime_error("stopped early");
    co_return 10 * x;
  };
  const auto late = sim.run(cobatch::batch_predict(sim, samples, stoppable, {.timeout = 350ms}));
  print_row("timeout of 350 ms each", late, {"10", "20", "30", "timed out", "timed out", "timed out"});

  const auto until =
      sim.run(cobatch::batch_predict(sim, samples, stoppable, {.max_concurrency = 2, .deadline = 350ms}));
  print_row("deadline, 2 at once", until, {"10", "20", "deadline", "deadline", "not started", "not started"});

  // Stopped from outside. Here sample 2 plays the user who presses the button; any thread may.
  std::stop_source button;
  const auto stopped_by_user = [&](int x, std::stop_token stop) -> cobatch::task<int> {
    if (!co_await sim.schedule_after(x * 100ms, stop)) throw std::runtime_error("stopped early");
    if (x == 2) button.request_stop();
    co_return 10 * x;
  };
  const auto stopped =
      sim.run(cobatch::batch_predict(sim, samples, stopped_by_user, {.max_concurrency = 3, .stop = button}));
  print_row("stop_source, 3 at once", stopped, {"10", "20", "cancelled", "cancelled", "not started", "not started"});

  const auto with_status = [&](int x) -> cobatch::task<cobatch::expected<int, api_error>> {
    co_await sim.schedule_after(x * 100ms);
    if (x == 4) co_return cobatch::unexpected(api_error(503));
    co_return 10 * x;
  };
  const auto own = sim.run(cobatch::batch_predict(sim, samples, with_status));
  print_row("an error type of your own", own, {"10", "20", "30", "HTTP 503", "50", "60"});

  std::printf("\nerror::message() of sample 3, first row: %s\n", thrown[2].error().message().c_str());
  std::printf("virtual time: %.1f s\n", std::chrono::duration<double>(sim.now().time_since_epoch()).count());
  return all_right ? 0 : 1;
}
