#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "core/model/cache.h"
#include "core/model/positions.h"
#include "core/model/weights.h"

namespace flashmorph {

// Grouped-query causal softmax attention of the checkpoint, without the residual:
//   o_proj( softmax(s q k^T) v ), q and k normalised and rotated where the spec says so, s = attention_scale().
// x_BTD: the layer's input after its norm, whole on every rank. Returns this rank's partial output_BTD; the sum over
// the tensor group is A_full(x). With a cache, x continues the cached tokens and is appended to it. Packed documents
// (in one row) attend apart.
at::Tensor full_attention(const at::Tensor& x_BTD, const AttentionWeights& weights, const ModelSpec& spec,
                          const Positions& positions, LayerCache* cache = nullptr);

// What softmax attention and the mixers that resemble it read.
struct QueriesKeysValues {
  at::Tensor q_BTHK, k_BTGK, v_BTGK;
};

// Queries, keys and values of x; queries and keys normalised per head when there are such weights, and rotated if
// asked.
QueriesKeysValues queries_keys_values(const at::Tensor& x_BTD, const AttentionWeights& weights, const ModelSpec& spec,
                                      const Positions& positions, bool rotated = true);

// The same, and x projected by `others`, too, in one node of the graph where projection.h can.
struct ReadBeside {
  QueriesKeysValues qkv;
  std::vector<at::Tensor> others;
};
ReadBeside queries_keys_values_beside(const at::Tensor& x_BTD, const AttentionWeights& weights, at::TensorList others,
                                      const ModelSpec& spec, const Positions& positions, bool rotated);

// The attention operators divide the scores by sqrt(K); what a family wants of them otherwise the queries bring.
at::Tensor with_scale(const at::Tensor& q_BTHK, const ModelSpec& spec);

// How far each of this rank's heads looks back in that attention: the mean over tokens of sum_j p_ij (i - j), in
// tokens, [H] in float64.
at::Tensor attention_distance(const at::Tensor& x_BTD, const AttentionWeights& weights, const ModelSpec& spec,
                              const Positions& positions);

// x projected, as [B, T, heads, K].
at::Tensor project_heads(const at::Tensor& x_BTD, const at::Tensor& weight, int64_t head_dim,
                         const at::Tensor& bias = {});

}  // namespace flashmorph
