#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "core/config/run_config.h"
#include "core/data/text_mixture.h"
#include "core/tokenizer/tokenizer.h"

namespace flashmorph {

// The texts of a run as tokens, the last share of each held out for evaluation. Files of text are read and tokenized
// into memory; files of tokens stay where they are and are mapped.
class Corpus {
 public:
  static constexpr uint64_t kMostText = 100'000'000;  // bytes, unpacked

  // BadInput when what the section names is missing, empty, malformed or of another tokenizer, when either part of a
  // text is shorter than `least_tokens`, or when files of text hold more than `most_text` bytes: every rank tokenizes
  // them at every start. `between_parts` is called between the parts of files of text, and may throw.
  static Corpus open(
      const DataSection& data, const Tokenizer& tokenizer, int64_t least_tokens,
      const std::function<void()>& between_parts = [] {}, uint64_t most_text = kMostText);

  TextMixture training() const;
  TextMixture held_out() const;

 private:
  struct Text {
    std::shared_ptr<const TokenStore> tokens;
    double weight;
    size_t held_out_from;
  };
  std::vector<Text> texts_;
};

}  // namespace flashmorph
