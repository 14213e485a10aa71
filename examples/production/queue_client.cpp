// SPDX-License-Identifier: BSL-1.0
//
// Sends images to the work queue of queue_worker, and counts what comes back. It ends well only if nothing is missing:
// each image answered at least once, each poisonous message among the dead letters.
//
// What the broker has not confirmed when the connection breaks is sent again on the next one. One thread does all.
#include <charconv>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <unistd.h>

#include "options.hpp"
#include "queue_messages.hpp"
#include "rabbitmq.hpp"

using namespace production;
using clock_type = std::chrono::steady_clock;

class client {
 public:
  explicit client(const options& given)
      : address_{given.text("host"),
                 given.text("user"),
                 given.text("password"),
                 given.text("vhost"),
                 static_cast<int>(given.number("port")),
                 static_cast<int>(given.number("heartbeat-s"))},
        work_(given.text("queue")),
        dead_letters_(given.text("dead-letters")),
        run_(std::to_string(getpid()) + "." + std::to_string(clock_type::now().time_since_epoch().count() % 1'000'000)),
        replies_(given.text("reply-queue").empty() ? work_ + ".replies." + run_ : given.text("reply-queue")),
        images_(given.size("messages")),
        window_(given.size("window")),
        send_only_(given.number("send-only") != 0),
        show_(given.number("show") != 0),
        progress_(given.size("progress")),
        patience_(given.number("patience-s")),
        linger_(given.number("linger-ms")),
        answers_(images_ + given.size("poison")) {
    for (std::size_t i = 0; i < answers_.size(); ++i) to_send_.push_back(i);
  }

  int run() {
    const clock_type::time_point begin = clock_type::now();
    last_ = begin;
    backoff pause;
    bool complete = false;
    while (!complete && clock_type::now() - last_ < patience_) {
      try {
        connection broker(address_);
        broker.declare(work_);
        if (!send_only_) {
          broker.declare(replies_);
          broker.consume(replies_, 1000);
          if (images_ < answers_.size()) {
            broker.declare(dead_letters_);
            broker.consume(dead_letters_, 1000);
          }
        }
        pause.reset();
        complete = exchange(broker);
        if (complete && !send_only_) broker.remove(replies_);
        broker.close();
      } catch (const broker_error& e) {
        const std::vector<std::size_t> again = unconfirmed_.give_up();
        resent_ += again.size();
        to_send_.insert(to_send_.end(), again.begin(), again.end());
        const std::chrono::milliseconds wait = pause.next();
        std::fprintf(stderr, "queue_client: %s; the next attempt is in %ld ms\n", e.what(), static_cast<long>(wait.count()));
        std::this_thread::sleep_for(wait);
      }
    }
    const std::chrono::duration<double> seconds = last_ - begin;
    report(seconds.count());
    return complete && wrong_ == 0 ? 0 : 1;
  }

 private:
  bool all_sent() const { return to_send_.empty() && unconfirmed_.size() == 0; }
  bool complete() const { return all_sent() && (send_only_ || settled_ == answers_.size()); }

  /// True once everything is answered; false when nothing has come for too long.
  bool exchange(connection& broker) {
    for (;;) {
      while (!to_send_.empty() && unconfirmed_.size() < window_) {
        const std::size_t number = to_send_.front();
        const message what{body_of(number), run_ + "-" + std::to_string(number), replies_, {}};
        const std::uint64_t confirmed_as = broker.publish(work_, what);
        to_send_.pop_front();
        unconfirmed_.add(confirmed_as, number);
      }
      while (auto event = broker.next()) handle(broker, *event);
      const clock_type::duration silence = clock_type::now() - last_;
      if (complete() && (send_only_ || silence >= linger_)) return true;
      if (silence >= patience_) return false;
      if (!to_send_.empty() && unconfirmed_.size() < window_) continue;
      broker.wait({}, complete() ? linger_ : std::chrono::milliseconds(1000));
    }
  }

  void handle(connection& broker, const broker_event& event) {
    if (const auto* by = std::get_if<confirmation>(&event)) {
      unconfirmed_.settle(*by, [&](std::size_t) { last_ = clock_type::now(); });
    } else if (const auto* back = std::get_if<returned>(&event)) {
      throw broker_error("the queue " + back->queue + " was deleted");
    } else if (const auto* arrived = std::get_if<delivery>(&event)) {
      const std::optional<std::size_t> number = number_of(arrived->content.correlation_id);
      if (!number) {
        // A dead letter of somebody else stays unacknowledged, and so in its queue, after our end.
        if (arrived->queue == replies_) broker.acknowledge(arrived->tag);
        return;
      }
      count(*number, *arrived);
      broker.acknowledge(arrived->tag);
    }
  }

  void count(std::size_t number, const delivery& arrived) {
    const message& content = arrived.content;
    const bool dead = arrived.queue == dead_letters_;
    last_ = clock_type::now();
    if (dead) std::printf("dead letter %zu: %s\n", number, content.error.c_str());
    if (show_ && !dead) std::printf("%s\n", content.body.c_str());
    if (answers_[number]++ > 0) {
      ++duplicates_;
    } else {
      ++settled_;
      if (progress_ > 0 && settled_ % progress_ == 0) {
        std::printf("%zu settled\n", settled_);
        std::fflush(stdout);
      }
    }
    if (dead) ++dead_;
    const bool expected = dead ? number >= images_ : number < images_ && known_.is_answer(number, content.body);
    if (!expected) ++wrong_;
  }

  std::string body_of(std::size_t number) const {
    return number < images_ ? known_.body(number) : poison(number - images_);
  }
  /// The number of one of our messages.
  std::optional<std::size_t> number_of(std::string_view correlation_id) const {
    if (!correlation_id.starts_with(run_ + "-")) return std::nullopt;
    const std::string_view digits = correlation_id.substr(run_.size() + 1);
    std::size_t number = 0;
    const auto [end, wrong] = std::from_chars(digits.data(), digits.data() + digits.size(), number);
    if (wrong != std::errc() || end != digits.data() + digits.size() || number >= answers_.size()) return std::nullopt;
    return number;
  }

  void report(double seconds) const {
    std::printf("%zu sent, %zu sent again, %zu missing, %zu duplicates, %zu dead letters, %zu wrong; %.2f s, %.0f messages/s\n",
                answers_.size(), resent_, send_only_ ? to_send_.size() + unconfirmed_.size() : answers_.size() - settled_,
                duplicates_, dead_, wrong_, seconds, static_cast<double>(answers_.size()) / seconds);
  }

  const broker_address address_;
  const std::string work_, dead_letters_, run_, replies_;
  const std::size_t images_, window_;
  const bool send_only_, show_;
  const std::size_t progress_;
  const std::chrono::seconds patience_;
  const std::chrono::milliseconds linger_;
  const known_images known_;
  std::vector<std::uint32_t> answers_;  // to each message
  std::deque<std::size_t> to_send_;
  unconfirmed<std::size_t> unconfirmed_;
  clock_type::time_point last_;  // when something came
  std::size_t settled_ = 0, resent_ = 0, duplicates_ = 0, dead_ = 0, wrong_ = 0;
};

int main(int argc, char** argv) {
  const options given(argc, argv,
                      {{"host", "127.0.0.1"},
                       {"port", "5672"},
                       {"user", "guest"},
                       {"password", "guest"},
                       {"vhost", "/"},
                       {"heartbeat-s", "10"},
                       {"queue", "digits"},
                       {"dead-letters", "digits.dead"},
                       {"reply-queue", ""},     // a new one
                       {"messages", "1000"},    // images
                       {"poison", "0"},         // and so many that cannot be predicted
                       {"window", "256"},       // unconfirmed at a time
                       {"send-only", "0"},      // 1: do not wait for the answers
                       {"show", "0"},           // 1: print each answer
                       {"progress", "0"},       // print a line each time so many more are settled
                       {"patience-s", "60"},    // give up when nothing has come for so long
                       {"linger-ms", "300"}});  // after the last answer, for duplicates
  try {
    return client(given).run();
  } catch (const std::exception& e) {
    std::fprintf(stderr, "queue_client: %s\n", e.what());
    return 1;
  }
}
