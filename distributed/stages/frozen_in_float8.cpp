#include "distributed/stages/frozen_in_float8.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>

#include "core/base/bad_input.h"
#include "core/ops/quantised.h"

namespace flashmorph {
namespace {

// Projections that read one input, in the order of a layer's parameters. What gates a recurrence or routes tokens is
// none of them.
const std::vector<std::vector<std::string>> kTogether = {{"q_proj", "k_proj", "v_proj"},
                                                         {"o_proj"},
                                                         {"gate_proj", "up_proj"},
                                                         {"down_proj"},
                                                         {"z_proj"},
                                                         {"g_proj"},
                                                         {"out_proj"}};

// How many of the weights from `first` on are projected together; 0: this one is no such projection.
size_t together(const Parameters& weights, size_t first) {
  const auto begins = [&](const std::vector<std::string>& names) {
    for (size_t i = 0; i < names.size(); ++i)
      if (first + i >= weights.size() || !weights[first + i].name.ends_with("." + names[i] + ".weight")) return false;
    return true;
  };
  const auto found = std::ranges::find_if(kTogether, begins);
  return found == kTogether.end() ? 0 : found->size();
}

}  // namespace

FrozenInFloat8::FrozenInFloat8(const std::vector<StageModel>& models, const DeviceSection& device) {
  if (device.frozen_dtype != "fp8") return;
  for (const StageModel& one : models)
    quantise(one.mixes_attention ? one.model.all_parameters() : one.model.frozen_parameters(), one.mixes_attention);
}

void FrozenInFloat8::require_some() const {
  if (taken_ == 0 && left_ > 0)
    throw BadInput(
        "device.frozen_dtype",
        fmt::format("is fp8, whose products want sides that are multiples of 16, and no frozen projection of "
                    "this rank has them (the first: {}); use 'same'",
                    first_left_));
}

void FrozenInFloat8::quantise(const Parameters& weights, bool going_back) {
  for (size_t first = 0; first < weights.size(); ++first) {
    const size_t count = weights[first].value.requires_grad() ? 0 : together(weights, first);
    if (count == 0) continue;
    std::vector<at::Tensor> group;
    for (size_t i = 0; i < count; ++i) group.push_back(weights[first + i].value);
    if (QuantisedMatrices::fit(group)) {
      auto matrices = c10::make_intrusive<QuantisedMatrices>(group, going_back);
      for (const at::Tensor& tensor : matrices->tensors()) forms_.push_back({weights[first].name + " (fp8)", tensor});
      group[0].unsafeGetTensorImpl()->set_backend_meta(std::move(matrices));
      quantised_.push_back(group[0]);
      taken_ += static_cast<int64_t>(count);
    } else {
      if (left_ == 0) first_left_ = fmt::format("{}, {} x {}", weights[first].name, group[0].size(0), group[0].size(1));
      left_ += static_cast<int64_t>(count);
    }
    first += count - 1;
  }
}

FrozenInFloat8::~FrozenInFloat8() {
  for (const at::Tensor& weight : quantised_) weight.unsafeGetTensorImpl()->set_backend_meta(nullptr);
}

std::string FrozenInFloat8::summary() const {
  if (taken_ == 0) return "";
  size_t bytes = 0;
  for (const Parameter& form : forms_) bytes += form.value.nbytes();
  const std::string left = left_ == 0 ? "" : fmt::format("; {} with a side that is no multiple of 16 are not", left_);
  return fmt::format("{} frozen projections are multiplied by in fp8, {:.1f} MB a rank beside the weights{}", taken_,
                     1e-6 * static_cast<double>(bytes), left);
}

}  // namespace flashmorph
