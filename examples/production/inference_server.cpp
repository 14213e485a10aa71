// SPDX-License-Identifier: BSL-1.0
//
// A REST service. Requests of different clients share the model's batches through one micro_batcher.
//
//   GET  /v2  /v2/health/live  /v2/health/ready  /v2/models/digits  /v2/models/digits/ready
//   POST /v2/models/digits/infer    the Open Inference Protocol, JSON or binary tensors
//   POST /predict                   for curl: one image of 64 numbers, or a list of images
//   GET  /metrics                   for Prometheus
//
// Headers of a request: X-Timeout-Ms, a deadline (504 when it has passed); X-Priority: low, refused already when the
// queue is half full. A full queue is 503 with Retry-After. SIGTERM drains: not ready any more, "Connection: close" on
// every answer, then no new connections, and the end when all that was asked has been answered.
#include <atomic>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <boost/asio.hpp>
#include <boost/asio/as_tuple.hpp>
#include <boost/beast.hpp>

#include <cobatch/asio.hpp>
#include <cobatch/cobatch.hpp>

#include "engine.hpp"
#include "open_inference_protocol.hpp"
#include "options.hpp"

namespace beast = boost::beast;
namespace http = beast::http;
namespace asio = boost::asio;
using asio::ip::tcp;
using cobatch::task;
using namespace production;
using namespace std::chrono_literals;

using request = http::request<http::string_body>;
using response = http::response<http::string_body>;
using image_outcome = cobatch::expected<logits, cobatch::error>;

constexpr auto no_throw = asio::as_tuple(asio::use_awaitable);

/// What the clients' limits are. All memory that clients can make the server use is max_connections times max_body, and
/// max_queue images.
struct limits {
  std::size_t max_body, max_connections, max_queue;
  std::chrono::milliseconds idle_timeout;  // for the next request to begin, and for all of its header
  std::chrono::milliseconds body_timeout;  // for all of its body
  std::chrono::milliseconds drain_grace;   // after SIGTERM: until the balancer has seen that we are not ready
};

// ---- The model, shared by all connections ----

class service {
 public:
  service(cobatch::thread_pool& pool, predict_many model, const cobatch::micro_batch_options& batching)
      : pool_(pool),
        max_queue_(batching.max_queue),
        batcher_(pool, counted(std::move(model)), batching) {}

  /// An outcome for each image.
  task<std::vector<image_outcome>> predict(std::vector<digits::image> rows, std::chrono::nanoseconds deadline) {
    const auto ask = [&](const digits::image& x) { return batcher_.predict(x, {}, deadline); };
    // A batch_predict of few samples that wait in the batcher's queue: it brings the metrics.
    std::vector<image_outcome> outcomes = co_await cobatch::batch_predict(pool_, rows, ask, {.observer = &metrics_});
    co_return outcomes;
  }

  bool half_full() const { return batcher_.waiting() >= max_queue_ / 2; }
  task<int> close() {
    co_await batcher_.close();
    co_return 0;
  }
  void count(const char* handler, unsigned status) {
    const std::lock_guard lock(mutex_);
    ++responses_[{handler, status}];
  }
  std::string metrics(std::size_t connections) const;

 private:
  predict_many counted(predict_many model) {
    return [this, model = std::move(model)](images batch) {
      batches_.fetch_add(1, std::memory_order_relaxed);
      batched_.fetch_add(batch.size(), std::memory_order_relaxed);
      return model(batch);
    };
  }

  cobatch::thread_pool& pool_;
  const std::size_t max_queue_;
  cobatch::batch_metrics metrics_;
  std::atomic<std::uint64_t> batches_{0}, batched_{0};  // counters of their own: they order nothing
  mutable std::mutex mutex_;                            // guards responses_
  std::map<std::pair<std::string_view, unsigned>, std::uint64_t> responses_;
  cobatch::micro_batcher<digits::image, logits> batcher_;
};

std::string service::metrics(std::size_t connections) const {
  std::ostringstream out;
  const auto family = [&](const char* name, const char* type, const char* help) -> std::ostream& {
    out << "# HELP inference_server_" << name << ' ' << help << '\n';
    return out << "# TYPE inference_server_" << name << ' ' << type << '\n';
  };
  const auto add = [&](const char* name, const char* type, const char* help, std::uint64_t value) {
    family(name, type, help) << "inference_server_" << name << ' ' << value << '\n';
  };
  add("connections", "gauge", "Connections that are open.", connections);
  add("queue_length", "gauge", "Images that wait for a batch.", batcher_.waiting());
  add("batches_total", "counter", "Calls of the model.", batches_.load(std::memory_order_relaxed));
  add("batched_samples_total", "counter", "Images in those calls.", batched_.load(std::memory_order_relaxed));
  family("responses_total", "counter", "Responses by what was asked for and by status.");
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [which, count] : responses_) {
      out << "inference_server_responses_total{handler=\"" << which.first << "\",code=\"" << which.second << "\"} " << count
          << '\n';
    }
  }
  cobatch::prometheus_writer("cobatch").add(metrics_.snapshot(), {{"model", "digits"}}).write(out);
  return out.str();
}

// ---- What a request is answered ----

http::status status_of(const cobatch::error& why) {
  switch (why.code) {
    case cobatch::errc::queue_full:
    case cobatch::errc::closed:
    case cobatch::errc::executor_stopped:
      return http::status::service_unavailable;
    case cobatch::errc::deadline_exceeded:
      return http::status::gateway_timeout;
    default:
      return http::status::internal_server_error;
  }
}

response answer(http::status status, std::string body, const char* type = "application/json") {
  response reply(status, 11);
  reply.set(http::field::content_type, type);
  if (status == http::status::service_unavailable) reply.set(http::field::retry_after, "1");
  reply.body() = std::move(body);
  return reply;
}

response refuse(http::status status, const std::string& why) {
  const json body = {{"error", why}};
  return answer(status, body.dump(-1, ' ', false, json::error_handler_t::replace));
}

std::optional<std::size_t> number_in(const request& asked, const char* header) {
  const auto found = asked.find(header);
  if (found == asked.end()) return std::nullopt;
  const auto text = found->value();
  std::size_t value = 0;
  const auto [end, wrong] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (wrong != std::errc() || end != text.data() + text.size() || value > 1'000'000'000) {
    throw bad_request(std::string(header) + ": a number was expected");
  }
  return value;
}

class router {
 public:
  router(service& model, const std::atomic<bool>& draining, const std::atomic<std::size_t>& connections)
      : model_(model), draining_(draining), connections_(connections) {}

  /// What is asked for, as the metrics call it. Few names, whatever the paths are: each is a series of its own.
  static const char* handler_of(const request& asked) {
    const std::string path = path_of(asked);
    if (path == "/predict") return "predict";
    if (path == "/v2/models/digits/infer" || path == "/v2/models/digits/versions/1/infer") return "infer";
    return "other";
  }

  asio::awaitable<response> respond(request asked) {
    try {
      const std::string path = path_of(asked);
      const std::string_view handler = handler_of(asked);
      if (handler != "other") {
        if (asked.method() != http::verb::post) co_return refuse(http::status::method_not_allowed, "POST was expected");
        response reply = co_await predict(std::move(asked), handler == "predict");
        co_return reply;
      }
      co_return inform(asked, path);
    } catch (const bad_request& e) {
      co_return refuse(http::status::bad_request, e.what());
    } catch (const std::exception& e) {
      co_return refuse(http::status::internal_server_error, e.what());
    }
  }

 private:
  static std::string path_of(const request& asked) {
    return std::string(asked.target().substr(0, asked.target().find('?')));
  }

  response inform(const request& asked, const std::string& path) {
    if (asked.method() != http::verb::get && asked.method() != http::verb::head) {
      return refuse(http::status::method_not_allowed, "GET was expected");
    }
    if (path == "/v2") {
      return answer(http::status::ok, R"({"name":"cobatch","version":"1","extensions":["binary_tensor_data"]})");
    }
    if (path == "/v2/health/live") return answer(http::status::ok, R"({"live":true})");
    if (path == "/v2/health/ready" || path == "/v2/models/digits/ready") {
      if (draining_) return refuse(http::status::service_unavailable, "draining");
      return answer(http::status::ok, R"({"ready":true})");
    }
    if (path == "/v2/models/digits" || path == "/v2/models/digits/versions/1") {
      return answer(http::status::ok, model_metadata());
    }
    if (path == "/metrics") {
      return answer(http::status::ok, model_.metrics(connections_), "text/plain; version=0.0.4");
    }
    return refuse(http::status::not_found, "nothing is at this path");
  }

  asio::awaitable<response> predict(request asked, bool plain) {
    const auto timeout = number_in(asked, "X-Timeout-Ms");
    if (asked["X-Priority"] == "low" && model_.half_full()) {
      co_return refuse(http::status::service_unavailable, "the queue is half full, and this is of low priority");
    }
    infer_request parsed;
    bool one = false;
    if (plain) {
      const json body = parse_json(asked.body());
      one = body.is_array() && !body.empty() && !body[0].is_array();
      const json rows = one ? json::array({body}) : body;
      if (!rows.is_array() || rows.empty() || rows.size() > max_rows) {
        throw bad_request("the body: an image of 64 numbers was expected, or an array of 1 to 1024 images");
      }
      for (std::size_t i = 0; i < rows.size(); ++i) {
        const std::string field = one ? "the image" : "image " + std::to_string(i);
        std::vector<std::uint8_t> pixels;
        if (rows[i].is_array()) flatten(rows[i], field, pixel_count, pixels);
        if (pixels.size() != pixel_count) throw bad_request(field + ": 64 numbers were expected");
        parsed.rows.push_back(images_of(pixels.data(), 1, field).front());
      }
    } else {
      parsed = parse_infer(asked.body(), number_in(asked, "Inference-Header-Content-Length"));
    }

    const std::chrono::nanoseconds deadline =
        timeout ? std::chrono::nanoseconds(std::chrono::milliseconds(*timeout)) : cobatch::no_timeout;
    task<std::vector<image_outcome>> work = model_.predict(parsed.rows, deadline);
    const std::vector<image_outcome> outcomes = co_await cobatch::as_asio(std::move(work));

    if (plain && !one) {  // each image has its own outcome
      json predictions = json::array();
      for (const image_outcome& each : outcomes) {
        if (each) predictions.push_back({{"digit", digits::digit_of(*each)}});
        else predictions.push_back({{"error", each.error().message()}});
      }
      const json body = {{"predictions", predictions}};
      co_return answer(http::status::ok, body.dump());
    }
    std::vector<logits> results;  // the protocol knows no tensor with holes: all, or an error
    for (const image_outcome& each : outcomes) {
      if (!each) co_return refuse(status_of(each.error()), each.error().message());
      results.push_back(*each);
    }
    if (plain) {
      const json body = {{"digit", digits::digit_of(results.front())}, {"logits", results.front()}};
      co_return answer(http::status::ok, body.dump());
    }
    infer_reply formatted = format_infer(parsed, results);
    response reply = answer(http::status::ok, std::move(formatted.body),
                            formatted.json_length ? "application/octet-stream" : "application/json");
    if (formatted.json_length) {
      reply.set("Inference-Header-Content-Length", std::to_string(*formatted.json_length));
    }
    co_return reply;
  }

  service& model_;
  const std::atomic<bool>& draining_;
  const std::atomic<std::size_t>& connections_;
};

// ---- One connection ----

/// All of it runs on the strand of its stream.
class session : public std::enable_shared_from_this<session> {
 public:
  session(tcp::socket socket, router& router, service& model, const limits& limits, const std::atomic<bool>& draining)
      : stream_(std::move(socket)), router_(router), model_(model), limits_(limits), draining_(draining) {}

  asio::any_io_executor executor() { return stream_.get_executor(); }

  asio::awaitable<void> run() {
    while (true) {
      http::request_parser<http::string_body> parser;
      parser.header_limit(8 * 1024);
      parser.body_limit(limits_.max_body);

      // One time for the whole of the header, however slowly its bytes drip in; then one for the whole of the body.
      waiting_ = true;
      stream_.expires_after(limits_.idle_timeout);
      auto [failed, size] = co_await http::async_read_header(stream_, buffer_, parser, no_throw);
      waiting_ = false;
      if (!failed && !parser.is_done()) {
        stream_.expires_after(limits_.body_timeout);
        if (parser.get()[http::field::expect] == "100-continue") {
          http::response<http::empty_body> go_on(http::status::continue_, 11);
          auto [broken, written] = co_await http::async_write(stream_, go_on, no_throw);
          failed = broken;
        }
        if (!failed) std::tie(failed, size) = co_await http::async_read(stream_, buffer_, parser, no_throw);
      }

      response reply;
      const char* handler = "other";
      if (!failed) {
        handler = router::handler_of(parser.get());
        const bool keep_alive = parser.get().keep_alive() && !draining_;
        const bool head = parser.get().method() == http::verb::head;
        reply = co_await router_.respond(parser.release());
        reply.keep_alive(keep_alive && !draining_);
        reply.prepare_payload();
        if (head) reply.body().clear();
      } else if (failed == http::error::body_limit) {
        reply = refuse(http::status::payload_too_large,
                       "the body: more than " + std::to_string(limits_.max_body) + " bytes");
      } else if (failed == http::error::header_limit || failed == http::error::buffer_overflow) {
        reply = refuse(http::status::request_header_fields_too_large, "the header: more than 8192 bytes");
      } else if (failed == beast::error::timeout || failed == http::error::end_of_stream ||
                 failed == http::error::partial_message || failed.category() != http::make_error_code(http::error{}).category()) {
        break;  // gone, silent, or too slow: nobody to answer
      } else {
        reply = refuse(http::status::bad_request, "HTTP: " + failed.message());
      }
      if (failed) {
        reply.keep_alive(false);
        reply.prepare_payload();
      }
      model_.count(handler, reply.result_int());
      stream_.expires_after(limits_.body_timeout);
      auto [broken, written] = co_await http::async_write(stream_, reply, no_throw);
      if (broken || !reply.keep_alive()) break;
    }
    co_await hang_up();
  }

  /// Ends the connection if it waits for its next request. On its strand.
  void drain() {
    if (waiting_) stream_.cancel();
  }

 private:
  // Closing while bytes of the client are unread would reset the connection, and the client might never see our answer.
  // So: say that we are done, and read on for a moment.
  asio::awaitable<void> hang_up() {
    beast::error_code ignored;
    stream_.socket().shutdown(tcp::socket::shutdown_send, ignored);
    stream_.expires_after(1s);
    char scratch[4096];
    while (true) {
      auto [failed, size] = co_await stream_.async_read_some(asio::buffer(scratch), no_throw);
      if (failed) break;
    }
  }

  beast::tcp_stream stream_;
  router& router_;
  service& model_;
  const limits& limits_;
  const std::atomic<bool>& draining_;
  beast::flat_buffer buffer_{16 * 1024};
  bool waiting_ = false;
};

// ---- All connections ----

class server {
 public:
  server(asio::io_context& io, service& model, const limits& limits, const tcp::endpoint& address)
      : io_(io), model_(model), limits_(limits), router_(model, draining_, open_), acceptor_(io, address) {}

  unsigned port() const { return acceptor_.local_endpoint().port(); }

  asio::awaitable<void> accept() {
    while (true) {
      auto [failed, accepted] = co_await acceptor_.async_accept(asio::make_strand(io_), no_throw);
      if (!acceptor_.is_open()) co_return;
      if (failed) {  // out of file descriptors, perhaps: others will end
        asio::steady_timer pause(acceptor_.get_executor(), 50ms);
        co_await pause.async_wait(no_throw);
        continue;
      }
      tcp::socket socket(std::move(accepted));
      if (open_ >= limits_.max_connections) {
        turn_away(socket);
        continue;
      }
      beast::error_code ignored;
      socket.set_option(tcp::no_delay(true), ignored);
      start(std::make_shared<session>(std::move(socket), router_, model_, limits_, draining_));
    }
  }

  /// SIGTERM: everything that was asked is answered.
  asio::awaitable<void> drain() {
    draining_ = true;
    asio::steady_timer timer(acceptor_.get_executor(), limits_.drain_grace);
    co_await timer.async_wait(no_throw);
    beast::error_code ignored;
    acceptor_.close(ignored);
    while (open_ > 0) {
      {
        const std::lock_guard lock(mutex_);
        for (const std::shared_ptr<session>& each : sessions_) asio::post(each->executor(), [each] { each->drain(); });
      }
      timer.expires_after(10ms);
      co_await timer.async_wait(no_throw);
    }
  }

 private:
  void turn_away(tcp::socket& socket) {
    beast::error_code ignored;
    socket.non_blocking(true, ignored);
    constexpr char full[] =
        "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    socket.write_some(asio::buffer(full, sizeof full - 1), ignored);
    model_.count("other", 503);
  }

  void start(const std::shared_ptr<session>& opened) {
    std::list<std::shared_ptr<session>>::iterator place;
    {
      const std::lock_guard lock(mutex_);
      place = sessions_.insert(sessions_.end(), opened);
    }
    ++open_;
    const auto ended = [this, place](std::exception_ptr) {  // an exception ends this connection alone
      {
        const std::lock_guard lock(mutex_);
        sessions_.erase(place);
      }
      --open_;
    };
    // `opened` is kept by the list until then.
    asio::co_spawn(opened->executor(), opened->run(), ended);
  }

  asio::io_context& io_;
  service& model_;
  const limits& limits_;
  std::atomic<bool> draining_{false};
  std::atomic<std::size_t> open_{0};
  router router_;
  tcp::acceptor acceptor_;
  std::mutex mutex_;  // guards sessions_
  std::list<std::shared_ptr<session>> sessions_;
};

int main(int argc, char** argv) {
  const options given(argc, argv,
                      {{"address", "127.0.0.1"},
                       {"port", "8080"},
                       {"engine", "digits"},
                       {"max-batch", "32"},
                       {"max-delay-us", "1000"},
                       {"concurrent-batches", "1"},
                       {"max-queue", "10000"},
                       {"max-body", "1000000"},
                       {"max-connections", "1000"},
                       {"idle-timeout-ms", "30000"},
                       {"body-timeout-ms", "10000"},
                       {"drain-grace-ms", "1000"},
                       {"io-threads", "2"},
                       {"predict-threads", "2"}});
  const limits limits{given.size("max-body"),
                      given.size("max-connections"),
                      given.size("max-queue"),
                      std::chrono::milliseconds(given.number("idle-timeout-ms")),
                      std::chrono::milliseconds(given.number("body-timeout-ms")),
                      std::chrono::milliseconds(given.number("drain-grace-ms"))};
  try {
    cobatch::thread_pool pool(given.size("predict-threads"));
    service model(pool, make_engine(given.text("engine"), pool),
                  {.max_batch_size = given.size("max-batch"),
                   .max_delay = std::chrono::microseconds(given.number("max-delay-us")),
                   .max_concurrent_batches = given.size("concurrent-batches"),
                   .max_queue = limits.max_queue});

    asio::io_context io;
    server all(io, model, limits,
               tcp::endpoint(asio::ip::make_address(given.text("address")),
                             static_cast<unsigned short>(given.number("port"))));
    const auto rethrow = [](std::exception_ptr failure) {
      if (failure) std::rethrow_exception(failure);
    };
    asio::strand<asio::io_context::executor_type> control = asio::make_strand(io);
    asio::co_spawn(control, all.accept(), rethrow);
    asio::signal_set signals(io, SIGTERM, SIGINT);
    signals.async_wait([&](beast::error_code failed, int) {
      if (!failed) asio::co_spawn(control, all.drain(), rethrow);
    });
    std::printf("listening on %s:%u\n", given.text("address").c_str(), all.port());
    std::fflush(stdout);

    std::vector<std::thread> threads;
    for (std::size_t i = 1; i < given.size("io-threads"); ++i) threads.emplace_back([&] { io.run(); });
    io.run();  // returns when drain() has ended and no connection is left
    for (std::thread& each : threads) each.join();
    cobatch::sync_wait(model.close());
    std::printf("drained\n");
    return 0;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "inference_server: %s\n", e.what());
    return 1;
  }
}
