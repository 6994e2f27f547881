#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/tokenizer/normalizer.h"
#include "core/tokenizer/utf8.h"

namespace flashmorph {

struct AddedToken {
  std::string content;
  int32_t id;
  bool normalized;      // looked for in the normalized text rather than in the text as given
  bool lstrip, rstrip;  // takes the white space on that side with it
};

// Finds added tokens in text: the leftmost first, the longest where several start.
class AddedTokens {
 public:
  void add(const AddedToken& token);

  // Calls plain(text) for each stretch without added tokens and token(id) for each added token, in order.
  template <class Plain, class Token>
  void cut(std::string_view text, Plain plain, Token token) const;

 private:
  const AddedToken* token_at(std::string_view text) const {
    for (const size_t index : by_first_byte_[static_cast<unsigned char>(text.front())])
      if (text.starts_with(tokens_[index].content)) return &tokens_[index];
    return nullptr;
  }

  std::vector<AddedToken> tokens_;
  std::array<std::vector<size_t>, 256> by_first_byte_;  // longest first
};

// Where a text may be cut in two that are searched apart: after a space or newline that no token holds (in the form
// that the normalizer gives it), before a character that is no white space and starts no token that takes the space
// before it.
class SafeCuts {
 public:
  void keep_whole(const AddedToken& token, const Normalizer& normalizer);
  void keep_all() { spaces_.clear(); }  // nowhere

  // The last such place of valid UTF-8 (or of bytes whose end is broken off), or 0.
  size_t last(std::string_view text) const;

 private:
  bool is_safe(std::string_view text, size_t at) const;

  std::string spaces_ = " \n";
  std::string strippers_;  // first bytes of tokens with lstrip
};

template <class Plain, class Token>
void AddedTokens::cut(std::string_view text, Plain plain, Token token) const {
  size_t taken = 0;
  for (size_t at = tokens_.empty() ? text.size() : 0; at < text.size();) {
    const AddedToken* found = token_at(text.substr(at));
    if (found == nullptr) {
      ++at;
      continue;
    }
    const size_t start = found->lstrip ? at - trailing_space(text.substr(0, at)) : at;
    if (start > taken) plain(text.substr(taken, start - taken));
    token(found->id);
    at += found->content.size();
    taken = found->rstrip ? at + leading_space(text.substr(at)) : at;
  }
  if (taken < text.size()) plain(text.substr(taken));
}

}  // namespace flashmorph
