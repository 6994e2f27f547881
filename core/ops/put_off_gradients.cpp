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
void PutOffGradients::work_out(double share) {
  const c10::NoGradGuard no_gradient;
  int64_t left = 0;  // as many products' rows are alike, their weights' sizes say what they take
  for (const auto& [leaf, make] : list_) left += leaf.numel();
  const auto stays = static_cast<int64_t>((1.0 - share) * static_cast<double>(left));
  while (!list_.empty() && (left > stays || share == 1.0)) {
    auto [leaf, make] = std::move(list_.front());
    list_.pop_front();
    left -= leaf.numel();
    at::Tensor gradient = make();
    for (const auto& hook : torch::autograd::impl::hooks(leaf)) gradient = (*hook)({gradient})[0];
    at::Tensor& sum = leaf.mutable_grad();
    sum.defined() ? sum.add_(gradient) : sum = gradient;
  }
}

}  // namespace flashmorph
