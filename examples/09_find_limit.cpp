// How many requests should be in flight? Measured on a server that works on 24 at once, and then asked of a simulation.
//
//   09_find_limit [limits.csv]
//
// Prints a table and a chart; writes the same as CSV to the file that is named.
#include <chrono>
#include <cmath>
#include <fstream>
#include <iostream>
#include <vector>

#include <cobatch/cobatch.hpp>

using namespace std::chrono_literals;

int main(int argc, char** argv) {
  cobatch::thread_pool pool;
  cobatch::async_semaphore server(24);  // what is sent beyond that waits in the server
  std::vector<int> samples(100);

  const auto predict = [&](const int&) -> cobatch::task<> {
    const auto place = co_await server.acquire();
    co_await pool.schedule_after(5ms);
  };

  const cobatch::limit_report found =
      cobatch::sync_wait(cobatch::find_limit(pool, samples, predict, {.time_per_limit = 500ms}));
  std::cout << "Measured:\n";
  found.write_table(std::cout);
  std::cout << '\n';
  found.write_chart(std::cout);
  std::cout << "\nmax_concurrency = " << found.limit() << " is enough; the server seems to work on "
            << std::lround(found.server_slots()) << " at once.\n";
  if (argc > 1) {
    std::ofstream file(argv[1]);
    found.write_csv(file);
    if (!file) {
      std::cerr << argv[1] << ": cannot be written\n";
      return 2;
    }
  }

  // Without the server: latencies that were recorded at a limit at which nothing waits, and "what if it worked on 64?"
  cobatch::latency_recorder recorder;
  cobatch::sync_wait(cobatch::batch_predict(pool, samples, predict, {.max_concurrency = 8, .observer = &recorder}));
  const cobatch::limit_report imagined = cobatch::simulate_limits(recorder.latencies(), 64);
  std::cout << "\nSimulated, with a server that works on 64 at once:\n";
  imagined.write_table(std::cout);

  // The numbers depend on the machine, the knee is where the server's capacity is.
  return found.limit() >= 12 && found.limit() <= 64 && imagined.limit() >= 48 ? 0 : 1;
}
