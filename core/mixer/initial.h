#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <functional>

#include "core/mixer/linear_branch.h"

namespace flashmorph {

// What the branches start from. Random values are pure functions of (seed, layer, stream) and the place in the GLOBAL
// tensor, so that they do not depend on the mesh; each new tensor of a branch has its own stream.
// Letters: D hidden, H this rank's heads, K head dim.

// This rank's heads among all.
struct OwnHeads {
  int64_t first;
  int64_t count;
  explicit OwnHeads(const BranchContext& context);
};

// A copy of the teacher's attention in which each kv head's rows are repeated, one head after the other, once for each
// of its query heads on this rank; without a bias of the output.
AttentionWeights expanded(const AttentionWeights& teacher, const ModelSpec& spec);

// Those of an attention, undefined ones as well.
std::array<at::Tensor*, 10> every_weight(AttentionWeights& weights);

// Uniform in +-1/sqrt(columns): rows [first, first + rows) of the global [.., columns].
at::Tensor uniform_rows(const BranchContext& context, uint64_t stream, int64_t first, int64_t rows, int64_t columns);

// [H]: value(a number uniform in [0, 1), of the global head's own).
at::Tensor per_head(const BranchContext& context, uint64_t stream, const std::function<double(double)>& value);

// Mamba's usual start of a learned decay, -exp(A_log) softplus(. + dt_bias), [H] each: exp(A_log) uniform in [0, 16),
// softplus(dt_bias) log-uniform in [0.001, 0.1].
at::Tensor usual_A_log(const BranchContext& context, uint64_t stream);
at::Tensor usual_dt_bias(const BranchContext& context, uint64_t stream);

// The x with softplus(x) = y.
at::Tensor inverse_softplus(const at::Tensor& y);

// The log-decay per token that halves a memory in the mean distance (in tokens) of the head's attention
// (Taylor-Calibrate, arXiv 2606.16429): -min(max(ln 2 / distance, 1e-3), 5), in float64.
at::Tensor log_decay_of_distance(const at::Tensor& distance_H);

}  // namespace flashmorph
