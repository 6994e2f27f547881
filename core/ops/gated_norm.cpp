#include "core/ops/gated_norm.h"

#include <ATen/ATen.h>
#include <ATen/OpMathType.h>

#include <tuple>

#include "core/ops/norm.h"
#include "core/ops/operator.h"

// Letters: B batch, T tokens, H heads, K head size, C = H*K.

namespace flashmorph {
namespace {

at::Tensor exact(const at::Tensor& x) { return x.to(at::toOpMathType(x.scalar_type())); }

at::Tensor normed(const at::Tensor& x_BTHK, double epsilon) {
  return rms_norm(x_BTHK, at::ones({x_BTHK.size(3)}, x_BTHK.options()), epsilon).flatten(2, 3);
}

at::Tensor forward(const at::Tensor& x_BTHK, const at::Tensor& weight_C, const at::Tensor& gate_BTC, double epsilon,
                   bool swish) {
  const at::Tensor gate = exact(gate_BTC), opened = swish ? at::silu(gate) : at::sigmoid(gate);
  return (normed(exact(x_BTHK), epsilon).mul_(weight_C).mul_(opened)).to(x_BTHK.scalar_type());
}

// The gradients of x, of the weight (when asked for) and of the gate.
std::tuple<at::Tensor, at::Tensor, at::Tensor> backward(const at::Tensor& dy_BTC, const at::Tensor& x_BTHK,
                                                        const at::Tensor& weight_C, const at::Tensor& gate_BTC,
                                                        double epsilon, bool swish, std::array<bool, 3> wanted) {
  const at::Tensor x = exact(x_BTHK), dy = exact(dy_BTC), gate = exact(gate_BTC), sigma = at::sigmoid(gate);
  const at::Tensor opened = swish ? gate * sigma : sigma;
  const at::Tensor slope = swish ? sigma * (1 + gate * (1 - sigma)) : sigma * (1 - sigma);
  const at::Tensor s = (x.square().mean(-1, /*keepdim=*/true) + epsilon).rsqrt(), x_hat_BTHK = x * s;
  const at::Tensor x_hat = x_hat_BTHK.flatten(2, 3), along = dy * x_hat;
  const at::Tensor d_hat = (dy * weight_C * opened).view_as(x);
  const at::Tensor dx = s * (d_hat - x_hat_BTHK * (d_hat * x_hat_BTHK).mean(-1, /*keepdim=*/true));
  at::Tensor d_weight;
  if (wanted[1]) d_weight = (along * opened).flatten(0, 1).sum(0).to(weight_C.scalar_type());
  return {dx.to(x_BTHK.scalar_type()), d_weight, (along * weight_C * slope).to(gate_BTC.scalar_type())};
}

struct GatedNorm : Operator {
  static constexpr const char* kName = "gated_rms_norm";
  using Forward = decltype(forward);
  using Backward = decltype(backward);
  static constexpr std::array<size_t, 3> kTrained = {0, 1, 2};
  static void check(const at::Tensor& x_BTHK, const at::Tensor& weight_C, const at::Tensor& gate_BTC, double, bool) {
    TORCH_CHECK(x_BTHK.dim() == 4 && weight_C.dim() == 1 && weight_C.size(0) == x_BTHK.size(2) * x_BTHK.size(3),
                "gated_rms_norm: x must be [B, T, H, K] and the weight [H*K]");
    TORCH_CHECK(gate_BTC.dim() == 3 && gate_BTC.sizes().equals(x_BTHK.flatten(2, 3).sizes()),
                "gated_rms_norm: the gate must be [B, T, H*K]");
    TORCH_CHECK(weight_C.scalar_type() == x_BTHK.scalar_type() && gate_BTC.scalar_type() == x_BTHK.scalar_type(),
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
  library.impl("gated_rms_norm", forward);
  library.impl("gated_rms_norm_backward", backward);
}

at::Tensor gated_rms_norm(const at::Tensor& x_BTHK, const at::Tensor& weight_C, const at::Tensor& gate_BTC,
                          double epsilon, bool swish) {
  return call<GatedNorm>(x_BTHK, weight_C, gate_BTC, epsilon, swish);
}

}  // namespace flashmorph
