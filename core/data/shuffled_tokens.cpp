#include "core/data/shuffled_tokens.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <numeric>

#include "core/base/random.h"

namespace flashmorph {
namespace {

constexpr uint64_t kOrder = 0x6f72646572;  // keeps this use of a seed apart from others

}  // namespace

ShuffledTokens::ShuffledTokens(std::shared_ptr<const TokenStore> in_order, uint64_t seed)
    : in_order_(std::move(in_order)) {
  TORCH_CHECK(in_order_->documents() <= 1ULL << 32, "2^32 documents at most");
  order_.resize(in_order_->documents());
  std::iota(order_.begin(), order_.end(), 0);
  KeyedRandom random{kOrder, seed};
  for (size_t i = order_.size(); i > 1; --i) std::swap(order_[i - 1], order_[random.below(i)]);  // Fisher and Yates

  uint64_t end = 0;
  for (const uint64_t document : order_) {
    starts_.push_back(end);
    end += in_order_->document_start(document + 1) - in_order_->document_start(document);
  }
}

void ShuffledTokens::copy(uint64_t first, std::span<int32_t> tokens) const {
  uint64_t place = tokens.empty() ? 0 : document_of(first);
  while (!tokens.empty()) {
    const uint64_t passed = first - starts_[place];
    const auto part = std::min<uint64_t>(tokens.size(), document_start(place + 1) - first);
    in_order_->copy(in_order_->document_start(order_[place]) + passed, tokens.first(part));
    tokens = tokens.subspan(part);
    first += part;
    ++place;
  }
}

}  // namespace flashmorph
