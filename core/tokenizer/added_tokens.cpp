#include "core/tokenizer/added_tokens.h"

#include <algorithm>

#include "core/tokenizer/utf8.h"

namespace flashmorph {

void AddedTokens::add(const AddedToken& token) {
  auto& bucket = by_first_byte_[static_cast<unsigned char>(token.content.front())];
  const auto shorter = std::find_if(bucket.begin(), bucket.end(),
                                    [&](size_t index) { return tokens_[index].content.size() < token.content.size(); });
  bucket.insert(shorter, tokens_.size());
  tokens_.push_back(token);
}

void SafeCuts::keep_whole(const AddedToken& token, const Normalizer& normalizer) {
  std::erase_if(spaces_, [&](char space) {
    const std::string given(1, space), searched = token.normalized ? normalizer.normalized(given, false) : given;
    return token.content.find(searched) != std::string::npos;
  });
  if (token.lstrip) strippers_ += token.content.front();
}

bool SafeCuts::is_safe(std::string_view text, size_t at) const {
  if (spaces_.find(text[at - 1]) == std::string::npos) return false;
  if (strippers_.empty()) {
    const size_t character = utf8_length(text[at]);
    return at + character <= text.size() && leading_space(text.substr(at, character)) == 0;
  }
  const auto plain = [&](size_t i) { return i < text.size() && text[i] > ' ' && text[i] < '\x7f'; };
  return plain(at) && plain(at + 1) && strippers_.find(text[at]) == std::string::npos;
}

size_t SafeCuts::last(std::string_view text) const {
  for (size_t at = text.size(); at-- > 1;)
    if (is_safe(text, at)) return at;
  return 0;
}

}  // namespace flashmorph
