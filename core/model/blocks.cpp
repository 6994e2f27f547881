#include "core/model/blocks.h"

#include <ATen/ATen.h>

#include "core/model/experts.h"
#include "core/ops/activation.h"
#include "core/ops/projection.h"

namespace flashmorph {

at::Tensor mlp(const at::Tensor& x_BTD, const MlpWeights& weights) {
  return project(swiglu(project(x_BTD, weights.gate), project(x_BTD, weights.up)), weights.down);
}

at::Tensor feed_forward(const at::Tensor& x_BTD, const BlockWeights& weights, const ModelSpec& spec) {
  return weights.experts ? mixture_of_experts(x_BTD, *weights.experts, spec.experts) : mlp(x_BTD, weights.mlp);
}

at::Tensor embed(const at::Tensor& tokens_on_host_BT, const EmbeddingWeights& weights, Shard& shard) {
  const at::Tensor tokens_BT = tokens_on_host_BT.to(weights.tokens.device(), /*non_blocking=*/true);
  if (shard.size() == 1) return at::embedding(weights.tokens, tokens_BT);
  const int64_t rows = weights.tokens.size(0), first = shard.rank() * rows;
  const at::Tensor here = tokens_BT.ge(first).logical_and(tokens_BT.lt(first + rows));
  const at::Tensor found = at::embedding(weights.tokens, (tokens_BT - first).clamp(0, rows - 1));
  return out_of_shards(found * here.unsqueeze(-1).to(found.scalar_type()), shard);
}

}  // namespace flashmorph
