// SPDX-License-Identifier: BSL-1.0
#pragma once

// One connection to a RabbitMQ broker over librabbitmq, with what a program needs that must lose nothing: durable
// queues, persistent messages, publisher confirms, acknowledgements by hand, heartbeats.
//
// librabbitmq is not thread safe: one thread owns a connection and does all with it. It waits in poll(), for the
// socket and for what else it has to hear of (an eventfd that other threads write, a signalfd).
//
//     production::connection broker(address);          // throws broker_error, as all here does
//     broker.declare("work");
//     broker.consume("work", 16);
//     while (...) {
//       while (auto event = broker.next()) ...         // a delivery, a confirmation, a message that came back
//       broker.wait({{descriptor, POLLIN, 0}});
//     }

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include <amqp.h>
#include <amqp_framing.h>
#include <amqp_tcp_socket.h>
#include <poll.h>
#include <sys/time.h>

namespace production {

struct broker_address {
  std::string host, user, password, vhost;
  int port;
  int heartbeat;  // seconds
};

/// The connection is of no use any more: make another one.
class broker_error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct message {
  std::string body, correlation_id, reply_to;
  std::string error;  // a header, of dead letters
};

/// A message to be acknowledged, on the connection from which it came and on no other.
struct delivery {
  std::uint64_t tag;
  bool redelivered;  // it was given to somebody before who did not acknowledge it
  std::string queue;
  message content;
};

/// The broker has taken over the message of this number, and with `multiple` all before it.
struct confirmation {
  std::uint64_t number;
  bool multiple;
};

/// The broker has no such queue. The confirmation of the message comes after this.
struct returned {
  std::string queue;
};

using broker_event = std::variant<delivery, confirmation, returned>;

/// Everything is on one channel. For one thread.
class connection {
 public:
  explicit connection(const broker_address& address);
  connection(const connection&) = delete;
  connection& operator=(const connection&) = delete;
  /// Closes the socket without a word. What was not acknowledged will be delivered again.
  ~connection() = default;

  /// A durable queue, if it is not there.
  void declare(const std::string& queue);
  void remove(const std::string& queue);

  /// At most `prefetch` deliveries of this queue are unacknowledged at any time.
  void consume(const std::string& queue, std::size_t prefetch);
  /// No more deliveries. Those that are on the way are still to be taken by next().
  void cancel(const std::string& queue);

  /// Sends a persistent message, and returns the number by which it will be confirmed.
  std::uint64_t publish(const std::string& queue, const message& what);
  void acknowledge(std::uint64_t tag);

  /// What has arrived; empty once that is all. Waits for nothing but the rest of a message.
  std::optional<broker_event> next();

  /// Waits until something arrives, one of `others` is ready, or the time has passed. At most a second: a next() must
  /// follow, to send the heartbeats.
  void wait(std::initializer_list<pollfd> others = {}, std::chrono::milliseconds time = std::chrono::seconds(1));

  /// Says goodbye. Without it, the broker notes a lost connection.
  void close() { amqp_connection_close(state_, AMQP_REPLY_SUCCESS); }

 private:
  static constexpr amqp_channel_t channel = 1;
  static amqp_bytes_t bytes_of(std::string_view text) { return {text.size(), const_cast<char*>(text.data())}; }
  static std::string text_of(amqp_bytes_t bytes) { return {static_cast<const char*>(bytes.bytes), bytes.len}; }

  static void check(int status, const char* what) {
    if (status != AMQP_STATUS_OK) throw broker_error(std::string(what) + ": " + amqp_error_string2(status));
  }
  static void check(const amqp_rpc_reply_t& reply, const char* what);
  template <class Close>
  [[noreturn]] static void closed_by(const void* decoded) {
    throw broker_error("the broker closed the connection: " + text_of(static_cast<const Close*>(decoded)->reply_text));
  }
  message read_message();

  struct destroy {
    void operator()(amqp_connection_state_t state) const { amqp_destroy_connection(state); }
  };
  const std::unique_ptr<amqp_connection_state_t_, destroy> owner_{amqp_new_connection()};
  const amqp_connection_state_t state_ = owner_.get();
  int socket_ = -1;
  std::uint64_t published_ = 0;  // the broker counts likewise
};

/// What was published and is not confirmed, by its number.
template <class T>
class unconfirmed {
 public:
  void add(std::uint64_t number, T what) { waiting_.emplace(number, std::move(what)); }
  std::size_t size() const { return waiting_.size(); }

  /// Calls use(T) for all that is confirmed by this.
  template <class Use>
  void settle(const confirmation& by, Use use) {
    const auto end = waiting_.upper_bound(by.number);
    for (auto each = by.multiple ? waiting_.begin() : waiting_.find(by.number); each != waiting_.end() && each != end;) {
      use(each->second);
      each = waiting_.erase(each);
    }
  }

  /// All that is left. The connection is gone: nobody knows whether the broker has it.
  std::vector<T> give_up() {
    std::vector<T> left;
    for (auto& [number, what] : waiting_) left.push_back(std::move(what));
    waiting_.clear();
    return left;
  }

 private:
  std::map<std::uint64_t, T> waiting_;
};

/// How long to wait before the next attempt to connect: twice as long each time, and not the same for all who lost
/// the same broker.
class backoff {
 public:
  std::chrono::milliseconds next() {
    const long most = most_;
    most_ = std::min(2 * most_, 5000L);
    return std::chrono::milliseconds(std::uniform_int_distribution<long>(most / 2, most)(random_));
  }
  void reset() { most_ = 100; }

 private:
  long most_ = 100;
  std::minstd_rand random_{std::random_device()()};
};

// ---- Implementation ----

inline void connection::check(const amqp_rpc_reply_t& reply, const char* what) {
  std::string why;
  if (reply.reply_type == AMQP_RESPONSE_NORMAL) return;
  if (reply.reply_type == AMQP_RESPONSE_LIBRARY_EXCEPTION) {
    why = amqp_error_string2(reply.library_error);
  } else if (reply.reply_type == AMQP_RESPONSE_SERVER_EXCEPTION && reply.reply.id == AMQP_CHANNEL_CLOSE_METHOD) {
    why = text_of(static_cast<const amqp_channel_close_t*>(reply.reply.decoded)->reply_text);
  } else if (reply.reply_type == AMQP_RESPONSE_SERVER_EXCEPTION && reply.reply.id == AMQP_CONNECTION_CLOSE_METHOD) {
    why = text_of(static_cast<const amqp_connection_close_t*>(reply.reply.decoded)->reply_text);
  } else {
    why = "an unexpected answer";
  }
  throw broker_error(std::string(what) + ": " + why);
}

inline connection::connection(const broker_address& address) {
  amqp_socket_t* const socket = amqp_tcp_socket_new(state_);
  if (!socket) throw broker_error("connect: out of memory");
  const timeval patience{30, 0};
  amqp_set_rpc_timeout(state_, &patience);  // of every call that has an answer
  amqp_set_handshake_timeout(state_, &patience);
  check(amqp_socket_open_noblock(socket, address.host.c_str(), address.port, &patience), "connect");
  socket_ = amqp_socket_get_sockfd(socket);
  check(amqp_login(state_, address.vhost.c_str(), AMQP_DEFAULT_MAX_CHANNELS, AMQP_DEFAULT_FRAME_SIZE, address.heartbeat,
                   AMQP_SASL_METHOD_PLAIN, address.user.c_str(), address.password.c_str()),
        "log in");
  amqp_channel_open(state_, channel);
  check(amqp_get_rpc_reply(state_), "open a channel");
  amqp_confirm_select(state_, channel);
  check(amqp_get_rpc_reply(state_), "ask for confirms");
}

inline void connection::declare(const std::string& queue) {
  amqp_queue_declare(state_, channel, bytes_of(queue), 0, 1, 0, 0, amqp_empty_table);
  check(amqp_get_rpc_reply(state_), "declare a queue");
}

inline void connection::remove(const std::string& queue) {
  amqp_queue_delete(state_, channel, bytes_of(queue), 0, 0);
  check(amqp_get_rpc_reply(state_), "delete a queue");
}

inline void connection::consume(const std::string& queue, std::size_t prefetch) {
  amqp_basic_qos(state_, channel, 0, static_cast<std::uint16_t>(std::min<std::size_t>(prefetch, 65535)), 0);
  check(amqp_get_rpc_reply(state_), "set the prefetch");
  // The consumer is named as its queue is.
  amqp_basic_consume(state_, channel, bytes_of(queue), bytes_of(queue), 0, 0, 0, amqp_empty_table);
  check(amqp_get_rpc_reply(state_), "consume");
}

inline void connection::cancel(const std::string& queue) {
  amqp_basic_cancel(state_, channel, bytes_of(queue));
  check(amqp_get_rpc_reply(state_), "cancel");
}

inline std::uint64_t connection::publish(const std::string& queue, const message& what) {
  amqp_basic_properties_t properties{};
  properties._flags = AMQP_BASIC_CONTENT_TYPE_FLAG | AMQP_BASIC_DELIVERY_MODE_FLAG | AMQP_BASIC_CORRELATION_ID_FLAG;
  properties.content_type = bytes_of("application/json");
  properties.delivery_mode = AMQP_DELIVERY_PERSISTENT;
  properties.correlation_id = bytes_of(what.correlation_id);
  if (!what.reply_to.empty()) {
    properties._flags |= AMQP_BASIC_REPLY_TO_FLAG;
    properties.reply_to = bytes_of(what.reply_to);
  }
  amqp_table_entry_t header{};
  if (!what.error.empty()) {
    header.key = bytes_of("error");
    header.value.kind = AMQP_FIELD_KIND_UTF8;
    header.value.value.bytes = bytes_of(what.error);
    properties._flags |= AMQP_BASIC_HEADERS_FLAG;
    properties.headers = {1, &header};
  }
  constexpr amqp_boolean_t mandatory = 1;  // comes back, and is not dropped, if there is no such queue
  check(amqp_basic_publish(state_, channel, amqp_empty_bytes, bytes_of(queue), mandatory, 0, &properties,
                           bytes_of(what.body)),
        "publish");
  return ++published_;
}

inline void connection::acknowledge(std::uint64_t tag) {
  check(amqp_basic_ack(state_, channel, tag, 0), "acknowledge");
}

inline message connection::read_message() {
  amqp_message_t arrived;
  check(amqp_read_message(state_, channel, &arrived, 0), "read a message");
  const amqp_basic_properties_t& properties = arrived.properties;
  message content;
  content.body = text_of(arrived.body);
  if (properties._flags & AMQP_BASIC_CORRELATION_ID_FLAG) content.correlation_id = text_of(properties.correlation_id);
  if (properties._flags & AMQP_BASIC_REPLY_TO_FLAG) content.reply_to = text_of(properties.reply_to);
  if (properties._flags & AMQP_BASIC_HEADERS_FLAG) {
    for (int i = 0; i < properties.headers.num_entries; ++i) {
      const amqp_table_entry_t& each = properties.headers.entries[i];
      if (text_of(each.key) == "error" && each.value.kind == AMQP_FIELD_KIND_UTF8) {
        content.error = text_of(each.value.value.bytes);
      }
    }
  }
  amqp_destroy_message(&arrived);
  return content;
}

inline std::optional<broker_event> connection::next() {
  for (;;) {
    amqp_maybe_release_buffers(state_);
    amqp_frame_t frame;
    const timeval at_once{0, 0};
    const int status = amqp_simple_wait_frame_noblock(state_, &frame, &at_once);
    if (status == AMQP_STATUS_TIMEOUT) return std::nullopt;
    check(status, "read");
    if (frame.frame_type != AMQP_FRAME_METHOD) continue;
    const void* const decoded = frame.payload.method.decoded;
    switch (frame.payload.method.id) {
      case AMQP_BASIC_DELIVER_METHOD: {
        const auto& method = *static_cast<const amqp_basic_deliver_t*>(decoded);
        delivery arrived{method.delivery_tag, method.redelivered != 0, text_of(method.consumer_tag), {}};
        arrived.content = read_message();
        return arrived;
      }
      case AMQP_BASIC_ACK_METHOD: {
        const auto& method = *static_cast<const amqp_basic_ack_t*>(decoded);
        return confirmation{method.delivery_tag, method.multiple != 0};
      }
      case AMQP_BASIC_RETURN_METHOD: {
        returned back{text_of(static_cast<const amqp_basic_return_t*>(decoded)->routing_key)};
        read_message();
        return back;
      }
      // After these three the connection is given up, and all that is not settled comes again: rare, so simple.
      case AMQP_BASIC_NACK_METHOD: throw broker_error("the broker could not store a message");
      case AMQP_BASIC_CANCEL_METHOD: throw broker_error("the queue was deleted");
      case AMQP_CHANNEL_CLOSE_METHOD: closed_by<amqp_channel_close_t>(decoded);
      case AMQP_CONNECTION_CLOSE_METHOD: closed_by<amqp_connection_close_t>(decoded);
      default: break;
    }
  }
}

inline void connection::wait(std::initializer_list<pollfd> others, std::chrono::milliseconds time) {
  std::vector<pollfd> all{{socket_, POLLIN, 0}};
  all.insert(all.end(), others);
  // A call that waited for its answer may have read other things meanwhile, of which poll() knows nothing.
  const bool buffered = amqp_frames_enqueued(state_) || amqp_data_in_buffer(state_);
  poll(all.data(), all.size(), buffered ? 0 : static_cast<int>(std::min<std::chrono::milliseconds::rep>(time.count(), 1000)));
}

}  // namespace production
