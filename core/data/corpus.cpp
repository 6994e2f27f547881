#include "core/data/corpus.h"

#include <utf8proc.h>

#include <fstream>
#include <sstream>

#include "core/base/bad_input.h"

namespace flashmorph {
namespace {

bool is_utf8(const std::string& text) {
  for (size_t at = 0; at < text.size();) {
    utf8proc_int32_t code = 0;
    const auto size = utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(text.data() + at),
                                       static_cast<utf8proc_ssize_t>(text.size() - at), &code);
    if (size <= 0) return false;
    at += static_cast<size_t>(size);
  }
  return true;
}

}  // namespace

Corpus Corpus::from_text(const std::filesystem::path& file, const Tokenizer& tokenizer, double held_out,
                         int64_t least_tokens) {
  std::ifstream in(file, std::ios::binary);
  if (!in || std::filesystem::is_directory(file)) throw BadInput("data.text: " + file.string(), "cannot be read");
  std::stringstream content;
  content << in.rdbuf();
  const std::string text = content.str();
  if (text.empty()) throw BadInput("data.text: " + file.string(), "is empty");
  if (!is_utf8(text)) throw BadInput("data.text: " + file.string(), "is not UTF-8 text");

  Corpus corpus;
  corpus.tokens_ = tokenizer.encode(text);
  corpus.held_out_from_ =
      corpus.tokens_.size() - static_cast<size_t>(static_cast<double>(corpus.tokens_.size()) * held_out);
  for (const auto& [part, size] :
       {std::pair("training", corpus.training().size()), {"held-out", corpus.held_out().size()}})
    if (static_cast<int64_t>(size) < least_tokens)
      throw BadInput("data.text: " + file.string(), std::string("its ") + part + " part has " + std::to_string(size) +
                                                        " tokens, the longest sequence needs " +
                                                        std::to_string(least_tokens));
  return corpus;
}

}  // namespace flashmorph
