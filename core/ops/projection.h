#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace flashmorph {

// The products for trained weights that are leaves may be put off (core/ops/put_off_gradients.h).
//
// y = x W^T + b: x [.., D], weight_ED, bias_E (undefined: none), one dtype; y [.., E]. Any strides; differentiable in
// all three; saves nothing but its inputs. Also torch.ops.flashmorph.project. On the CPU in float32 the products are
// oneDNN's: LibTorch's own, MKL's, use half of an AMD processor's vectors.
at::Tensor project(const at::Tensor& x, const at::Tensor& weight_ED, const at::Tensor& bias_E = {});

// The same by several weights, and by a bias (undefined: none) each of the first ones or none at all; what their
// gradients pull on x is added up inside the products, or inside one where the gradients lie side by side in the same
// rows. The first ones that have biases, or were quantised together (core/ops/quantised.h), are joined so without the
// others, which follow one by one. Behind the first ones of a sublayer comes its interlude (core/ops/interlude.h).
std::vector<at::Tensor> project_each(const at::Tensor& x, at::TensorList weights, at::TensorList biases = {});

// a b of matrices, by the same products; no gradient of its own.
at::Tensor product(const at::Tensor& a_NM, const at::Tensor& b_MP);

}  // namespace flashmorph
