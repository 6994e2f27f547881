#pragma once

#include <ATen/core/Tensor.h>

namespace flashmorph {

// What one layer remembers of the tokens so far when it decodes step by step: a full layer its keys and values
// (growing with the tokens), a linear layer its state (constant). Empty tensors: nothing yet.
struct LayerCache {
  at::Tensor keys_BTGK;
  at::Tensor values_BTGK;
  at::Tensor state_BHKV;
  at::Tensor recent_BPC;  // the last P inputs of a short convolution
};

}  // namespace flashmorph
