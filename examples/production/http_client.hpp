// SPDX-License-Identifier: BSL-1.0
#pragma once

// An HTTP client to await: libcurl on one thread of its own, however many requests are under way. A request that is
// asked to stop is ended: its connection is closed, and the server sees that.
//
// For HTTP/2 over TLS, requests share connections, and one that is stopped resets its stream alone. libcurl sends a
// request again by itself where a connection that it has used before is closed before the first byte of an answer.

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include <curl/curl.h>

#include <cobatch/callback.hpp>
#include <cobatch/error.hpp>
#include <cobatch/expected.hpp>
#include <cobatch/task.hpp>

namespace production {

class http_client {
 public:
  class reply {
   public:
    reply(long status, std::string body, std::chrono::seconds retry_after = {})
        : status_(status), body_(std::move(body)), retry_after_(retry_after) {}

    /// 0: no reply came, and body() says why.
    long status() const noexcept { return status_; }
    const std::string& body() const noexcept { return body_; }
    /// What Retry-After says, in seconds or as a date; 0 where there is none.
    std::chrono::seconds retry_after() const noexcept { return retry_after_; }

   private:
    long status_;
    std::string body_;
    std::chrono::seconds retry_after_;
  };

  /// errc::cancelled where the request was stopped.
  using outcome = cobatch::expected<reply, cobatch::error>;

  /// `headers` go with each request. A body of more than `max_body` bytes is no reply.
  http_client(const std::vector<std::string>& headers, std::size_t max_body, std::size_t max_idle_connections)
      : max_body_(max_body) {
    static const CURLcode global = curl_global_init(CURL_GLOBAL_DEFAULT);
    multi_ = global == CURLE_OK ? curl_multi_init() : nullptr;
    if (!multi_) throw std::runtime_error("libcurl could not be initialised");
    curl_multi_setopt(multi_, CURLMOPT_MAXCONNECTS, static_cast<long>(max_idle_connections));
    for (const std::string& each : headers) headers_ = curl_slist_append(headers_, each.c_str());
    headers_ = curl_slist_append(headers_, "Expect:");  // no question before a large body
    thread_ = std::thread([this] { serve(); });
  }
  http_client(const http_client&) = delete;
  http_client& operator=(const http_client&) = delete;

  /// Stops what is under way.
  ~http_client() {
    {
      const std::lock_guard lock(mutex_);
      ends_ = true;
    }
    curl_multi_wakeup(multi_);
    thread_.join();
    curl_multi_cleanup(multi_);
    curl_slist_free_all(headers_);
  }

  /// Resumes: on the executor on which it suspended.
  /// Stops: at once; the connection is closed.
  /// Lifetime: the client must outlive the task.
  /// Thread safety: any thread.
  cobatch::task<outcome> post(std::string url, std::string body, std::stop_token stop) {
    const std::uint64_t number = ++last_number_;
    std::optional<std::stop_callback<cancel_request>> on_stop;
    const auto send = [&](cobatch::callback<reply> done) {
      start(std::make_unique<transfer>(number, max_body_, std::move(url), std::move(body), std::move(done)));
      on_stop.emplace(stop, cancel_request{this, number});  // runs at once if the stop has come already
    };
    outcome answer = co_await cobatch::from_callback<reply>(send);
    on_stop.reset();
    co_return answer;
  }

 private:
  struct cancel_request {
    http_client* client;
    std::uint64_t number;
    void operator()() const { client->cancel(number); }
  };

  struct transfer {
    transfer(std::uint64_t its_number, std::size_t most, std::string where, std::string what, cobatch::callback<reply> whom)
        : number(its_number), max_received(most), url(std::move(where)), sent(std::move(what)), done(std::move(whom)) {}

    std::uint64_t number;
    std::size_t max_received;
    std::string url, sent, received;
    cobatch::callback<reply> done;
    bool too_long = false;
    CURL* easy = nullptr;
  };

  // ---- Any thread ----

  void start(std::unique_ptr<transfer> wanted) {
    {
      const std::lock_guard lock(mutex_);
      started_.push_back(std::move(wanted));
    }
    curl_multi_wakeup(multi_);  // the one function of a multi handle that any thread may call
  }

  /// Also for a request that has ended meanwhile.
  void cancel(std::uint64_t number) {
    {
      const std::lock_guard lock(mutex_);
      cancelled_.push_back(number);
    }
    curl_multi_wakeup(multi_);
  }

  // ---- The client's own thread ----

  void serve() {
    std::vector<std::unique_ptr<transfer>> started;
    std::vector<std::uint64_t> cancelled;
    for (bool ends = false; !ends;) {
      {
        const std::lock_guard lock(mutex_);
        started.swap(started_);
        cancelled.swap(cancelled_);
        ends = ends_;
      }
      // In this order: what is cancelled was started before.
      for (std::unique_ptr<transfer>& each : started) begin(std::move(each));
      for (const std::uint64_t number : cancelled) {
        const auto found = under_way_.find(number);
        if (found != under_way_.end()) take_out(*found->second)->done(cobatch::errc::cancelled);
      }
      started.clear();
      cancelled.clear();

      int running = 0, left = 0;
      curl_multi_perform(multi_, &running);
      while (const CURLMsg* message = curl_multi_info_read(multi_, &left)) {
        if (message->msg == CURLMSG_DONE) finish(message->easy_handle, message->data.result);
      }
      if (!ends) curl_multi_poll(multi_, nullptr, 0, 1000, nullptr);
    }
    while (!under_way_.empty()) take_out(*under_way_.begin()->second)->done(cobatch::errc::cancelled);
    for (CURL* each : idle_) curl_easy_cleanup(each);
  }

  void begin(std::unique_ptr<transfer> wanted) {
    if (idle_.empty()) {
      wanted->easy = curl_easy_init();
    } else {
      wanted->easy = idle_.back();
      idle_.pop_back();
    }
    transfer& it = *wanted;
    if (!it.easy) return it.done(reply(0, "libcurl has no memory for a request"));
    curl_easy_setopt(it.easy, CURLOPT_PRIVATE, &it);
    curl_easy_setopt(it.easy, CURLOPT_URL, it.url.c_str());
    curl_easy_setopt(it.easy, CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(it.sent.size()));
    curl_easy_setopt(it.easy, CURLOPT_POSTFIELDS, it.sent.data());
    curl_easy_setopt(it.easy, CURLOPT_HTTPHEADER, headers_);
    curl_easy_setopt(it.easy, CURLOPT_WRITEFUNCTION, &receive);
    curl_easy_setopt(it.easy, CURLOPT_WRITEDATA, &it);
    curl_easy_setopt(it.easy, CURLOPT_NOSIGNAL, 1L);
    under_way_.emplace(it.number, std::move(wanted));
    const CURLMcode added = curl_multi_add_handle(multi_, it.easy);
    if (added != CURLM_OK) {
      const std::unique_ptr<transfer> failed = take_out(it);
      failed->done(reply(0, curl_multi_strerror(added)));
    }
  }

  /// Ends it if it has not ended; its connection is closed then, and kept for others otherwise.
  std::unique_ptr<transfer> take_out(transfer& it) {
    curl_multi_remove_handle(multi_, it.easy);
    curl_easy_reset(it.easy);
    idle_.push_back(it.easy);
    return std::move(under_way_.extract(it.number).mapped());
  }

  void finish(CURL* easy, CURLcode result) {
    void* pointer = nullptr;
    long status = 0;
    curl_off_t retry_after = 0;
    curl_easy_getinfo(easy, CURLINFO_PRIVATE, &pointer);
    curl_easy_getinfo(easy, CURLINFO_RESPONSE_CODE, &status);
    curl_easy_getinfo(easy, CURLINFO_RETRY_AFTER, &retry_after);
    const std::unique_ptr<transfer> ended = take_out(*static_cast<transfer*>(pointer));
    if (result == CURLE_OK) {
      ended->done(reply(status, std::move(ended->received), std::chrono::seconds(retry_after)));
    } else if (ended->too_long) {
      ended->done(reply(0, "the answer has more than " + std::to_string(max_body_) + " bytes"));
    } else {
      ended->done(reply(0, curl_easy_strerror(result)));
    }
  }

  static std::size_t receive(char* data, std::size_t, std::size_t size, void* user) {
    transfer& it = *static_cast<transfer*>(user);
    if (size > it.max_received - it.received.size()) {
      it.too_long = true;
      return 0;  // libcurl ends the request
    }
    it.received.append(data, size);
    return size;
  }

  const std::size_t max_body_;
  CURLM* multi_ = nullptr;
  curl_slist* headers_ = nullptr;  // not changed while the thread runs
  std::atomic<std::uint64_t> last_number_{0};  // a counter; orders nothing

  std::mutex mutex_;  // guards these three
  std::vector<std::unique_ptr<transfer>> started_;
  std::vector<std::uint64_t> cancelled_;
  bool ends_ = false;

  // The thread's own.
  std::unordered_map<std::uint64_t, std::unique_ptr<transfer>> under_way_;
  std::vector<CURL*> idle_;

  std::thread thread_;
};

}  // namespace production
