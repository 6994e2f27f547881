#include "core/tokenizer/split_pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "core/base/bad_input.h"
#include "core/tokenizer/oniguruma.h"
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

SplitPattern::SplitPattern(const std::string& regex, std::string where) : where_(std::move(where)) {
  const std::string translated = pcre2_of(regex, where_);
  int error = 0;
  PCRE2_SIZE place = 0;
  code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(), PCRE2_UTF | PCRE2_UCP,
                            &error, &place, nullptr));
  if (code_ == nullptr) throw BadInput(where_, "has a pattern that does not compile: " + message_of(error));
  pcre2_jit_compile(code_.get(),
                    PCRE2_JIT_COMPLETE | PCRE2_JIT_PARTIAL_HARD);  // where it cannot, pcre2_match interprets
}

void SplitPattern::Free::operator()(pcre2_code* code) const { pcre2_code_free(code); }

size_t SplitPattern::split(std::string_view text, bool ends, std::vector<std::string_view>& pieces) const {
  size_t taken = 0;
  const auto take_to = [&](size_t end) {
    if (end > taken) pieces.push_back(text.substr(taken, end - taken));
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
    take_to(match[0]);
    take_to(match[1]);
    from = match[1] > match[0] || taken == text.size() ? taken : taken + utf8_length(text[taken]);
  }
  if (ends) take_to(text.size());
  return taken;
}

}  // namespace flashmorph
