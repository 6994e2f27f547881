#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace flashmorph {

// alpha * full + (1 - alpha) * linear of two partial outputs; alpha a float64 scalar. Give its number as `value` where
// the host knows it: reading it from a device waits for everything before it. Its gradient is <dL/dmixed, full -
// linear>, this rank's part of it, accumulated in float64 in a fixed order. At alpha exactly 1 (or 0) the linear (or
// full) branch gets no gradient and its backward is skipped.
at::Tensor gate_mix(const at::Tensor& full, const at::Tensor& linear, const at::Tensor& alpha,
                    std::optional<double> value = std::nullopt);

}  // namespace flashmorph
