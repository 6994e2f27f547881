#pragma once

#include <cstdint>

#include "core/ops/cuda/element.h"

// Kernels of short_convolution.h. Tensors are contiguous and not empty; sums are in float32 at least and in a fixed
// order.

namespace flashmorph::cuda {

inline constexpr int kMostTaps = 4;

struct Convolution {
  const void* x_BTC;
  const void* weight_CW;
  const void* past_BPC;  // or null
  const int* place_T;    // of each token in its own document, or null
  int rows, tokens, channels, taps, past;
  bool silu;  // behind the sums
};

void convolve(Element type, const Convolution& of, void* y_BTC, Stream stream);

// In how many parts the weight's gradient is added up.
int64_t weight_gradient_parts(Element type, const Convolution& of);

// dx, and partial [parts, C, W] in the accumulator's type: sums of the weight's gradient over the parts, unless null.
void convolve_backward(Element type, const Convolution& of, const void* dy_BTC, void* dx_BTC, void* partial,
                       Stream stream);

}  // namespace flashmorph::cuda
