#include "core/ops/gate_mix.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <tuple>

namespace flashmorph {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;
using Optional = std::optional<at::Tensor>;

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

std::tuple<at::Tensor, at::Tensor> forward(const at::Tensor& full, const at::Tensor& linear, double alpha,
                                           bool keep_difference) {
  return {full * alpha + linear * (1.0 - alpha), keep_difference ? full - linear : at::Tensor()};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> backward(const at::Tensor& G, const Optional& difference, double alpha,
                                                        bool full_gradient, bool linear_gradient) {
  return {full_gradient ? G * alpha : at::Tensor(), linear_gradient ? G * (1.0 - alpha) : at::Tensor(),
          difference ? inner_product(G, *difference) : at::Tensor()};
}

template <class Signature>
auto operator_named(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

struct GateMix : Function<GateMix> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& full, const at::Tensor& linear,
                            const at::Tensor& alpha, double value) {
    static const auto op = operator_named<decltype(flashmorph::forward)>("flashmorph::gate_mix");
    const auto [mixed, difference] = op.call(full, linear, value, alpha.requires_grad());
    context->saved_data["value"] = value;
    context->save_for_backward({difference});
    return mixed;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    static const auto op = operator_named<decltype(flashmorph::backward)>("flashmorph::gate_mix_backward");
    const variable_list saved = context->get_saved_variables();
    const auto [d_full, d_linear, d_alpha] =
        op.call(gradients[0], saved[0].defined() ? Optional(saved[0]) : std::nullopt,
                context->saved_data["value"].toDouble(), context->needs_input_grad(0), context->needs_input_grad(1));
    return {d_full, d_linear, d_alpha, at::Tensor()};
  }
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(flashmorph, library) {
  library.def("gate_mix(Tensor full, Tensor linear, float alpha, bool keep_difference) -> (Tensor, Tensor)");
  library.def(
      "gate_mix_backward(Tensor d_mixed, Tensor? difference, float alpha, bool full_gradient, bool linear_gradient)"
      " -> (Tensor, Tensor, Tensor)");
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
  TORCH_CHECK(full.sizes() == linear.sizes() && full.scalar_type() == linear.scalar_type(),
              "gate_mix: the two outputs must have one shape and dtype");
  TORCH_CHECK(alpha.dim() == 0 && alpha.scalar_type() == at::kDouble, "gate_mix: alpha must be a float64 scalar");
  const double a = value ? *value : alpha.item<double>();
  // Detached, a branch that counts nothing is out of the graph: its backward does not run, not even on zeros.
  return GateMix::apply(a == 0.0 ? full.detach() : full, a == 1.0 ? linear.detach() : linear, alpha, a);
}

}  // namespace flashmorph
