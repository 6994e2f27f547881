#include "core/data/json_line.h"

#include <optional>

#include "core/base/bad_input.h"
#include "core/tokenizer/utf8.h"

namespace flashmorph {
namespace {

class Reader {
 public:
  Reader(std::string_view text, const std::string& where) : text_(text), where_(where) {}

  std::string value_of(std::string_view key) {
    std::optional<std::string> found;
    expect('{', "is not a JSON object");
    for (bool more = next() != '}'; more; more = next() == ',' && take()) {
      const std::string name = string(key.size() + 16);
      expect(':', "has no ':' after a key");
      if (name != key) {
        skip_value();
        continue;
      }
      if (found) fail("gives the key \"" + name + "\" twice");
      if (next() != '"') fail("has no text at \"" + name + "\"");
      found = string(std::string::npos);
    }
    expect('}', "is not valid JSON: the object does not end");
    if (next() != '\0' || at_ < text_.size()) fail("is not valid JSON: more follows the object");
    if (!found) fail("has no text at \"" + std::string(key) + "\"");
    if (invalid_utf8_at(*found) != std::string::npos) fail("is not UTF-8 text at \"" + std::string(key) + "\"");
    return *std::move(found);
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw BadInput(where_, what + " (byte " + std::to_string(at_ + 1) + ")");
  }
  char next() {  // the next character that is no space, or 0 at the end
    while (at_ < text_.size() && std::string_view(" \t\r\n").find(text_[at_]) != std::string_view::npos) ++at_;
    return at_ < text_.size() ? text_[at_] : '\0';
  }
  bool take() {
    ++at_;
    return true;
  }
  void expect(char character, const char* otherwise) {
    if (next() != character) fail(otherwise);
    ++at_;
  }

  // The string that starts here; no more than about `most` bytes of it are kept.
  std::string string(size_t most) {
    expect('"', "is not valid JSON: expected a key");
    std::string value;
    while (at_ < text_.size() && text_[at_] != '"') {
      const size_t plain = std::min(text_.find_first_of("\"\\", at_), text_.size());
      if (value.size() <= most) value.append(text_, at_, plain - at_);
      at_ = plain;
      if (at_ < text_.size() && text_[at_] == '\\') {
        const std::string escaped = escape();
        if (value.size() <= most) value += escaped;
      }
    }
    expect('"', "is not valid JSON: a string does not end");
    return value;
  }

  std::string escape() {
    const char kind = at_ + 1 < text_.size() ? text_[at_ + 1] : '\0';
    at_ += 2;
    if (kind == 'u') return character(unit());
    const size_t known = std::string_view("\"\\/bfnrt").find(kind);
    if (kind == '\0' || known == std::string_view::npos) fail("is not valid JSON: an unknown escape in a string");
    return {"\"\\/\b\f\n\r\t"[known]};
  }

  uint32_t unit() {
    uint32_t value = 0;
    for (int i = 0; i < 4; ++i, ++at_) {
      const size_t digit =
          at_ < text_.size() ? std::string_view("0123456789abcdefABCDEF").find(text_[at_]) : std::string_view::npos;
      if (digit == std::string_view::npos) fail("is not valid JSON: \\u needs four hexadecimal digits");
      value = value * 16 + static_cast<uint32_t>(digit < 16 ? digit : digit - 6);
    }
    return value;
  }

  std::string character(uint32_t first) {
    const auto is_between = [](uint32_t value, uint32_t low, uint32_t high) { return low <= value && value <= high; };
    if (!is_between(first, 0xD800, 0xDFFF)) return utf8_of(first);
    if (first >= 0xDC00 || text_.substr(at_, 2) != "\\u") return utf8_of(0xFFFD);
    const size_t before = at_;
    at_ += 2;
    const uint32_t second = unit();
    if (is_between(second, 0xDC00, 0xDFFF)) return utf8_of(0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00));
    at_ = before;
    return utf8_of(0xFFFD);
  }

  void skip_value() {
    std::string open;  // brackets
    for (char character = next(); character != '\0'; character = next()) {
      if (open.empty() && (character == ',' || character == '}')) return;
      if (character == '"') {
        skip_string();
        continue;
      }
      if (character == '[' || character == '{') open += character;
      if (character == ']' || character == '}') {
        if (open.empty() || open.back() != (character == ']' ? '[' : '{'))
          fail("is not valid JSON: a bracket too many");
        open.pop_back();
      }
      ++at_;
    }
  }

  void skip_string() {
    for (++at_; at_ < text_.size() && text_[at_] != '"'; ++at_)
      if (text_[at_] == '\\') ++at_;
    if (at_ >= text_.size()) fail("is not valid JSON: a string does not end");
    ++at_;
  }

  std::string_view text_;
  const std::string& where_;
  size_t at_ = 0;
};

}  // namespace

std::string text_at(std::string_view object, std::string_view key, const std::string& where) {
  return Reader(object, where).value_of(key);
}

}  // namespace flashmorph
