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

// A byte-pair encoding of pre-tokens: first each symbol's own token, then merges. A symbol is a byte in GPT-2's
// alphabet
// (`byte_level`), or a character, whose bytes stand in when it has no token (byte fallback, tokens <0x00> to <0xFF>).
class Subwords {
 public:
  Subwords() = default;

  // `ids`: the vocabulary, as text in the alphabet when `byte_level`. BadInput naming `where` when a byte has no token.
  Subwords(const std::unordered_map<std::string, int32_t>& ids, bool byte_level, bool ignore_merges,
           const std::string& where);
  void add_merge(const std::string& left, const std::string& right,
                 const std::unordered_map<std::string, int32_t>& ids);

  bool ignores_merges() const { return !whole_words_.empty(); }  // for pre-tokens that are whole tokens
  std::vector<int32_t> encode(std::string_view word) const;      // valid UTF-8

  // The end of the first part of `text`, valid UTF-8, that no merge can reach out of; its size when there is none.
  // Parts are encoded apart with the same result.
  size_t part_end(std::string_view text) const;

 private:
  struct Symbols {  // of one character
    std::array<int32_t, 4> ids;
    size_t count;
  };
  Symbols symbols_of(std::string_view character) const;

  bool byte_level_ = true;
  std::array<int32_t, 256> id_of_byte_{};
  FlatMap<int32_t> id_of_character_;                      // by code point; empty when byte-level
  std::unordered_map<std::string, int32_t> whole_words_;  // empty unless the model ignores merges for them
  BytePairs merges_;
  FlatMap<bool> joined_;  // pairs of symbols that stand side by side in some merge's result
};

}  // namespace flashmorph
