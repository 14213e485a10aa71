// SPDX-License-Identifier: BSL-1.0
//
// Sends images to the topic of queue_worker_kafka, and counts what comes back. It ends well only if nothing is missing:
// each image answered at least once, each poisonous message among the dead letters.
//
// With --mock-brokers 3 it first starts brokers of its own, in this process: librdkafka's mock cluster, which keeps all in
// memory. Then it begins when it reads a line, and the brokers end when the standard input does.
#include <charconv>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include <unistd.h>

#include "kafka.hpp"
#include "options.hpp"
#include "queue_messages.hpp"

#include <librdkafka/rdkafka_mock.h>  // wants rdkafka.h before it

using namespace production;
using clock_type = std::chrono::steady_clock;

/// Brokers on loopback.
class mock_cluster {
 public:
  explicit mock_cluster(int brokers)
      : owner_(make_client(RD_KAFKA_PRODUCER, {{"log_level", "3"}}, [](rd_kafka_conf_t*) {})),
        cluster_(rd_kafka_mock_cluster_new(owner_.get(), brokers)) {
    if (!cluster_) throw kafka_error("the mock cluster does not start");
  }

  std::string addresses() const { return rd_kafka_mock_cluster_bootstraps(cluster_.get()); }
  void make_topic(const std::string& name, int partitions) {
    check(rd_kafka_mock_topic_create(cluster_.get(), name.c_str(), partitions, 1), "make the topic " + name);
  }

 private:
  kafka_client owner_;
  std::unique_ptr<rd_kafka_mock_cluster_t, freed_by<rd_kafka_mock_cluster_destroy>> cluster_;
};

class client {
 public:
  client(const options& given, const std::string& brokers)
      : topic_(given.text("topic")),
        dead_letters_(given.text("dead-letters")),
        run_(std::to_string(getpid()) + "." + std::to_string(clock_type::now().time_since_epoch().count() % 1'000'000)),
        images_(given.size("messages")),
        progress_(given.size("progress")),
        patience_(given.number("patience-s")),
        linger_(given.number("linger-ms")),
        answers_(images_ + given.size("poison")) {
    producer_ = make_client(RD_KAFKA_PRODUCER, {{"bootstrap.servers", brokers}, {"enable.idempotence", "true"}},
                            [&](rd_kafka_conf_t* configuration) {
                              rd_kafka_conf_set_opaque(configuration, this);
                              rd_kafka_conf_set_dr_msg_cb(
                                  configuration, [](rd_kafka_t*, const rd_kafka_message_t* sent, void* self) {
                                    ++(sent->err ? static_cast<client*>(self)->not_sent_ : static_cast<client*>(self)->sent_);
                                  });
                            });
    // In a group of its own, which commits nothing.
    consumer_ = make_client(RD_KAFKA_CONSUMER,
                            {{"bootstrap.servers", brokers},
                             {"group.id", "queue_client_kafka." + run_},
                             {"auto.offset.reset", "earliest"},
                             {"enable.auto.commit", "false"}},
                            [](rd_kafka_conf_t*) {});
    rd_kafka_poll_set_consumer(consumer_.get());
    subscribe(consumer_.get(), {given.text("answers"), dead_letters_});
  }
  ~client() { rd_kafka_consumer_close(consumer_.get()); }
  client(const client&) = delete;
  client& operator=(const client&) = delete;

  int run() {
    const clock_type::time_point begin = clock_type::now();
    last_ = begin;
    std::size_t next = 0;
    while (not_sent_ == 0) {
      for (int i = 0; i < 100 && next < answers_.size(); ++i, ++next) {
        const std::string body = next < images_ ? known_.body(next) : poison(next - images_);
        produce(producer_.get(), topic_, run_ + "-" + std::to_string(next), body, {}, nullptr);
      }
      rd_kafka_poll(producer_.get(), 0);
      const bool complete = sent_ == answers_.size() && settled_ == answers_.size();
      const clock_type::duration silence = clock_type::now() - last_;
      if (complete ? silence >= linger_ : silence >= patience_) break;
      const int wait = next < answers_.size() ? 0 : 50;
      for (kafka_message arrived(rd_kafka_consumer_poll(consumer_.get(), wait)); arrived;
           arrived.reset(rd_kafka_consumer_poll(consumer_.get(), 0))) {
        count(*arrived);
      }
    }
    const std::chrono::duration<double> seconds = last_ - begin;
    std::printf("%zu sent, %zu missing, %zu duplicates, %zu dead letters, %zu wrong; %.2f s, %.0f messages/s\n", sent_,
                answers_.size() - settled_, duplicates_, dead_, wrong_, seconds.count(),
                static_cast<double>(answers_.size()) / seconds.count());
    std::fflush(stdout);
    return sent_ == answers_.size() && settled_ == answers_.size() && wrong_ == 0 ? 0 : 1;
  }

 private:
  void count(const rd_kafka_message_t& arrived) {
    if (arrived.err) {
      std::fprintf(stderr, "queue_client_kafka: %s\n", rd_kafka_message_errstr(&arrived));
      return;
    }
    const std::optional<std::size_t> number = number_of(text_of(arrived.key, arrived.key_len));
    if (!number) return;  // somebody else's
    last_ = clock_type::now();
    const bool dead = rd_kafka_topic_name(arrived.rkt) == dead_letters_;
    if (dead) {
      ++dead_;
      std::printf("dead letter %zu: %s\n", *number, error_of(arrived).c_str());
    }
    if (answers_[*number]++ > 0) {
      ++duplicates_;
    } else if (++settled_; progress_ > 0 && settled_ % progress_ == 0) {
      std::printf("%zu settled\n", settled_);
      std::fflush(stdout);
    }
    const bool expected =
        dead ? *number >= images_ : *number < images_ && known_.is_answer(*number, text_of(arrived.payload, arrived.len));
    if (!expected) ++wrong_;
  }

  /// The number of one of our messages.
  std::optional<std::size_t> number_of(std::string_view key) const {
    if (!key.starts_with(run_ + "-")) return std::nullopt;
    const std::string_view digits = key.substr(run_.size() + 1);
    std::size_t number = 0;
    const auto [end, wrong] = std::from_chars(digits.data(), digits.data() + digits.size(), number);
    if (wrong != std::errc() || end != digits.data() + digits.size() || number >= answers_.size()) return std::nullopt;
    return number;
  }

  const std::string topic_, dead_letters_, run_;
  const std::size_t images_, progress_;
  const std::chrono::seconds patience_;
  const std::chrono::milliseconds linger_;
  const known_images known_;
  std::vector<std::uint32_t> answers_;  // to each message
  clock_type::time_point last_;         // when something came
  std::size_t sent_ = 0, not_sent_ = 0, settled_ = 0, duplicates_ = 0, dead_ = 0, wrong_ = 0;
  kafka_client producer_, consumer_;
};

/// Waits until the workers' group has committed all of a topic, and says how far it came.
void report_committed(const options& given, const std::string& brokers, int partitions) {
  const kafka_client asker = make_client(
      RD_KAFKA_CONSUMER, {{"bootstrap.servers", brokers}, {"group.id", given.text("group")}}, [](rd_kafka_conf_t*) {});
  const std::string& topic = given.text("topic");
  const clock_type::time_point end = clock_type::now() + std::chrono::seconds(given.number("patience-s"));
  std::int64_t committed = 0, length = 1;
  while (committed < length && clock_type::now() < end) {
    const kafka_partitions all = no_partitions();
    rd_kafka_topic_partition_list_add_range(all.get(), topic.c_str(), 0, partitions - 1);
    check(rd_kafka_committed(asker.get(), all.get(), 30'000), "ask for the committed offsets");
    committed = length = 0;
    for (int i = 0; i < all->cnt; ++i) {
      const rd_kafka_topic_partition_t& each = all->elems[i];
      std::int64_t low = 0, high = 0;
      check(rd_kafka_query_watermark_offsets(asker.get(), topic.c_str(), each.partition, &low, &high, 30'000),
            "ask for the length of a partition");
      length += high;
      if (each.offset > 0) committed += each.offset;  // negative: none so far
    }
    if (committed < length) std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  std::printf("committed %lld of %lld\n", static_cast<long long>(committed), static_cast<long long>(length));
  std::fflush(stdout);
}

void await_input(int wanted) {
  for (int c = 0; c != wanted && c != EOF;) c = std::getchar();
}

int main(int argc, char** argv) {
  const options given(argc, argv,
                      {{"brokers", "127.0.0.1:9092"},
                       {"mock-brokers", "0"},
                       {"partitions", "6"},  // of the mock cluster's topics
                       {"group", "digits"},  // of the workers
                       {"topic", "digits"},
                       {"answers", "digits.answers"},
                       {"dead-letters", "digits.dead"},
                       {"messages", "1000"},    // images
                       {"poison", "0"},         // and so many that cannot be predicted
                       {"progress", "0"},       // print a line each time so many more are settled
                       {"patience-s", "60"},    // give up when nothing has come for so long
                       {"linger-ms", "300"}});  // after the last answer, for duplicates
  try {
    std::optional<mock_cluster> mock;
    std::string brokers = given.text("brokers");
    const int partitions = static_cast<int>(given.number("partitions"));
    if (given.number("mock-brokers") > 0) {
      mock.emplace(static_cast<int>(given.number("mock-brokers")));
      for (const char* topic : {"topic", "answers", "dead-letters"}) mock->make_topic(given.text(topic), partitions);
      brokers = mock->addresses();
      std::printf("brokers %s\n", brokers.c_str());
      std::fflush(stdout);
      await_input('\n');
    }
    const int result = client(given, brokers).run();
    if (mock) {
      report_committed(given, brokers, partitions);
      await_input(EOF);
    }
    return result;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "queue_client_kafka: %s\n", e.what());
    return 1;
  }
}
