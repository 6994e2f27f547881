#include "core/data/documents.h"

#include <algorithm>

#include "core/base/bad_input.h"
#include "core/data/json_line.h"
#include "core/tokenizer/utf8.h"

namespace flashmorph {
namespace {

constexpr size_t kPart = 1 << 20;
constexpr std::string_view kMark = "\xEF\xBB\xBF";  // U+FEFF

}  // namespace

DocumentReader::DocumentReader(const std::filesystem::path& file, std::string field, bool skips_bad_lines)
    : path_(file), input_(file), field_(std::move(field)), skips_bad_lines_(skips_bad_lines) {
  pass_mark();
}

void DocumentReader::pass_mark() {
  if (!fill(kMark.size()) || !ahead_.starts_with(kMark)) return;
  position_ = taken_ = kMark.size();
}

void DocumentReader::go_on_from(uint64_t position, uint64_t line) {
  line_ = line;
  while (position_ < position && fill(1)) {
    const auto passed = std::min<uint64_t>(position - position_, ahead_.size());
    taken_ = passed;
    position_ += passed;
    drop_taken();
    if (!input_.packed() && ahead_.empty()) {
      input_.skip(position - position_);
      position_ = std::min(position, input_.file_bytes());
    }
  }
}

void DocumentReader::drop_taken() {
  ahead_.erase(0, taken_);
  taken_ = 0;
}

bool DocumentReader::fill(size_t bytes) {
  drop_taken();
  while (ahead_.size() < bytes) {
    const std::string_view more = input_.next();
    if (more.empty()) return false;
    ahead_ += more;
  }
  return true;
}

bool DocumentReader::next(Part& part) { return field_.empty() ? next_of_text(part) : next_line(part); }

bool DocumentReader::next_of_text(Part& part) {
  const bool goes_on = fill(kPart + 1);
  if (ahead_.empty()) return false;
  size_t end = std::min(kPart, ahead_.size());
  while (goes_on && end > 1 && (ahead_[end] & 0xC0) == 0x80) --end;  // not inside a character
  part = {std::string_view(ahead_).substr(0, end), !goes_on};
  if (const size_t broken = invalid_utf8_at(part.text); broken != std::string_view::npos)
    throw BadInput(path_.string(), "is not UTF-8 text: see byte " + std::to_string(position_ + broken));
  position_ += end;
  taken_ = end;
  return true;
}

bool DocumentReader::next_line(Part& part) {
  while (fill(1)) {
    size_t end = ahead_.find('\n');
    for (size_t wanted = kPart; end == std::string::npos && fill(wanted); wanted *= 2) end = ahead_.find('\n');
    if (end == std::string::npos) end = ahead_.find('\n');
    const std::string_view line = std::string_view(ahead_).substr(0, end);
    taken_ = std::min(line.size() + 1, ahead_.size());
    position_ += taken_;
    ++line_;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    try {
      text_ = text_at(line, field_, path_.string() + ": line " + std::to_string(line_));
    } catch (const BadInput&) {
      if (!skips_bad_lines_) throw;
      ++bad_lines_;
      continue;
    }
    part = {text_, true};
    return true;
  }
  return false;
}

}  // namespace flashmorph
