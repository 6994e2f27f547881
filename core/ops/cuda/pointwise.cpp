#include <torch/library.h>

#include <algorithm>
#include <array>
#include <tuple>

#include "core/ops/activation.h"
#include "core/ops/cuda/norm_kernels.h"
#include "core/ops/cuda/part_sums.h"
#include "core/ops/cuda/pointwise_kernels.h"
#include "core/ops/cuda/quantise_kernels.h"
#include "core/ops/cuda/rotation_kernels.h"
#include "core/ops/cuda/tensors.h"
#include "core/ops/gated_norm.h"
#include "core/ops/quantised.h"

// rms_norm, swiglu, rotate (alone and behind a norm), gate_mix and quantise_rows on the card. Any strides; sums in
// float32 at least and in a fixed order.

namespace flashmorph::cuda {
namespace {

// Of a norm's backward pass: blocks enough for each of Hopper's multiprocessors to have eight.
int64_t parts_of(int64_t heads) { return std::max<int64_t>(1, 2 * kParts / heads); }

at::Tensor norm(const at::Tensor& x_any, const at::Tensor& weight_any, double epsilon) {
  const c10::cuda::CUDAGuard guard(x_any.device());
  const at::Tensor x = x_any.contiguous(), weight = weight_any.contiguous();
  at::Tensor y = at::empty_like(x);
  rms_norm(element_of(x), x.const_data_ptr(), /*added=*/nullptr, weight.const_data_ptr(), /*sum=*/nullptr, y.data_ptr(),
           x.numel() / x.size(-1), x.size(-1), epsilon, stream_of(x));
  return y;
}

std::tuple<at::Tensor, at::Tensor> norm_of_sum(const at::Tensor& x_any, const at::Tensor& added_any,
                                               const at::Tensor& weight_any, double epsilon) {
  const c10::cuda::CUDAGuard guard(x_any.device());
  const at::Tensor x = x_any.contiguous(), added = added_any.contiguous(), weight = weight_any.contiguous();
  at::Tensor y = at::empty_like(x), sum = at::empty_like(x);
  rms_norm(element_of(x), x.const_data_ptr(), added.const_data_ptr(), weight.const_data_ptr(), sum.data_ptr(),
           y.data_ptr(), x.numel() / x.size(-1), x.size(-1), epsilon, stream_of(x));
  return {y, sum};
}

// d_sum_any: added to the gradient of x, if it is there.
std::tuple<at::Tensor, at::Tensor> gradients_of_norm(const at::Tensor& dy_any, const at::Tensor& x_any,
                                                     const at::Tensor& weight_any,
                                                     const std::optional<at::Tensor>& d_sum_any, double epsilon,
                                                     bool of_weight) {
  const c10::cuda::CUDAGuard guard(x_any.device());
  const at::Tensor dy = dy_any.contiguous(), x = x_any.contiguous(), weight = weight_any.contiguous(),
                   d_sum = d_sum_any ? d_sum_any->contiguous() : at::Tensor();
  const int64_t width = x.size(-1), rows = x.numel() / width;
  const int64_t parts = parts_of(/*heads=*/1);
  at::Tensor dx = at::empty_like(x), partial;
  if (of_weight) partial = at::empty({parts, width}, accumulator_of(x));
  rms_norm_backward(element_of(x), dy.const_data_ptr(), x.const_data_ptr(), weight.const_data_ptr(),
                    d_sum.defined() ? d_sum.const_data_ptr() : nullptr, dx.data_ptr(), data_or_null(partial), parts,
                    rows, width, epsilon, stream_of(x));
  return {dx, of_weight ? sum_of_parts(partial, weight) : at::Tensor()};
}

std::tuple<at::Tensor, at::Tensor> norm_backward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& weight,
                                                 double epsilon, std::array<bool, 2> wanted) {
  return gradients_of_norm(dy, x, weight, std::nullopt, epsilon, wanted[1]);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> norm_of_sum_backward(const std::optional<at::Tensor>& dy,
                                                                    const std::optional<at::Tensor>& d_sum,
                                                                    const at::Tensor& weight, double epsilon,
                                                                    const at::Tensor& sum, std::array<bool, 3> wanted) {
  if (!dy) return {*d_sum, *d_sum, at::Tensor()};
  const auto [dx, d_weight] = gradients_of_norm(*dy, sum, weight, d_sum, epsilon, wanted[2]);
  return {dx, dx, d_weight};
}

at::Tensor norm_gated(const at::Tensor& x_any, const at::Tensor& weight_any, const at::Tensor& gate_any, double epsilon,
                      bool swish) {
  const c10::cuda::CUDAGuard guard(x_any.device());
  const at::Tensor x = x_any.contiguous(), weight = weight_any.contiguous(), gate = gate_any.contiguous();
  const auto [tokens, heads, width] = WeightedTokens(x, weight);
  at::Tensor y = at::empty_like(gate);
  gated_norm(element_of(x), x.const_data_ptr(), weight.const_data_ptr(), gate.const_data_ptr(), y.data_ptr(), tokens,
             heads, width, epsilon, swish, stream_of(x));
  return y;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> norm_gated_backward(const at::Tensor& dy_any, const at::Tensor& x_any,
                                                                   const at::Tensor& weight_any,
                                                                   const at::Tensor& gate_any, double epsilon,
                                                                   bool swish, std::array<bool, 3> wanted) {
  const c10::cuda::CUDAGuard guard(x_any.device());
  const at::Tensor dy = dy_any.contiguous(), x = x_any.contiguous(), weight = weight_any.contiguous(),
                   gate = gate_any.contiguous();
  const auto [tokens, heads, width] = WeightedTokens(x, weight);
  const int64_t parts = parts_of(heads);
  at::Tensor dx = at::empty_like(x), d_gate = at::empty_like(gate), partial;
  if (wanted[1]) partial = at::empty({parts, heads * width}, accumulator_of(x));
  gated_norm_backward(element_of(x), dy.const_data_ptr(), x.const_data_ptr(), weight.const_data_ptr(),
                      gate.const_data_ptr(), dx.data_ptr(), d_gate.data_ptr(), data_or_null(partial), parts, tokens,
                      heads, width, epsilon, swish, stream_of(x));
  return {dx, wanted[1] ? sum_of_parts(partial, weight) : at::Tensor(), d_gate};
}

at::Tensor swiglu_forward(const at::Tensor& gate_any, const at::Tensor& up_any) {
  const c10::cuda::CUDAGuard guard(gate_any.device());
  const at::Tensor gate = gate_any.contiguous(), up = up_any.contiguous();
  at::Tensor y = at::empty_like(gate);
  swiglu(element_of(gate), gate.const_data_ptr(), up.const_data_ptr(), y.data_ptr(), gate.numel(), stream_of(gate));
  return y;
}

std::tuple<at::Tensor, at::Tensor> swiglu_gradients(const at::Tensor& dy_any, const at::Tensor& gate_any,
                                                    const at::Tensor& up_any) {
  const c10::cuda::CUDAGuard guard(gate_any.device());
  const at::Tensor dy = dy_any.contiguous(), gate = gate_any.contiguous(), up = up_any.contiguous();
  const int64_t width = gate.size(-1);
  const auto [d_gate, d_up] = room_for_swiglu_gradients(gate, up);
  if (gate.numel() > 0)
    swiglu_backward(element_of(gate), dy.const_data_ptr(), gate.const_data_ptr(), up.const_data_ptr(),
                    d_gate.data_ptr(), d_up.data_ptr(), gate.numel() / width, width,
                    d_gate.is_contiguous() ? width : 2 * width, stream_of(gate));
  return {d_gate, d_up};
}

// What the rotation's kernels read, contiguous.
struct Rotation {
  at::Tensor x, cos, sin;
  Rotation(const at::Tensor& x_BTHK, const at::Tensor& cos_TK, const at::Tensor& sin_TK)
      : x(x_BTHK.contiguous()),
        cos(cos_TK.to(accumulator_of(x)).contiguous()),
        sin(sin_TK.to(accumulator_of(x)).contiguous()) {}
};

template <bool kBack>
at::Tensor rotated(const at::Tensor& x_any, const at::Tensor& cos_TK, const at::Tensor& sin_TK) {
  const c10::cuda::CUDAGuard guard(x_any.device());
  const auto [x, cos, sin] = Rotation(x_any, cos_TK, sin_TK);
  at::Tensor y = at::empty_like(x);
  rotate(element_of(x), x.const_data_ptr(), cos.const_data_ptr(), sin.const_data_ptr(), y.data_ptr(),
         x.size(0) * x.size(1), x.size(1), x.size(2), x.size(3), kBack, stream_of(x));
  return y;
}

at::Tensor norm_rotated(const at::Tensor& x_any, const at::Tensor& weight_any, const at::Tensor& cos_any,
                        const at::Tensor& sin_any, double epsilon) {
  if (!norm_rotates(element_of(x_any), x_any.size(3)))
    return rotated<false>(norm(x_any, weight_any, epsilon), cos_any, sin_any);
  const c10::cuda::CUDAGuard guard(x_any.device());
  const auto [x, cos, sin] = Rotation(x_any, cos_any, sin_any);
  const at::Tensor weight = weight_any.contiguous();
  at::Tensor y = at::empty_like(x);
  norm_rotate(element_of(x), x.const_data_ptr(), weight.const_data_ptr(), cos.const_data_ptr(), sin.const_data_ptr(),
              y.data_ptr(), x.size(0) * x.size(1), x.size(1), x.size(2), x.size(3), epsilon, stream_of(x));
  return y;
}

std::tuple<at::Tensor, at::Tensor> norm_rotated_backward(const at::Tensor& dy_any, const at::Tensor& x_any,
                                                         const at::Tensor& weight_any, const at::Tensor& cos_any,
                                                         const at::Tensor& sin_any, double epsilon,
                                                         std::array<bool, 2> wanted) {
  if (!norm_rotates(element_of(x_any), x_any.size(3)))
    return norm_backward(rotated<true>(dy_any, cos_any, sin_any), x_any, weight_any, epsilon, wanted);
  const c10::cuda::CUDAGuard guard(x_any.device());
  const auto [x, cos, sin] = Rotation(x_any, cos_any, sin_any);
  const at::Tensor dy = dy_any.contiguous(), weight = weight_any.contiguous();
  at::Tensor dx = at::empty_like(x), partial;
  if (wanted[1]) partial = at::empty({kParts, x.size(3)}, accumulator_of(x));
  norm_rotate_backward(element_of(x), dy.const_data_ptr(), x.const_data_ptr(), weight.const_data_ptr(),
                       cos.const_data_ptr(), sin.const_data_ptr(), dx.data_ptr(), data_or_null(partial), kParts,
                       x.size(0) * x.size(1), x.size(1), x.size(2), x.size(3), epsilon, stream_of(x));
  return {dx, wanted[1] ? sum_of_parts(partial, weight) : at::Tensor()};
}

std::tuple<at::Tensor, at::Tensor> mixed(const at::Tensor& full_any, const at::Tensor& linear_any,
                                         const at::Tensor& alpha, double value) {
  const c10::cuda::CUDAGuard guard(full_any.device());
  const at::Tensor full = full_any.contiguous(), linear = linear_any.contiguous();
  at::Tensor mixed = at::empty_like(full), difference;
  if (alpha.requires_grad()) difference = at::empty_like(full);
  gate_mix(element_of(full), full.const_data_ptr(), linear.const_data_ptr(), value, mixed.data_ptr(),
           data_or_null(difference), full.numel(), stream_of(full));
  return {mixed, difference};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> mix_gradients(const at::Tensor& d_mixed_any, double value,
                                                             const std::optional<at::Tensor>& difference,
                                                             std::array<bool, 3> wanted) {
  const c10::cuda::CUDAGuard guard(d_mixed_any.device());
  const at::Tensor d_mixed = d_mixed_any.contiguous();
  at::Tensor d_full, d_linear, partial;
  if (wanted[0]) d_full = at::empty_like(d_mixed);
  if (wanted[1]) d_linear = at::empty_like(d_mixed);
  if (difference) partial = at::empty({kParts}, d_mixed.options().dtype(at::kDouble));
  gate_mix_backward(element_of(d_mixed), d_mixed.const_data_ptr(), difference ? difference->const_data_ptr() : nullptr,
                    value, data_or_null(d_full), data_or_null(d_linear), static_cast<double*>(data_or_null(partial)),
                    kParts, d_mixed.numel(), stream_of(d_mixed));
  return {d_full, d_linear, difference ? partial.sum() : at::Tensor()};
}

at::Tensor distance(const at::Tensor& a_any, const at::Tensor& b_any) {
  const c10::cuda::CUDAGuard guard(a_any.device());
  const at::Tensor a = a_any.contiguous(), b = b_any.contiguous();
  at::Tensor partial = at::empty({kParts}, a.options().dtype(at::kDouble));
  squared_distance(element_of(a), a.const_data_ptr(), b.const_data_ptr(), partial.data_ptr<double>(), kParts, a.numel(),
                   stream_of(a));
  return partial.sum();
}

at::Tensor distance_gradient(const at::Tensor& upstream, const at::Tensor& a_any, const at::Tensor& b_any) {
  const c10::cuda::CUDAGuard guard(a_any.device());
  const at::Tensor a = a_any.contiguous(), b = b_any.contiguous(), scale = upstream.to(a.options().dtype(at::kDouble));
  at::Tensor da = at::empty_like(a);
  if (a.numel() > 0)
    squared_distance_backward(element_of(a), scale.const_data_ptr<double>(), a.const_data_ptr(), b.const_data_ptr(),
                              da.data_ptr(), a.numel(), stream_of(a));
  return da;
}

// Rows of a matrix that lies otherwise are copied.
at::Tensor in_wide_rows(const at::Tensor& x_ND) {
  constexpr int64_t kBytes = 16;
  const bool good = x_ND.stride(1) == 1 && x_ND.stride(0) * x_ND.element_size() % kBytes == 0 &&
                    reinterpret_cast<uintptr_t>(x_ND.const_data_ptr()) % kBytes == 0;
  return good ? x_ND : x_ND.clone(at::MemoryFormat::Contiguous);
}

std::tuple<at::Tensor, at::Tensor> quantised(at::TensorList x_any) {
  const c10::cuda::CUDAGuard guard(x_any[0].device());
  TORCH_CHECK(has_float8_products(), "this card has no float8 products, which came with Ada and Hopper: use ",
              "device.frozen_dtype: same");
  std::vector<at::Tensor> x;
  if (x_any.size() > kMostColumns)
    x = {at::cat(x_any, 1)};
  else
    for (const at::Tensor& one : x_any) x.push_back(in_wide_rows(one));
  std::array<Columns, kMostColumns> columns{};
  int64_t width = 0;
  for (size_t i = 0; i < x.size(); width += x[i++].size(1))
    columns[i] = {x[i].const_data_ptr(), x[i].stride(0), x[i].size(1)};
  const auto options = x[0].options().requires_grad(false);
  at::Tensor value = at::empty({x[0].size(0), width}, options.dtype(at::kFloat8_e4m3fn));
  at::Tensor scale = at::empty({x[0].size(0), 1}, options.dtype(at::kFloat));
  quantise_rows(element_of(x[0]), columns, static_cast<int>(x.size()), value.data_ptr(), scale.data_ptr<float>(),
                x[0].size(0), kLargestFloat8, kLeastOfRow, stream_of(x[0]));
  return {value, scale};
}

}  // namespace

TORCH_LIBRARY_IMPL(flashmorph, CUDA, library) {
  library.impl("rms_norm", norm);
  library.impl("rms_norm_backward", norm_backward);
  library.impl("add_and_norm", norm_of_sum);
  library.impl("add_and_norm_backward", norm_of_sum_backward);
  library.impl("gated_rms_norm", norm_gated);
  library.impl("gated_rms_norm_backward", norm_gated_backward);
  library.impl("swiglu", swiglu_forward);
  library.impl("swiglu_backward", swiglu_gradients);
  library.impl("rotate", rotated<false>);
  library.impl("rotate_backward", rotated<true>);
  library.impl("norm_and_rotate", norm_rotated);
  library.impl("norm_and_rotate_backward", norm_rotated_backward);
  library.impl("gate_mix", mixed);
  library.impl("gate_mix_backward", mix_gradients);
  library.impl("quantise_rows", quantised);
  library.impl("squared_distance", distance);
  library.impl("squared_distance_backward", distance_gradient);
}

}  // namespace flashmorph::cuda
