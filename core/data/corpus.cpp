#include "core/data/corpus.h"

#include <fmt/format.h>

#include "core/base/bad_input.h"
#include "core/data/documents.h"
#include "core/data/shuffled_tokens.h"
#include "core/data/sources.h"
#include "core/data/token_files.h"
#include "core/tokenizer/text_encoder.h"

namespace flashmorph {
namespace {

// Reads files of text, as long as they are few enough.
class TextReader {
 public:
  TextReader(const Tokenizer& tokenizer, const std::function<void()>& between_parts, uint64_t most)
      : encoder_(tokenizer), between_parts_(between_parts), most_(most) {}

  std::shared_ptr<const TokenStore> read(const Source& source) {
    std::vector<int32_t> tokens;
    std::vector<uint64_t> starts;
    uint64_t start = 0;  // of the document that is read
    for (const Source::File& file : source.files) {
      DocumentReader reader(file.path, file.field);
      require_small(source, bytes_ + reader.file_bytes());
      for (DocumentReader::Part part{}; reader.next(part);) {
        require_small(source, bytes_ + reader.position());
        between_parts_();
        encoder_.write(part.text, tokens);
        if (!part.ends) continue;
        encoder_.finish(tokens);
        if (tokens.size() > start) starts.push_back(start);
        start = tokens.size();
      }
      bytes_ += reader.position();
    }
    return std::make_shared<TokenList>(std::move(tokens), std::move(starts));
  }

 private:
  void require_small(const Source& source, uint64_t bytes) const {
    if (bytes <= most_) return;
    throw BadInput(source.path,
                   fmt::format("makes it more than {} MB of text, which every rank would tokenize at every start: "
                               "`flashmorph-dist tokenize` does it once, and the run then names its output",
                               most_ / 1'000'000));
  }

  TextEncoder encoder_;
  const std::function<void()>& between_parts_;
  uint64_t most_, bytes_ = 0;  // of content, read before the file
};

std::shared_ptr<const TokenStore> stored(const Source& source, const Tokenizer& tokenizer, TextReader& reader) {
  if (source.is_tokenized()) return std::make_shared<MappedTokens>(source.path, tokenizer);
  return reader.read(source);
}

}  // namespace

Corpus Corpus::open(const DataSection& data, const Tokenizer& tokenizer, int64_t least_tokens,
                    const std::function<void()>& between_parts, uint64_t most_text) {
  Corpus corpus;
  TextReader reader(tokenizer, between_parts, most_text);
  for (const Source& source : sources_of(data)) {
    std::shared_ptr<const TokenStore> tokens = naming(source.key, [&] { return stored(source, tokenizer, reader); });
    const std::string named = source.key + ": " + source.path;
    const uint64_t size = tokens->size();
    if (size == 0) throw BadInput(named, "is empty");
    if (data.shuffle > 0 && tokens->documents() > 1)
      tokens = std::make_shared<ShuffledTokens>(tokens, static_cast<uint64_t>(data.shuffle));
    const auto held_out = static_cast<size_t>(static_cast<double>(size) * data.held_out);
    for (const auto& [part, count] : {std::pair("training", size - held_out), {"held-out", held_out}})
      if (static_cast<int64_t>(count) < least_tokens)
        throw BadInput(
            named, fmt::format("its {} part has {} tokens, the longest sequence needs {}", part, count, least_tokens));
    corpus.texts_.push_back({std::move(tokens), source.weight, size - held_out});
  }
  return corpus;
}

TextMixture Corpus::training() const {
  std::vector<TextMixture::Text> texts;
  for (const auto& [tokens, weight, held_out_from] : texts_)
    texts.push_back({tokens->all().first(held_out_from), weight});
  return TextMixture(std::move(texts));
}

TextMixture Corpus::held_out() const {
  std::vector<TextMixture::Text> texts;
  for (const auto& [tokens, weight, held_out_from] : texts_)
    texts.push_back({tokens->all().subspan(held_out_from, tokens->size() - held_out_from), weight});
  return TextMixture(std::move(texts));
}

}  // namespace flashmorph
