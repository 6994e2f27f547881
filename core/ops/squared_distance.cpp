#include "core/ops/squared_distance.h"

#include <ATen/ATen.h>
#include <ATen/OpMathType.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

namespace flashmorph {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

at::Tensor difference(const at::Tensor& a, const at::Tensor& b) { return a.to(at::toOpMathType(a.scalar_type())) - b; }

at::Tensor forward(const at::Tensor& a, const at::Tensor& b) {
  return difference(a, b).to(at::kDouble).square_().sum();
}

at::Tensor backward(const at::Tensor& upstream, const at::Tensor& a, const at::Tensor& b) {
  return (difference(a, b) * (2.0 * upstream)).to(a.scalar_type());
}

template <class Signature>
auto operator_named(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

struct SquaredDistance : Function<SquaredDistance> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& a, const at::Tensor& b) {
    static const auto op = operator_named<decltype(flashmorph::forward)>("flashmorph::squared_distance");
    context->save_for_backward({a, b});
    return op.call(a, b);
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    static const auto op = operator_named<decltype(flashmorph::backward)>("flashmorph::squared_distance_backward");
    const variable_list saved = context->get_saved_variables();
    return {op.call(gradients[0], saved[0], saved[1]), at::Tensor()};
  }
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(flashmorph, library) {
  library.def("squared_distance(Tensor a, Tensor b) -> Tensor");
  library.def("squared_distance_backward(Tensor upstream, Tensor a, Tensor b) -> Tensor");
}

TORCH_LIBRARY_IMPL(flashmorph, CompositeExplicitAutograd, library) {
  library.impl("squared_distance", forward);
  library.impl("squared_distance_backward", backward);
}

at::Tensor squared_distance(const at::Tensor& a, const at::Tensor& b) {
  TORCH_CHECK(a.sizes() == b.sizes() && a.scalar_type() == b.scalar_type(),
              "squared_distance: both must have one shape and dtype");
  return SquaredDistance::apply(a, b.detach());
}

}  // namespace flashmorph
