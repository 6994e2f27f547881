#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>

#include "core/model/cache.h"
#include "core/model/positions.h"

namespace flashmorph {

// The causal short convolutions that some mixers put over their queries, keys and values.
// Letters: B batch, T tokens, C channels, W taps.
inline constexpr int64_t kTaps = 4;  // W

// [C, W]: the token itself, as if there were no convolution.
at::Tensor delta_taps(int64_t channels, const at::TensorOptions& options);

// Each of the three [B, T, C] convolved with its taps [C, W]. The cache keeps the last inputs of all of them.
std::array<at::Tensor, 3> convolved(const std::array<at::Tensor, 3>& x_BTC, const std::array<at::Tensor, 3>& taps_CW,
                                    const Positions& positions, LayerCache* cache);

// What the cache keeps of them in one sequence.
inline int64_t convolved_bytes(int64_t channels, int64_t element) { return (kTaps - 1) * 3 * channels * element; }

}  // namespace flashmorph
