#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/base/flat_map.h"
#include "core/tokenizer/byte_pairs.h"

namespace flashmorph {

// How a byte-pair encoding reads its symbols.
struct SubwordRules {
  bool byte_level = true;      // a symbol is a byte in GPT-2's alphabet, otherwise a character
  bool byte_fallback = false;  // the bytes of a character without a token stand in, tokens <0x00> to <0xFF>
  bool ignore_merges = false;  // a pre-token that is a whole token is not taken apart
  std::string unknown;         // the token for what has none; empty: that leaves nothing
  bool fuse_unknown = false;   // one for several in a row
};

// A byte-pair encoding of pre-tokens: first each symbol's own token, then merges.
class Subwords {
 public:
  Subwords() = default;

  // `ids`: the vocabulary, as text in the alphabet when `byte_level`. BadInput naming `where` when it lacks the token
  // for unknown symbols.
  Subwords(const std::unordered_map<std::string, int32_t>& ids, const SubwordRules& rules, const std::string& where);
  void add_merge(const std::string& left, const std::string& right,
                 const std::unordered_map<std::string, int32_t>& ids);

  bool ignores_merges() const { return ignore_merges_; }     // for pre-tokens that are whole tokens
  std::vector<int32_t> encode(std::string_view word) const;  // valid UTF-8; any bytes when byte-level

  // The end of the first part of such a text that no merge can reach out of; its size when there is none.
  // Parts are encoded apart with the same result.
  size_t part_end(std::string_view text) const;

 private:
  struct Symbols {  // of one character or byte
    std::array<int32_t, 4> ids;
    size_t count;  // 0: it has no token
    bool own;      // no bytes stand in
  };
  size_t symbol_size(char lead) const;
  Symbols symbols_of(std::string_view symbol) const;

  bool byte_level_ = true, byte_fallback_ = false, ignore_merges_ = false, fuse_unknown_ = false;
  int32_t unknown_ = -1;
  std::array<int32_t, 256> id_of_byte_{};
  FlatMap<int32_t> id_of_character_;                      // by code point; empty when byte-level
  std::unordered_map<std::string, int32_t> whole_words_;  // empty unless the model ignores merges for them
  BytePairs merges_;
  FlatMap<bool> joined_;  // pairs of symbols that stand side by side in some merge's result
};

}  // namespace flashmorph
