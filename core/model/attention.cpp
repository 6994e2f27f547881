#include "core/model/attention.h"

#include <ATen/ATen.h>
#include <ATen/OpMathType.h>
#include <c10/core/GradMode.h>

#include <cmath>
#include <vector>

#include "core/ops/norm.h"
#include "core/ops/rotation.h"

namespace flashmorph {
namespace {

at::Tensor appended(at::Tensor& cached, const at::Tensor& now) {
  cached = cached.defined() ? at::cat({cached, now}, 1) : now;
  return cached;
}

// [B, T, G, K] -> [B, H, T, K]: each kv head serves H/G consecutive query heads.
at::Tensor for_query_heads(const at::Tensor& x_BTGK, int64_t groups) {
  const at::Tensor x = x_BTGK.transpose(1, 2);
  return groups == 1 ? x : x.repeat_interleave(groups, 1);
}

// Whether the kernels read each kv head for all its query heads themselves, so that nothing is repeated in memory.
bool grouped_by_kernel(const at::Tensor& q) { return !q.is_cpu() && q.scalar_type() == at::kBFloat16; }

// Query i of the new block is at position past + i and sees the positions up to it.
at::Tensor mask_after(int64_t past, int64_t tokens, const at::Tensor& like) {
  return at::ones({tokens, past + tokens}, like.options().dtype(at::kBool).requires_grad(false)).tril(past);
}

// The tokens see all past ones and, of their own, those up to themselves.
at::Tensor causal_softmax(const at::Tensor& q_BTHK, const at::Tensor& k_BTGK, const at::Tensor& v_BTGK, int64_t groups,
                          double scale) {
  const int64_t tokens = q_BTHK.size(1), past = k_BTGK.size(1) - tokens;
  const bool all_visible = tokens == 1;
  const std::optional<at::Tensor> mask =
      past > 0 && !all_visible ? std::optional(mask_after(past, tokens, q_BTHK)) : std::nullopt;
  const bool grouped = grouped_by_kernel(q_BTHK) && !mask;
  const int64_t repeats = grouped ? 1 : groups;
  const at::Tensor o = at::scaled_dot_product_attention(
      q_BTHK.transpose(1, 2), for_query_heads(k_BTGK, repeats), for_query_heads(v_BTGK, repeats), mask,
      /*dropout_p=*/0.0, /*is_causal=*/past == 0 && !all_visible, scale, /*enable_gqa=*/grouped);
  return o.transpose(1, 2);
}

at::Tensor softmax_in_documents(const at::Tensor& q_BTHK, const at::Tensor& k_BTGK, const at::Tensor& v_BTGK,
                                int64_t groups, double scale, const at::Tensor& documents) {
  const at::Tensor offsets = documents.contiguous();
  const int64_t* at = offsets.const_data_ptr<int64_t>();
  std::vector<at::Tensor> outputs;
  for (int64_t d = 0; d + 1 < offsets.size(0); ++d) {
    const auto own = [&](const at::Tensor& x) { return x.narrow(1, at[d], at[d + 1] - at[d]); };
    outputs.push_back(causal_softmax(own(q_BTHK), own(k_BTGK), own(v_BTGK), groups, scale));
  }
  return at::cat(outputs, 1);
}

at::Tensor attended(const QueriesKeysValues& x, double scale, const Positions& positions) {
  const int64_t groups =
      x.q_BTHK.size(2) / x.k_BTGK.size(2);  // of this rank; with replicated kv heads fewer than the model's
  return positions.documents ? softmax_in_documents(x.q_BTHK, x.k_BTGK, x.v_BTGK, groups, scale, *positions.documents)
                             : causal_softmax(x.q_BTHK, x.k_BTGK, x.v_BTGK, groups, scale);
}

// Of each head, or of all at once, as the weight's size says.
at::Tensor norm_heads(const at::Tensor& x_BTHK, const at::Tensor& weight, double epsilon) {
  if (weight.size(0) == x_BTHK.size(3)) return rms_norm(x_BTHK, weight, epsilon);
  return rms_norm(x_BTHK.flatten(2, 3), weight, epsilon).view(x_BTHK.sizes());
}

}  // namespace

at::Tensor project_heads(const at::Tensor& x_BTD, const at::Tensor& weight, int64_t head_dim, const at::Tensor& bias) {
  return at::linear(x_BTD, weight, bias.defined() ? std::optional(bias) : std::nullopt)
      .unflatten(-1, {weight.size(0) / head_dim, head_dim});
}

QueriesKeysValues queries_keys_values(const at::Tensor& x_BTD, const AttentionWeights& weights, const ModelSpec& spec,
                                      const Positions& positions, bool rotated) {
  at::Tensor q = project_heads(x_BTD, weights.q, spec.head_dim, weights.q_bias);
  at::Tensor k = project_heads(x_BTD, weights.k, spec.head_dim, weights.k_bias);
  at::Tensor v = project_heads(x_BTD, weights.v, spec.head_dim, weights.v_bias);
  if (weights.q_norm.defined()) {
    q = norm_heads(q, weights.q_norm, spec.norm_epsilon);
    k = norm_heads(k, weights.k_norm, spec.norm_epsilon);
  }
  if (rotated && weights.rotates) {
    q = rotate(q, positions.cos_TK, positions.sin_TK);
    k = rotate(k, positions.cos_TK, positions.sin_TK);
  }
  return {q, k, v};
}

at::Tensor full_attention(const at::Tensor& x_BTD, const AttentionWeights& weights, const ModelSpec& spec,
                          const Positions& positions, LayerCache* cache) {
  auto [q, k, v] = queries_keys_values(x_BTD, weights, spec, positions);
  if (cache != nullptr) {
    k = appended(cache->keys_BTGK, k);
    v = appended(cache->values_BTGK, v);
  }

  const at::Tensor o_BTHK = attended({q, k, v}, spec.attention_scale(), positions);
  return at::linear(o_BTHK.flatten(2, 3), weights.o, weights.o_bias.here());
}

// With each token's place as its value, attention returns the place that is looked at.
at::Tensor attention_distance(const at::Tensor& x_BTD, const AttentionWeights& weights, const ModelSpec& spec,
                              const Positions& positions) {
  const c10::NoGradGuard no_gradient;
  const auto [q, k, v] = queries_keys_values(x_BTD, weights, spec, positions);
  const at::ScalarType type = at::toOpMathType(q.scalar_type());  // short dtypes cannot count that far
  const at::Tensor place_T11 = at::arange(q.size(1), q.options().dtype(type)).view({-1, 1, 1});
  const at::Tensor looked_at =
      attended({q.to(type), k.to(type), place_T11.expand_as(v).contiguous()}, spec.attention_scale(), positions);
  return (place_T11 - looked_at).to(at::kDouble).mean(at::IntArrayRef{0, 1, 3});
}

}  // namespace flashmorph
