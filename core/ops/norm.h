#pragma once

#include <ATen/core/Tensor.h>

namespace flashmorph {

// RMSNorm over the last dim: y = x / sqrt(mean(x^2) + epsilon) * weight (arXiv 1910.07467). Statistics in the dtype of
// x, in float32 at least. Differentiable in x and weight; saves nothing but its inputs.
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double epsilon);

// y = x / sqrt(sum(x^2) + epsilon) over the last dim: the same operator, as sum and mean differ by a factor.
at::Tensor l2_norm(const at::Tensor& x, double epsilon);

}  // namespace flashmorph
