#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace flashmorph {

// Log-decay of each GLOBAL head, h = 0..heads-1, by a named rule:
//   alibi    -2^(-8(h+1)/H); H not a power of two: the slopes of the next lower power, then every second of the next up
//   retnet   log(1 - 2^(-5-h))
//   layered  -(8/H) (1 - l/L) h, l the layer of L
// BadInput for another name.
std::vector<double> log_decays(const std::string& rule, int64_t heads, int64_t layer, int64_t layers);

std::vector<std::string> decay_rules();

}  // namespace flashmorph
