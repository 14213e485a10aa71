// SPDX-License-Identifier: BSL-1.0
//
// Predicts what comes in a topic of Kafka. Workers of one group share its partitions.
//
// A message is JSON, an image of 64 numbers. Its answer goes to another topic under the same key. What cannot be predicted
// goes to the topic of dead letters, with the reason in the header "error". One number says how far a partition was read: it
// moves on when all before it is answered and the brokers have the answers. So every message is answered at least once,
// although a partition's messages are predicted side by side.
//
//         I/O thread: messages  ->  work_queue  ->  predict_stream, on the pool
//   offsets, as answers arrive  <-   producer   <-  outcomes as they complete
//
// SIGTERM drains: no more messages, what was taken is answered, then the end.
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cobatch/cobatch.hpp>

#include "engine.hpp"
#include "kafka.hpp"
#include "options.hpp"
#include "queue_messages.hpp"
#include "termination.hpp"
#include "work_queue.hpp"

using cobatch::task;
using namespace production;
using namespace std::chrono_literals;

struct job {
  std::uint64_t assignment;  // the number of the rebalance by which its partition was ours
  std::int32_t partition;
  std::int64_t offset;
  std::string key, body;
};
using job_ptr = std::shared_ptr<const job>;
using jobs_queue = work_queue<job_ptr>;

/// What of one partition is taken, and what of that is answered.
class progress {
 public:
  void take(std::int64_t offset) { answered_.emplace(offset, false); }

  /// How far the partition is answered without a gap, if that is further than before: the offset to go on with.
  std::optional<std::int64_t> answer(std::int64_t offset) {
    answered_.at(offset) = true;
    std::optional<std::int64_t> next;
    while (!answered_.empty() && answered_.begin()->second) {
      next = answered_.begin()->first + 1;
      answered_.erase(answered_.begin());
    }
    return next;
  }

 private:
  std::map<std::int64_t, bool> answered_;
};

/// Ends the program as a kill would, for something else to start it again. Nothing is lost: what was not answered has not
/// been committed.
[[noreturn]] void give_up(const std::string& why) {
  std::fprintf(stderr, "queue_worker_kafka: %s\n", why.c_str());
  std::_Exit(1);
}

// ---- The I/O thread ----

class courier {
 public:
  courier(const options& given, jobs_queue& jobs, termination& stop)
      : topic_(given.text("topic")), most_(given.size("max-concurrency")), jobs_(jobs), stop_(stop) {
    if (bell_ < 0) throw std::system_error(errno, std::generic_category(), "eventfd");
    // Idempotent: what the producer sends again after an error arrives once, and in order.
    producer_ = make_client(
        RD_KAFKA_PRODUCER,
        {{"bootstrap.servers", given.text("brokers")}, {"enable.idempotence", "true"}, {"linger.ms", "1"}},
        [&](rd_kafka_conf_t* configuration) {
          rd_kafka_conf_set_opaque(configuration, this);
          rd_kafka_conf_set_dr_msg_cb(configuration, [](rd_kafka_t*, const rd_kafka_message_t* sent, void* self) {
            const std::unique_ptr<job_ptr> of(static_cast<job_ptr*>(sent->_private));
            static_cast<courier*>(self)->on_sent(**of, sent->err);
          });
        });
    // Offsets are committed in the background once a second, but only those that we store. The client reads ahead: little,
    // because a rebalance comes behind what was read.
    consumer_ = make_client(
        RD_KAFKA_CONSUMER,
        {{"bootstrap.servers", given.text("brokers")},
         {"group.id", given.text("group")},
         {"session.timeout.ms", given.text("session-timeout-ms")},
         {"auto.offset.reset", "earliest"},
         {"enable.auto.offset.store", "false"},
         {"auto.commit.interval.ms", "1000"},
         {"queued.min.messages", given.text("max-concurrency")},
         {"fetch.message.max.bytes", "65536"}},
        [&](rd_kafka_conf_t* configuration) {
          rd_kafka_conf_set_opaque(configuration, this);
          rd_kafka_conf_set_rebalance_cb(configuration, [](rd_kafka_t*, rd_kafka_resp_err_t why,
                                                           rd_kafka_topic_partition_list_t* partitions, void* self) {
            static_cast<courier*>(self)->on_rebalance(why, partitions);
          });
        });
    rd_kafka_poll_set_consumer(consumer_.get());
    // Both ring when something arrives in an empty queue.
    const std::uint64_t one = 1;
    const kafka_queue arriving(rd_kafka_queue_get_consumer(consumer_.get()));
    rd_kafka_queue_io_event_enable(arriving.get(), bell_, &one, sizeof one);
    const kafka_queue sent(rd_kafka_queue_get_main(producer_.get()));
    rd_kafka_queue_io_event_enable(sent.get(), bell_, &one, sizeof one);
    subscribe(consumer_.get(), {topic_});
  }
  courier(const courier&) = delete;
  courier& operator=(const courier&) = delete;
  ~courier() {
    consumer_.reset();
    producer_.reset();
    ::close(bell_);
  }

  /// From any thread: the outcome of a job.
  void send(const job_ptr& of, const std::string& topic, std::string_view body, const std::string& error) try {
    auto kept = std::make_unique<job_ptr>(of);
    produce(producer_.get(), topic, of->key, body, error, kept.get());
    (void)kept.release();  // for the callback
  } catch (const kafka_error& e) {
    give_up(e.what());
  }

  /// Until all is drained.
  void run() {
    while (!stop_.requested()) {
      // A message more for each that was answered. The group waits for us at a rebalance, and goes on without us if we do
      // not come here for max.poll.interval.ms, five minutes: a predict must be faster than that.
      while (taken_ < most_) {
        const kafka_message arrived(rd_kafka_consumer_poll(consumer_.get(), 0));
        if (!arrived) break;
        take(*arrived);
      }
      wait();
    }
    drain(std::chrono::steady_clock::time_point::max());
    rd_kafka_consumer_close(consumer_.get());  // commits, and leaves the group
    jobs_.close();
  }

  void report() const {
    std::printf("drained: %zu answered, %zu rebalances, %zu left to others\n", answered_, rebalances_, left_);
  }

 private:
  void take(const rd_kafka_message_t& arrived) {
    if (arrived.err) {  // the client mends what it can by itself
      std::fprintf(stderr, "queue_worker_kafka: %s\n", rd_kafka_message_errstr(&arrived));
      return;
    }
    ++taken_;
    progress_[arrived.partition].take(arrived.offset);
    jobs_.push(std::make_shared<const job>(job{assignment_, arrived.partition, arrived.offset,
                                               text_of(arrived.key, arrived.key_len),
                                               text_of(arrived.payload, arrived.len)}));
  }

  void wait() {
    pollfd ready[] = {{bell_, POLLIN, 0}, {stop_.descriptor(), POLLIN, 0}};
    poll(ready, 2, 1000);
    std::uint64_t rung = 0;
    (void)!::read(bell_, &rung, sizeof rung);
    rd_kafka_poll(producer_.get(), 0);  // calls on_sent()
  }

  /// Until all that was taken is answered.
  void drain(std::chrono::steady_clock::time_point end) {
    while (taken_ > 0 && std::chrono::steady_clock::now() < end) rd_kafka_poll(producer_.get(), 100);
  }

  /// The brokers have an answer, or the producer gave it up after five minutes.
  void on_sent(const job& of, rd_kafka_resp_err_t why) {
    if (why) give_up("an answer could not be sent: " + std::string(rd_kafka_err2str(why)));
    --taken_;
    ++answered_;
    if (of.assignment != assignment_) {
      ++left_;  // the partition has another owner, who has perhaps answered it too
      return;
    }
    if (const std::optional<std::int64_t> next = progress_.at(of.partition).answer(of.offset)) {
      const kafka_partitions until = no_partitions();
      rd_kafka_topic_partition_list_add(until.get(), topic_.c_str(), of.partition)->offset = *next;
      rd_kafka_offsets_store(consumer_.get(), until.get());
    }
  }

  /// The partitions are shared out anew, inside rd_kafka_consumer_poll(). Before ours are taken away, what runs may end,
  /// so that nobody does it again.
  void on_rebalance(rd_kafka_resp_err_t why, rd_kafka_topic_partition_list_t* partitions) {
    ++rebalances_;
    if (why == RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS) {
      rd_kafka_assign(consumer_.get(), partitions);
      std::printf("consuming %d partitions of %s\n", partitions->cnt, topic_.c_str());
      std::fflush(stdout);
      return;
    }
    taken_ -= jobs_.drop_waiting();
    if (!rd_kafka_assignment_lost(consumer_.get())) {  // else others have them already
      drain(std::chrono::steady_clock::now() + 10s);
      rd_kafka_commit(consumer_.get(), nullptr, 0);  // what was stored
    }
    ++assignment_;
    progress_.clear();
    rd_kafka_assign(consumer_.get(), nullptr);
  }

  const std::string topic_;
  const std::size_t most_;
  jobs_queue& jobs_;
  termination& stop_;
  const int bell_ = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  kafka_client producer_, consumer_;
  std::uint64_t assignment_ = 0;
  std::map<std::int32_t, progress> progress_;  // of the partitions that are ours
  std::size_t taken_ = 0;                      // jobs that wait, run, or are being answered
  std::size_t answered_ = 0, rebalances_ = 0, left_ = 0;
};

// ---- The predictions ----

task<logits> predict(cobatch::thread_pool& pool, const predict_many& model, const job& work,
                     std::chrono::microseconds cost) {
  const std::vector<digits::image> one{image_of(work.body)};
  if (cost.count() > 0) co_await pool.schedule_after(cost);
  const std::vector<logits> rows = co_await model(one);
  co_return rows.front();
}

task<int> work(cobatch::thread_pool& pool, const predict_many& model, jobs_queue& jobs, courier& io, const options& given) {
  const std::chrono::microseconds cost(given.number("cost-us"));
  const auto ask = [&](const job_ptr& each) { return predict(pool, model, *each, cost); };
  auto outcomes = cobatch::predict_stream(pool, jobs, ask, {.max_concurrency = given.size("max-concurrency")});
  for (;;) {
    const auto item = co_await outcomes.next();
    if (!item) break;
    const job_ptr of = jobs.finished(item->index);
    if (item->result) {
      io.send(of, given.text("answers"), answer_of(*item->result), {});
    } else {  // as it came, with the reason; not all of what is so long that brokers would refuse it with one header more
      const std::string_view body(of->body);
      io.send(of, given.text("dead-letters"), body.substr(0, 100'000), item->result.error().message());
    }
  }
  co_return 0;
}

int main(int argc, char** argv) {
  const options given(argc, argv,
                      {{"brokers", "127.0.0.1:9092"},
                       {"group", "digits"},
                       {"topic", "digits"},
                       {"answers", "digits.answers"},
                       {"dead-letters", "digits.dead"},
                       {"session-timeout-ms", "45000"},
                       {"max-concurrency", "64"},
                       {"cost-us", "0"},
                       {"predict-threads", "2"}});
  try {
    termination stop;
    cobatch::thread_pool pool(given.size("predict-threads"));
    const predict_many model = make_engine("digits", pool);
    jobs_queue jobs;
    courier io(given, jobs, stop);
    {
      std::jthread io_thread([&] { io.run(); });
      cobatch::sync_wait(work(pool, model, jobs, io, given));
    }
    io.report();
    return 0;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "queue_worker_kafka: %s\n", e.what());
    return 1;
  }
}
