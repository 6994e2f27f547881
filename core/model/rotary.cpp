#include "core/model/rotary.h"

#include <ATen/ATen.h>

#include <cmath>

namespace flashmorph {

Rotary rotary_table(const ModelSpec& spec, int64_t start, int64_t length, const Placement& placement) {
  const auto exact = at::TensorOptions(at::kDouble);
  const at::Tensor pair = at::arange(0, spec.head_dim, 2, exact) / static_cast<double>(spec.head_dim);
  const at::Tensor frequency = (-pair * std::log(spec.rope_theta)).exp();
  const at::Tensor angle = at::arange(start, start + length, exact).unsqueeze(1) * frequency;  // [T, K/2]
  const at::Tensor both = at::cat({angle, angle}, 1);
  const auto placed = at::TensorOptions(placement.dtype).device(placement.device);
  return {both.cos().to(placed), both.sin().to(placed)};
}

}  // namespace flashmorph
