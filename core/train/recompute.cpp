#include "core/train/recompute.h"

#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <memory>

namespace flashmorph {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// What the backward pass needs, carried through autograd's context by name.
struct Call : torch::CustomClassHolder {
  TensorFunction function;
  size_t inputs = 0;
};

struct Recomputed : Function<Recomputed> {
  // values: the inputs, then the trained leaves, which are only here so that the outputs need gradients.
  static variable_list forward(AutogradContext* context, const at::TensorList& values,
                               const c10::intrusive_ptr<Call>& call) {
    context->saved_data["call"] = c10::IValue::make_capsule(call);
    context->save_for_backward(values.vec());
    return call->function({values.begin(), values.begin() + static_cast<std::ptrdiff_t>(call->inputs)});
  }

  static variable_list backward(AutogradContext* context, const variable_list& output_gradients) {
    const auto call = c10::static_intrusive_pointer_cast<Call>(context->saved_data["call"].toCapsule());
    const variable_list saved = context->get_saved_variables();
    const c10::AutoGradMode gradient(true);
    variable_list values;
    for (size_t i = 0; i < saved.size(); ++i)
      values.push_back(i < call->inputs ? saved[i].detach().set_requires_grad(saved[i].requires_grad()) : saved[i]);
    const variable_list outputs =
        call->function({values.begin(), values.begin() + static_cast<std::ptrdiff_t>(call->inputs)});

    variable_list ends, gradients, sources;
    for (size_t i = 0; i < outputs.size(); ++i) {
      if (!outputs[i].requires_grad() || !output_gradients[i].defined()) continue;
      ends.push_back(outputs[i]);
      gradients.push_back(output_gradients[i]);
    }
    for (const at::Tensor& value : values)
      if (value.requires_grad()) sources.push_back(value);
    variable_list result(saved.size() + 1);  // the call has none
    if (ends.empty()) return result;
    const variable_list found = torch::autograd::grad(ends, sources, gradients, /*retain_graph=*/std::nullopt,
                                                      /*create_graph=*/false, /*allow_unused=*/true);
    for (size_t i = 0, next = 0; i < values.size(); ++i)
      if (values[i].requires_grad()) result[i] = found[next++];
    return result;
  }
};

}  // namespace

std::vector<at::Tensor> recomputed(const TensorFunction& function, const std::vector<at::Tensor>& inputs,
                                   const std::vector<at::Tensor>& trained) {
  const auto needs = [](const at::Tensor& tensor) { return tensor.defined() && tensor.requires_grad(); };
  const bool any = std::ranges::any_of(inputs, needs) || std::ranges::any_of(trained, needs);
  if (!c10::GradMode::is_enabled() || !any) return function(inputs);
  auto call = c10::make_intrusive<Call>();
  call->function = function;
  call->inputs = inputs.size();
  variable_list values = inputs;
  std::ranges::copy_if(trained, std::back_inserter(values), needs);
  return Recomputed::apply(at::TensorList(values), call);
}

}  // namespace flashmorph
