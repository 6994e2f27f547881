#pragma once

#include <ATen/ATen.h>
#include <c10/cuda/CUDAGuard.h>

#include "core/ops/cuda/fused.h"
#include "core/ops/cuda/walk.h"

// Tensors as the walks read and write them.

namespace flashmorph::cuda {

// Whether a call is one for the kernels that walk, which are made of Hopper's products.
inline bool walked(const at::Tensor& q_BTHK, const at::Tensor& v_BTHV) {
  const c10::cuda::CUDAGuard guard(q_BTHK.device());
  return use_fused_kernels() && q_BTHK.scalar_type() == at::kBFloat16 && walks(q_BTHK.size(3), v_BTHV.size(3)) &&
         has_warpgroup_products();
}

// The rows of the batch one after the other, heads at multiples of 16 bytes: x itself where it lies so.
inline at::Tensor in_rows(const at::Tensor& x_BTHD) {
  const auto fits = [&](int dim) { return x_BTHD.stride(dim) % 8 == 0; };
  const bool one_row = x_BTHD.size(0) == 1 || x_BTHD.stride(0) == x_BTHD.size(1) * x_BTHD.stride(1);
  const bool good = one_row && x_BTHD.stride(3) == 1 && fits(1) && fits(2) &&
                    reinterpret_cast<uintptr_t>(x_BTHD.const_data_ptr()) % 16 == 0;
  return good ? x_BTHD : x_BTHD.clone(at::MemoryFormat::Contiguous);
}

inline Rows rows_of(const at::Tensor& x_BTHD) { return {x_BTHD.const_data_ptr(), x_BTHD.stride(1), x_BTHD.stride(2)}; }

inline at::Tensor dense_like(const at::Tensor& x) { return at::empty(x.sizes(), x.options()); }

}  // namespace flashmorph::cuda
