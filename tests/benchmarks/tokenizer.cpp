// benchmark_tokenizer TOKENIZER_JSON TEXT: the text over and over through one encoder until 64 MB are read, as a corpus is;
// prints the megabytes a second.
#include <chrono>
#include <cstdio>
#include <fstream>
#include <iterator>

#include "core/io/text_encoder.h"

int main(int argc, char** argv) {
  if (argc != 3) return std::fprintf(stderr, "usage: benchmark_tokenizer TOKENIZER_JSON TEXT\n"), 2;
  constexpr size_t kBytes = 64'000'000;
  const auto tokenizer = flashmorph::Tokenizer::open(argv[1]);
  std::ifstream in(argv[2], std::ios::binary);
  const std::string text(std::istreambuf_iterator<char>(in), {});
  flashmorph::TextEncoder encoder(tokenizer);
  const auto start = std::chrono::steady_clock::now();
  size_t bytes = 0, count = 0;
  std::vector<int32_t> tokens;
  for (; bytes < kBytes && !text.empty(); bytes += text.size()) {
    tokens.clear();
    encoder.write(text, tokens);
    encoder.finish(tokens);
    count += tokens.size();
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::printf("%.1f MB/s, %.2f bytes a token\n", static_cast<double>(bytes) / 1e6 / seconds,
              static_cast<double>(bytes) / static_cast<double>(count));
}
