#include "core/data/text_mixture.h"

#include <algorithm>

namespace flashmorph {
namespace {

double sum_of_weights(const std::vector<TextMixture::Text>& texts) {
  double sum = 0.0;
  for (const TextMixture::Text& text : texts) sum += text.weight;
  return sum;
}

}  // namespace

bool TextMixture::of_several_documents() const {
  return std::ranges::any_of(texts_, [](const Text& text) { return text.tokens.of_several_documents(); });
}

TokenView TextMixture::drawn(KeyedRandom& random) const {
  if (texts_.size() == 1) return texts_[0].tokens;
  double left = random.unit() * sum_of_weights(texts_);
  for (const Text& text : texts_) {
    if (left < text.weight) return text.tokens;
    left -= text.weight;
  }
  return texts_.back().tokens;  // the sum was rounded
}

std::vector<TokenView> TextMixture::windows(size_t length, size_t most) const {
  const double sum = sum_of_weights(texts_);
  std::vector<size_t> taken(texts_.size(), 0);
  std::vector<TokenView> windows;
  while (windows.size() < most) {
    const auto next = static_cast<double>(windows.size() + 1);
    size_t due = 0;
    double least = 0.0;
    for (size_t i = 0; i < texts_.size(); ++i)  // how many of its windows are ahead of its share
      if (const double ahead = static_cast<double>(taken[i]) - next * texts_[i].weight / sum; i == 0 || ahead < least) {
        due = i;
        least = ahead;
      }
    const TokenView& text = texts_[due].tokens;
    if ((taken[due] + 1) * length > text.size()) break;
    windows.push_back(text.subspan(taken[due]++ * length, length));
  }
  return windows;
}

}  // namespace flashmorph
