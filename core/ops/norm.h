#pragma once

#include <ATen/core/Tensor.h>

namespace flashmorph {

// RMSNorm over the last dim: y = x / sqrt(mean(x^2) + epsilon) * weight (arXiv 1910.07467). Statistics in the dtype of
// x, in float32 at least. Differentiable in x and weight; saves nothing but its inputs.
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double epsilon);

// x + added and its RMSNorm, in one pass, as a residual stream's reader takes them; the two gradients that come back
// are added in one, too. Differentiable in all three; saves the sum and nothing else.
struct SumAndNorm {
  at::Tensor sum, normed;
};
SumAndNorm add_and_norm(const at::Tensor& x, const at::Tensor& added, const at::Tensor& weight, double epsilon);

// y = x / sqrt(sum(x^2) + epsilon) over the last dim: the same operator, as sum and mean differ by a factor.
at::Tensor l2_norm(const at::Tensor& x, double epsilon);

}  // namespace flashmorph
