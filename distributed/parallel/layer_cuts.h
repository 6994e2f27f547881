#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/shard/layer_range.h"

namespace flashmorph {

// What a model's parts cost, in any one unit (core/model/cost.h: multiply-adds a token).
struct PartCosts {
  double embedding = 0.0;  // the first pipeline rank's
  std::vector<double> layers;
  double head = 0.0;  // the last one's
};

// Deals out the layers to `ranks` pipeline ranks, at least one each: the costliest rank is as cheap as can be; among
// such cuts the costs are as even as can be (least sum of squares); among those, the fewest layers on the first ranks,
// which hold the most micro-batches at a time. ranks <= layers.
std::vector<LayerRange> balanced_layers(const PartCosts& costs, int64_t ranks);

// Cut before each of these layers. BadInput at `key` unless there are ranks - 1 of them, ascending, in [1, layers - 1].
std::vector<LayerRange> layers_cut_at(const std::vector<int64_t>& cuts, int64_t layers, int64_t ranks,
                                      const std::string& key);

}  // namespace flashmorph
