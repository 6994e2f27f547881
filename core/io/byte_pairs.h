#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

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

  std::unordered_map<uint64_t, Merge> merges_;
  int32_t next_rank_ = 0;
};

}  // namespace flashmorph
