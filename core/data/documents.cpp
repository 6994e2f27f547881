#include "core/data/documents.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/base/bad_input.h"
#include "core/io/json_input.h"
#include "core/tokenizer/utf8.h"

namespace flashmorph {
namespace {

constexpr size_t kPart = 1 << 20;

}  // namespace

DocumentReader::DocumentReader(const std::filesystem::path& file, std::string field)
    : path_(file), file_(file), field_(std::move(field)) {}

void DocumentReader::go_on_from(uint64_t position, uint64_t line) {
  position_ = std::min(position, size());
  line_ = line;
}

bool DocumentReader::next(Part& part) { return field_.empty() ? next_of_text(part) : next_line(part); }

bool DocumentReader::next_of_text(Part& part) {
  const std::string_view rest = file_.content().substr(position_);
  if (rest.empty()) return false;
  size_t end = std::min(kPart, rest.size());
  while (end < rest.size() && end > 1 && (rest[end] & 0xC0) == 0x80) --end;  // not inside a character
  part = {rest.substr(0, end), end == rest.size()};
  if (const size_t broken = invalid_utf8_at(part.text); broken != std::string_view::npos)
    throw BadInput(path_.string(), "is not UTF-8 text: see byte " + std::to_string(position_ + broken));
  position_ += end;
  return true;
}

bool DocumentReader::next_line(Part& part) {
  while (position_ < size()) {
    const std::string_view rest = file_.content().substr(position_);
    const std::string_view line = rest.substr(0, rest.find('\n'));
    position_ = std::min(position_ + line.size() + 1, size());
    ++line_;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string where = path_.string() + ": line " + std::to_string(line_);
    const nlohmann::json object = parse_json(line, where);
    const nlohmann::json& text = part_of(object, field_.c_str());
    if (!text.is_string()) throw BadInput(where, "has no text at \"" + field_ + "\"");
    text_ = text.get<std::string>();
    part = {text_, true};
    return true;
  }
  return false;
}

}  // namespace flashmorph
