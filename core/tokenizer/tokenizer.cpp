#include "core/tokenizer/tokenizer.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/base/bad_input.h"
#include "core/io/json_input.h"
#include "core/tokenizer/text_encoder.h"
#include "core/tokenizer/tokenizer_file.h"

namespace flashmorph {
namespace {

using nlohmann::json;

json read_if_there(const std::filesystem::path& file) {
  return std::filesystem::exists(file) ? read_json_file(file) : json();
}

// The id of the end that the folder declares, or -1.
int32_t declared_end(const std::filesystem::path& folder, const std::vector<std::string>& tokens) {
  const json config = read_if_there(folder / "tokenizer_config.json");
  const json& token = part_of(config, "eos_token");
  const json& content = token.is_object() ? part_of(token, "content") : token;  // an added token, or its text
  if (!content.is_null()) {
    const auto found = content.is_string() ? std::ranges::find(tokens, content.get<std::string>()) : tokens.end();
    if (found == tokens.end())
      throw BadInput((folder / "tokenizer_config.json").string() + ": eos_token",
                     "is " + token.dump().substr(0, 120) + ", expected a token of tokenizer.json");
    return static_cast<int32_t>(found - tokens.begin());
  }
  for (const char* name : {"generation_config.json", "config.json"}) {
    const json other = read_if_there(folder / name);
    const json& ends = part_of(other, "eos_token_id");
    const json& id = ends.is_array() && !ends.empty() ? ends.front() : ends;
    if (id.is_null()) continue;
    if (!id.is_number_unsigned() || id.get<uint64_t>() >= tokens.size())
      throw BadInput((folder / name).string() + ": eos_token_id",
                     "is " + ends.dump().substr(0, 120) + ", expected an id below " + std::to_string(tokens.size()));
    return id.get<int32_t>();
  }
  return -1;
}

}  // namespace

Tokenizer Tokenizer::open(const std::filesystem::path& path) { return of(read_tokenizer_file(path)); }

Tokenizer Tokenizer::of(TokenizerFile file) {
  return Tokenizer(std::make_shared<const TokenizerFile>(std::move(file)));
}

Tokenizer Tokenizer::of_model(const std::filesystem::path& folder, int64_t vocabulary) {
  const std::filesystem::path file = folder / "tokenizer.json";
  Tokenizer tokenizer = open(file);
  tokenizer.id_limit_ = static_cast<int32_t>(std::min<int64_t>(tokenizer.vocab_size(), vocabulary));
  tokenizer.model_ = file.string();
  tokenizer.end_ = declared_end(folder, tokenizer.file_->tokens);
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
  if (end_ >= 0) {
    require_below_limit(end_);
    return end_;
  }
  // GPT-2 and Qwen, Llama 3, Llama 2 and Mistral, DeepSeek
  for (const char* name : {"<|endoftext|>", "<|end_of_text|>", "</s>", "<｜end▁of▁sentence｜>"})
    if (const int32_t id = id_of(name); id >= 0) return id;
  throw BadInput("tokenizer.json: added_tokens",
                 "has none of <|endoftext|>, <|end_of_text|>, </s> and <｜end▁of▁sentence｜> to end a document, and no "
                 "tokenizer_config.json beside it names an eos_token");
}

const std::string& Tokenizer::sha256() const { return file_->sha256; }

}  // namespace flashmorph
