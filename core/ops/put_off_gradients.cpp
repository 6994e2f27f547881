#include "core/ops/put_off_gradients.h"

#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/variable.h>

namespace flashmorph {
namespace {

thread_local PutOffGradients* list_of_thread = nullptr;

}  // namespace

PutOffGradients::Scope::Scope(PutOffGradients* list) : outer_(std::exchange(list_of_thread, list)) {}

PutOffGradients::Scope::~Scope() { list_of_thread = outer_; }

PutOffGradients* PutOffGradients::collecting() { return list_of_thread; }

// As autograd adds to a leaf, whose hooks see the gradient; it would copy the first one instead of keeping it.
void PutOffGradients::work_out() {
  const c10::NoGradGuard no_gradient;
  for (auto& [leaf, make] : std::exchange(list_, {})) {
    at::Tensor gradient = std::exchange(make, nullptr)();
    for (const auto& hook : torch::autograd::impl::hooks(leaf)) gradient = (*hook)({gradient})[0];
    at::Tensor& sum = leaf.mutable_grad();
    sum.defined() ? sum.add_(gradient) : sum = gradient;
  }
}

}  // namespace flashmorph
