#pragma once

#include <ATen/core/Tensor.h>

#include "core/model/weights.h"
#include "core/shard/shard.h"

namespace flashmorph {

// What attention or the feed-forward reads of the residual stream x, and x with what it gave, y: with the sublayer's
// norm,
//   x + m f(norm x),  or, where the norm comes after (OLMo-2),  x + m norm(f(x));  m the residual multiplier.
at::Tensor read_by_sublayer(const at::Tensor& x, const at::Tensor& norm, const ModelSpec& spec);
at::Tensor with_sublayer(const at::Tensor& x, const at::Tensor& y, const at::Tensor& norm, const ModelSpec& spec);

// Both: the residual stream behind a sublayer, and what the next one, whose norm is `next_norm`, reads of it.
struct StreamAndRead {
  at::Tensor stream, read;
};
StreamAndRead with_sublayer_and_read(const at::Tensor& x, const at::Tensor& y, const at::Tensor& norm,
                                     const at::Tensor& next_norm, const ModelSpec& spec);

// SwiGLU feed-forward (arXiv 2002.05202): down( silu(gate x) * up x ). Returns this rank's partial output_BTD.
at::Tensor mlp(const at::Tensor& x_BTD, const MlpWeights& weights);

// The layer's feed-forward, dense or sparse, as the block's weights have it. Partial like mlp.
at::Tensor feed_forward(const at::Tensor& x_BTD, const BlockWeights& weights, const ModelSpec& spec);

// Vocabulary-parallel embedding of tokens_BT: output_BTD of this rank's tokens, of all unless they are shared (one
// reduction).
at::Tensor embed(const at::Tensor& tokens_BT, const EmbeddingWeights& weights, Shard& shard);

// The last layer's output as the head's matrix takes it, divided as the logits are to be.
at::Tensor read_by_head(const at::Tensor& x, const HeadWeights& head, const ModelSpec& spec);

}  // namespace flashmorph
