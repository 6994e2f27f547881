#pragma once

#include <ATen/core/Tensor.h>

namespace flashmorph {

// What a linear branch does with its output: RMSNorm over each head, a weight a channel, a gate of the token's own.
//     y = x / sqrt(mean over K of x^2 + epsilon) * weight * f(gate),   f = sigmoid, or silu when `swish`
// x_BTHK; weight_C and gate_BTC with C = H*K; returns y_BTC. Differentiable in all three; saves nothing but its inputs.
at::Tensor gated_rms_norm(const at::Tensor& x_BTHK, const at::Tensor& weight_C, const at::Tensor& gate_BTC,
                          double epsilon, bool swish);

}  // namespace flashmorph
