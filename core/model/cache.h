#pragma once

#include <ATen/core/Tensor.h>

#include "core/model/positions.h"

namespace flashmorph {

// What one layer remembers of the tokens so far when it decodes step by step: a full layer its keys and values
// (growing with the tokens), a linear layer its state (constant). Empty tensors: nothing yet.
struct LayerCache {
  at::Tensor keys_BPGK;  // room for P tokens, filled from the first on; how far the positions say
  at::Tensor values_BPGK;
  at::Tensor state_BHKV;
  at::Tensor recent_BPC;  // the last P inputs of a short convolution

  // Puts the keys and values of the tokens at these positions behind those before them. What is kept is copied only
  // when the room is used up, to twice the room.
  void append(const at::Tensor& k_BTGK, const at::Tensor& v_BTGK, const Positions& positions);
};

}  // namespace flashmorph
