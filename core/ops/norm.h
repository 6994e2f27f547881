#pragma once

#include <ATen/core/Tensor.h>

namespace flashmorph {

// RMSNorm over the last dim: y = x / sqrt(mean(x^2) + epsilon) * weight (arXiv 1910.07467). Statistics in the dtype of x,
// one pass over each row. float32 or float64, host memory. Differentiable in x and weight; saves x and one number a row.
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double epsilon);

// silu(gate) * up, elementwise.
at::Tensor swiglu(const at::Tensor& gate, const at::Tensor& up);

// Rotary embedding of x_BTHK by cos_TK and sin_TK, in the half-split layout of Hugging Face's Llama and Qwen:
// y = x * cos + [-x2, x1] * sin with x = [x1, x2].
at::Tensor rotate(const at::Tensor& x_BTHK, const at::Tensor& cos_TK, const at::Tensor& sin_TK);

}  // namespace flashmorph
