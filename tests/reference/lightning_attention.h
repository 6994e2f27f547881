#pragma once

#include <ATen/ATen.h>

#include <utility>
#include <vector>

namespace flashmorph::test {

// The definition, one token at a time, differentiable: S = exp(g) S + k v^T; o = scale S^T q.
// q, k [B, T, H, K], v [B, T, H, V], log_decay [H], state [B, H, K, V].
inline std::pair<at::Tensor, at::Tensor> lightning_definition(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                                              const at::Tensor& log_decay, at::Tensor state,
                                                              double scale) {
  const at::Tensor decay = log_decay.exp().to(q.scalar_type()).view({1, -1, 1, 1});
  std::vector<at::Tensor> outputs;
  for (int64_t t = 0; t < q.size(1); ++t) {
    state = state * decay + k.select(1, t).unsqueeze(-1) * v.select(1, t).unsqueeze(-2);
    outputs.push_back(scale * (state * q.select(1, t).unsqueeze(-1)).sum(-2));
  }
  return {at::stack(outputs, 1), state};
}

}  // namespace flashmorph::test
