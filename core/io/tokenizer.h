#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace flashmorph {

// Text to token ids and back, exactly as the `tokenizers` package does for the same tokenizer.json.
// Byte-level BPE with a Split pattern (GPT-2, Qwen2/Qwen3, Llama-3), NFC, added tokens. What a file asks for and this
// class does not do is a BadInput that names it.
class Tokenizer {
 public:
  static Tokenizer open(const std::filesystem::path& tokenizer_json);

  std::vector<int32_t> encode(std::string_view text) const;  // added tokens inside the text are recognised
  std::string decode(const std::vector<int32_t>& tokens) const;

  int32_t vocab_size() const;                         // highest id + 1, added tokens included
  int32_t id_of(std::string_view token) const;        // an added token's id, or -1
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

 private:
  struct Implementation;
  explicit Tokenizer(std::unique_ptr<Implementation> implementation);
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace flashmorph
