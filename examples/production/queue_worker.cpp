// SPDX-License-Identifier: BSL-1.0
//
// Predicts what waits in a queue of RabbitMQ. Any number of workers, on any machines, share one queue.
//
// A message is JSON, an image of 64 numbers. Its answer goes to the queue that its reply_to names, with its
// correlation_id. What cannot be predicted goes to the dead letters, with the reason in the header "error". A message
// is acknowledged once the broker has confirmed its answer, not before: whatever breaks, it is answered at least once.
//
//        I/O thread: deliveries  ->  work_queue  ->  predict_stream, on the pool
//   confirms, acknowledgements   <-  outbox      <-  outcomes as they complete
//
// SIGTERM drains: no more deliveries, what was delivered is answered, then the end.
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cobatch/cobatch.hpp>

#include "engine.hpp"
#include "options.hpp"
#include "queue_messages.hpp"
#include "rabbitmq.hpp"
#include "termination.hpp"
#include "work_queue.hpp"

using cobatch::task;
using namespace production;

/// A delivery, and the number of the connection that it came by. On another one its tag means another message.
struct job {
  std::uint64_t connection;
  delivery arrived;
};
using job_ptr = std::shared_ptr<const job>;
using jobs_queue = work_queue<job_ptr>;  // never more than the prefetch wait in it

/// What became of a job, and where that goes.
struct outcome {
  job_ptr of;
  std::string queue;
  message content;
};

/// From the stream to the I/O thread, which waits for descriptor() to be readable.
class outbox {
 public:
  outbox() {
    if (descriptor_ < 0) throw std::system_error(errno, std::generic_category(), "eventfd");
  }
  outbox(const outbox&) = delete;
  outbox& operator=(const outbox&) = delete;
  ~outbox() { ::close(descriptor_); }

  int descriptor() const { return descriptor_; }
  void put(outcome done) {
    {
      const std::lock_guard lock(mutex_);
      ready_.push_back(std::move(done));
    }
    ring();
  }
  /// There will be no more.
  void close() {
    {
      const std::lock_guard lock(mutex_);
      closed_ = true;
    }
    ring();
  }
  std::vector<outcome> take() {
    std::uint64_t rung = 0;
    (void)!::read(descriptor_, &rung, sizeof rung);
    const std::lock_guard lock(mutex_);
    return std::exchange(ready_, {});
  }
  bool at_end() {
    const std::lock_guard lock(mutex_);
    return closed_ && ready_.empty();
  }

 private:
  void ring() {
    const std::uint64_t one = 1;
    (void)!::write(descriptor_, &one, sizeof one);
  }

  const int descriptor_ = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  std::mutex mutex_;  // guards these two
  std::vector<outcome> ready_;
  bool closed_ = false;
};

struct queue_names {
  std::string work, dead_letters;
};

// ---- The I/O thread ----

/// Owns the connection, and makes another one when it breaks.
class courier {
 public:
  courier(const broker_address& address, const queue_names& queues, std::size_t prefetch, jobs_queue& jobs, outbox& out,
          termination& stop)
      : address_(address), queues_(queues), prefetch_(prefetch), jobs_(jobs), out_(out), stop_(stop) {}

  /// Until all is drained.
  void run() {
    backoff pause;
    while (!stop_.requested()) {
      try {
        connection broker(address_);
        broker.declare(queues_.work);
        broker.declare(queues_.dead_letters);
        broker.consume(queues_.work, prefetch_);
        ++connection_;
        std::printf("consuming from %s\n", queues_.work.c_str());
        std::fflush(stdout);
        pause.reset();
        serve(broker);
        broker.close();
      } catch (const broker_error& e) {
        // Whatever was delivered comes again, to us or to another worker. What was published and not confirmed may
        // have arrived, and is then answered twice.
        jobs_.drop_waiting();
        lost_ += waiting_.give_up().size();
        const std::chrono::milliseconds wait = pause.next();
        std::fprintf(stderr, "queue_worker: %s; the next attempt is in %ld ms\n", e.what(), static_cast<long>(wait.count()));
        pollfd signal{stop_.descriptor(), POLLIN, 0};
        poll(&signal, 1, static_cast<int>(wait.count()));
      }
    }
    jobs_.close();
    while (!out_.at_end()) {  // the connection broke while it drained: the predicts end, and nobody can be told
      lost_ += out_.take().size();
      pollfd more{out_.descriptor(), POLLIN, 0};
      poll(&more, 1, 1000);
    }
  }

  void report() const {
    std::printf("drained: %zu answered (%zu to no queue), %zu dead letters, %zu redelivered, %zu left to others\n",
                answered_, unroutable_, dead_, redelivered_, lost_);
  }

 private:
  /// Until all is drained, or the connection breaks.
  void serve(connection& broker) {
    bool cancelled = false;
    for (;;) {
      while (auto event = broker.next()) handle(broker, std::move(*event));
      for (outcome& each : out_.take()) {
        if (each.of->connection != connection_) {
          ++lost_;
        } else {
          const std::uint64_t number = broker.publish(each.queue, each.content);
          waiting_.add(number, std::move(each));
        }
      }
      if (stop_.requested() && !cancelled) {
        broker.cancel(queues_.work);
        cancelled = true;
        while (auto event = broker.next()) handle(broker, std::move(*event));  // the last deliveries are among these
        jobs_.close();
      }
      if (cancelled && waiting_.size() == 0 && out_.at_end()) return;
      broker.wait({{out_.descriptor(), POLLIN, 0}, {stop_.descriptor(), POLLIN, 0}});
    }
  }

  void handle(connection& broker, broker_event event) {
    if (auto* arrived = std::get_if<delivery>(&event)) {
      if (arrived->redelivered) ++redelivered_;
      jobs_.push(std::make_shared<const job>(job{connection_, std::move(*arrived)}));
    } else if (const auto* by = std::get_if<confirmation>(&event)) {
      waiting_.settle(*by, [&](const outcome& safe) {
        broker.acknowledge(safe.of->arrived.tag);
        ++(safe.content.error.empty() ? answered_ : dead_);
      });
    } else if (const auto* back = std::get_if<returned>(&event)) {
      // An answer that nobody waits for any more is counted, and that is all. A dead letter must not be lost: before it
      // is confirmed, and acknowledged, begin again, and declare its queue.
      if (back->queue == queues_.dead_letters) throw broker_error("the queue of dead letters was deleted");
      if (unroutable_++ == 0) std::fprintf(stderr, "queue_worker: no queue %s for an answer\n", back->queue.c_str());
    }
  }

  const broker_address address_;
  const queue_names queues_;
  const std::size_t prefetch_;
  jobs_queue& jobs_;
  outbox& out_;
  termination& stop_;
  std::uint64_t connection_ = 0;  // the number of the present one
  unconfirmed<outcome> waiting_;
  std::size_t answered_ = 0, dead_ = 0, unroutable_ = 0, redelivered_ = 0, lost_ = 0;
};

// ---- The predictions ----

task<logits> predict(cobatch::thread_pool& pool, const predict_many& model, const job& work,
                     std::chrono::microseconds cost) {
  const message& asked = work.arrived.content;
  if (asked.reply_to.empty()) throw bad_request("reply_to: the name of a queue was expected");
  const std::vector<digits::image> one{image_of(asked.body)};
  if (cost.count() > 0) co_await pool.schedule_after(cost);
  const std::vector<logits> rows = co_await model(one);
  co_return rows.front();
}

task<int> work(cobatch::thread_pool& pool, const predict_many& model, jobs_queue& jobs, outbox& out,
               const std::string& dead_letters, std::size_t max_concurrency, std::chrono::microseconds cost) {
  const auto ask = [&](const job_ptr& each) { return predict(pool, model, *each, cost); };
  auto outcomes = cobatch::predict_stream(pool, jobs, ask, {.max_concurrency = max_concurrency});
  for (;;) {
    const auto item = co_await outcomes.next();
    if (!item) break;
    const job_ptr of = jobs.finished(item->index);
    const message& asked = of->arrived.content;
    if (item->result) {
      out.put({of, asked.reply_to, {answer_of(*item->result), asked.correlation_id, {}, {}}});
    } else {  // as it came, with the reason
      out.put({of, dead_letters, {asked.body, asked.correlation_id, asked.reply_to, item->result.error().message()}});
    }
  }
  out.close();
  co_return 0;
}

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
                       {"max-concurrency", "64"},
                       {"cost-us", "0"},
                       {"predict-threads", "2"}});
  const broker_address address{given.text("host"),
                               given.text("user"),
                               given.text("password"),
                               given.text("vhost"),
                               static_cast<int>(given.number("port")),
                               static_cast<int>(given.number("heartbeat-s"))};
  const queue_names queues{given.text("queue"), given.text("dead-letters")};
  const std::size_t max_concurrency = given.size("max-concurrency");
  const std::chrono::microseconds cost(given.number("cost-us"));

  try {
    termination stop;
    cobatch::thread_pool pool(given.size("predict-threads"));
    const predict_many model = make_engine("digits", pool);
    jobs_queue jobs;
    outbox out;
    courier io(address, queues, max_concurrency, jobs, out, stop);
    std::jthread io_thread([&] { io.run(); });
    cobatch::sync_wait(work(pool, model, jobs, out, queues.dead_letters, max_concurrency, cost));
    io_thread.join();
    io.report();
    return 0;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "queue_worker: %s\n", e.what());
    return 1;
  }
}
