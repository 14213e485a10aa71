// SPDX-License-Identifier: BSL-1.0
//
// The everyday offline job: a file of samples in, one HTTP request for each, a file of results out, in the same order.
//
//   bulk_job --input rows.csv --output results.jsonl --url http://127.0.0.1:8080/predict
//
// A row of a CSV file holds numbers and is sent as a JSON array; a line of a JSONL file is sent as it is. Line n of the
// output is {"record":n,"result":...}, with the JSON that was answered, or {"record":n,"error":"..."}. The output is the
// checkpoint: killed at any moment, the same command goes on after the last record that is there.
//
// Exit status: 0, each row has a result; 1, all rows are done, some have an error; 2, nothing was begun; 3, stopped
// before the end, go on with the same command.
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iostream>
#include <mutex>
#include <optional>
#include <sstream>
#include <stop_token>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <pthread.h>
#include <signal.h>

#include <cobatch/cobatch.hpp>

#include "http_client.hpp"
#include "job_files.hpp"
#include "options.hpp"

using namespace production;
using namespace std::chrono_literals;

// ---- The rows ----

/// How a row becomes the body of a request.
struct row_format {
  bool csv;
  std::size_t skip_columns;

  /// The body, or what is wrong with the row.
  cobatch::expected<std::string, std::string> body_of(const std::string& line) const {
    if (!csv) {
      if (!json::accept(line)) return cobatch::unexpected(std::string("the line is not JSON"));
      return line;
    }
    std::size_t begin = 0, first = 0;
    for (std::size_t column = 1;; ++column) {
      const std::size_t end = std::min(line.find(',', begin), line.size());
      if (column > skip_columns) {
        const std::string field = line.substr(begin, end - begin);
        if (!json::parse(field, nullptr, false).is_number()) {
          return cobatch::unexpected("column " + std::to_string(column) + " is " + quoted(field.substr(0, 40)) +
                                     ", not a number as JSON writes it");
        }
        if (column == skip_columns + 1) first = begin;
      }
      if (end == line.size()) {
        if (column > skip_columns) return "[" + line.substr(first) + "]";
        return cobatch::unexpected("the row has " + std::to_string(column) + " columns, and all of them are skipped");
      }
      begin = end + 1;
    }
  }
};

/// The bodies of the rows that can be sent, one by one. The others it tells the output at once.
class row_source {
 public:
  row_source(const std::string& path, std::size_t skip_lines, std::size_t done, const row_format& format, output_file& output,
             cobatch::batch_observer& observer)
      : path_(path), file_(path, std::ios::binary), next_(done), first_line_(skip_lines + 1), format_(format), output_(output),
        observer_(observer) {
    std::string skipped;
    for (std::size_t i = 0; i < skip_lines + done; ++i) std::getline(file_, skipped);
  }

  cobatch::task<std::optional<std::string>> next(std::stop_token stop = {}) {
    std::string line;
    while (!stop.stop_requested() && std::getline(file_, line)) {
      if (line.ends_with('\r')) line.pop_back();
      const std::size_t number = next_++;
      auto body = format_.body_of(line);
      if (body) co_return *std::move(body);
      observer_.sample_finished({.index = number, .failure = cobatch::errc::input_failed});  // for the progress bar
      auto room = co_await output_.room.acquire(1, stop);
      if (!room) break;
      const std::string where = "line " + std::to_string(first_line_ + number) + " of the input: ";
      output_.bad_row(number, where + body.error(), *std::move(room));
    }
    if (file_.bad()) throw std::runtime_error(path_ + ": cannot be read any further");
    co_return std::nullopt;
  }

 private:
  std::string path_;
  std::ifstream file_;
  std::size_t next_;
  const std::size_t first_line_;
  const row_format& format_;
  output_file& output_;
  cobatch::batch_observer& observer_;
};

// ---- A request ----

/// What the endpoint said of a row: a result, or that the row is wrong. Either is final.
///
/// A refusal is no failure of predict: it says nothing about the endpoint's load, and must not lower the limit.
class answer {
 public:
  answer(const char* name, const std::string& value) : text_("\"" + std::string(name) + "\":" + value) {}
  std::string& text() noexcept { return text_; }

 private:
  std::string text_;
};

/// Why there is none.
class no_answer {
 public:
  no_answer(std::string message, bool retryable, std::chrono::seconds retry_after = {})
      : message_(std::move(message)), retry_after_(std::min<std::chrono::seconds>(retry_after, 10min)), retryable_(retryable) {}
  explicit no_answer(const cobatch::error& why)
      : message_(why.message()), retryable_(why == cobatch::errc::timed_out), code_(why.code) {}

  const std::string& message() const noexcept { return message_; }
  /// The library asks these two.
  std::chrono::nanoseconds retry_after() const noexcept { return retry_after_; }
  bool retryable() const noexcept { return retryable_; }
  /// It was not the endpoint: the job has been stopped, or its deadline has passed, or the input cannot be read.
  bool ends_the_job() const noexcept { return code_ != cobatch::errc{} && code_ != cobatch::errc::timed_out; }

 private:
  std::string message_;
  std::chrono::seconds retry_after_{0};
  bool retryable_;
  cobatch::errc code_{};
};

cobatch::task<cobatch::expected<answer, no_answer>> ask(http_client& client, const std::string& url, const std::string& body,
                                                        std::stop_token stop) {
  auto sent = client.post(url, body, std::move(stop));
  const http_client::outcome reply = co_await std::move(sent);
  if (!reply) co_return cobatch::unexpected(no_answer(reply.error()));

  const long status = reply->status();
  if (status == 0) co_return cobatch::unexpected(no_answer(reply->body(), true));
  if (status >= 200 && status < 300) {
    if (!json::accept(reply->body())) co_return answer("error", quoted("the answer is not JSON"));
    std::string result = reply->body();  // JSON has line ends only between its parts
    std::replace_if(result.begin(), result.end(), [](char c) { return c == '\n' || c == '\r'; }, ' ');
    co_return answer("result", result);
  }
  const std::string said = "HTTP " + std::to_string(status) + ": " + reply->body().substr(0, 200);
  switch (status) {
    case 408: case 425: case 429: co_return cobatch::unexpected(no_answer(said, true, reply->retry_after()));
    case 401: case 402: case 403: case 404: case 405: case 407:  // the same for every row
      co_return cobatch::unexpected(no_answer(said, false));
    default: break;
  }
  if (status >= 400 && status < 500) co_return answer("error", quoted(said));
  co_return cobatch::unexpected(no_answer(said, status >= 500, reply->retry_after()));
}

// ---- The job ----

/// Returns why it has not come to its end; empty: it has.
template <class Stream>
cobatch::task<std::string> write_all(Stream& records, output_file& output) {
  std::string why;
  for (;;) {
    auto item = co_await records.next();
    if (!item) break;
    if (item->result) {
      output.next_record(std::move(item->result->text()), true);
      continue;
    }
    const no_answer& error = item->result.error();
    if (error.ends_the_job()) {
      why = error.message();
      break;
    }
    if (!output.next_record("\"error\":" + quoted(error.message()), false)) {
      why = "too many rows in a row had no answer; the last: " + error.message();
      break;
    }
  }
  co_await records.close();
  co_return why;
}

/// Requests a stop when SIGTERM or SIGINT comes. To be made before all other threads, which inherit that these signals
/// are blocked.
class stop_on_signal {
 public:
  stop_on_signal() {
    sigemptyset(&signals_);
    sigaddset(&signals_, SIGTERM);
    sigaddset(&signals_, SIGINT);
    pthread_sigmask(SIG_BLOCK, &signals_, nullptr);
    thread_ = std::thread([this] {
      int signal = 0;
      sigwait(&signals_, &signal);
      source.request_stop();
    });
  }
  ~stop_on_signal() {
    pthread_kill(thread_.native_handle(), SIGTERM);
    thread_.join();
  }

  std::stop_source source;

 private:
  sigset_t signals_;
  std::thread thread_;
};

/// Writes the metrics to a file every so often, and at the end.
class metrics_file {
 public:
  metrics_file(const std::string& path, std::chrono::milliseconds every, const cobatch::batch_metrics& calls,
               const output_file& output)
      : path_(path), calls_(calls), output_(output) {
    if (path.empty()) return;
    write();
    thread_ = std::jthread([this, every](std::stop_token stop) {
      std::mutex mutex;
      std::condition_variable_any never;
      std::unique_lock lock(mutex);
      while (!never.wait_for(lock, stop, every, [&] { return stop.stop_requested(); })) {
        if (stop.stop_requested()) break;
        write();
      }
    });
  }
  ~metrics_file() {
    if (path_.empty()) return;
    thread_ = std::jthread();
    write();
  }

 private:
  void write() const {
    std::ostringstream text;
    cobatch::prometheus_writer("bulk_job").add(calls_.snapshot()).write(text);
    const output_file::counts records = output_.written();
    text << "# HELP bulk_job_records Records in the output, of this run and those before.\n# TYPE bulk_job_records gauge\n"
         << "bulk_job_records{outcome=\"result\"} " << records.results << "\nbulk_job_records{outcome=\"error\"} "
         << records.errors << "\n";
    try {
      write_whole(path_, text.str());
    } catch (const std::exception& e) {  // no reason to end the job
      std::fprintf(stderr, "bulk_job: %s\n", e.what());
    }
  }

  std::string path_;
  const cobatch::batch_metrics& calls_;
  const output_file& output_;
  std::jthread thread_;
};

int run(const options& given) {
  const std::string &input = given.text("input"), &path = given.text("output"), &url = given.text("url");
  if (input.empty() || path.empty() || url.empty()) throw refused("--input, --output and --url are needed");
  std::string format = given.text("format");
  if (format == "auto") format = input.ends_with(".jsonl") || input.ends_with(".ndjson") ? "jsonl" : "csv";
  const std::string& kind = given.text("limit");
  if (format != "csv" && format != "jsonl") throw refused("--format: csv, jsonl or auto was expected");
  if (kind != "gradient" && kind != "aimd" && kind != "fixed") throw refused("--limit: gradient, aimd or fixed was expected");

  const std::size_t skip_lines = given.size("skip-lines");
  const row_format rows{format == "csv", given.size("skip-columns")};
  const input_facts facts(input);
  const std::size_t total = facts.lines > skip_lines ? facts.lines - skip_lines : 0;
  output_file output(path,
                     {{"input", {{"bytes", facts.bytes}, {"fnv1a", std::to_string(facts.hash)}}},
                      {"url", url},
                      {"format", format},
                      {"skip-columns", rows.skip_columns},
                      {"skip-lines", skip_lines}},
                     given.size("fsync-every"), given.size("give-up"));
  const std::size_t done = output.written().all();
  if (done > total) throw refused(path + " has more records than the input has rows");
  if (done > 0) std::fprintf(stderr, "going on after %zu of %zu records\n", done, total);

  std::vector<std::string> headers{"Content-Type: application/json"};
  if (const char* token = std::getenv("BULK_JOB_TOKEN")) headers.push_back("Authorization: Bearer " + std::string(token));

  const std::size_t concurrency = given.size("concurrency");
  cobatch::adaptive_limit limit({.initial = std::min<std::size_t>(20, concurrency),
                                 .max = concurrency,
                                 .algorithm = kind == "aimd" ? cobatch::adaptive_algorithm::aimd
                                                             : cobatch::adaptive_algorithm::gradient});
  std::optional<cobatch::rate_limiter> rate;
  if (given.size("rate") != 0) rate.emplace(static_cast<double>(given.size("rate")));
  const auto time_or_never = [](auto time) { return time.count() == 0 ? cobatch::no_timeout : std::chrono::nanoseconds(time); };

  stop_on_signal signals;
  cobatch::batch_metrics metrics;
  std::string why;
  {
    const metrics_file file(given.text("metrics"), std::chrono::milliseconds(given.number("metrics-every-ms")), metrics, output);
    cobatch::progress_bar bar(total - done);
    cobatch::observers both(metrics, bar);
    cobatch::thread_pool pool(2);
    http_client client(headers, given.size("max-answer"), concurrency);
    row_source source(input, skip_lines, done, rows, output, bar);
    const auto predict = [&](const std::string& body, std::stop_token stop) { return ask(client, url, body, std::move(stop)); };
    const cobatch::batch_options how{
        .max_concurrency = concurrency,
        .limit = kind == "fixed" ? nullptr : &limit,
        .stop = signals.source,
        .timeout = time_or_never(std::chrono::milliseconds(given.number("timeout-ms"))),
        .deadline = time_or_never(std::chrono::milliseconds(given.number("deadline-ms"))),
        .retry = {.max_attempts = static_cast<std::uint32_t>(given.size("attempts")),
                  .initial_backoff = std::chrono::milliseconds(given.number("backoff-ms"))},
        .hedge = {.delay = time_or_never(std::chrono::milliseconds(given.number("hedge-ms"))),
                  .max_extra = static_cast<double>(given.size("hedge-percent")) / 100},
        .rate = rate ? &*rate : nullptr,
        .observer = &both};
    const std::size_t window = given.size("window") == 0 ? 4 * concurrency : given.size("window");
    auto records = cobatch::predict_stream(pool, source, predict, how,
                                           {.order = cobatch::result_order::input, .window = window});
    why = cobatch::sync_wait(write_all(records, output));
    output.close(total);
    if (signals.source.stop_requested()) why = "by a signal";
    if (why.empty()) why = "the deadline has passed";
  }

  const output_file::counts records = output.written();
  metrics.write_summary(std::cout);
  std::printf("%zu of %zu records are in %s, %zu of them errors\n", records.all(), total, path.c_str(), records.errors);
  if (records.all() == total) return records.errors == 0 ? 0 : 1;
  std::printf("stopped: %s\nThe same command goes on after record %zu.\n", why.c_str(), records.all());
  return 3;
}

int main(int argc, char** argv) {
  const options given(argc, argv,
                      {{"input", ""},
                       {"output", ""},
                       {"url", ""},
                       {"format", "auto"},
                       {"skip-lines", "0"},
                       {"skip-columns", "0"},
                       {"concurrency", "64"},
                       {"limit", "aimd"},
                       {"window", "0"},
                       {"rate", "0"},
                       {"timeout-ms", "30000"},
                       {"deadline-ms", "0"},
                       {"attempts", "5"},
                       {"backoff-ms", "200"},
                       {"hedge-ms", "0"},
                       {"hedge-percent", "5"},
                       {"give-up", "100"},
                       {"max-answer", "1000000"},
                       {"fsync-every", "1000"},
                       {"metrics", ""},
                       {"metrics-every-ms", "10000"}});
  try {
    return run(given);
  } catch (const refused& e) {
    std::fprintf(stderr, "bulk_job: %s\n", e.what());
    return 2;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "bulk_job: %s\nThe same command goes on where it was.\n", e.what());
    return 3;
  }
}
