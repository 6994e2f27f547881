#pragma once

#include <ATen/core/Tensor.h>

namespace flashmorph {

// sum of (a - b)^2 as a float64 scalar on their device, added up in float64 in a fixed order. Differentiable in a; b
// gets no gradient.
at::Tensor squared_distance(const at::Tensor& a, const at::Tensor& b);

// upstream times its gradient, in a; for those who have no graph.
at::Tensor squared_distance_gradient(const at::Tensor& upstream, const at::Tensor& a, const at::Tensor& b);

}  // namespace flashmorph
