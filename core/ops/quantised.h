#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/TensorImpl.h>

#include <tuple>
#include <vector>

namespace flashmorph {

// Products of matrices in float8: e4m3 of arXiv 2209.05433 (4 bits of exponent, 3 of mantissa, at most 448) with a
// float32 scale a row, so that what one row holds costs no other its precision. Letters: N tokens, D inputs, E outputs.

inline constexpr double kLargestFloat8 = 448.0;
// A row's largest magnitude counts as no less, so that its scale is a normal number.
inline constexpr double kLeastOfRow = 1e-35;

// x ~ scale * value. A row's scale is its largest magnitude over 448, values are rounded to the nearest; a row that is
// not finite has NaN in it.
struct QuantisedRows {
  at::Tensor value_ND;  // float8_e4m3fn, contiguous
  at::Tensor scale_N1;  // float32
};

// Of matrices [N, D1], [N, D2], .. side by side, in float32 or bfloat16; D1, D2, .. are multiples of 16.
QuantisedRows quantise_rows(at::TensorList x);

// a b^T of a [N, D] and b [E, D], sums in float32; as dtype. On a card dtype is bfloat16.
at::Tensor quantised_product(const QuantisedRows& a, const QuantisedRows& b, at::ScalarType dtype);

// Matrices that nobody trains and that read one x, with the float8 forms that project() and project_each() multiply by
// while this is attached to the first of them: y = x W^T with a scale for each row of x and of W, dx = dy W with one
// for each token of all their dy together and for each column of W. Also torch.ops.flashmorph.project_in_float8, which
// quantises at each call.
class QuantisedMatrices : public c10::BackendMeta {
 public:
  // weights [E1, D], [E2, D], .. as fit(); going_back: with what dx takes.
  QuantisedMatrices(at::TensorList weights, bool going_back);

  // Whether all their sides are multiples of 16, as the products want them.
  static bool fit(at::TensorList weights);

  // What is attached to the first of these weights, or null. They must begin with all of its matrices, as they were
  // then.
  static const QuantisedMatrices* of(at::TensorList weights);

  size_t count() const { return sizes_.size(); }  // of the matrices

  // One output a matrix, with its bias where there are biases. x [.., D] as the weights are.
  std::vector<at::Tensor> project(const at::Tensor& x, at::TensorList biases) const;

  std::vector<at::Tensor> tensors() const;  // values and scales, of both forms

 private:
  friend struct ProjectInFloat8;
  std::vector<std::pair<const c10::TensorImpl*, uint32_t>> members_;  // and their versions
  std::vector<int64_t> sizes_;                                        // E1, E2, ..
  QuantisedRows rows_;                                                // [E1 + E2 + .., D]
  QuantisedRows columns_;                                             // [D, E1 + E2 + ..]
};

}  // namespace flashmorph
