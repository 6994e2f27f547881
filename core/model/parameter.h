#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

namespace flashmorph {

// How the ranks of a tensor group hold a global tensor.
enum class Split { none, rows, columns };  // whole on each rank; sliced along dim 0; sliced along dim 1

// A tensor of the model under its global name. `value` shares storage with the layer that uses it.
struct Parameter {
  std::string name;  // as in the source checkpoint: model.layers.3.self_attn.q_proj.weight
  at::Tensor value;  // this rank's slice
  Split split = Split::none;
  // Whole on every rank, but each rank's gradient covers only its own heads: the tensor group must add them up.
  bool partial_gradient = false;
  // A slice that this many neighbours of the tensor group hold alike (a kv head with more ranks than kv heads); each
  // one's gradient covers only its own query heads: the copies must be added up, and count once.
  int64_t replicas = 1;
  // Held by the first and by the last rank of a pipeline (an embedding that is also the head): one tensor, whose two
  // gradients must be added up; the first rank's counts.
  bool tied_over_pipeline = false;
};

using Parameters = std::vector<Parameter>;

std::vector<at::Tensor> values_of(const Parameters& parameters);
int64_t elements_of(const std::vector<at::Tensor>& tensors);
int64_t elements_of(const Parameters& parameters);

}  // namespace flashmorph
