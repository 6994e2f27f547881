#include "core/morph/gate_mix.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

namespace flashmorph {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

struct GateMix : Function<GateMix> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& full, const at::Tensor& linear,
                            const at::Tensor& alpha) {
    context->save_for_backward({full - linear});
    const double a = alpha.item<double>();
    context->saved_data["alpha"] = a;
    return full * a + linear * (1.0 - a);
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const at::Tensor& G = gradients[0];
    const double a = context->saved_data["alpha"].toDouble();
    const at::Tensor difference = context->get_saved_variables()[0];
    variable_list result(3);
    if (a != 0.0) result[0] = G * a;
    if (a != 1.0) result[1] = G * (1.0 - a);
    result[2] = (G * difference).sum(at::kDouble);
    return result;
  }
};

}  // namespace

at::Tensor gate_mix(const at::Tensor& full, const at::Tensor& linear, const at::Tensor& alpha) {
  return GateMix::apply(full, linear, alpha);
}

}  // namespace flashmorph
