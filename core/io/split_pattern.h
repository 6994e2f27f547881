#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

struct pcre2_real_code_8;

namespace flashmorph {

// The regular expression of a Split pre-tokenizer with behaviour Isolated: every match is a piece, and so is every
// stretch between matches. Written for Oniguruma, run by PCRE2; what the two read differently is translated or refused.
class SplitPattern {
 public:
  SplitPattern(const std::string& regex, std::string where);  // BadInput naming `where`

  // The pieces of valid UTF-8 in order, none empty; together they are the text.
  std::vector<std::string_view> split(std::string_view text) const;

 private:
  struct Free {
    void operator()(pcre2_real_code_8* code) const;
  };
  std::string where_;
  std::unique_ptr<pcre2_real_code_8, Free> code_;
};

}  // namespace flashmorph
