#include "core/morph/gate_mix.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <torch/csrc/autograd/custom_function.h>

namespace flashmorph {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

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

double inner_product(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor first = a.contiguous(), second = b.contiguous();
  double sum = 0.0;
  AT_DISPATCH_FLOATING_TYPES(first.scalar_type(), "gate_mix_backward", [&] {
    sum = inner_product(first.const_data_ptr<scalar_t>(), second.const_data_ptr<scalar_t>(), first.numel());
  });
  return sum;
}

struct GateMix : Function<GateMix> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& full, const at::Tensor& linear,
                            const at::Tensor& alpha) {
    const double a = alpha.item<double>();
    context->saved_data["alpha"] = a;
    if (alpha.requires_grad()) context->save_for_backward({full - linear});
    return full * a + linear * (1.0 - a);
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const at::Tensor& G = gradients[0];
    const double a = context->saved_data["alpha"].toDouble();
    variable_list result(3);
    if (context->needs_input_grad(0)) result[0] = G * a;
    if (context->needs_input_grad(1)) result[1] = G * (1.0 - a);
    if (context->needs_input_grad(2))
      result[2] = at::scalar_tensor(inner_product(G, context->get_saved_variables()[0]), at::kDouble);
    return result;
  }
};

}  // namespace

at::Tensor gate_mix(const at::Tensor& full, const at::Tensor& linear, const at::Tensor& alpha) {
  TORCH_CHECK(full.sizes() == linear.sizes() && full.scalar_type() == linear.scalar_type(),
              "gate_mix: the two outputs must have one shape and dtype");
  TORCH_CHECK(alpha.dim() == 0 && alpha.scalar_type() == at::kDouble, "gate_mix: alpha must be a float64 scalar");
  const double a = alpha.item<double>();
  // Detached, a branch that counts nothing is out of the graph: its backward does not run, not even on zeros.
  return GateMix::apply(a == 0.0 ? full.detach() : full, a == 1.0 ? linear.detach() : linear, alpha);
}

}  // namespace flashmorph
