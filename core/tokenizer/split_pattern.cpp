#include "core/tokenizer/split_pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <cstdio>

#include "core/base/bad_input.h"
#include "core/tokenizer/utf8.h"

namespace flashmorph {
namespace {

using MatchData = std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)>;

std::string message_of(int error) {
  PCRE2_UCHAR text[256] = {};
  pcre2_get_error_message(error, text, sizeof(text));
  return reinterpret_cast<const char*>(text);
}

}  // namespace

SplitPattern::SplitPattern(const std::string& pcre2, MatchBehavior behavior, bool inverts, std::string where)
    : behavior_(behavior), inverts_(inverts), where_(std::move(where)) {
  int error = 0;
  PCRE2_SIZE place = 0;
  code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pcre2.data()), pcre2.size(), PCRE2_UTF | PCRE2_UCP, &error,
                            &place, nullptr));
  if (code_ == nullptr) throw BadInput(where_, "has a pattern that does not compile: " + message_of(error));
  pcre2_jit_compile(code_.get(),
                    PCRE2_JIT_COMPLETE | PCRE2_JIT_PARTIAL_HARD);  // where it cannot, pcre2_match interprets
}

void SplitPattern::Free::operator()(pcre2_code* code) const { pcre2_code_free(code); }

// The matches and what lies between, in order; of text that goes on, up to the last match that saw no end.
std::vector<SplitPattern::Segment> SplitPattern::segments_of(std::string_view text, bool ends) const {
  std::vector<Segment> segments;
  size_t taken = 0;
  const auto take_between_to = [&](size_t end) {
    if (end > taken) segments.push_back({taken, end, inverts_});
    taken = end;
  };
  const MatchData found(pcre2_match_data_create_from_pattern(code_.get(), nullptr), &pcre2_match_data_free);
  const PCRE2_SIZE* match = pcre2_get_ovector_pointer(found.get());
  const uint32_t options = PCRE2_NO_UTF_CHECK | (ends ? 0 : PCRE2_PARTIAL_HARD);  // partial: the match saw the end
  for (size_t from = 0; from < text.size();) {
    const int matches = pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from, options,
                                    found.get(), nullptr);
    if (matches == PCRE2_ERROR_NOMATCH || matches == PCRE2_ERROR_PARTIAL) break;
    if (matches < 0) throw BadInput(where_, "has a pattern that fails on the text: " + message_of(matches));
    take_between_to(match[0]);
    segments.push_back({match[0], match[1], !inverts_});
    taken = match[1];
    from = match[1] > match[0] || taken == text.size() ? taken : taken + utf8_length(text[taken]);
  }
  if (ends) take_between_to(text.size());
  return segments;
}

bool SplitPattern::joins(const Segment& before, const Segment& segment) const {
  switch (behavior_) {
    case MatchBehavior::kMergedWithPrevious:
      return segment.match && !before.match;
    case MatchBehavior::kMergedWithNext:
      return !segment.match && before.match;
    case MatchBehavior::kContiguous:
      return segment.match == before.match;
    default:
      return false;
  }
}

// How many of them no later segment can join.
size_t SplitPattern::final_segments(const std::vector<Segment>& segments) const {
  size_t count = segments.size();
  if (behavior_ == MatchBehavior::kMergedWithPrevious)
    while (count > 0 && !segments[count - 1].match) --count;
  if (behavior_ == MatchBehavior::kMergedWithNext && count > 0 && segments[count - 1].match) --count;
  if (behavior_ == MatchBehavior::kContiguous && count > 0) {
    const bool match = segments[count - 1].match;
    while (count > 0 && segments[count - 1].match == match) --count;
  }
  return count;
}

size_t SplitPattern::split(std::string_view text, bool ends, std::vector<std::string_view>& pieces) const {
  std::vector<Segment> segments = segments_of(text, ends);
  if (!ends) segments.resize(final_segments(segments));
  for (size_t i = 0; i < segments.size(); ++i) {
    if (behavior_ == MatchBehavior::kRemoved && segments[i].match) continue;
    const size_t begin = segments[i].begin;
    while (i + 1 < segments.size() && joins(segments[i], segments[i + 1])) ++i;
    if (segments[i].end > begin) pieces.push_back(text.substr(begin, segments[i].end - begin));
  }
  return ends ? text.size() : segments.empty() ? 0 : segments.back().end;
}

std::string SplitPattern::replaced(const std::string& text, const std::string& content) const {
  std::string result;
  for (const Segment& segment : segments_of(text, true)) {
    if (segment.match)
      result += content;
    else
      result.append(text, segment.begin, segment.end - segment.begin);
  }
  return result;
}

std::string literal_pattern(std::string_view text) {
  std::string pattern;
  for (size_t at = 0; at < text.size(); at += utf8_length(text[at])) {
    char code[16];
    std::snprintf(code, sizeof(code), "\\x{%X}",
                  static_cast<unsigned>(code_point(text.substr(at, utf8_length(text[at])))));
    pattern += code;
  }
  return pattern;
}

}  // namespace flashmorph
