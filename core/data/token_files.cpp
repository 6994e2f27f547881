#include "core/data/token_files.h"

#include <cstring>
#include <nlohmann/json.hpp>

#include "core/base/bad_input.h"
#include "core/io/json_input.h"

namespace flashmorph {
namespace {

using nlohmann::json;

}  // namespace

TokenFiles TokenFiles::of(const std::string& prefix) { return {prefix + ".bin", prefix + ".idx", prefix + ".json"}; }

std::string TokenOrigin::to_json() const {
  nlohmann::ordered_json origin = {
      {"tokenizer_sha256", tokenizer_sha256}, {"vocab_size", vocab_size}, {"end_of_document", nullptr}};
  if (end_of_document) origin["end_of_document"] = *end_of_document;
  return origin.dump(1) + "\n";
}

void TokenOrigin::check(const std::filesystem::path& path, const Tokenizer& tokenizer) {
  const TokenOrigin expected{tokenizer.sha256(), tokenizer.vocab_size(), std::nullopt};
  if (!std::filesystem::exists(path))
    throw BadInput(path.string(),
                   "is missing: nothing says which tokenizer made the tokens. If it was this model's, write "
                   "the file: " +
                       json::parse(expected.to_json()).dump());
  const json origin = read_json_file(path);
  const json& hash = part_of(origin, "tokenizer_sha256");
  if (hash != expected.tokenizer_sha256)
    throw BadInput(path.string() + ": tokenizer_sha256",
                   "is " + hash.dump() + ", the model's tokenizer.json has " + expected.tokenizer_sha256);
  const json& size = part_of(origin, "vocab_size");
  if (size != expected.vocab_size)
    throw BadInput(path.string() + ": vocab_size",
                   "is " + size.dump() + ", the model's tokenizer has " + std::to_string(expected.vocab_size));
  const json& end = part_of(origin, "end_of_document");
  if (!end.is_null() && !(end.is_number_unsigned() && end.get<uint64_t>() < static_cast<uint64_t>(expected.vocab_size)))
    throw BadInput(path.string() + ": end_of_document",
                   "is " + end.dump() + ", expected null or an id below " + std::to_string(expected.vocab_size));
}

MappedTokens::MappedTokens(const std::string& prefix, const Tokenizer& tokenizer)
    : bin_path_(TokenFiles::of(prefix).bin),
      vocabulary_(tokenizer.id_limit()),
      bin_(bin_path_),
      idx_(TokenFiles::of(prefix).idx),
      index_(idx_.content(), bin_.content().size(), TokenFiles::of(prefix).idx.string()) {
  TokenOrigin::check(TokenFiles::of(prefix).json, tokenizer);
}

void MappedTokens::copy(uint64_t first, std::span<int32_t> tokens) const {
  const auto width = static_cast<size_t>(index_.token_bytes());
  const char* bytes = bin_.content().data() + first * width;
  for (size_t i = 0; i < tokens.size(); ++i) {
    tokens[i] = 0;
    std::memcpy(&tokens[i], bytes + i * width, width);  // little-endian: the first bytes of an int32 are a uint16
    if (tokens[i] < 0 || tokens[i] >= vocabulary_)
      throw BadInput(bin_path_.string(), "holds the id " + std::to_string(tokens[i]) + " at token " +
                                             std::to_string(first + i) + ", expected ids below " +
                                             std::to_string(vocabulary_));
  }
}

}  // namespace flashmorph
