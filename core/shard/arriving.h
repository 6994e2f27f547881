#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <utility>

namespace flashmorph {

// A tensor that other ranks still work on: whoever has begun it may do something else before it is here.
struct Arriving {
  at::Tensor values;                // neither read nor written before `wait`
  std::function<void()> wait = {};  // on a card the caller's stream alone waits; empty: they are here

  at::Tensor here() {
    if (wait) std::exchange(wait, nullptr)();
    return values;
  }
};

}  // namespace flashmorph
