#pragma once

#include <ATen/core/Tensor.h>

namespace flashmorph {

// Products of many small matrices. On a CPU with AVX-512 those of float32 are oneDNN's kernels: LibTorch's own batched
// products are MKL's, which use half of an AMD processor's vectors. Letters: G matrices, N rows, M inner, P columns.

// a b, [G, N, P]. Any strides; no gradient of its own.
at::Tensor batched_product(const at::Tensor& a_GNM, const at::Tensor& b_GMP);

// sum += a b, in place.
void add_batched_product(const at::Tensor& sum_GNP, const at::Tensor& a_GNM, const at::Tensor& b_GMP);

// What these are made of, for operators that keep their matrices in tiles of their own.

// Whether this LibTorch on this processor has the kernels. ATEN_CPU_CAPABILITY=avx2 says no.
bool has_small_products();

// c = a b or c += a b: [N, P], [N, M], [M, P] row by row, rows `stride` numbers apart. One kernel is made for each set
// of sizes and strides, and kept: let there be few.
struct Matrix {
  float* rows;
  int64_t stride;
};
struct ConstMatrix {
  const float* rows;
  int64_t stride;
};
void small_product(int64_t N, int64_t M, int64_t P, ConstMatrix a, ConstMatrix b, Matrix c, bool add);

// x^T, [M, N] without gaps, of x [N, M].
void transpose(int64_t N, int64_t M, ConstMatrix x, float* turned_MN);

}  // namespace flashmorph
