// SPDX-License-Identifier: BSL-1.0
#pragma once

// The field's own protocol: KServe's and Triton's Open Inference Protocol v2 over HTTP, with tensors as JSON and with
// the binary tensor extension, for a model with one input and two outputs:
//
//     pixels UINT8 [n, 64]  ->  digit INT64 [n], logits FP32 [n, 10]
//
// Whatever is wrong with a request is a bad_request whose message begins with the field.

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "../digits.hpp"

namespace production {

using json = nlohmann::json;

class bad_request : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

constexpr std::size_t max_depth = 16;    // of JSON
constexpr std::size_t max_rows = 1024;   // images in one request
constexpr std::size_t pixel_count = 64;

struct wanted_output {
  std::string name;
  bool binary = false;
};

struct infer_request {
  std::string id;
  std::vector<digits::image> rows;
  std::vector<wanted_output> outputs;
};

struct infer_reply {
  std::string body;
  std::optional<std::size_t> json_length;  // set where binary tensors follow the JSON
};

/// JSON that is no deeper than a request ever is. The depth is looked at first: a million brackets cost no memory.
inline json parse_json(std::string_view text) {
  std::size_t depth = 0;
  bool quoted = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (quoted) {
      if (c == '\\') ++i;
      if (c == '"') quoted = false;
    } else if (c == '"') {
      quoted = true;
    } else if (c == '[' || c == '{') {
      if (++depth > max_depth) throw bad_request("JSON: nested deeper than " + std::to_string(max_depth));
    } else if ((c == ']' || c == '}') && depth > 0) {
      --depth;
    }
  }
  try {
    return json::parse(text);
  } catch (const json::parse_error& e) {
    throw bad_request("JSON: wrong at byte " + std::to_string(e.byte));
  }
}

/// A pixel, 0 to 16.
inline std::uint8_t pixel_of(std::int64_t value, const std::string& field) {
  if (value < 0 || value > 16) throw bad_request(field + ": " + std::to_string(value) + " is not within 0 to 16");
  return static_cast<std::uint8_t>(value);
}

inline std::uint8_t pixel_of(const json& value, const std::string& field) {
  if (!value.is_number()) throw bad_request(field + ": a number was expected");
  const double number = value.get<double>();
  if (!(number >= 0 && number <= 16) || number != static_cast<double>(static_cast<int>(number))) {
    throw bad_request(field + ": " + value.dump().substr(0, 24) + " is not a whole number within 0 to 16");
  }
  return static_cast<std::uint8_t>(number);
}

/// The numbers of a tensor, which may be nested by its shape, or flat.
inline void flatten(const json& data, const std::string& field, std::size_t expected,
                    std::vector<std::uint8_t>& pixels) {
  for (const json& each : data) {
    if (each.is_array()) {
      flatten(each, field, expected, pixels);
    } else {
      if (pixels.size() == expected) throw bad_request(field + ": more than " + std::to_string(expected) + " numbers");
      pixels.push_back(pixel_of(each, field));
    }
  }
}

inline std::size_t rows_of(const json& input, const std::string& field) {
  const auto shape = input.find("shape");
  if (shape == input.end() || !shape->is_array() || shape->size() != 2 || !(*shape)[0].is_number_unsigned() ||
      !(*shape)[1].is_number_unsigned() || (*shape)[1] != pixel_count) {
    throw bad_request(field + ".shape: [n, 64] was expected");
  }
  const auto rows = (*shape)[0].get<std::uint64_t>();
  if (rows == 0 || rows > max_rows) {
    throw bad_request(field + ".shape: 1 to " + std::to_string(max_rows) + " rows were expected, not " +
                      std::to_string(rows));
  }
  return static_cast<std::size_t>(rows);
}

inline const json& parameter(const json& object, const char* name) {
  static const json none;
  const auto parameters = object.find("parameters");
  if (parameters == object.end() || !parameters->is_object()) return none;
  const auto found = parameters->find(name);
  return found == parameters->end() ? none : *found;
}

inline std::vector<digits::image> images_of(const std::uint8_t* pixels, std::size_t rows, const std::string& field) {
  std::vector<digits::image> all(rows);
  for (std::size_t i = 0; i < rows * pixel_count; ++i) {
    all[i / pixel_count].pixels[i % pixel_count] = pixel_of(std::int64_t{pixels[i]}, field);
  }
  return all;
}

/// `json_length`: of the header Inference-Header-Content-Length, where there is one.
inline infer_request parse_infer(std::string_view body, std::optional<std::size_t> json_length) {
  if (json_length && *json_length > body.size()) {
    throw bad_request("Inference-Header-Content-Length: " + std::to_string(*json_length) + ", but the body has " +
                      std::to_string(body.size()) + " bytes");
  }
  const std::string_view binary = json_length ? body.substr(*json_length) : std::string_view();
  const json request = parse_json(body.substr(0, json_length.value_or(body.size())));
  if (!request.is_object()) throw bad_request("the request: an object was expected");

  infer_request parsed;
  if (const auto id = request.find("id"); id != request.end()) {
    if (!id->is_string()) throw bad_request("id: a string was expected");
    parsed.id = id->get<std::string>();
  }
  const auto inputs = request.find("inputs");
  if (inputs == request.end() || !inputs->is_array() || inputs->size() != 1 || !(*inputs)[0].is_object()) {
    throw bad_request("inputs: one input was expected, \"pixels\"");
  }
  const json& input = (*inputs)[0];
  const std::string field = "inputs[0]";
  if (input.value("name", json()) != "pixels") throw bad_request(field + ".name: \"pixels\" was expected");
  if (input.value("datatype", json()) != "UINT8") throw bad_request(field + ".datatype: \"UINT8\" was expected");
  const std::size_t rows = rows_of(input, field);
  const std::size_t count = rows * pixel_count;

  if (const json& size = parameter(input, "binary_data_size"); !size.is_null()) {
    if (!size.is_number_unsigned() || size != count || binary.size() != count) {
      throw bad_request(field + ".parameters.binary_data_size: the shape needs " + std::to_string(count) +
                        " bytes; " + size.dump().substr(0, 24) + " are announced and " +
                        std::to_string(binary.size()) + " follow the JSON");
    }
    parsed.rows = images_of(reinterpret_cast<const std::uint8_t*>(binary.data()), rows, field);
  } else {
    const auto data = input.find("data");
    if (data == input.end() || !data->is_array()) throw bad_request(field + ".data: an array was expected");
    if (!binary.empty()) throw bad_request("the body: " + std::to_string(binary.size()) + " bytes follow the JSON");
    std::vector<std::uint8_t> pixels;
    pixels.reserve(count);
    flatten(*data, field + ".data", count, pixels);
    if (pixels.size() != count) {
      throw bad_request(field + ".data: " + std::to_string(count) + " numbers were expected, not " +
                        std::to_string(pixels.size()));
    }
    parsed.rows = images_of(pixels.data(), rows, field);
  }

  const bool all_binary = parameter(request, "binary_data_output") == true;
  const auto outputs = request.find("outputs");
  if (outputs == request.end()) {
    parsed.outputs = {{"digit", all_binary}, {"logits", all_binary}};
    return parsed;
  }
  if (!outputs->is_array() || outputs->size() > 2) throw bad_request("outputs: an array of at most two was expected");
  for (const json& each : *outputs) {
    const json name = each.is_object() ? each.value("name", json()) : json();
    if (name != "digit" && name != "logits") throw bad_request("outputs: the model has \"digit\" and \"logits\"");
    const json& is_binary = parameter(each, "binary_data");
    parsed.outputs.push_back({name.get<std::string>(), is_binary.is_null() ? all_binary : is_binary == true});
  }
  return parsed;
}

inline infer_reply format_infer(const infer_request& request, const std::vector<std::array<float, 10>>& results) {
  json reply = {{"model_name", "digits"}, {"model_version", "1"}, {"outputs", json::array()}};
  if (!request.id.empty()) reply["id"] = request.id;
  std::string binary;
  const auto append = [&](json& output, const auto& values) {
    const std::size_t bytes = values.size() * sizeof(values[0]);  // the protocol's order of bytes is this machine's
    output["parameters"] = {{"binary_data_size", bytes}};
    binary.append(reinterpret_cast<const char*>(values.data()), bytes);
  };
  for (const wanted_output& wanted : request.outputs) {
    json output = {{"name", wanted.name}};
    if (wanted.name == "digit") {
      std::vector<std::int64_t> values;
      for (const auto& row : results) values.push_back(digits::digit_of(row));
      output["datatype"] = "INT64";
      output["shape"] = json::array({results.size()});
      if (wanted.binary) append(output, values);
      else output["data"] = values;
    } else {
      std::vector<float> values;
      for (const auto& row : results) values.insert(values.end(), row.begin(), row.end());
      output["datatype"] = "FP32";
      output["shape"] = json::array({results.size(), 10});
      if (wanted.binary) append(output, values);
      else output["data"] = values;
    }
    reply["outputs"].push_back(std::move(output));
  }
  infer_reply formatted;
  formatted.body = reply.dump(-1, ' ', false, json::error_handler_t::replace);
  if (!binary.empty()) {
    formatted.json_length = formatted.body.size();
    formatted.body += binary;
  }
  return formatted;
}

/// What GET /v2/models/digits says.
inline std::string model_metadata() {
  const json pixels = {{"name", "pixels"}, {"datatype", "UINT8"}, {"shape", {-1, 64}}};
  const json digit = {{"name", "digit"}, {"datatype", "INT64"}, {"shape", json::array({-1})}};
  const json rows = {{"name", "logits"}, {"datatype", "FP32"}, {"shape", {-1, 10}}};
  const json metadata = {{"name", "digits"},
                         {"versions", json::array({"1"})},
                         {"platform", "cobatch"},
                         {"inputs", json::array({pixels})},
                         {"outputs", json::array({digit, rows})}};
  return metadata.dump();
}

}  // namespace production
