#pragma once

#include <ATen/core/Tensor.h>

namespace flashmorph {

// RMSNorm over the last dim: y = x / sqrt(mean(x^2) + epsilon) * weight. The statistics are float32 for 16-bit and
// float32 inputs and float64 for float64. Differentiable in x and weight; the weight's gradient is made only when it
// is asked for. Registered as flashmorph::rms_norm.
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double epsilon);

// silu(gate) * up, elementwise; saves its inputs only. Registered as flashmorph::swiglu.
at::Tensor swiglu(const at::Tensor& gate, const at::Tensor& up);

// Rotary embedding of x_BTHK by cos_TK and sin_TK, in the half-split layout of Hugging Face's Llama and Qwen:
// y = x * cos + [-x2, x1] * sin with x = [x1, x2]. Registered as flashmorph::rotate.
at::Tensor rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin);

}  // namespace flashmorph
