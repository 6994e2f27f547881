#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/data/token_view.h"

namespace flashmorph {

// The documents of a store in an order that follows from the seed, each as it is. Keeps 12 bytes a document.
class ShuffledTokens : public TokenStore {
 public:
  ShuffledTokens(std::shared_ptr<const TokenStore> in_order, uint64_t seed);  // of at most 2^32 documents

  uint64_t size() const override { return in_order_->size(); }
  void copy(uint64_t first, std::span<int32_t> tokens) const override;
  uint64_t documents() const override { return order_.size(); }
  uint64_t document_start(uint64_t place) const override { return place < starts_.size() ? starts_[place] : size(); }

 private:
  std::shared_ptr<const TokenStore> in_order_;
  std::vector<uint32_t> order_;   // by place: which document stands there
  std::vector<uint64_t> starts_;  // by place
};

}  // namespace flashmorph
