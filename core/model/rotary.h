#pragma once

#include <ATen/core/Tensor.h>

#include "core/model/model_spec.h"
#include "core/model/weights.h"

namespace flashmorph {

// cos and sin of the rotary angles of positions [start, start + length), each [length, head_dim], in the half-split
// layout (RoPE, arXiv 2104.09864). Angles are computed in float64 and rounded once to the placement's dtype.
struct Rotary {
  at::Tensor cos_TK;
  at::Tensor sin_TK;
};

Rotary rotary_table(const ModelSpec& spec, int64_t start, int64_t length, const Placement& placement);

}  // namespace flashmorph
