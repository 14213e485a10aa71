// SPDX-License-Identifier: BSL-1.0
#pragma once

// What is in the messages, whatever brings them: an image as JSON, an array of 64 numbers; and its answer. For the
// clients, images whose answers are known, and messages that nobody can answer.

#include <array>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "../digits.hpp"
#include "open_inference_protocol.hpp"

namespace production {

inline digits::image image_of(std::string_view body) {
  const json parsed = parse_json(body);
  std::vector<std::uint8_t> pixels;
  if (parsed.is_array()) flatten(parsed, "the image", pixel_count, pixels);
  if (pixels.size() != pixel_count) throw bad_request("the image: an array of 64 numbers was expected");
  return images_of(pixels.data(), 1, "the image").front();
}

inline std::string answer_of(const std::array<float, 10>& row) {
  const json body = {{"digit", digits::digit_of(row)}, {"logits", row}};
  return body.dump();
}

/// The test images again and again, with what the network says of each.
class known_images {
 public:
  known_images() {
    const auto file = digits::csv_file::open(COBATCH_EXAMPLE_DATA "/digits/digits_test.csv");
    const auto model = digits::mlp::load(COBATCH_EXAMPLE_DATA "/digits/digits_mlp.txt");
    if (!file || !model) throw std::runtime_error(!file ? file.error() : model.error());
    for (const digits::text_line& line : file->lines()) {
      const auto image = file->parse(line);
      if (!image) throw std::runtime_error(image.error().message());
      bodies_.push_back(json(image->pixels).dump());
      digits_.push_back(digits::digit_of((*model)(*image)));
    }
  }

  const std::string& body(std::size_t number) const { return bodies_[number % bodies_.size()]; }
  bool is_answer(std::size_t number, const std::string& body) const {
    const json answer = json::parse(body, nullptr, false);
    return answer.is_object() && answer.value("digit", -1) == digits_[number % digits_.size()];
  }

 private:
  std::vector<std::string> bodies_;
  std::vector<int> digits_;
};

/// A message that cannot be predicted, wrong in one of five ways.
inline std::string poison(std::size_t number) {
  switch (number % 5) {
    case 0: return "not JSON";
    case 1: return "[1, 2, 3]";
    case 2: return "{\"image\": 7}";
    case 3: return std::string(20, '[') + std::string(20, ']');
    default: return json(std::vector<int>(pixel_count, 99)).dump();
  }
}

}  // namespace production
