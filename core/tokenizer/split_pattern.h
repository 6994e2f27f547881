#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

struct pcre2_real_code_8;

namespace flashmorph {

// The regular expression of a Split pre-tokenizer with behaviour Isolated: every match is a piece, and so is every
// stretch between matches. Written for Oniguruma, run by PCRE2; what the two read differently is translated or refused,
// and so is what looks back, for a text may be split part by part.
class SplitPattern {
 public:
  SplitPattern(const std::string& regex, std::string where);  // BadInput naming `where`

  // Appends the pieces of valid UTF-8 in order, none empty; together they are the text. When more text follows
  // (`ends` is false) only those that it cannot change. Returns the bytes of the pieces.
  size_t split(std::string_view text, bool ends, std::vector<std::string_view>& pieces) const;

 private:
  struct Free {
    void operator()(pcre2_real_code_8* code) const;
  };
  std::string where_;
  std::unique_ptr<pcre2_real_code_8, Free> code_;
};

}  // namespace flashmorph
