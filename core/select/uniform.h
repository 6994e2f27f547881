#pragma once

#include <cstdint>
#include <vector>

#include "core/select/budget.h"

namespace flashmorph {

// The middle layer of each of `keep` equal stretches of the model: floor((k + 1/2) layers / keep), k = 0..keep-1; with
// a budget, of as many stretches as it allows.
std::vector<int64_t> uniform_layers(int64_t layers, int64_t keep);
std::vector<int64_t> uniform_layers(const LayerBudget& budget);

}  // namespace flashmorph
