// A tokenizer.json: whatever the bytes, a BadInput or a tokenizer whose ids are all below its size, in one part or
// many.
#include <cstdlib>

#include "core/base/bad_input.h"
#include "core/tokenizer/text_encoder.h"

namespace {

constexpr std::string_view kText =
    "It's  12345 words\r\n\n\tx\xC3\xA9 e\xCC\x81 \xE2\x96\x81\xE4\xBD\xA0\xE5\xA5\xBD \xF0\x9F\x98\x80<s>  </s>\xFF "
    "end ";

std::vector<int32_t> encoded(const flashmorph::Tokenizer& tokenizer, size_t part) {
  std::vector<int32_t> tokens;
  flashmorph::TextEncoder encoder(tokenizer, part);
  encoder.write(kText, tokens);
  encoder.finish(tokens);
  return tokens;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const auto tokenizer = flashmorph::Tokenizer::of(
        flashmorph::parse_tokenizer_file({reinterpret_cast<const char*>(data), size}, "fuzzed"));
    const std::vector<int32_t> tokens = encoded(tokenizer, 1 << 16);
    for (const int32_t id : tokens)
      if (id < 0 || id >= tokenizer.vocab_size()) std::abort();
    if (encoded(tokenizer, 1) != tokens) std::abort();
    tokenizer.decode(tokens);
  } catch (const flashmorph::BadInput&) {
  }
  return 0;
}
