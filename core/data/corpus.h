#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "core/config/run_config.h"
#include "core/data/token_view.h"
#include "core/tokenizer/tokenizer.h"

namespace flashmorph {

// The text of a run as tokens, its last share held out for evaluation. A text or JSON lines are read and tokenized into
// memory; files of tokens stay where they are and are mapped.
class Corpus {
 public:
  // BadInput when what the section names is missing, empty, malformed or of another tokenizer, or when either part is
  // shorter than `least_tokens`. `between_parts` is called between the parts of a text or JSON lines, and may throw.
  static Corpus open(
      const DataSection& data, const Tokenizer& tokenizer, int64_t least_tokens,
      const std::function<void()>& between_parts = [] {});

  TokenView training() const { return tokens_->all().first(held_out_from_); }
  TokenView held_out() const { return tokens_->all().subspan(held_out_from_, tokens_->all().size() - held_out_from_); }

 private:
  std::shared_ptr<const TokenStore> tokens_;
  size_t held_out_from_ = 0;
};

}  // namespace flashmorph
