#pragma once

#include <cstdint>
#include <vector>

#include "core/base/flat_map.h"

namespace flashmorph {

// The merges of a byte-pair encoding over token ids; the first one added ranks first.
class BytePairs {
 public:
  void add(int32_t left, int32_t right, int32_t merged);

  // Merges neighbours until no merge applies: always the best rank, the leftmost among equals. n log n in the ids.
  void merge(std::vector<int32_t>& ids) const;

 private:
  struct Merge {
    int32_t rank;
    int32_t merged;
  };
  const Merge* find(int32_t left, int32_t right) const;

  FlatMap<Merge> merges_;
  int32_t next_rank_ = 0;
};

// Two ids as the key of a map.
inline uint64_t pair_key(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

}  // namespace flashmorph
