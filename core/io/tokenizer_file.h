#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/io/byte_pairs.h"
#include "core/io/split_pattern.h"

namespace flashmorph {

struct AddedToken {
  std::string content;  // as it is looked for
  int32_t id;
  bool normalized;  // looked for in the normalized text rather than in the text as given
};

// What a tokenizer.json says, checked and in terms of bytes.
struct TokenizerFile {
  bool to_nfc = false;
  std::vector<SplitPattern> patterns;  // applied one after the other
  std::array<int32_t, 256> id_of_byte{};
  BytePairs merges;
  std::unordered_map<std::string, int32_t> whole_words;  // by bytes; empty unless the model ignores merges for them
  std::vector<AddedToken> added;
  std::vector<std::string> bytes_of;  // by id, what it decodes to; empty for ids without a token
};

TokenizerFile read_tokenizer_file(const std::filesystem::path& path);  // throws BadInput

}  // namespace flashmorph
