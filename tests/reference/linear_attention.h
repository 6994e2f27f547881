#pragma once

#include <ATen/ATen.h>

#include <utility>
#include <vector>

namespace flashmorph::test {

// The recurrences as they are defined, one token at a time, differentiable. Letters: B batch, T tokens, H heads,
// K key dim, V value dim. Each returns the outputs [B, T, H, V] and the last state [B, H, K, V].
using Outcome = std::pair<at::Tensor, at::Tensor>;

// o_t = scale S_t^T q_t, with S_t = step(t, S_{t-1}).
template <class Step>
Outcome recurrence(const at::Tensor& q, at::Tensor state, double scale, Step step) {
  std::vector<at::Tensor> outputs;
  for (int64_t t = 0; t < q.size(1); ++t) {
    state = step(t, state);
    outputs.push_back(scale * (state * q.select(1, t).unsqueeze(-1)).sum(-2));
  }
  return {at::stack(outputs, 1), state};
}

inline at::Tensor written(const at::Tensor& k_BHK, const at::Tensor& v_BHV) {
  return k_BHK.unsqueeze(-1) * v_BHV.unsqueeze(-2);
}

// S = exp(g) S + k v^T, g [H].
inline Outcome lightning_definition(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                    const at::Tensor& g_H, const at::Tensor& state, double scale) {
  const at::Tensor decay = g_H.exp().to(q.scalar_type()).view({1, -1, 1, 1});
  return recurrence(q, state, scale, [&](int64_t t, const at::Tensor& S) {
    return S * decay + written(k.select(1, t), v.select(1, t));
  });
}

// S = exp(g) S + k v^T, g [B, T, H].
inline Outcome scalar_gated_definition(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                       const at::Tensor& g, const at::Tensor& state, double scale) {
  return recurrence(q, state, scale, [&](int64_t t, const at::Tensor& S) {
    return S * g.select(1, t).exp().unsqueeze(-1).unsqueeze(-1) + written(k.select(1, t), v.select(1, t));
  });
}

// S = diag(exp(g)) S + k v^T, g [B, T, H, K].
inline Outcome gated_linear_definition(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                       const at::Tensor& g, const at::Tensor& state, double scale) {
  return recurrence(q, state, scale, [&](int64_t t, const at::Tensor& S) {
    return S * g.select(1, t).exp().unsqueeze(-1) + written(k.select(1, t), v.select(1, t));
  });
}

// S~ = exp(g) S;  S = S~ + beta k (v - S~^T k)^T, g and beta [B, T, H].
inline Outcome gated_delta_definition(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                      const at::Tensor& g, const at::Tensor& beta, const at::Tensor& state,
                                      double scale) {
  return recurrence(q, state, scale, [&](int64_t t, const at::Tensor& S) {
    const at::Tensor k_t = k.select(1, t), decayed = S * g.select(1, t).exp().unsqueeze(-1).unsqueeze(-1);
    const at::Tensor missing = v.select(1, t) - (decayed * k_t.unsqueeze(-1)).sum(-2);
    return decayed + written(k_t * beta.select(1, t).unsqueeze(-1), missing);
  });
}

}  // namespace flashmorph::test
