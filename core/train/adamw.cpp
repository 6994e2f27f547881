#include "core/train/adamw.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

namespace flashmorph {

AdamW::AdamW(std::vector<at::Tensor> parameters, Options options)
    : parameters_(std::move(parameters)), options_(options) {
  for (const at::Tensor& parameter : parameters_) {
    first_moments_.push_back(at::zeros_like(parameter.detach()));
    second_moments_.push_back(at::zeros_like(parameter.detach()));
    steps_.push_back(at::zeros({}, parameter.options().dtype(at::kFloat).requires_grad(false)));
  }
}

void AdamW::step(const std::vector<at::Tensor>& gradients, double learning_rate) {
  TORCH_CHECK(gradients.size() == parameters_.size(), gradients.size(), " gradients for ", parameters_.size(), " parameters");
  const c10::NoGradGuard no_gradient;
  for (at::Tensor& step : steps_) step.add_(1);
  at::_fused_adamw_(parameters_, gradients, first_moments_, second_moments_, {}, steps_, learning_rate, options_.beta1,
                    options_.beta2, options_.weight_decay, options_.epsilon, /*amsgrad=*/false, /*maximize=*/false);
}

}  // namespace flashmorph
