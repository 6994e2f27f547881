// benchmark_tokenizer TOKENIZER_JSON TEXT: the text through one encoder, once and then over and over until 64 MB are
// read; prints the megabytes a second of processor time, of the first reading and of all others.
#include <cstdio>
#include <ctime>
#include <fstream>
#include <iterator>

#include "core/tokenizer/text_encoder.h"

int main(int argc, char** argv) {
  if (argc != 3) return std::fprintf(stderr, "usage: benchmark_tokenizer TOKENIZER_JSON TEXT\n"), 2;
  constexpr size_t kBytes = 64'000'000;
  const auto tokenizer = flashmorph::Tokenizer::open(argv[1]);
  std::ifstream in(argv[2], std::ios::binary);
  const std::string text(std::istreambuf_iterator<char>(in), {});
  flashmorph::TextEncoder encoder(tokenizer);
  std::vector<int32_t> tokens;
  const auto pass = [&] {
    tokens.clear();
    encoder.write(text, tokens);
    encoder.finish(tokens);
  };
  const auto speed = [](size_t bytes, std::clock_t start) {
    return static_cast<double>(bytes) / 1e6 * CLOCKS_PER_SEC / static_cast<double>(std::clock() - start);
  };
  std::clock_t start = std::clock();
  pass();
  const double first = speed(text.size(), start);
  start = std::clock();
  size_t bytes = 0;
  for (; bytes < kBytes && !text.empty(); bytes += text.size()) pass();
  std::printf("%.1f %.1f %.2f\n", first, speed(bytes, start),
              static_cast<double>(text.size()) / static_cast<double>(tokens.size()));
}
