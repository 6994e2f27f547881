#include "core/data/token_view.h"

#include <algorithm>

namespace flashmorph {

uint64_t TokenStore::document_of(uint64_t first) const {
  uint64_t low = 0, high = documents();  // the first document that starts behind `first`
  while (low < high) {
    const uint64_t middle = low + (high - low) / 2;
    if (document_start(middle) <= first)
      low = middle + 1;
    else
      high = middle;
  }
  return low - 1;
}

TokenView TokenStore::all() const { return {*this, 0, size()}; }

std::vector<int32_t> TokenView::tokens() const {
  std::vector<int32_t> copy(size_);
  store_->copy(first_, copy);
  return copy;
}

std::vector<int64_t> TokenView::document_starts() const {
  std::vector<int64_t> distances;
  for (uint64_t document = store_->document_of(first_) + 1; document < store_->documents(); ++document) {
    const uint64_t start = store_->document_start(document);
    if (start >= first_ + size_) break;
    const auto distance = static_cast<int64_t>(start - first_);
    if (distances.empty() || distances.back() != distance) distances.push_back(distance);
  }
  return distances;
}

void TokenList::copy(uint64_t first, std::span<int32_t> tokens) const {
  std::copy_n(tokens_.begin() + static_cast<std::ptrdiff_t>(first), tokens.size(), tokens.begin());
}

}  // namespace flashmorph
