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
FLASHMORPH_VECTORISED void forward_rows(const Number* x, const Number* __restrict weight, Number* __restrict y,
                                        int64_t rows, int64_t width, double epsilon) {
  for (int64_t row = 0; row < rows; ++row, x += width, y += width) {
    const Number s = inverse_rms(x, width, epsilon);
    for (int64_t i = 0; i < width; ++i) y[i] = x[i] * s * weight[i];
  }
}

// dx = s (dy w) - x s^3 / width <dy w, x>;  dw += dy x s, when asked for.
template <class Number>
FLASHMORPH_VECTORISED void backward_rows(const Number* dy, const Number* x, const Number* __restrict weight,
                                         Number* __restrict dx, Number* __restrict d_weight, int64_t rows,
                                         int64_t width, double epsilon) {
  std::vector<Number> weighted(width);
  for (int64_t row = 0; row < rows; ++row, x += width, dy += width, dx += width) {
    const Number s = inverse_rms(x, width, epsilon);
    for (int64_t i = 0; i < width; ++i) weighted[i] = dy[i] * weight[i];
    const Number along = dot(weighted.data(), x, width) * s * s * s / static_cast<Number>(width);
    for (int64_t i = 0; i < width; ++i) dx[i] = s * weighted[i] - x[i] * along;
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

std::tuple<at::Tensor, at::Tensor> backward(const at::Tensor& dy_any, const at::Tensor& x_any, const at::Tensor& weight,
                                            double epsilon, std::array<bool, 2> wanted) {
  if (!has_kernel(x_any)) return backward_composite(dy_any, x_any, weight, epsilon, wanted);
  const at::Tensor dy = dy_any.contiguous(), x = x_any.contiguous(), w = weight.contiguous();
  at::Tensor dx = at::empty_like(x), d_weight;
  if (wanted[1]) d_weight = at::zeros_like(w);
  const int64_t width = w.size(0);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "rms_norm_backward", [&] {
    backward_rows(dy.const_data_ptr<scalar_t>(), x.const_data_ptr<scalar_t>(), w.const_data_ptr<scalar_t>(),
                  dx.data_ptr<scalar_t>(), wanted[1] ? d_weight.data_ptr<scalar_t>() : nullptr, x.numel() / width,
                  width, epsilon);
  });
  return {dx, d_weight};
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

}  // namespace

TORCH_LIBRARY_FRAGMENT(flashmorph, library) {
  declare<RmsNorm>(library, "(Tensor x, Tensor weight, float epsilon) -> Tensor",
                   "(Tensor dy, Tensor x, Tensor weight, float epsilon, bool[2] wanted) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(flashmorph, CompositeExplicitAutograd, library) {
  library.impl("rms_norm", forward_composite);
  library.impl("rms_norm_backward", backward_composite);
}

TORCH_LIBRARY_IMPL(flashmorph, CPU, library) {
  library.impl("rms_norm", forward);
  library.impl("rms_norm_backward", backward);
}

TORCH_LIBRARY_IMPL(flashmorph, Meta, library) {
  library.impl("rms_norm", forward_without_values);
  library.impl("rms_norm_backward", backward_without_values);
}

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double epsilon) {
  return call<RmsNorm>(x, weight, epsilon);
}

at::Tensor l2_norm(const at::Tensor& x, double epsilon) {
  const int64_t width = x.size(-1);
  const auto size = static_cast<double>(width);
  return rms_norm(x, at::full({width}, 1.0 / std::sqrt(size), x.options().requires_grad(false)), epsilon / size);
}

}  // namespace flashmorph
