// SPDX-License-Identifier: BSL-1.0
#pragma once

// Small owners around librdkafka's handles. The library is thread safe, and reconnects and retries by itself.

#include <array>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <librdkafka/rdkafka.h>

namespace production {

class kafka_error : public std::runtime_error {
 public:
  kafka_error(const std::string& what, rd_kafka_resp_err_t why) : runtime_error(what + ": " + rd_kafka_err2str(why)) {}
  explicit kafka_error(const std::string& what) : runtime_error(what) {}
};

inline void check(rd_kafka_resp_err_t status, const std::string& what) {
  if (status != RD_KAFKA_RESP_ERR_NO_ERROR) throw kafka_error(what, status);
}

/// Calls Free when it goes.
template <auto Free>
struct freed_by {
  template <class T>
  void operator()(T* what) const {
    Free(what);
  }
};
using kafka_client = std::unique_ptr<rd_kafka_t, freed_by<rd_kafka_destroy>>;
using kafka_message = std::unique_ptr<rd_kafka_message_t, freed_by<rd_kafka_message_destroy>>;
using kafka_queue = std::unique_ptr<rd_kafka_queue_t, freed_by<rd_kafka_queue_destroy>>;
using kafka_partitions =
    std::unique_ptr<rd_kafka_topic_partition_list_t, freed_by<rd_kafka_topic_partition_list_destroy>>;

inline kafka_partitions no_partitions() { return kafka_partitions(rd_kafka_topic_partition_list_new(1)); }

/// `adjust(configuration)` sets what are not texts: the callbacks.
template <class Adjust>
kafka_client make_client(rd_kafka_type_t type, std::initializer_list<std::pair<const char*, std::string>> settings,
                         Adjust adjust) {
  char why[512];
  std::unique_ptr<rd_kafka_conf_t, freed_by<rd_kafka_conf_destroy>> configuration(rd_kafka_conf_new());
  for (const auto& [name, value] : settings) {
    if (rd_kafka_conf_set(configuration.get(), name, value.c_str(), why, sizeof why) != RD_KAFKA_CONF_OK) {
      throw kafka_error(why);
    }
  }
  adjust(configuration.get());
  kafka_client made(rd_kafka_new(type, configuration.get(), why, sizeof why));
  if (!made) throw kafka_error(why);
  (void)configuration.release();  // the client's now
  return made;
}

inline void subscribe(rd_kafka_t* consumer, std::initializer_list<std::string> topics) {
  const kafka_partitions wanted = no_partitions();
  for (const std::string& each : topics) {
    rd_kafka_topic_partition_list_add(wanted.get(), each.c_str(), RD_KAFKA_PARTITION_UA);
  }
  check(rd_kafka_subscribe(consumer, wanted.get()), "subscribe");
}

/// Copies all into the producer's queue. What becomes of it, its callback is told with `opaque`.
inline void produce(rd_kafka_t* producer, const std::string& topic, std::string_view key, std::string_view body,
                    const std::string& error, void* opaque) {
  std::array<rd_kafka_vu_t, 6> fields{};
  fields[0].vtype = RD_KAFKA_VTYPE_TOPIC;
  fields[0].u.cstr = topic.c_str();
  fields[1].vtype = RD_KAFKA_VTYPE_KEY;
  fields[1].u.mem = {const_cast<char*>(key.data()), key.size()};
  fields[2].vtype = RD_KAFKA_VTYPE_VALUE;
  fields[2].u.mem = {const_cast<char*>(body.data()), body.size()};
  fields[3].vtype = RD_KAFKA_VTYPE_MSGFLAGS;
  fields[3].u.i = RD_KAFKA_MSG_F_COPY;
  fields[4].vtype = RD_KAFKA_VTYPE_OPAQUE;
  fields[4].u.ptr = opaque;
  fields[5].vtype = RD_KAFKA_VTYPE_HEADER;
  fields[5].u.header = {"error", error.data(), static_cast<std::int64_t>(error.size())};
  const std::unique_ptr<rd_kafka_error_t, freed_by<rd_kafka_error_destroy>> wrong(
      rd_kafka_produceva(producer, fields.data(), error.empty() ? 5 : 6));
  if (wrong) throw kafka_error("produce: " + std::string(rd_kafka_error_string(wrong.get())));
}

inline std::string text_of(const void* data, std::size_t size) { return {static_cast<const char*>(data), size}; }

/// The header "error", of dead letters.
inline std::string error_of(const rd_kafka_message_t& message) {
  rd_kafka_headers_t* headers = nullptr;
  const void* value = nullptr;
  std::size_t size = 0;
  if (rd_kafka_message_headers(&message, &headers) || rd_kafka_header_get_last(headers, "error", &value, &size)) return {};
  return text_of(value, size);
}

}  // namespace production
