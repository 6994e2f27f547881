#pragma once

#include <ATen/core/Tensor.h>

namespace flashmorph {

// silu(gate) * up, elementwise; one shape. Differentiable in both; saves nothing but its inputs.
at::Tensor swiglu(const at::Tensor& gate, const at::Tensor& up);

}  // namespace flashmorph
