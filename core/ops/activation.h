#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

namespace flashmorph {

// silu(gate) * up, elementwise; one shape. Differentiable in both; saves nothing but its inputs.
at::Tensor swiglu(const at::Tensor& gate, const at::Tensor& up);

// Where its two gradients go on a card. A feed-forward's, [.., F] of at most three dims, lie side by side, so that one
// product reads both (projection.h); those by heads lie apart.
std::tuple<at::Tensor, at::Tensor> room_for_swiglu_gradients(const at::Tensor& gate, const at::Tensor& up);

}  // namespace flashmorph
