#include "core/model/parameter.h"

#include <ATen/ATen.h>

namespace flashmorph {

std::vector<at::Tensor> values_of(const Parameters& parameters) {
  std::vector<at::Tensor> values;
  for (const Parameter& parameter : parameters) values.push_back(parameter.value);
  return values;
}

int64_t elements_of(const std::vector<at::Tensor>& tensors) {
  int64_t count = 0;
  for (const at::Tensor& tensor : tensors) count += tensor.numel();
  return count;
}

int64_t elements_of(const Parameters& parameters) { return elements_of(values_of(parameters)); }

}  // namespace flashmorph
