#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace flashmorph {

struct TokenizerFile;

// Text to token ids and back, exactly as the `tokenizers` package does for the same tokenizer.json with
// add_special_tokens=False. Byte-level BPE with Split patterns (GPT-2, Qwen2/Qwen3, Llama-3) and the BPE with byte
// fallback that SentencePiece models become. What a file asks for and this class does not do is a BadInput that names
// it. Cheap to copy.
class Tokenizer {
 public:
  static Tokenizer open(const std::filesystem::path& tokenizer_json);
  static Tokenizer of(TokenizerFile file);
  // folder/tokenizer.json, and what ends a document: eos_token of tokenizer_config.json, or else the first eos_token_id
  // of generation_config.json or config.json. BadInput when it lacks that token. It may have tokens beyond the model's
  // vocabulary: BadInput where a text uses one.
  static Tokenizer of_model(const std::filesystem::path& folder, int64_t vocabulary);

  std::vector<int32_t> encode(std::string_view text) const;  // added tokens inside the text are recognised
  std::vector<int32_t> encode_rest(
      std::string_view text) const;  // of a text that began earlier: nothing is put in front
  std::string decode(const std::vector<int32_t>& tokens) const;  // ids without a token are passed over

  int32_t vocab_size() const;                     // highest id + 1, added tokens included
  int32_t id_limit() const { return id_limit_; }  // the model's vocabulary, where that is smaller
  void require_below_limit(int32_t id) const;     // BadInput naming the token
  int32_t id_of(std::string_view token) const;    // an added token's id, or -1
  // The token that ends a document: as the model's folder says, or else an added token of a known name; BadInput when
  // there is none.
  int32_t end_of_text() const;
  const std::string& sha256() const;  // of the file
  const TokenizerFile& file() const { return *file_; }

 private:
  explicit Tokenizer(std::shared_ptr<const TokenizerFile> file);
  std::shared_ptr<const TokenizerFile> file_;
  int32_t id_limit_;
  std::string model_ = {};  // its tokenizer.json, for messages
  int32_t end_ = -1;        // declared; -1: none is
};

}  // namespace flashmorph
