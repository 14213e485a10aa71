#include "../../examples/digits.hpp"

#include <array>
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include <cobatch/batch_predict.hpp>
#include <cobatch/sync_wait.hpp>
#include <cobatch/task.hpp>
#include <cobatch/thread_pool.hpp>
#include "support/catch.hpp"

namespace {

const std::string data = COBATCH_TEST_DATA "/digits/";

std::vector<digits::image> bundled_images() {
  const auto file = digits::csv_file::open(data + "digits_test.csv");
  REQUIRE(file.has_value());
  std::vector<digits::image> images;
  for (const digits::text_line& line : file->lines()) images.push_back(file->parse(line).value());
  return images;
}

std::vector<std::array<float, 10>> expected_logits() {
  std::ifstream in(data + "expected_logits.txt");
  std::vector<std::array<float, 10>> rows;
  for (std::array<float, 10> row; in >> row[0];) {
    for (std::size_t i = 1; i < row.size(); ++i) REQUIRE(static_cast<bool>(in >> row[i]));
    rows.push_back(row);
  }
  return rows;
}

/// A file of this content, for as long as this object lives.
class scratch_file {
 public:
  explicit scratch_file(std::string_view content)
      : path_(std::filesystem::temp_directory_path() /
              ("cobatch_digits_test_" + std::to_string(std::random_device()()) +
               std::to_string(std::random_device()()))) {
    std::ofstream(path_, std::ios::binary) << content;
  }
  scratch_file(const scratch_file&) = delete;
  scratch_file& operator=(const scratch_file&) = delete;
  ~scratch_file() { std::filesystem::remove(path_); }

  std::string path() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};

/// `count` fields of zeros with commas between.
std::string zeros(std::size_t count) {
  std::string line = "0";
  for (std::size_t i = 1; i < count; ++i) line += ",0";
  return line;
}

/// What the first line comes to: the failure's message behind the file's path; empty: an image.
std::string message_of(std::string_view content) {
  const scratch_file scratch(content);
  const auto file = digits::csv_file::open(scratch.path());
  REQUIRE(file.has_value());
  const auto image = file->parse(file->lines().front());
  if (image) return {};
  const std::string& message = image.error().message();
  REQUIRE(message.starts_with(scratch.path()));
  return message.substr(scratch.path().size());
}

/// Why a file is no model, behind its path.
std::string model_message_of(std::string_view content) {
  const scratch_file scratch(content);
  const auto model = digits::mlp::load(scratch.path());
  REQUIRE(!model.has_value());
  REQUIRE(model.error().starts_with(scratch.path()));
  return model.error().substr(scratch.path().size());
}

std::vector<std::string> bundled_model_lines() {
  std::vector<std::string> lines;
  std::ifstream in(data + "digits_mlp.txt");
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  REQUIRE(lines.size() == 77);
  return lines;
}

std::string joined(const std::vector<std::string>& lines, std::string_view end = "\n") {
  std::string text;
  for (const std::string& line : lines) text.append(line).append(end);
  return text;
}

}  // namespace

TEST_CASE("digits: the logits of all images agree with an independent implementation, at every limit") {
  const auto model = digits::mlp::load(data + "digits_mlp.txt");
  REQUIRE(model.has_value());
  const std::vector<digits::image> images = bundled_images();
  const std::vector<std::array<float, 10>> wanted = expected_logits();
  REQUIRE(images.size() == 500);
  REQUIRE(wanted.size() == 500);

  cobatch::thread_pool pool(2);
  const auto plain = [&](const digits::image& x) { return (*model)(x); };
  const auto suspending = [&](const digits::image& x) -> cobatch::task<std::array<float, 10>> {
    co_await pool.schedule();
    co_return (*model)(x);
  };
  const auto check = [&](const auto& results) {
    REQUIRE(results.size() == images.size());
    bool close = true;
    std::size_t right = 0;
    for (std::size_t i = 0; i < results.size(); ++i) {
      REQUIRE(results[i].has_value());
      for (std::size_t k = 0; k < 10; ++k) close = close && std::abs((*results[i])[k] - wanted[i][k]) <= 1e-4f;
      right += digits::digit_of(*results[i]) == images[i].label ? 1 : 0;
    }
    CHECK(close);
    CHECK(right == 487);
  };
  for (const std::size_t limit : {std::size_t{1}, std::size_t{5}, cobatch::unlimited}) {
    CAPTURE(limit);
    check(cobatch::sync_wait(cobatch::batch_predict(pool, images, plain, {.max_concurrency = limit})));
    check(cobatch::sync_wait(cobatch::batch_predict(pool, images, suspending, {.max_concurrency = limit})));
  }
}

TEST_CASE("digits: a bad line costs itself alone, in the batch that parses it") {
  const scratch_file scratch("3," + zeros(64) + "\n4,oops" + zeros(63) + "\n5," + zeros(64) + "\n");
  const auto model = digits::mlp::load(data + "digits_mlp.txt");
  const auto file = digits::csv_file::open(scratch.path());
  REQUIRE(model.has_value());
  REQUIRE(file.has_value());
  cobatch::thread_pool pool(2);
  const auto label = [&](const digits::text_line& line) {
    return file->parse(line).transform([](const digits::image& x) { return x.label; });
  };
  const auto results = cobatch::sync_wait(cobatch::batch_predict(pool, file->lines(), label));
  REQUIRE(results.size() == 3);
  CHECK(results[0].value() == 3);
  CHECK(results[1].error().message() == scratch.path() + ":2:3: pixel 1 is \"oops0\", not a whole number");
  CHECK(results[2].value() == 5);
}

TEST_CASE("digits: a failure can say why a sample was never started") {
  CHECK(digits::failure(cobatch::error(cobatch::errc::not_started)).message() ==
        cobatch::error(cobatch::errc::not_started).message());
}

TEST_CASE("digits: an image has its label and its pixels in order") {
  std::string line = "7";
  for (int i = 0; i < 64; ++i) line += "," + std::to_string(i % 17);
  const scratch_file scratch(line);
  const auto file = digits::csv_file::open(scratch.path());
  REQUIRE(file.has_value());
  const auto image = file->parse(file->lines().front());
  REQUIRE(image.has_value());
  CHECK(image->label == 7);
  for (std::size_t i = 0; i < 64; ++i) CHECK(image->pixels[i] == i % 17);
}

TEST_CASE("digits: a malformed line is an error that names file, line and column") {
  CHECK(message_of("x," + zeros(64)) == ":1:1: the label is \"x\", not a whole number");
  CHECK(message_of("1,0,0," + std::string("2.5,") + zeros(61)) == ":1:7: pixel 3 is \"2.5\", not a whole number");
  CHECK(message_of("1, 4," + zeros(63)) == ":1:3: pixel 1 is \" 4\", not a whole number");
  CHECK(message_of("1,+4," + zeros(63)) == ":1:3: pixel 1 is \"+4\", not a whole number");
  CHECK(message_of("1,," + zeros(63)) == ":1:3: pixel 1 is \"\", not a whole number");
  CHECK(message_of("1,0x8," + zeros(63)) == ":1:3: pixel 1 is \"0x8\", not a whole number");
  CHECK(message_of("1,17," + zeros(63)) == ":1:3: pixel 1 is 17, not within 0 to 16");
  CHECK(message_of("1,-1," + zeros(63)) == ":1:3: pixel 1 is -1, not within 0 to 16");
  CHECK(message_of("1,99999999999999999999," + zeros(63)) ==
        ":1:3: pixel 1 is 99999999999999999999, not within 0 to 16");
  CHECK(message_of("10," + zeros(64)) == ":1:1: the label is 10, not within 0 to 9");
  CHECK(message_of("1," + zeros(63)) == ":1: a label and 64 pixels were expected, 63 pixels were found");
  CHECK(message_of("1," + zeros(65)) == ":1: a label and 64 pixels were expected, 65 pixels were found");
  CHECK(message_of("1," + zeros(64) + ",") == ":1: a label and 64 pixels were expected, 65 pixels were found");
  CHECK(message_of("1") == ":1: a label and 64 pixels were expected, 0 pixels were found");
  CHECK(message_of("\n1," + zeros(64)) == ":1: the line is empty");
}

TEST_CASE("digits: an error quotes what is no number in a short and printable form") {
  CHECK(message_of("\x1b[2J\xff" + std::string(1, '\0') + "," + zeros(64)) ==
        ":1:1: the label is \"?[2J??\", not a whole number");
  CHECK(message_of(std::string(5000, 'a')) ==
        ":1:1: the label is \"" + std::string(24, 'a') + "\"..., not a whole number");
}

TEST_CASE("digits: CRLF line ends, a UTF-8 mark, blank lines at the end and a missing last line end are fine") {
  const std::string line = "1," + zeros(64);
  for (const std::string& content :
       {line, line + "\n", line + "\r\n", line + "\n\n\n", line + "\r\n\r\n", "\xef\xbb\xbf" + line + "\n"}) {
    const scratch_file scratch(content);
    const auto file = digits::csv_file::open(scratch.path());
    REQUIRE(file.has_value());
    REQUIRE(file->lines().size() == 1);
    CHECK(file->parse(file->lines().front()).has_value());
  }
  const scratch_file two(line + "\r\n\r\n" + line);
  const auto file = digits::csv_file::open(two.path());
  REQUIRE(file.has_value());
  CHECK(file->lines().size() == 3);
  CHECK(file->lines().back().number == 3);
}

TEST_CASE("digits: a file that cannot be used is an error that names it") {
  CHECK(digits::csv_file::open("no/such/file.csv").error() == "no/such/file.csv: no such file");
  CHECK(digits::csv_file::open(data).error() == data + ": a directory, not a file");
  for (const char* content : {"", "\n", "\r\n\n"}) {
    const scratch_file scratch(content);
    CHECK(digits::csv_file::open(scratch.path()).error() == scratch.path() + ": the file is empty");
  }
  CHECK(digits::mlp::load("no/such/model.txt").error() == "no/such/model.txt: no such file");
}

TEST_CASE("digits: a malformed model is an error that names file, line and column") {
  const std::vector<std::string> lines = bundled_model_lines();
  const auto with = [&](std::size_t line, const std::string& text) {
    std::vector<std::string> changed = lines;
    changed[line - 1] = text;
    return joined(changed);
  };
  const auto row = [](std::size_t count, const std::string& last = "1") {
    std::string text;
    for (std::size_t i = 1; i < count; ++i) text += "1 ";
    return text + last;
  };

  CHECK(model_message_of("P5 8 8\n") == ":1: \"P5 8 8\" where the model's shape was expected: \"mlp 64 64 10\"");
  CHECK(model_message_of(with(2, row(63))) == ":2: 64 numbers were expected, 63 were found");
  CHECK(model_message_of(with(66, row(65))) == ":66: 64 numbers were expected, 65 were found");
  CHECK(model_message_of(with(77, row(9))) == ":77: 10 numbers were expected, 9 were found");
  CHECK(model_message_of(with(70, row(64, "one"))) == ":70:127: \"one\" is not a number");
  for (const char* text : {"nan", "inf", "0x1p3", "+1", "", "1,5", "--1"}) {
    CHECK(model_message_of(with(5, row(64, text))) == ":5:127: \"" + std::string(text) + "\" is not a number");
  }
  CHECK(model_message_of(with(5, row(64, "1e99"))) == ":5:127: \"1e99\" is out of range");
  CHECK(model_message_of(joined({lines.begin(), lines.begin() + 40})) == ":40: the model ends early");
  CHECK(model_message_of(joined(lines) + row(10)) == ":78: the model goes on after its end");
  const scratch_file crlf(joined(lines, "\r\n"));
  CHECK(digits::mlp::load(crlf.path()).has_value());
}
