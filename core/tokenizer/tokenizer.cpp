#include "core/tokenizer/tokenizer.h"

#include <algorithm>

#include "core/base/bad_input.h"
#include "core/tokenizer/text_encoder.h"
#include "core/tokenizer/tokenizer_file.h"

namespace flashmorph {

Tokenizer Tokenizer::open(const std::filesystem::path& path) { return of(read_tokenizer_file(path)); }

Tokenizer Tokenizer::of(TokenizerFile file) {
  return Tokenizer(std::make_shared<const TokenizerFile>(std::move(file)));
}

Tokenizer Tokenizer::of_model(const std::filesystem::path& folder, int64_t vocabulary) {
  const std::filesystem::path file = folder / "tokenizer.json";
  Tokenizer tokenizer = open(file);
  tokenizer.id_limit_ = static_cast<int32_t>(std::min<int64_t>(tokenizer.vocab_size(), vocabulary));
  tokenizer.model_ = file.string();
  return tokenizer;
}

Tokenizer::Tokenizer(std::shared_ptr<const TokenizerFile> file)
    : file_(std::move(file)), id_limit_(static_cast<int32_t>(file_->tokens.size())) {}

void Tokenizer::require_below_limit(int32_t id) const {
  if (id >= id_limit_)
    throw BadInput(model_, "a text holds \"" + file_->tokens[static_cast<size_t>(id)] + "\", whose id is " +
                               std::to_string(id) + "; the model's vocabulary ends at " +
                               std::to_string(id_limit_ - 1));
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

int32_t Tokenizer::end_of_text() const {
  for (const char* name : {"<|endoftext|>", "<|end_of_text|>", "</s>"})  // GPT-2 and Qwen, Llama 3, Llama 2 and Mistral
    if (const int32_t id = id_of(name); id >= 0) return id;
  throw BadInput("tokenizer.json: added_tokens",
                 "has none of <|endoftext|>, <|end_of_text|> and </s> to end a document");
}

const std::string& Tokenizer::sha256() const { return file_->sha256; }

}  // namespace flashmorph
