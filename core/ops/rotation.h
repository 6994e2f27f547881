#pragma once

#include <ATen/core/Tensor.h>

namespace flashmorph {

// Rotary embedding of x_BTHK by cos_TK and sin_TK (of x's dtype, or float32 for a shorter one), in the half-split
// layout of Hugging Face's Llama and Qwen: y = x * cos + [-x2, x1] * sin with x = [x1, x2]. Differentiable in x only,
// which it does not keep.
at::Tensor rotate(const at::Tensor& x_BTHK, const at::Tensor& cos_TK, const at::Tensor& sin_TK);

// rotate(rms_norm(x, weight, epsilon), cos, sin) in one pass, differentiable in x and weight_K.
at::Tensor norm_and_rotate(const at::Tensor& x_BTHK, const at::Tensor& weight_K, const at::Tensor& cos_TK,
                           const at::Tensor& sin_TK, double epsilon);

}  // namespace flashmorph
