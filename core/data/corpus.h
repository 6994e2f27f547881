#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

#include "core/io/tokenizer.h"

namespace flashmorph {

// A text as tokens, its last share held out for evaluation.
class Corpus {
 public:
  // BadInput when the file is missing, empty, not UTF-8, or when either part is shorter than `least_tokens`.
  static Corpus from_text(const std::filesystem::path& file, const Tokenizer& tokenizer, double held_out,
                          int64_t least_tokens);

  std::span<const int32_t> training() const { return std::span(tokens_).first(held_out_from_); }
  std::span<const int32_t> held_out() const { return std::span(tokens_).subspan(held_out_from_); }

 private:
  std::vector<int32_t> tokens_;
  size_t held_out_from_ = 0;
};

}  // namespace flashmorph
