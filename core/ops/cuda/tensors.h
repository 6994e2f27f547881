#pragma once

#include <ATen/ATen.h>
#include <ATen/OpMathType.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "core/ops/cuda/element.h"

// From ATen's tensors to the kernels' pointers.

namespace flashmorph::cuda {

inline Element element_of(const at::Tensor& x) {
  switch (x.scalar_type()) {
    case at::kFloat:
      return Element::float32;
    case at::kDouble:
      return Element::float64;
    case at::kBFloat16:
      return Element::bfloat16;
    default:
      TORCH_CHECK(false, "no CUDA kernel for tensors of ", c10::toString(x.scalar_type()));
  }
}

inline Stream stream_of(const at::Tensor& x) { return c10::cuda::getCurrentCUDAStream(x.get_device()).stream(); }

// What the kernels accumulate tensors like x in.
inline at::TensorOptions accumulator_of(const at::Tensor& x) {
  return x.options().dtype(at::toOpMathType(x.scalar_type())).requires_grad(false);
}

inline void* data_or_null(const at::Tensor& x) { return x.defined() ? x.data_ptr() : nullptr; }

}  // namespace flashmorph::cuda
