#include "core/io/split_pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "core/base/bad_input.h"
#include "core/io/utf8.h"

namespace flashmorph {
namespace {

using MatchData = std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)>;

std::string message_of(int error) {
  PCRE2_UCHAR text[256] = {};
  pcre2_get_error_message(error, text, sizeof(text));
  return reinterpret_cast<const char*>(text);
}

// \s is Unicode's White_Space for Oniguruma, while PCRE2 adds U+180E; other letters after a backslash are refused
// unless both read them alike.
std::string for_pcre2(const std::string& regex, const std::string& where) {
  static constexpr std::string_view same_in_both = "dDnprtxP";
  if (regex.find("&&") != std::string::npos) throw BadInput(where, "has a pattern with &&, which is not supported");
  std::string translated;
  for (size_t i = 0; i < regex.size(); ++i) {
    if (regex[i] != '\\' || i + 1 == regex.size()) {
      translated += regex[i];
      continue;
    }
    const char escaped = regex[++i];
    const bool is_letter = (escaped | 32) >= 'a' && (escaped | 32) <= 'z';
    if (escaped == 's') {
      translated += "\\p{White_Space}";
    } else if (escaped == 'S') {
      translated += "\\P{White_Space}";
    } else if (!is_letter || same_in_both.find(escaped) != std::string_view::npos) {
      translated += {'\\', escaped};
    } else {
      throw BadInput(where, std::string("has a pattern with \\") + escaped + ", which is not supported");
    }
  }
  return translated;
}

}  // namespace

SplitPattern::SplitPattern(const std::string& regex, std::string where) : where_(std::move(where)) {
  const std::string translated = for_pcre2(regex, where_);
  int error = 0;
  PCRE2_SIZE place = 0;
  code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(), PCRE2_UTF | PCRE2_UCP,
                            &error, &place, nullptr));
  if (code_ == nullptr) throw BadInput(where_, "has a pattern that does not compile: " + message_of(error));
  pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE);  // where it cannot, pcre2_match interprets
}

void SplitPattern::Free::operator()(pcre2_code* code) const { pcre2_code_free(code); }

std::vector<std::string_view> SplitPattern::split(std::string_view text) const {
  std::vector<std::string_view> pieces;
  const auto take = [&](size_t start, size_t end) {
    if (end > start) pieces.push_back(text.substr(start, end - start));
  };
  const MatchData found(pcre2_match_data_create_from_pattern(code_.get(), nullptr), &pcre2_match_data_free);
  const PCRE2_SIZE* match = pcre2_get_ovector_pointer(found.get());
  size_t taken = 0;
  for (size_t from = 0; from < text.size();) {
    const int matches = pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                                    PCRE2_NO_UTF_CHECK, found.get(), nullptr);
    if (matches == PCRE2_ERROR_NOMATCH) break;
    if (matches < 0) throw BadInput(where_, "has a pattern that fails on the text: " + message_of(matches));
    take(taken, match[0]);
    take(match[0], match[1]);
    taken = match[1];
    from = match[1] > match[0] || taken == text.size() ? taken : taken + utf8_length(text[taken]);
  }
  take(taken, text.size());
  return pieces;
}

}  // namespace flashmorph
