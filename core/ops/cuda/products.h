#pragma once

#include <ATen/ATen.h>
#include <ATen/OpMathType.h>

// Batched products of chunks. A tensor is [N, H, rows, columns]: a matrix for each of N chunks and H heads.

namespace flashmorph::cuda {

inline at::Tensor flat(const at::Tensor& x) { return x.flatten(0, 1); }
inline at::Tensor flipped(const at::Tensor& x) { return x.transpose(2, 3); }

inline at::Tensor product(const at::Tensor& a, const at::Tensor& b) {
  return at::bmm(flat(a), flat(b)).unflatten(0, {a.size(0), a.size(1)});
}

// a b, summed and given in float32 at least.
inline at::Tensor exact_product(const at::Tensor& a, const at::Tensor& b) {
  const at::ScalarType exact = at::toOpMathType(a.scalar_type());
  return exact == a.scalar_type() ? product(a, b)
                                  : at::bmm(flat(a), flat(b), exact).unflatten(0, {a.size(0), a.size(1)});
}

// scale (a b + c d)
inline at::Tensor scaled_sum(double scale, const at::Tensor& a, const at::Tensor& b, const at::Tensor& c,
                             const at::Tensor& d) {
  at::Tensor sum = at::empty({a.size(0), a.size(1), a.size(2), b.size(3)}, a.options());
  at::Tensor flat_sum = flat(sum);
  flat_sum.baddbmm_(flat(a), flat(b), /*beta=*/0, scale);
  flat_sum.baddbmm_(flat(c), flat(d), /*beta=*/1, scale);
  return sum;
}

}  // namespace flashmorph::cuda
