#include "core/model/attention.h"

#include <ATen/ATen.h>
#include <ATen/OpMathType.h>
#include <c10/core/GradMode.h>

#include <cmath>

#include "core/ops/norm.h"
#include "core/ops/projection.h"
#include "core/ops/rotation.h"
#include "core/ops/softmax_attention.h"

namespace flashmorph {
namespace {

at::Tensor attended(const QueriesKeysValues& x, const ModelSpec& spec, const Positions& positions) {
  const at::Tensor q_BTHK = with_scale(x.q_BTHK, spec);
  return positions.documents
             ? softmax_attention(q_BTHK, x.k_BTGK, x.v_BTGK, *positions.documents, positions.documents_on_device)
             : softmax_attention(q_BTHK, x.k_BTGK, x.v_BTGK);
}

at::Tensor attended_after(const QueriesKeysValues& x, const ModelSpec& spec, const Positions& positions,
                          LayerCache& cache) {
  cache.append(x.k_BTGK, x.v_BTGK, positions);
  if (positions.rows)
    return next_token_attention(with_scale(x.q_BTHK, spec), cache.keys_BPGK, cache.values_BPGK,
                                positions.rows->visible_B, positions.start + 1);
  const int64_t tokens = positions.start + x.k_BTGK.size(1);
  return attended({x.q_BTHK, cache.keys_BPGK.narrow(1, 0, tokens), cache.values_BPGK.narrow(1, 0, tokens)}, spec,
                  positions);
}

// A row's only token at its own angle, or every row's tokens at the same.
at::Tensor rotated_at(const at::Tensor& x_BTHK, const Positions& positions) {
  return positions.rows ? rotate(x_BTHK.transpose(0, 1), positions.cos_TK, positions.sin_TK).transpose(0, 1)
                        : rotate(x_BTHK, positions.cos_TK, positions.sin_TK);
}

// With its norm, if any: of each head, or of all at once, as the weight's size says.
at::Tensor normed_and_placed(const at::Tensor& x_BTHK, const at::Tensor& norm, double epsilon, bool rotates,
                             const Positions& positions) {
  const auto placed = [&](const at::Tensor& x) { return rotates ? rotated_at(x, positions) : x; };
  if (!norm.defined()) return placed(x_BTHK);
  if (norm.size(0) != x_BTHK.size(3)) return placed(rms_norm(x_BTHK.flatten(2, 3), norm, epsilon).view(x_BTHK.sizes()));
  return rotates && !positions.rows ? norm_and_rotate(x_BTHK, norm, positions.cos_TK, positions.sin_TK, epsilon)
                                    : placed(rms_norm(x_BTHK, norm, epsilon));
}

}  // namespace

at::Tensor with_scale(const at::Tensor& q_BTHK, const ModelSpec& spec) {
  return spec.attention_multiplier == 0.0
             ? q_BTHK
             : q_BTHK * (spec.attention_multiplier * std::sqrt(static_cast<double>(spec.head_dim)));
}

at::Tensor project_heads(const at::Tensor& x_BTD, const at::Tensor& weight, int64_t head_dim, const at::Tensor& bias) {
  return project(x_BTD, weight, bias).unflatten(-1, {weight.size(0) / head_dim, head_dim});
}

ReadBeside queries_keys_values_beside(const at::Tensor& x_BTD, const AttentionWeights& weights, at::TensorList others,
                                      const ModelSpec& spec, const Positions& positions, bool rotated) {
  std::vector<at::Tensor> matrices{weights.q, weights.k, weights.v};
  matrices.insert(matrices.end(), others.begin(), others.end());
  std::vector<at::Tensor> read = project_each(x_BTD, matrices, {weights.q_bias, weights.k_bias, weights.v_bias});
  for (size_t i = 0; i < 3; ++i) read[i] = read[i].unflatten(-1, {-1, spec.head_dim});
  const bool rotates = rotated && weights.rotates;
  return {{normed_and_placed(read[0], weights.q_norm, spec.norm_epsilon, rotates, positions),
           normed_and_placed(read[1], weights.k_norm, spec.norm_epsilon, rotates, positions), read[2]},
          {read.begin() + 3, read.end()}};
}

QueriesKeysValues queries_keys_values(const at::Tensor& x_BTD, const AttentionWeights& weights, const ModelSpec& spec,
                                      const Positions& positions, bool rotated) {
  return queries_keys_values_beside(x_BTD, weights, {}, spec, positions, rotated).qkv;
}

at::Tensor full_attention(const at::Tensor& x_BTD, const AttentionWeights& weights, const ModelSpec& spec,
                          const Positions& positions, LayerCache* cache) {
  const QueriesKeysValues x = queries_keys_values(x_BTD, weights, spec, positions);
  const at::Tensor o_BTHK =
      cache != nullptr ? attended_after(x, spec, positions, *cache) : attended(x, spec, positions);
  return project(o_BTHK.flatten(2, 3), weights.o, weights.o_bias.here());
}

// With each token's place as its value, attention returns the place that is looked at.
at::Tensor attention_distance(const at::Tensor& x_BTD, const AttentionWeights& weights, const ModelSpec& spec,
                              const Positions& positions) {
  const c10::NoGradGuard no_gradient;
  const auto [q, k, v] = queries_keys_values(x_BTD, weights, spec, positions);
  const at::ScalarType type = at::toOpMathType(q.scalar_type());  // short dtypes cannot count that far
  const at::Tensor place_T11 = at::arange(q.size(1), q.options().dtype(type)).view({-1, 1, 1});
  const at::Tensor looked_at = attended({q.to(type), k.to(type), place_T11.expand_as(v).contiguous()}, spec, positions);
  return (place_T11 - looked_at).to(at::kDouble).mean(at::IntArrayRef{0, 1, 3});
}

}  // namespace flashmorph
