#include "core/ops/norm.h"

#include <ATen/ATen.h>
#include <ATen/OpMathType.h>

#include <cmath>
#include <tuple>
#include <vector>

#include "core/ops/inverse_rms.h"
#include "core/ops/operator.h"
#include "core/ops/vectorised.h"

namespace flashmorph {
namespace {

template <class Number>
FLASHMORPH_INLINED void forward_row(const Number* __restrict x, const Number* __restrict weight, Number* __restrict y,
                                    int64_t width, double epsilon) {
  const Number s = inverse_rms(x, width, epsilon);
  for (int64_t i = 0; i < width; ++i) y[i] = x[i] * s * weight[i];
}

template <class Number>
FLASHMORPH_VECTORISED void forward_rows(const Number* x, const Number* weight, Number* y, int64_t rows, int64_t width,
                                        double epsilon) {
  for (int64_t row = 0; row < rows; ++row, x += width, y += width) forward_row(x, weight, y, width, epsilon);
}

template <class Number>
FLASHMORPH_VECTORISED void add_and_forward_rows(const Number* x, const Number* added, const Number* weight, Number* y,
                                                Number* __restrict sum, int64_t rows, int64_t width, double epsilon) {
  for (int64_t row = 0; row < rows; ++row, x += width, added += width, y += width, sum += width) {
    for (int64_t i = 0; i < width; ++i) sum[i] = x[i] + added[i];
    forward_row(sum, weight, y, width, epsilon);
  }
}

// dx = s (dy w) - x s^3 / width <dy w, x> + d_sum, if any;  dw += dy x s, when asked for.
template <class Number>
FLASHMORPH_VECTORISED void backward_rows(const Number* dy, const Number* x, const Number* __restrict weight,
                                         const Number* d_sum, Number* __restrict dx, Number* __restrict d_weight,
                                         int64_t rows, int64_t width, double epsilon) {
  std::vector<Number> weighted(width);
  for (int64_t row = 0; row < rows; ++row, x += width, dy += width, dx += width) {
    const Number s = inverse_rms(x, width, epsilon);
    for (int64_t i = 0; i < width; ++i) weighted[i] = dy[i] * weight[i];
    const Number along = dot(weighted.data(), x, width) * s * s * s / static_cast<Number>(width);
    for (int64_t i = 0; i < width; ++i) dx[i] = s * weighted[i] - x[i] * along;
    if (d_sum != nullptr)
      for (int64_t i = 0; i < width; ++i) dx[i] += d_sum[row * width + i];
    if (d_weight == nullptr) continue;
    for (int64_t i = 0; i < width; ++i) d_weight[i] += dy[i] * x[i] * s;
  }
}

// The same in ATen, for the dtypes and devices without a kernel; float32 statistics for the short dtypes.
at::Tensor forward_composite(const at::Tensor& x_any, const at::Tensor& weight, double epsilon) {
  const at::Tensor x = x_any.to(at::toOpMathType(x_any.scalar_type()));
  return (x * (x.square().mean(-1, /*keepdim=*/true) + epsilon).rsqrt() * weight).to(x_any.scalar_type());
}

std::tuple<at::Tensor, at::Tensor> backward_composite(const at::Tensor& dy, const at::Tensor& x_any,
                                                      const at::Tensor& weight, double epsilon,
                                                      std::array<bool, 2> wanted) {
  const at::ScalarType type = x_any.scalar_type();
  const at::Tensor x = x_any.to(at::toOpMathType(type));
  const at::Tensor s = (x.square().mean(-1, /*keepdim=*/true) + epsilon).rsqrt();
  const at::Tensor x_hat = x * s, weighted = dy * weight.to(x.scalar_type());
  const at::Tensor dx = s * (weighted - x_hat * (weighted * x_hat).mean(-1, /*keepdim=*/true));
  at::Tensor d_weight;
  if (wanted[1]) d_weight = (dy * x_hat).flatten(0, -2).sum(0).to(type);
  return {dx.to(type), d_weight};
}

bool has_kernel(const at::Tensor& x) { return x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble; }

at::Tensor forward(const at::Tensor& x_any, const at::Tensor& weight, double epsilon) {
  if (!has_kernel(x_any)) return forward_composite(x_any, weight, epsilon);
  const at::Tensor x = x_any.contiguous(), w = weight.contiguous();
  at::Tensor y = at::empty_like(x);
  const int64_t width = w.size(0);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "rms_norm", [&] {
    forward_rows(x.const_data_ptr<scalar_t>(), w.const_data_ptr<scalar_t>(), y.data_ptr<scalar_t>(), x.numel() / width,
                 width, epsilon);
  });
  return y;
}

std::tuple<at::Tensor, at::Tensor> gradients(const at::Tensor& dy_any, const at::Tensor& x_any,
                                             const at::Tensor& weight, const OptionalTensor& d_sum_any, double epsilon,
                                             bool of_weight) {
  const at::Tensor dy = dy_any.contiguous(), x = x_any.contiguous(), w = weight.contiguous(),
                   d_sum = d_sum_any ? d_sum_any->contiguous() : at::Tensor();
  at::Tensor dx = at::empty_like(x), d_weight;
  if (of_weight) d_weight = at::zeros_like(w);
  const int64_t width = w.size(0);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "rms_norm_backward", [&] {
    backward_rows(dy.const_data_ptr<scalar_t>(), x.const_data_ptr<scalar_t>(), w.const_data_ptr<scalar_t>(),
                  d_sum.defined() ? d_sum.const_data_ptr<scalar_t>() : nullptr, dx.data_ptr<scalar_t>(),
                  of_weight ? d_weight.data_ptr<scalar_t>() : nullptr, x.numel() / width, width, epsilon);
  });
  return {dx, d_weight};
}

std::tuple<at::Tensor, at::Tensor> backward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& weight,
                                            double epsilon, std::array<bool, 2> wanted) {
  return has_kernel(x) ? gradients(dy, x, weight, std::nullopt, epsilon, wanted[1])
                       : backward_composite(dy, x, weight, epsilon, wanted);
}

// RMSNorm of x + added, and that sum.
std::tuple<at::Tensor, at::Tensor> of_sum_composite(const at::Tensor& x, const at::Tensor& added,
                                                    const at::Tensor& weight, double epsilon) {
  const at::Tensor sum = x + added;
  return {forward_composite(sum, weight, epsilon), sum};
}

std::tuple<at::Tensor, at::Tensor> of_sum(const at::Tensor& x_any, const at::Tensor& added_any,
                                          const at::Tensor& weight, double epsilon) {
  if (!has_kernel(x_any)) return of_sum_composite(x_any, added_any, weight, epsilon);
  const at::Tensor x = x_any.contiguous(), added = added_any.contiguous(), w = weight.contiguous();
  at::Tensor y = at::empty_like(x), sum = at::empty_like(x);
  const int64_t width = w.size(0);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "add_and_norm", [&] {
    add_and_forward_rows(x.const_data_ptr<scalar_t>(), added.const_data_ptr<scalar_t>(), w.const_data_ptr<scalar_t>(),
                         y.data_ptr<scalar_t>(), sum.data_ptr<scalar_t>(), x.numel() / width, width, epsilon);
  });
  return {y, sum};
}

// What pulls on the sum pulls on both that it is made of.
std::tuple<at::Tensor, at::Tensor, at::Tensor> of_sum_backward_composite(const OptionalTensor& dy,
                                                                         const OptionalTensor& d_sum,
                                                                         const at::Tensor& weight, double epsilon,
                                                                         const at::Tensor& sum,
                                                                         std::array<bool, 3> wanted) {
  if (!dy) return {*d_sum, *d_sum, at::Tensor()};
  const auto [of_norm, d_weight] = backward_composite(*dy, sum, weight, epsilon, {true, wanted[2]});
  const at::Tensor dx = d_sum ? of_norm + *d_sum : of_norm;
  return {dx, dx, d_weight};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> of_sum_backward(const OptionalTensor& dy, const OptionalTensor& d_sum,
                                                               const at::Tensor& weight, double epsilon,
                                                               const at::Tensor& sum, std::array<bool, 3> wanted) {
  if (!dy || !has_kernel(sum)) return of_sum_backward_composite(dy, d_sum, weight, epsilon, sum, wanted);
  const auto [dx, d_weight] = gradients(*dy, sum, weight, d_sum, epsilon, wanted[2]);
  return {dx, dx, d_weight};
}

// Without values: what the kernels allocate.
at::Tensor forward_without_values(const at::Tensor& x, const at::Tensor&, double) {
  return at::empty(x.sizes(), x.options());
}

std::tuple<at::Tensor, at::Tensor> backward_without_values(const at::Tensor&, const at::Tensor& x,
                                                           const at::Tensor& weight, double,
                                                           std::array<bool, 2> wanted) {
  return {at::empty(x.sizes(), x.options()), wanted[1] ? at::empty_like(weight) : at::Tensor()};
}

std::tuple<at::Tensor, at::Tensor> of_sum_without_values(const at::Tensor& x, const at::Tensor&, const at::Tensor&,
                                                         double) {
  return {at::empty(x.sizes(), x.options()), at::empty(x.sizes(), x.options())};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> of_sum_backward_without_values(const OptionalTensor& dy,
                                                                              const OptionalTensor& d_sum,
                                                                              const at::Tensor& weight, double,
                                                                              const at::Tensor& sum,
                                                                              std::array<bool, 3> wanted) {
  if (!dy) return {*d_sum, *d_sum, at::Tensor()};
  const at::Tensor dx = at::empty(sum.sizes(), sum.options());
  return {dx, dx, wanted[2] ? at::empty_like(weight) : at::Tensor()};
}

struct RmsNorm : Operator {
  static constexpr const char* kName = "rms_norm";
  using Forward = decltype(forward);
  using Backward = decltype(backward);
  static constexpr std::array<size_t, 2> kTrained = {0, 1};
  static void check(const at::Tensor& x, const at::Tensor& weight, double) {
    TORCH_CHECK(weight.dim() == 1 && weight.size(0) == x.size(-1) && weight.scalar_type() == x.scalar_type(),
                "rms_norm: the weight must have the size and dtype of x's last dim");
  }
};

struct AddAndNorm : Operator {
  static constexpr const char* kName = "add_and_norm";
  using Forward = decltype(of_sum);
  using Backward = decltype(of_sum_backward);
  static constexpr std::array<size_t, 3> kTrained = {0, 1, 2};
  static constexpr std::array<size_t, 2> kUnread = {0, 1};
  static constexpr size_t kOutputs = 2, kOutputsRead = 1;
  static void check(const at::Tensor& x, const at::Tensor& added, const at::Tensor& weight, double epsilon) {
    RmsNorm::check(x, weight, epsilon);
    TORCH_CHECK(added.sizes() == x.sizes() && added.scalar_type() == x.scalar_type(),
                "add_and_norm: what is added must have x's shape and dtype");
  }
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(flashmorph, library) {
  declare<RmsNorm>(library, "(Tensor x, Tensor weight, float epsilon) -> Tensor",
                   "(Tensor dy, Tensor x, Tensor weight, float epsilon, bool[2] wanted) -> (Tensor, Tensor)");
  declare<AddAndNorm>(library, "(Tensor x, Tensor added, Tensor weight, float epsilon) -> (Tensor, Tensor)",
                      "(Tensor? dy, Tensor? d_sum, Tensor weight, float epsilon, Tensor sum, bool[3] wanted)"
                      " -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(flashmorph, CompositeExplicitAutograd, library) {
  library.impl("rms_norm", forward_composite);
  library.impl("rms_norm_backward", backward_composite);
  library.impl("add_and_norm", of_sum_composite);
  library.impl("add_and_norm_backward", of_sum_backward_composite);
}

TORCH_LIBRARY_IMPL(flashmorph, CPU, library) {
  library.impl("rms_norm", forward);
  library.impl("rms_norm_backward", backward);
  library.impl("add_and_norm", of_sum);
  library.impl("add_and_norm_backward", of_sum_backward);
}

TORCH_LIBRARY_IMPL(flashmorph, Meta, library) {
  library.impl("rms_norm", forward_without_values);
  library.impl("rms_norm_backward", backward_without_values);
  library.impl("add_and_norm", of_sum_without_values);
  library.impl("add_and_norm_backward", of_sum_backward_without_values);
}

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double epsilon) {
  return call<RmsNorm>(x, weight, epsilon);
}

SumAndNorm add_and_norm(const at::Tensor& x, const at::Tensor& added, const at::Tensor& weight, double epsilon) {
  const auto [normed, sum] = call<AddAndNorm>(x, added, weight, epsilon);
  return {sum, normed};
}

at::Tensor l2_norm(const at::Tensor& x, double epsilon) {
  const int64_t width = x.size(-1);
  const auto size = static_cast<double>(width);
  return rms_norm(x, at::full({width}, 1.0 / std::sqrt(size), x.options().requires_grad(false)), epsilon / size);
}

}  // namespace flashmorph
