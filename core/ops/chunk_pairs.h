#pragma once

#include <ATen/core/Tensor.h>

namespace flashmorph {

// What one decay per token does between the pairs of tokens of a chunk, without tables in float64.
// Letters: G chunks of all heads, C tokens a chunk. Contiguous tensors.

// Gam_ij = exp(b_i - b_j) for j <= i, else 0, of `dtype`. b_GC float64: the differences are small where the sums are
// not.
at::Tensor decay_table(const at::Tensor& b_GC, at::ScalarType dtype);

// For each token m, the sum of a_ij b_ij (and c_ij d_ij) over the pairs j < m <= i that its decay stands between, [G,
// C]. Only the strictly lower parts are read.
at::Tensor sum_across(const at::Tensor& a_GCC, const at::Tensor& b_GCC);
at::Tensor sum_across(const at::Tensor& a_GCC, const at::Tensor& b_GCC, const at::Tensor& c_GCC,
                      const at::Tensor& d_GCC);

// The sum of x_i over i >= m, and of x_j over j < m, for each token m.
at::Tensor sum_from(const at::Tensor& x_GC);
at::Tensor sum_before(const at::Tensor& x_GC);

}  // namespace flashmorph
