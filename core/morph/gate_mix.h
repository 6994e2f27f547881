#pragma once

#include <ATen/core/Tensor.h>

namespace flashmorph {

// alpha * full + (1 - alpha) * linear of two partial outputs; alpha a float64 scalar.
// Its gradient is <dL/dmixed, full - linear>, this rank's part of it, accumulated in float64. At alpha exactly 1
// (or 0) the linear (or full) branch gets no gradient and its backward is skipped.
at::Tensor gate_mix(const at::Tensor& full, const at::Tensor& linear, const at::Tensor& alpha);

}  // namespace flashmorph
