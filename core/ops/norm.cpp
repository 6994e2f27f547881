#include "core/ops/norm.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>
#include <vector>

namespace flashmorph {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// Rows of `width` numbers; independent partial sums let the compiler vectorise without reordering rules.
template <class Number>
Number dot(const Number* a, const Number* b, int64_t width) {
  constexpr int64_t kLanes = 16;
  Number lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes)
    for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += a[i + lane] * b[i + lane];
  Number sum = 0;
  for (; i < width; ++i) sum += a[i] * b[i];
  for (const Number lane : lanes) sum += lane;
  return sum;
}

template <class Number>
void forward_rows(const Number* x, const Number* weight, Number* y, Number* inverse, int64_t rows, int64_t width,
                  double epsilon) {
  for (int64_t row = 0; row < rows; ++row, x += width, y += width) {
    inverse[row] = Number(1) / std::sqrt(dot(x, x, width) / static_cast<Number>(width) + static_cast<Number>(epsilon));
    for (int64_t i = 0; i < width; ++i) y[i] = x[i] * inverse[row] * weight[i];
  }
}

// With s = inverse: dx = s (dy w) - x s^3 / width * <dy w, x>;  dw += dy x s.
template <class Number>
void backward_rows(const Number* dy, const Number* x, const Number* weight, const Number* inverse, Number* dx,
                   Number* d_weight, int64_t rows, int64_t width) {
  std::vector<Number> weighted(width);
  for (int64_t row = 0; row < rows; ++row, x += width, dy += width) {
    const Number s = inverse[row];
    for (int64_t i = 0; i < width; ++i) weighted[i] = dy[i] * weight[i];
    if (d_weight != nullptr)
      for (int64_t i = 0; i < width; ++i) d_weight[i] += dy[i] * x[i] * s;
    if (dx == nullptr) continue;
    const Number along = dot(weighted.data(), x, width) * s * s * s / static_cast<Number>(width);
    for (int64_t i = 0; i < width; ++i) dx[i] = s * weighted[i] - x[i] * along;
    dx += width;
  }
}

struct RmsNorm : Function<RmsNorm> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x_any, const at::Tensor& weight, double epsilon) {
    const at::Tensor x = x_any.contiguous(), w = weight.contiguous();
    const int64_t width = x.size(-1), rows = x.numel() / width;
    at::Tensor y = at::empty_like(x), inverse = at::empty({rows}, x.options());
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "rms_norm", [&] {
      forward_rows(x.const_data_ptr<scalar_t>(), w.const_data_ptr<scalar_t>(), y.data_ptr<scalar_t>(),
                   inverse.data_ptr<scalar_t>(), rows, width, epsilon);
    });
    context->save_for_backward({x, w, inverse});
    return y;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &w = saved[1], &inverse = saved[2];
    const at::Tensor dy = gradients[0].contiguous();
    const int64_t width = x.size(-1), rows = x.numel() / width;
    at::Tensor dx, d_weight;
    if (context->needs_input_grad(0)) dx = at::empty_like(x);
    if (context->needs_input_grad(1)) d_weight = at::zeros_like(w);
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "rms_norm_backward", [&] {
      backward_rows(dy.const_data_ptr<scalar_t>(), x.const_data_ptr<scalar_t>(), w.const_data_ptr<scalar_t>(),
                    inverse.const_data_ptr<scalar_t>(), dx.defined() ? dx.data_ptr<scalar_t>() : nullptr,
                    d_weight.defined() ? d_weight.data_ptr<scalar_t>() : nullptr, rows, width);
    });
    return {dx, d_weight, at::Tensor()};
  }
};

}  // namespace

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double epsilon) {
  TORCH_CHECK(weight.dim() == 1 && weight.size(0) == x.size(-1) && weight.scalar_type() == x.scalar_type(),
              "rms_norm: the weight must have the size and dtype of x's last dim");
  return RmsNorm::apply(x, weight, epsilon);
}

at::Tensor swiglu(const at::Tensor& gate, const at::Tensor& up) { return at::silu(gate) * up; }

at::Tensor rotate(const at::Tensor& x_BTHK, const at::Tensor& cos_TK, const at::Tensor& sin_TK) {
  const auto halves = x_BTHK.chunk(2, -1);
  const at::Tensor turned = at::cat({-halves[1], halves[0]}, -1);
  return at::addcmul(x_BTHK * cos_TK.unsqueeze(1), turned, sin_TK.unsqueeze(1));
}

}  // namespace flashmorph
