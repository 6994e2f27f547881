#include "core/io/tokenizer.h"

#include "core/io/text_encoder.h"
#include "core/io/tokenizer_file.h"

namespace flashmorph {

Tokenizer Tokenizer::open(const std::filesystem::path& path) {
  return Tokenizer(std::make_shared<const TokenizerFile>(read_tokenizer_file(path)));
}

std::vector<int32_t> Tokenizer::encode(std::string_view text) const {
  std::vector<int32_t> tokens;
  TextEncoder encoder(*this);
  encoder.write(text, tokens);
  encoder.finish(tokens);
  return tokens;
}

std::vector<int32_t> Tokenizer::encode_rest(std::string_view text) const {
  std::vector<int32_t> tokens;
  TextEncoder encoder(*this);
  encoder.go_on_from({.first = false, .normalizes_anew = false, .begins = false, .held = ""});
  encoder.write(text, tokens);
  encoder.finish(tokens);
  return tokens;
}

std::string Tokenizer::decode(const std::vector<int32_t>& ids) const {
  std::vector<std::string> tokens;
  for (const int32_t id : ids)
    if (id >= 0 && id < vocab_size()) tokens.push_back(file_->tokens[static_cast<size_t>(id)]);
  return file_->decoder.text_of(std::move(tokens));
}

int32_t Tokenizer::vocab_size() const { return static_cast<int32_t>(file_->tokens.size()); }

int32_t Tokenizer::id_of(std::string_view token) const {
  for (const AddedToken& added : file_->added)
    if (added.content == token) return added.id;
  return -1;
}

const std::string& Tokenizer::sha256() const { return file_->sha256; }

}  // namespace flashmorph
