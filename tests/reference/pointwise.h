#pragma once

#include <ATen/ATen.h>

namespace flashmorph::test {

inline at::Tensor rms_norm_definition(const at::Tensor& x, const at::Tensor& weight, double epsilon) {
  return x / (x.square().mean(-1, /*keepdim=*/true) + epsilon).sqrt() * weight;
}

inline at::Tensor swiglu_definition(const at::Tensor& gate, const at::Tensor& up) {
  return gate / (1.0 + (-gate).exp()) * up;
}

// As complex numbers x1 + i x2, one pair a frequency: cos and sin are [T, K] with equal halves.
inline at::Tensor rotate_definition(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  const int64_t half = x.size(-1) / 2;
  const at::Tensor turn = at::complex(cos.narrow(-1, 0, half), sin.narrow(-1, 0, half)).unsqueeze(1);
  const at::Tensor turned = at::complex(x.narrow(-1, 0, half), x.narrow(-1, half, half)) * turn;
  return at::cat({at::real(turned), at::imag(turned)}, -1);
}

}  // namespace flashmorph::test
