#include "core/ops/gate_mix.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>

#include <tuple>

#include "core/ops/operator.h"

namespace flashmorph {
namespace {

// <a, b> in float64. The lanes' order is fixed, so the bits do not depend on the number of threads.
template <class Number>
double inner_product(const Number* a, const Number* b, int64_t count) {
  constexpr int64_t kLanes = 8;
  double lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int64_t lane = 0; lane < kLanes; ++lane)
      lanes[lane] += static_cast<double>(a[i + lane]) * static_cast<double>(b[i + lane]);
  double sum = 0.0;
  for (; i < count; ++i) sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  for (const double lane : lanes) sum += lane;
  return sum;
}

at::Tensor inner_product(const at::Tensor& a, const at::Tensor& b) {
  if (a.is_meta()) return at::empty({}, a.options().dtype(at::kDouble));
  const at::Tensor first = a.contiguous(), second = b.contiguous();
  double sum = 0.0;
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, first.scalar_type(), "gate_mix_backward", [&] {
    sum = inner_product(first.const_data_ptr<scalar_t>(), second.const_data_ptr<scalar_t>(), first.numel());
  });
  return at::scalar_tensor(sum, at::kDouble);
}

// The difference is kept for the gate's gradient alone.
std::tuple<at::Tensor, at::Tensor> forward(const at::Tensor& full, const at::Tensor& linear, const at::Tensor& alpha,
                                           double value) {
  return {full * value + linear * (1.0 - value), alpha.requires_grad() ? full - linear : at::Tensor()};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> backward(const at::Tensor& G, double value,
                                                        const OptionalTensor& difference, std::array<bool, 3> wanted) {
  return {wanted[0] ? G * value : at::Tensor(), wanted[1] ? G * (1.0 - value) : at::Tensor(),
          difference ? inner_product(G, *difference) : at::Tensor()};
}

struct GateMix : Operator {
  static constexpr const char* kName = "gate_mix";
  using Forward = decltype(forward);
  using Backward = decltype(backward);
  static constexpr std::array<size_t, 3> kTrained = {0, 1, 2}, kUnread = {0, 1, 2};
  static void check(const at::Tensor& full, const at::Tensor& linear, const at::Tensor& alpha, double) {
    TORCH_CHECK(full.sizes() == linear.sizes() && full.scalar_type() == linear.scalar_type(),
                "gate_mix: the two outputs must have one shape and dtype");
    TORCH_CHECK(alpha.dim() == 0 && alpha.scalar_type() == at::kDouble, "gate_mix: alpha must be a float64 scalar");
  }
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(flashmorph, library) {
  declare<GateMix>(library, "(Tensor full, Tensor linear, Tensor alpha, float value) -> (Tensor, Tensor)",
                   "(Tensor d_mixed, float value, Tensor? difference, bool[3] wanted) -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(flashmorph, CPU, library) {
  library.impl("gate_mix", forward);
  library.impl("gate_mix_backward", backward);
}

TORCH_LIBRARY_IMPL(flashmorph, Meta, library) {
  library.impl("gate_mix", forward);
  library.impl("gate_mix_backward", backward);
}

at::Tensor gate_mix(const at::Tensor& full, const at::Tensor& linear, const at::Tensor& alpha,
                    std::optional<double> value) {
  const double a = value ? *value : alpha.item<double>();
  // Detached, a branch that counts nothing is out of the graph: its backward does not run, not even on zeros.
  return std::get<0>(call<GateMix>(a == 0.0 ? full.detach() : full, a == 1.0 ? linear.detach() : linear, alpha, a));
}

}  // namespace flashmorph
