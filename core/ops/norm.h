#pragma once

#include <ATen/core/Tensor.h>

namespace flashmorph {

// Registered torch operators (torch.ops.flashmorph.*). The CPU forms for float32 and float64 are fused loops; other
// dtypes and devices take ATen's operators. Any strides.

// RMSNorm over the last dim: y = x / sqrt(mean(x^2) + epsilon) * weight (arXiv 1910.07467). Statistics in the dtype of
// x, in float32 at least. Differentiable in x and weight; saves nothing but its inputs.
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double epsilon);

// y = x / sqrt(sum(x^2) + epsilon) over the last dim: the same operator, as sum and mean differ by a factor.
at::Tensor l2_norm(const at::Tensor& x, double epsilon);

// silu(gate) * up, elementwise; one shape. Differentiable in both; saves nothing but its inputs.
at::Tensor swiglu(const at::Tensor& gate, const at::Tensor& up);

// Rotary embedding of x_BTHK by cos_TK and sin_TK (of x's dtype, or float32 for a shorter one), in the half-split
// layout of Hugging Face's Llama and Qwen: y = x * cos + [-x2, x1] * sin with x = [x1, x2]. Differentiable in x only.
at::Tensor rotate(const at::Tensor& x_BTHK, const at::Tensor& cos_TK, const at::Tensor& sin_TK);

}  // namespace flashmorph
