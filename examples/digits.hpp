// SPDX-License-Identifier: BSL-1.0
#pragma once

// A trained network for handwritten digits and the reader of its images: what 03_digits and later examples predict
// with. The data and where they come from: data/digits/README.md.

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <cobatch/error.hpp>
#include <cobatch/expected.hpp>

namespace digits {

/// One image of 8x8 pixels and the digit that it shows.
struct image {
  int label = 0;                          ///< 0 to 9
  std::array<std::uint8_t, 64> pixels{};  ///< row by row, 0 to 16
};

/// Why a line came to no image: this example's own error type.
///
/// To be the E of an expected<T, E> that predict returns, it must be constructible from cobatch::error: the batch makes
/// one for a sample that it stopped or never started. (A class with constructors: as an aggregate with a string inside
/// it would meet a bug of GCC 12, see guides/gcc12.md.)
class failure {
 public:
  explicit failure(std::string message) : message_(std::move(message)) {}
  explicit failure(const cobatch::error& why) : message_(why.message()) {}

  const std::string& message() const noexcept { return message_; }

 private:
  std::string message_;
};

/// One line of a text file, without its line end.
struct text_line {
  std::size_t number = 0;  ///< counted from 1
  std::string text;
};

/// The lines of a file, LF or CRLF, without the empty ones at its end; or why it cannot be read.
cobatch::expected<std::vector<text_line>, std::string> read_lines(const std::string& path);

/// A file of images: on each line the label, then 64 pixels, separated by commas.
///
/// Opening reads the lines only. Each is parsed on its own by parse(), as part of a batch: a bad line costs itself
/// alone.
class csv_file {
 public:
  static cobatch::expected<csv_file, std::string> open(const std::string& path);

  const std::vector<text_line>& lines() const noexcept { return lines_; }

  /// The image on that line; failure::message() begins with "file:line: " or "file:line:column: ".
  cobatch::expected<image, failure> parse(const text_line& line) const;

 private:
  csv_file(std::string path, std::vector<text_line> lines) : path_(std::move(path)), lines_(std::move(lines)) {}

  std::string path_;
  std::vector<text_line> lines_;
};

/// A multilayer perceptron, 64 pixels, 64 hidden units, 10 classes: logits = W2 * relu(W1 * pixels / 16 + b1) + b2.
class mlp {
 public:
  static cobatch::expected<mlp, std::string> load(const std::string& path);

  /// One logit for each digit. const and without state: any number of threads may call it at once.
  std::array<float, 10> operator()(const image& x) const;

  /// The same for many images at once: one matrix product for each layer.
  std::vector<std::array<float, 10>> operator()(std::span<const image> batch) const;

 private:
  /// Weights by input, so that the inner loop runs over the outputs: compilers vectorise that at no loss of accuracy.
  template <std::size_t Inputs, std::size_t Outputs>
  struct layer {
    std::array<std::array<float, Outputs>, Inputs> weights;
    std::array<float, Outputs> bias;

    std::array<float, Outputs> operator()(const std::array<float, Inputs>& in) const {
      std::array<float, Outputs> out = bias;
      for (std::size_t i = 0; i < Inputs; ++i) {
        for (std::size_t o = 0; o < Outputs; ++o) out[o] += weights[i][o] * in[i];
      }
      return out;
    }

    /// A matrix product: each row of weights is read once for the whole batch.
    std::vector<std::array<float, Outputs>> operator()(const std::vector<std::array<float, Inputs>>& in) const {
      std::vector<std::array<float, Outputs>> out(in.size(), bias);
      for (std::size_t i = 0; i < Inputs; ++i) {
        for (std::size_t n = 0; n < in.size(); ++n) {
          for (std::size_t o = 0; o < Outputs; ++o) out[n][o] += weights[i][o] * in[n][i];
        }
      }
      return out;
    }
  };

  mlp() = default;

  layer<64, 64> hidden_;
  layer<64, 10> output_;
};

/// The digit that the logits speak for.
inline int digit_of(const std::array<float, 10>& logits) {
  return static_cast<int>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

// ---- Implementation ----

namespace detail {

inline std::string where(std::string_view path, std::size_t line) {
  return std::string(path) + ":" + std::to_string(line) + ": ";
}

inline std::string where(std::string_view path, std::size_t line, std::size_t column) {
  return std::string(path) + ":" + std::to_string(line) + ":" + std::to_string(column) + ": ";
}

/// The text in quotes, fit for a terminal: short and printable.
inline std::string quoted(std::string_view text) {
  constexpr std::size_t longest = 24;
  std::string shown(text.substr(0, longest));
  std::replace_if(shown.begin(), shown.end(), [](char c) { return c < ' ' || c > '~'; }, '?');
  return "\"" + shown + "\"" + (text.size() > longest ? "..." : "");
}

/// Takes a line apart at its separators.
class field_reader {
 public:
  field_reader(std::string_view line, char separator) : line_(line), separator_(separator) {}

  bool next() {
    if (begin_ > line_.size()) return false;
    const std::size_t end = std::min(line_.find(separator_, begin_), line_.size());
    text_ = line_.substr(begin_, end - begin_);
    column_ = begin_ + 1;
    begin_ = end + 1;
    return true;
  }

  std::string_view text() const noexcept { return text_; }
  std::size_t column() const noexcept { return column_; }  ///< counted in bytes, from 1

 private:
  std::string_view line_;
  std::string_view text_;
  char separator_;
  std::size_t begin_ = 0;
  std::size_t column_ = 0;
};

/// The whole text as a number; invalid_argument where it is none, result_out_of_range where it is too large.
inline std::errc parse(std::string_view text, int& number) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc() && end != text.data() + text.size() ? std::errc::invalid_argument : error;
}

inline std::errc parse(std::string_view text, float& number) {
  // No "inf", "nan" or hexadecimal digits in a model.
  if (text.find_first_not_of("0123456789+-.eE") != text.npos) return std::errc::invalid_argument;
#ifdef __cpp_lib_to_chars
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc() && end != text.data() + text.size() ? std::errc::invalid_argument : error;
#else  // libc++ has from_chars for floating point only since version 20
  if (text.empty() || text.front() == '+') return std::errc::invalid_argument;
  const std::string copy(text);
  char* end = nullptr;
  number = std::strtof(copy.c_str(), &end);
  if (end != copy.c_str() + copy.size()) return std::errc::invalid_argument;
  return std::isfinite(number) ? std::errc() : std::errc::result_out_of_range;
#endif
}

}  // namespace detail

inline cobatch::expected<std::vector<text_line>, std::string> read_lines(const std::string& path) {
  std::error_code status;
  if (!std::filesystem::exists(path, status)) return cobatch::unexpected(path + ": no such file");
  if (std::filesystem::is_directory(path, status)) return cobatch::unexpected(path + ": a directory, not a file");
  std::ifstream in(path, std::ios::binary);
  if (!in) return cobatch::unexpected(path + ": cannot be opened for reading");

  std::vector<text_line> lines;
  for (std::string text; std::getline(in, text);) {
    if (text.ends_with('\r')) text.pop_back();
    if (lines.empty() && text.starts_with("\xef\xbb\xbf")) text.erase(0, 3);  // some editors mark UTF-8 like this
    lines.push_back({lines.size() + 1, std::move(text)});
  }
  if (in.bad()) return cobatch::unexpected(path + ": reading failed after line " + std::to_string(lines.size()));
  while (!lines.empty() && lines.back().text.empty()) lines.pop_back();
  if (lines.empty()) return cobatch::unexpected(path + ": the file is empty");
  return lines;
}

inline cobatch::expected<csv_file, std::string> csv_file::open(const std::string& path) {
  return read_lines(path).transform([&](std::vector<text_line>&& lines) { return csv_file(path, std::move(lines)); });
}

inline cobatch::expected<image, failure> csv_file::parse(const text_line& line) const {
  if (line.text.empty()) return cobatch::unexpected(failure(detail::where(path_, line.number) + "the line is empty"));
  image parsed;
  detail::field_reader fields(line.text, ',');
  std::size_t count = 0;
  for (; fields.next(); ++count) {
    if (count > parsed.pixels.size()) continue;  // too many: only count them
    const std::string name = count == 0 ? "the label" : "pixel " + std::to_string(count);
    const int most = count == 0 ? 9 : 16;
    const auto fail = [&](const std::string& what) {
      return cobatch::unexpected(failure(detail::where(path_, line.number, fields.column()) + what));
    };
    int number = 0;
    const std::errc error = detail::parse(fields.text(), number);
    if (error == std::errc::invalid_argument) {
      return fail(name + " is " + detail::quoted(fields.text()) + ", not a whole number");
    }
    if (error != std::errc() || number < 0 || number > most) {
      return fail(name + " is " + std::string(fields.text().substr(0, 24)) + ", not within 0 to " +
                  std::to_string(most));
    }
    if (count == 0) {
      parsed.label = number;
    } else {
      parsed.pixels[count - 1] = static_cast<std::uint8_t>(number);
    }
  }
  if (count != parsed.pixels.size() + 1) {
    return cobatch::unexpected(failure(detail::where(path_, line.number) + "a label and 64 pixels were expected, " +
                                       std::to_string(count - 1) + " pixels were found"));
  }
  return parsed;
}

inline cobatch::expected<mlp, std::string> mlp::load(const std::string& path) {
  auto lines = read_lines(path);
  if (!lines) return cobatch::unexpected(std::move(lines).error());
  constexpr std::string_view header = "mlp 64 64 10";
  if (lines->front().text != header) {
    return cobatch::unexpected(detail::where(path, 1) + detail::quoted(lines->front().text) +
                               " where the model's shape was expected: \"" + std::string(header) + "\"");
  }

  // Reads the next line into numbers(0), numbers(1), ... numbers(size - 1); an empty text if that went well.
  std::size_t next = 1;
  const auto read_row = [&](std::size_t size, auto numbers) -> std::string {
    if (next == lines->size()) return detail::where(path, next) + "the model ends early";
    const text_line& line = (*lines)[next++];
    detail::field_reader fields(line.text, ' ');
    std::size_t count = 0;
    for (; fields.next(); ++count) {
      if (count >= size) continue;
      const std::errc error = detail::parse(fields.text(), numbers(count));
      if (error == std::errc()) continue;
      return detail::where(path, line.number, fields.column()) + detail::quoted(fields.text()) +
             (error == std::errc::result_out_of_range ? " is out of range" : " is not a number");
    }
    if (count == size) return {};
    return detail::where(path, line.number) + std::to_string(size) + " numbers were expected, " +
           std::to_string(count) + " were found";
  };
  const auto read_layer = [&](auto& layer) -> std::string {
    const std::size_t outputs = layer.bias.size();
    for (std::size_t o = 0; o < outputs; ++o) {
      std::string problem =
          read_row(layer.weights.size(), [&](std::size_t i) -> float& { return layer.weights[i][o]; });
      if (!problem.empty()) return problem;
    }
    return read_row(outputs, [&](std::size_t o) -> float& { return layer.bias[o]; });
  };

  mlp model;
  std::string problem = read_layer(model.hidden_);
  if (problem.empty()) problem = read_layer(model.output_);
  if (problem.empty() && next != lines->size())
    problem = detail::where(path, next + 1) + "the model goes on after its end";
  if (!problem.empty()) return cobatch::unexpected(std::move(problem));
  return model;
}

inline std::array<float, 10> mlp::operator()(const image& x) const {
  std::array<float, 64> in;
  for (std::size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(x.pixels[i]) / 16;
  std::array<float, 64> hidden = hidden_(in);
  for (float& each : hidden) each = std::max(each, 0.0f);
  return output_(hidden);
}

inline std::vector<std::array<float, 10>> mlp::operator()(std::span<const image> batch) const {
  std::vector<std::array<float, 64>> in(batch.size());
  for (std::size_t n = 0; n < batch.size(); ++n) {
    for (std::size_t i = 0; i < in[n].size(); ++i) in[n][i] = static_cast<float>(batch[n].pixels[i]) / 16;
  }
  std::vector<std::array<float, 64>> hidden = hidden_(in);
  for (std::array<float, 64>& row : hidden) {
    for (float& each : row) each = std::max(each, 0.0f);
  }
  return output_(hidden);
}

}  // namespace digits
