#include "core/data/token_view.h"

#include <algorithm>
#include <cstring>

#include "core/base/bad_input.h"

namespace flashmorph {

int32_t TokenView::operator[](size_t i) const {
  const char* bytes = static_cast<const char*>(source_->bytes);
  int32_t id = 0;
  if (source_->token_bytes == 2) {
    uint16_t narrow = 0;
    std::memcpy(&narrow, bytes + 2 * (first_ + i), 2);
    id = narrow;
  } else {
    std::memcpy(&id, bytes + 4 * (first_ + i), 4);
  }
  if (id < 0 || id >= source_->vocabulary)
    throw BadInput(source_->name, "holds the id " + std::to_string(id) + " at token " + std::to_string(first_ + i) +
                                      ", expected ids below " + std::to_string(source_->vocabulary));
  return id;
}

std::vector<int32_t> TokenView::tokens() const {
  std::vector<int32_t> copy(size_);
  for (size_t i = 0; i < size_; ++i) copy[i] = (*this)[i];
  return copy;
}

std::vector<int64_t> TokenView::document_starts() const {
  if (source_->documents == nullptr) return {};
  return source_->documents->inside(first_, first_ + size_);
}

TokenList::TokenList(std::vector<int32_t> tokens, std::vector<uint64_t> document_starts)
    : tokens_(std::move(tokens)), starts_(std::move(document_starts)) {
  source_.bytes = tokens_.data();
  source_.documents = this;
  size_ = tokens_.size();
}

std::vector<int64_t> TokenList::inside(uint64_t first, uint64_t last) const {
  std::vector<int64_t> distances;
  for (auto start = std::upper_bound(starts_.begin(), starts_.end(), first); start != starts_.end() && *start < last;
       ++start)
    if (distances.empty() || distances.back() != static_cast<int64_t>(*start - first))
      distances.push_back(static_cast<int64_t>(*start - first));
  return distances;
}

}  // namespace flashmorph
