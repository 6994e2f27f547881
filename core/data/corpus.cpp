#include "core/data/corpus.h"

#include "core/base/bad_input.h"
#include "core/data/documents.h"
#include "core/data/token_files.h"
#include "core/tokenizer/text_encoder.h"

namespace flashmorph {
namespace {

std::shared_ptr<const TokenStore> tokenized(const std::filesystem::path& file, const std::string& field,
                                            const Tokenizer& tokenizer, const std::function<void()>& between_parts) {
  DocumentReader reader(file, field);
  TextEncoder encoder(tokenizer);
  std::vector<int32_t> tokens;
  std::vector<uint64_t> starts = {0};
  for (DocumentReader::Part part{}; reader.next(part);) {
    between_parts();
    encoder.write(part.text, tokens);
    if (!part.ends) continue;
    encoder.finish(tokens);
    starts.push_back(tokens.size());
  }
  return std::make_shared<TokenList>(std::move(tokens), std::move(starts));
}

std::string key_of(const DataSection& data) {
  if (!data.text.empty()) return "data.text: ";
  return data.jsonl.empty() ? "data.tokens: " : "data.jsonl: ";
}

std::string named(const DataSection& data) {
  return key_of(data) + (!data.text.empty() ? data.text : data.jsonl.empty() ? data.tokens : data.jsonl);
}

// A file that cannot be read is named with the key that asks for it.
std::shared_ptr<const TokenStore> stored(const DataSection& data, const Tokenizer& tokenizer,
                                         const std::function<void()>& between_parts) {
  try {
    if (!data.text.empty()) return tokenized(data.text, "", tokenizer, between_parts);
    if (!data.jsonl.empty()) return tokenized(data.jsonl, data.field, tokenizer, between_parts);
    return std::make_shared<MappedTokens>(data.tokens, tokenizer);
  } catch (const BadInput& bad) {
    std::vector<Fault> faults = bad.faults();
    for (Fault& fault : faults) fault.where = key_of(data) + fault.where;
    throw BadInput(faults);
  }
}

}  // namespace

Corpus Corpus::open(const DataSection& data, const Tokenizer& tokenizer, int64_t least_tokens,
                    const std::function<void()>& between_parts) {
  Corpus corpus;
  corpus.tokens_ = stored(data, tokenizer, between_parts);
  const size_t size = corpus.tokens_->all().size();
  if (size == 0) throw BadInput(named(data), "is empty");
  corpus.held_out_from_ = size - static_cast<size_t>(static_cast<double>(size) * data.held_out);
  for (const auto& [part, tokens] :
       {std::pair("training", corpus.training().size()), {"held-out", corpus.held_out().size()}})
    if (static_cast<int64_t>(tokens) < least_tokens)
      throw BadInput(named(data), std::string("its ") + part + " part has " + std::to_string(tokens) +
                                      " tokens, the longest sequence needs " + std::to_string(least_tokens));
  return corpus;
}

}  // namespace flashmorph
