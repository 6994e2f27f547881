#include "core/ops/gated_norm.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>

#include <tuple>
#include <vector>

#include "core/ops/inverse_rms.h"
#include "core/ops/norm.h"
#include "core/ops/operator.h"
#include "core/ops/vectorised.h"

// Letters: B batch, T tokens, H heads, K head size, C = H*K.

namespace flashmorph {
namespace {

at::Tensor exact(const at::Tensor& x) { return x.to(at::toOpMathType(x.scalar_type())); }

at::Tensor normed(const at::Tensor& x_BTHK, double epsilon) {
  return rms_norm(x_BTHK, at::ones({x_BTHK.size(3)}, x_BTHK.options()), epsilon);
}

// [H, K], or [1, K] for all heads.
at::Tensor by_head(const at::Tensor& weight, const at::Tensor& x_BTHK) { return weight.view({-1, x_BTHK.size(3)}); }

at::Tensor forward_composite(const at::Tensor& x_BTHK, const at::Tensor& weight, const at::Tensor& gate_BTC,
                             double epsilon, bool swish) {
  const at::Tensor gate = exact(gate_BTC), opened = swish ? at::silu(gate) : at::sigmoid(gate);
  const at::Tensor y_BTHK = normed(exact(x_BTHK), epsilon).mul_(by_head(weight, x_BTHK));
  return y_BTHK.flatten(2, 3).mul_(opened).to(x_BTHK.scalar_type());
}

// The gradients of x, of the weight (when asked for) and of the gate.
std::tuple<at::Tensor, at::Tensor, at::Tensor> backward_composite(const at::Tensor& dy_BTC, const at::Tensor& x_BTHK,
                                                                  const at::Tensor& weight, const at::Tensor& gate_BTC,
                                                                  double epsilon, bool swish,
                                                                  std::array<bool, 3> wanted) {
  const at::Tensor x = exact(x_BTHK), dy = exact(dy_BTC), gate = exact(gate_BTC), sigma = at::sigmoid(gate);
  const at::Tensor opened = swish ? gate * sigma : sigma;
  const at::Tensor slope = swish ? sigma * (1 + gate * (1 - sigma)) : sigma * (1 - sigma);
  const at::Tensor s = (x.square().mean(-1, /*keepdim=*/true) + epsilon).rsqrt(), x_hat_BTHK = x * s;
  const at::Tensor weight_BTC = by_head(weight, x).expand_as(x).flatten(2, 3);
  const at::Tensor x_hat = x_hat_BTHK.flatten(2, 3), along = dy * x_hat;
  const at::Tensor d_hat = (dy * weight_BTC * opened).view_as(x);
  const at::Tensor dx = s * (d_hat - x_hat_BTHK * (d_hat * x_hat_BTHK).mean(-1, /*keepdim=*/true));
  at::Tensor d_weight;
  if (wanted[1]) d_weight = (along * opened).reshape({-1, weight.size(0)}).sum(0).to(weight.scalar_type());
  return {dx.to(x_BTHK.scalar_type()), d_weight, (along * weight_BTC * slope).to(gate_BTC.scalar_type())};
}

// sigma_then_y: sigmoid of the gate, where y will be.
template <class Number>
FLASHMORPH_VECTORISED void forward_rows(const Number* x, const Number* weight, const Number* gate,
                                        Number* __restrict sigma_then_y, int64_t tokens, int64_t heads, int64_t width,
                                        double epsilon, bool swish) {
  for (int64_t row = 0; row < tokens * heads; ++row, x += width, gate += width, sigma_then_y += width) {
    const Number s = inverse_rms(x, width, epsilon), *const w = weight + row % heads * width;
    if (swish)
      for (int64_t i = 0; i < width; ++i) sigma_then_y[i] *= gate[i];
    for (int64_t i = 0; i < width; ++i) sigma_then_y[i] *= x[i] * s * w[i];
  }
}

// With u = dy w f(gate): dx = s u - x s^3 / width <u, x>;  d_gate = dy w x s f'(gate);  dw += dy x s f(gate), when
// asked for. sigma_then_d_gate: sigmoid of the gate, where d_gate will be.
template <class Number>
FLASHMORPH_VECTORISED void backward_rows(const Number* dy, const Number* x, const Number* weight, const Number* gate,
                                         Number* __restrict dx, Number* __restrict d_weight,
                                         Number* __restrict sigma_then_d_gate, int64_t tokens, int64_t heads,
                                         int64_t width, double epsilon, bool swish) {
  std::vector<Number> opened_values(width), weighted_values(width);
  Number *const opened = opened_values.data(), *const weighted = weighted_values.data();
  for (int64_t row = 0; row < tokens * heads; ++row) {
    const int64_t first = row % heads * width;
    const Number s = inverse_rms(x, width, epsilon), *const w = weight + first;
    for (int64_t i = 0; i < width; ++i) {
      const Number sigma = sigma_then_d_gate[i], slope = sigma * (1 - sigma);
      opened[i] = swish ? gate[i] * sigma : sigma;
      weighted[i] = dy[i] * w[i] * opened[i];
      sigma_then_d_gate[i] = dy[i] * w[i] * x[i] * s * (swish ? sigma + gate[i] * slope : slope);
    }
    const Number along = dot(weighted, x, width) * s * s * s / static_cast<Number>(width);
    for (int64_t i = 0; i < width; ++i) dx[i] = s * weighted[i] - x[i] * along;
    if (d_weight != nullptr)
      for (int64_t i = 0; i < width; ++i) d_weight[first + i] += dy[i] * x[i] * s * opened[i];
    dy += width, x += width, gate += width, dx += width, sigma_then_d_gate += width;
  }
}

bool has_kernel(const at::Tensor& x) { return x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble; }

at::Tensor forward(const at::Tensor& x_any, const at::Tensor& weight_any, const at::Tensor& gate_any, double epsilon,
                   bool swish) {
  if (!has_kernel(x_any)) return forward_composite(x_any, weight_any, gate_any, epsilon, swish);
  const at::Tensor x = x_any.contiguous(), weight = weight_any.contiguous(), gate = gate_any.contiguous();
  const auto [tokens, heads, width] = WeightedTokens(x, weight);
  at::Tensor y = at::sigmoid(gate);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "gated_rms_norm", [&] {
    forward_rows(x.const_data_ptr<scalar_t>(), weight.const_data_ptr<scalar_t>(), gate.const_data_ptr<scalar_t>(),
                 y.data_ptr<scalar_t>(), tokens, heads, width, epsilon, swish);
  });
  return y;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> backward(const at::Tensor& dy_any, const at::Tensor& x_any,
                                                        const at::Tensor& weight_any, const at::Tensor& gate_any,
                                                        double epsilon, bool swish, std::array<bool, 3> wanted) {
  if (!has_kernel(x_any)) return backward_composite(dy_any, x_any, weight_any, gate_any, epsilon, swish, wanted);
  const at::Tensor dy = dy_any.contiguous(), x = x_any.contiguous(), weight = weight_any.contiguous(),
                   gate = gate_any.contiguous();
  const auto [tokens, heads, width] = WeightedTokens(x, weight);
  at::Tensor dx = at::empty_like(x), d_gate = at::sigmoid(gate), d_weight;
  if (wanted[1]) d_weight = at::zeros_like(weight);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "gated_rms_norm_backward", [&] {
    backward_rows(dy.const_data_ptr<scalar_t>(), x.const_data_ptr<scalar_t>(), weight.const_data_ptr<scalar_t>(),
                  gate.const_data_ptr<scalar_t>(), dx.data_ptr<scalar_t>(),
                  wanted[1] ? d_weight.data_ptr<scalar_t>() : nullptr, d_gate.data_ptr<scalar_t>(), tokens, heads,
                  width, epsilon, swish);
  });
  return {dx, d_weight, d_gate};
}

// Without values: what the kernels allocate.
at::Tensor forward_without_values(const at::Tensor&, const at::Tensor&, const at::Tensor& gate, double, bool) {
  return at::empty(gate.sizes(), gate.options());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> backward_without_values(const at::Tensor&, const at::Tensor& x,
                                                                       const at::Tensor& weight, const at::Tensor& gate,
                                                                       double, bool, std::array<bool, 3> wanted) {
  return {at::empty(x.sizes(), x.options()), wanted[1] ? at::empty_like(weight) : at::Tensor(),
          at::empty(gate.sizes(), gate.options())};
}

struct GatedNorm : Operator {
  static constexpr const char* kName = "gated_rms_norm";
  using Forward = decltype(forward);
  using Backward = decltype(backward);
  static constexpr std::array<size_t, 3> kTrained = {0, 1, 2};
  static void check(const at::Tensor& x_BTHK, const at::Tensor& weight, const at::Tensor& gate_BTC, double, bool) {
    TORCH_CHECK(x_BTHK.dim() == 4 && weight.dim() == 1 &&
                    (weight.size(0) == x_BTHK.size(2) * x_BTHK.size(3) || weight.size(0) == x_BTHK.size(3)),
                "gated_rms_norm: x must be [B, T, H, K] and the weight [H*K] or [K]");
    TORCH_CHECK(gate_BTC.dim() == 3 && gate_BTC.sizes().equals(x_BTHK.flatten(2, 3).sizes()),
                "gated_rms_norm: the gate must be [B, T, H*K]");
    TORCH_CHECK(weight.scalar_type() == x_BTHK.scalar_type() && gate_BTC.scalar_type() == x_BTHK.scalar_type(),
                "gated_rms_norm: x, weight and gate must have one dtype");
  }
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(flashmorph, library) {
  declare<GatedNorm>(library, "(Tensor x, Tensor weight, Tensor gate, float epsilon, bool swish) -> Tensor",
                     "(Tensor dy, Tensor x, Tensor weight, Tensor gate, float epsilon, bool swish, bool[3] wanted)"
                     " -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(flashmorph, CompositeExplicitAutograd, library) {
  library.impl("gated_rms_norm", forward_composite);
  library.impl("gated_rms_norm_backward", backward_composite);
}

TORCH_LIBRARY_IMPL(flashmorph, CPU, library) {
  library.impl("gated_rms_norm", forward);
  library.impl("gated_rms_norm_backward", backward);
}

TORCH_LIBRARY_IMPL(flashmorph, Meta, library) {
  library.impl("gated_rms_norm", forward_without_values);
  library.impl("gated_rms_norm_backward", backward_without_values);
}

at::Tensor gated_rms_norm(const at::Tensor& x_BTHK, const at::Tensor& weight, const at::Tensor& gate_BTC,
                          double epsilon, bool swish) {
  return call<GatedNorm>(x_BTHK, weight, gate_BTC, epsilon, swish);
}

}  // namespace flashmorph
