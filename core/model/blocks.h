#pragma once

#include <ATen/core/Tensor.h>

#include "core/model/weights.h"
#include "core/shard/shard.h"

namespace flashmorph {

// SwiGLU feed-forward (arXiv 2002.05202): down( silu(gate x) * up x ). Returns this rank's partial output_BTD.
at::Tensor mlp(const at::Tensor& x_BTD, const MlpWeights& weights);

// The layer's feed-forward, dense or sparse, as the block's weights have it. Partial like mlp.
at::Tensor feed_forward(const at::Tensor& x_BTD, const BlockWeights& weights, const ModelSpec& spec);

// Vocabulary-parallel embedding of tokens_BT: output_BTD of this rank's tokens, of all unless they are shared (one
// reduction).
at::Tensor embed(const at::Tensor& tokens_BT, const EmbeddingWeights& weights, Shard& shard);

}  // namespace flashmorph
