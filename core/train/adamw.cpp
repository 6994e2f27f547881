#include "core/train/adamw.h"

#include <ATen/ATen.h>
#include <ATen/OpMathType.h>
#include <c10/core/GradMode.h>

namespace flashmorph {

AdamW::AdamW(std::vector<at::Tensor> parameters, Options options)
    : parameters_(std::move(parameters)), options_(options) {
  for (const at::Tensor& parameter : parameters_) {
    exact_.push_back(parameter.detach().to(at::toOpMathType(parameter.scalar_type())));
    first_moments_.push_back(at::zeros_like(exact_.back()));
    second_moments_.push_back(at::zeros_like(exact_.back()));
  }
  if (!parameters_.empty()) steps_ = at::zeros({}, first_moments_[0].options().dtype(at::kFloat));
}

void AdamW::step(const std::vector<at::Tensor>& gradients, double learning_rate) {
  TORCH_CHECK(gradients.size() == parameters_.size(), gradients.size(), " gradients for ", parameters_.size(),
              " parameters");
  const c10::NoGradGuard no_gradient;
  steps_.add_(1);
  at::_fused_adamw_(exact_, as_exact(gradients), first_moments_, second_moments_, {},
                    std::vector<at::Tensor>(exact_.size(), steps_), learning_rate, options_.beta1, options_.beta2,
                    options_.weight_decay, options_.epsilon, /*amsgrad=*/false,
                    /*maximize=*/false);
  round_into_parameters();
}

// All short ones in one copy.
std::vector<at::Tensor> AdamW::as_exact(std::vector<at::Tensor> gradients) const {
  std::vector<at::Tensor> copies, of;
  for (size_t i = 0; i < gradients.size(); ++i) {
    if (gradients[i].scalar_type() == exact_[i].scalar_type()) continue;
    of.push_back(gradients[i]);
    copies.push_back(gradients[i] = at::empty_like(exact_[i]));
  }
  if (!of.empty()) at::_foreach_copy_(copies, of);
  return gradients;
}

std::vector<AdamW::State> AdamW::states() const {
  std::vector<State> states;
  for (size_t i = 0; i < exact_.size(); ++i) states.push_back({exact_[i], first_moments_[i], second_moments_[i]});
  return states;
}

void AdamW::resume_at(int64_t steps) {
  const c10::NoGradGuard no_gradient;
  if (steps_.defined()) steps_.fill_(steps);
  round_into_parameters();
}

void AdamW::round_into_parameters() {
  std::vector<at::Tensor> rounded, unrounded;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    if (exact_[i].is_alias_of(parameters_[i])) continue;
    rounded.push_back(parameters_[i]);
    unrounded.push_back(exact_[i]);
  }
  if (!rounded.empty()) at::_foreach_copy_(rounded, unrounded);
}

}  // namespace flashmorph
