#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "core/data/token_view.h"
#include "core/io/mapped_file.h"
#include "core/io/megatron_index.h"
#include "core/tokenizer/tokenizer.h"

namespace flashmorph {

// The files of a tokenized corpus share a prefix: PREFIX.bin, PREFIX.idx (Megatron-LM's format) and PREFIX.json, which
// says whose tokens they are, as neither of the others does.
struct TokenFiles {
  std::filesystem::path bin, idx, json;
  static TokenFiles of(const std::string& prefix);
};

// What PREFIX.json says.
struct TokenOrigin {
  std::string tokenizer_sha256;            // of tokenizer.json
  int64_t vocab_size;                      // of the tokenizer; uint16 tokens below 65500
  std::optional<int32_t> end_of_document;  // the token that ends each document, when one was appended

  // BadInput when the file is missing (its text then is in the message), malformed, or of another tokenizer.
  static void check(const std::filesystem::path& json, const Tokenizer& tokenizer);
  std::string to_json() const;
};

// A tokenized corpus, mapped. BadInput when the files do not fit each other or the tokenizer.
class MappedTokens : public TokenStore {
 public:
  MappedTokens(const std::string& prefix, const Tokenizer& tokenizer);

  uint64_t size() const override { return index_.tokens(); }
  void copy(uint64_t first, std::span<int32_t> tokens) const override;
  uint64_t documents() const override { return index_.documents(); }
  uint64_t document_start(uint64_t document) const override { return index_.document_start(document); }

 private:
  std::filesystem::path bin_path_;
  int64_t vocabulary_;
  MappedFile bin_, idx_;
  MegatronIndex index_;
};

}  // namespace flashmorph
