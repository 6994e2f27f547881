// encode_texts TOKENIZER_JSON INPUT OUTPUT: for test_tokenizers.py. INPUT holds a JSON list of texts, OUTPUT gets for
// each its ids and what they decode to. Every text is also encoded in parts of several sizes, which must change
// nothing.
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>

#include "core/tokenizer/text_encoder.h"

using namespace flashmorph;

namespace {

// Reading `part` bytes at once, the text given in pieces of `piece` bytes; started anew from the saved state in
// between.
std::vector<int32_t> in_parts(const Tokenizer& tokenizer, const std::string& text, size_t part, size_t piece) {
  TextEncoder first(tokenizer, part), second(tokenizer, part);
  std::vector<int32_t> tokens;
  const size_t half = text.size() / 2;
  for (size_t at = 0; at < half; at += piece)
    first.write(std::string_view(text).substr(at, std::min(piece, half - at)), tokens);
  second.go_on_from(first.state());
  const std::string rest = text.substr(first.taken());
  for (size_t at = 0; at < rest.size(); at += piece) second.write(std::string_view(rest).substr(at, piece), tokens);
  second.finish(tokens);
  return tokens;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) return std::fprintf(stderr, "usage: encode_texts TOKENIZER_JSON INPUT OUTPUT\n"), 2;
  const Tokenizer tokenizer = Tokenizer::open(argv[1]);
  const auto texts = nlohmann::json::parse(std::ifstream(argv[2])).get<std::vector<std::string>>();
  nlohmann::json results = nlohmann::json::array();
  for (const std::string& text : texts) {
    const std::vector<int32_t> ids = tokenizer.encode(text);
    const bool is_long = text.size() > 100'000;
    for (const size_t part : is_long ? std::vector<size_t>{64} : std::vector<size_t>{1, 7, 64, 1000})
      for (const size_t piece : is_long ? std::vector<size_t>{1000} : std::vector<size_t>{3, 100, 10'000})
        if (in_parts(tokenizer, text, part, piece) != ids)
          return std::fprintf(stderr, "parts of %zu bytes given by %zu change the tokens of: %s\n", part, piece,
                              text.substr(0, 200).c_str()),
                 1;
    results.push_back({{"ids", ids}, {"decoded", tokenizer.decode(ids)}});
  }
  std::ofstream(argv[3]) << results;
}
