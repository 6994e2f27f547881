#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace flashmorph {

// What a linear branch does with its output: RMSNorm over each head, a weight a channel or one that all heads share, a
// gate of the token's own.
//     y = x / sqrt(mean over K of x^2 + epsilon) * weight * f(gate),   f = sigmoid, or silu when `swish`
// x_BTHK; weight of H*K or K numbers; gate_BTC with C = H*K; returns y_BTC. Differentiable in all three; saves nothing
// but its inputs.
at::Tensor gated_rms_norm(const at::Tensor& x_BTHK, const at::Tensor& weight, const at::Tensor& gate_BTC,
                          double epsilon, bool swish);

// As its kernels see it: tokens of so many heads as have weights of their own, one where all share it.
struct WeightedTokens {
  int64_t tokens, heads, width;

  WeightedTokens(const at::Tensor& x_BTHK, const at::Tensor& weight)
      : tokens(x_BTHK.numel() / weight.numel()), heads(weight.numel() / x_BTHK.size(3)), width(x_BTHK.size(3)) {}
};

}  // namespace flashmorph
