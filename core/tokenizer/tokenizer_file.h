#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "core/tokenizer/added_tokens.h"
#include "core/tokenizer/normalizer.h"
#include "core/tokenizer/pre_tokenizer.h"
#include "core/tokenizer/subwords.h"
#include "core/tokenizer/token_decoder.h"

namespace flashmorph {

// What a tokenizer.json says, checked: the steps from text to tokens in their order, and back. Its post_processor,
// truncation and padding are left to whoever asks for them, as transformers leaves them.
struct TokenizerFile {
  std::string sha256;  // of the file
  AddedTokens in_given_text, in_normalized_text;
  SafeCuts cuts;
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  Subwords subwords;
  TokenDecoder decoder;
  std::vector<AddedToken> added;
  std::vector<std::string> tokens;  // by id, as the file writes them
};

TokenizerFile read_tokenizer_file(const std::filesystem::path& path);                      // throws BadInput
TokenizerFile parse_tokenizer_file(const std::string& content, const std::string& where);  // throws BadInput

}  // namespace flashmorph
