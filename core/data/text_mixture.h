#pragma once

#include <vector>

#include "core/base/random.h"
#include "core/data/token_view.h"

namespace flashmorph {

// Texts and how much of each is read: `weight` over the sum of all weights is its share of the tokens. Points into what
// keeps the tokens.
class TextMixture {
 public:
  struct Text {
    TokenView tokens;
    double weight;
  };
  explicit TextMixture(std::vector<Text> texts) : texts_(std::move(texts)) {}

  const std::vector<Text>& texts() const { return texts_; }
  bool of_several_documents() const;

  // One of the texts, drawn by weight, for a window to be taken from. Draws nothing where there is only one.
  TokenView drawn(KeyedRandom& random) const;

  // At most `most` windows of `length` tokens: each text's from its start on, dealt out so that any first n of them
  // hold the texts' shares as nearly as n windows can. They end where a text has none left.
  std::vector<TokenView> windows(size_t length, size_t most) const;

 private:
  std::vector<Text> texts_;
};

}  // namespace flashmorph
