#include "core/model/blocks.h"

#include <ATen/ATen.h>

#include "core/model/experts.h"
#include "core/ops/activation.h"
#include "core/ops/norm.h"
#include "core/ops/projection.h"
#include "core/ops/tensor_parallel.h"

namespace flashmorph {

namespace {

at::Tensor times(const at::Tensor& x, double factor) { return factor == 1.0 ? x : x * factor; }

}  // namespace

at::Tensor read_by_sublayer(const at::Tensor& x, const at::Tensor& norm, const ModelSpec& spec) {
  return spec.norm_after ? x : rms_norm(x, norm, spec.norm_epsilon);
}

at::Tensor with_sublayer(const at::Tensor& x, const at::Tensor& y, const at::Tensor& norm, const ModelSpec& spec) {
  return x + times(spec.norm_after ? rms_norm(y, norm, spec.norm_epsilon) : y, spec.residual_multiplier);
}

StreamAndRead with_sublayer_and_read(const at::Tensor& x, const at::Tensor& y, const at::Tensor& norm,
                                     const at::Tensor& next_norm, const ModelSpec& spec) {
  if (spec.norm_after) {
    const at::Tensor stream = with_sublayer(x, y, norm, spec);
    return {stream, read_by_sublayer(stream, next_norm, spec)};
  }
  const SumAndNorm both = add_and_norm(x, times(y, spec.residual_multiplier), next_norm, spec.norm_epsilon);
  return {both.sum, both.normed};
}

at::Tensor mlp(const at::Tensor& x_BTD, const MlpWeights& weights) {
  const std::vector<at::Tensor> gate_and_up =
      project_each(x_BTD, {weights.gate, weights.up}, {weights.gate_bias, weights.up_bias});
  return project(swiglu(gate_and_up[0], gate_and_up[1]), weights.down, weights.down_bias.here());
}

at::Tensor feed_forward(const at::Tensor& x_BTD, const BlockWeights& weights, const ModelSpec& spec) {
  return weights.experts ? mixture_of_experts(x_BTD, *weights.experts, spec.experts) : mlp(x_BTD, weights.mlp);
}

at::Tensor embed(const at::Tensor& tokens_on_host_BT, const EmbeddingWeights& weights, Shard& shard) {
  const at::Tensor tokens_BT = tokens_on_host_BT.to(weights.tokens.device(), /*non_blocking=*/true);
  if (shard.size() == 1) return times(at::embedding(weights.tokens, tokens_BT), weights.multiplier);
  const int64_t rows = weights.tokens.size(0), first = shard.rank() * rows;
  const at::Tensor here = tokens_BT.ge(first).logical_and(tokens_BT.lt(first + rows));
  const at::Tensor found = at::embedding(weights.tokens, (tokens_BT - first).clamp(0, rows - 1));
  return times(out_of_shards(found * here.unsqueeze(-1).to(found.scalar_type()), shard), weights.multiplier);
}

at::Tensor read_by_head(const at::Tensor& x, const HeadWeights& head, const ModelSpec& spec) {
  return times(rms_norm(x, head.norm, spec.norm_epsilon), 1.0 / spec.logit_divisor);
}

}  // namespace flashmorph
