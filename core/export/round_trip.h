#pragma once

#include <ATen/core/Tensor.h>

#include "core/export/export_format.h"

namespace flashmorph {

// Logits [T, vocabulary] of a hybrid whose tensors `own` holds under their own names, for tokens_T, in `dtype`. One
// layer at a time is in memory. BadInput for a tensor that is missing or misshapen.
at::Tensor hybrid_logits(const HybridSpec& hybrid, const ModelFiles& own, const at::Tensor& tokens_T,
                         at::ScalarType dtype);

}  // namespace flashmorph
