#pragma once

#include <cstdint>
#include <vector>

namespace flashmorph {

// 0 <= keep <= layers in all three; scores are never NaN.

// The `keep` layers with the largest scores, ascending; among equal scores the lower layer.
std::vector<int64_t> top_layers(const std::vector<double>& scores, int64_t keep);

// The middle layer of each of `keep` equal stretches of the model: floor((k + 1/2) layers / keep), k = 0..keep-1.
std::vector<int64_t> uniform_layers(int64_t layers, int64_t keep);

// Score of the last kept layer minus that of the first dropped one; 0 when nothing is dropped or kept.
double keep_margin(const std::vector<double>& scores, int64_t keep);

}  // namespace flashmorph
