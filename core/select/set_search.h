#pragma once

#include <cstdint>
#include <vector>

#include "core/select/selector.h"

namespace flashmorph {

// Searches among sets of full layers that a judge compares: more recall is better, among equal ones less error, then
// the set whose lowest layers are lower.

struct JudgedSet {
  std::vector<int64_t> full_layers;  // ascending
  Judgement judgement;

  bool is_better_than(const JudgedSet& other) const;
};

// The set with one layer more, ascending.
std::vector<int64_t> with_layer(const std::vector<int64_t>& kept, int64_t layer);

// Beam search over placements: B_0 = {none}; B_{n+1} = the best `width` of { S + l : S in B_n, l not in S } that the
// budget allows. The best of the sets to which nothing can be added. Width 1 is the greedy search.
JudgedSet beam_search(const Evidence& evidence, int64_t width);

// Every set that the budget allows and to which nothing can be added, in lexicographic order; at most `most` + 1 of
// them.
std::vector<std::vector<int64_t>> filled_sets(const LayerBudget& budget, int64_t most);

}  // namespace flashmorph
