#include "distributed/stages/frozen_weights.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include "core/base/host_name.h"
#include "distributed/parallel/on_all_ranks.h"

namespace flashmorph {
namespace {

at::Tensor sums_of(const Parameters& parameters) {
  const c10::NoGradGuard no_gradient;
  std::vector<at::Tensor> sums;
  for (const Parameter& parameter : parameters) {
    const int64_t bytes = parameter.value.element_size();
    const at::ScalarType bits = bytes == 1 ? at::kChar : bytes == 2 ? at::kShort : bytes == 4 ? at::kInt : at::kLong;
    sums.push_back(parameter.value.detach().view(bits).sum(at::kLong));
  }
  return sums.empty() ? at::zeros({0}, at::kLong) : at::stack(sums).cpu();
}

}  // namespace

FrozenWeights::FrozenWeights(const Parameters& all, int64_t every) : every_(every) {
  if (every_ == 0) return;
  for (const Parameter& parameter : all)
    if (!parameter.value.requires_grad()) frozen_.push_back(parameter);
  sums_ = sums_of(frozen_);
}

void FrozenWeights::check(const std::string& stage, int64_t steps, StageContext& context) const {
  if (every_ == 0 || steps % every_ != 0) return;
  on_all_ranks(context.mesh.world(), [&] {
    const at::Tensor now = sums_of(frozen_);
    for (int64_t i = 0; i < now.numel(); ++i)
      if (now[i].item<int64_t>() != sums_[i].item<int64_t>())
        throw std::runtime_error(
            fmt::format("{}, step {}: the frozen weight {} in the memory of {} has changed: the sum of its bits is "
                        "{}, and was {} when the stage began",
                        stage, steps, frozen_[i].name, host_name(), now[i].item<int64_t>(), sums_[i].item<int64_t>()));
  });
}

}  // namespace flashmorph
