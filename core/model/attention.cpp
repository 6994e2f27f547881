#include "core/model/attention.h"

#include <ATen/ATen.h>

#include <cmath>

#include "core/ops/norm.h"

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

// Query i of the new block is at position past + i and sees the positions up to it.
at::Tensor mask_after(int64_t past, int64_t tokens, const at::Tensor& like) {
  return at::ones({tokens, past + tokens}, like.options().dtype(at::kBool).requires_grad(false)).tril(past);
}

}  // namespace

at::Tensor project_heads(const at::Tensor& x_BTD, const at::Tensor& weight, int64_t head_dim) {
  return at::linear(x_BTD, weight).unflatten(-1, {weight.size(0) / head_dim, head_dim});
}

at::Tensor full_attention(const at::Tensor& x_BTD, const AttentionWeights& weights, const ModelSpec& spec,
                          const Rotary& rotary, LayerCache* cache) {
  at::Tensor q = project_heads(x_BTD, weights.q, spec.head_dim);
  at::Tensor k = project_heads(x_BTD, weights.k, spec.head_dim);
  at::Tensor v = project_heads(x_BTD, weights.v, spec.head_dim);
  if (weights.q_norm.defined()) {
    q = rms_norm(q, weights.q_norm, spec.norm_epsilon);
    k = rms_norm(k, weights.k_norm, spec.norm_epsilon);
  }
  q = rotate(q, rotary.cos_TK, rotary.sin_TK);
  k = rotate(k, rotary.cos_TK, rotary.sin_TK);
  if (cache != nullptr) {
    k = appended(cache->keys_BTGK, k);
    v = appended(cache->values_BTGK, v);
  }

  const int64_t tokens = q.size(1), past = k.size(1) - tokens;
  const bool all_visible = tokens == 1;
  const std::optional<at::Tensor> mask =
      past > 0 && !all_visible ? std::optional(mask_after(past, tokens, q)) : std::nullopt;
  const at::Tensor o = at::scaled_dot_product_attention(
      q.transpose(1, 2), for_query_heads(k, spec.query_groups()), for_query_heads(v, spec.query_groups()), mask,
      /*dropout_p=*/0.0, /*is_causal=*/past == 0 && !all_visible, 1.0 / std::sqrt(static_cast<double>(spec.head_dim)));
  return at::linear(o.transpose(1, 2).flatten(2, 3), weights.o);
}

}  // namespace flashmorph
