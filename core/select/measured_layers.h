#pragma once

#include <cstdint>
#include <vector>

#include "core/select/selector.h"

namespace flashmorph {

std::vector<int64_t> all_layers(int64_t layers);

// What the judge says of a teacher of so many layers with one layer's attention linear, by that layer.
std::vector<Judgement> each_layer_linear(const Judge& judge, int64_t layers);

// HALO's score of a layer (hybrid-linear-attention's layer_analysis, mode HALO), from what the model can do without its
// full attention: a commonsense score C and a recall score R of each layer, larger is better.
//     s_l = min(50, (max R - R_l) / (max C - C_l + 1e-10))
std::vector<double> halo_scores(const std::vector<double>& commonsense, const std::vector<double>& recall);

}  // namespace flashmorph
