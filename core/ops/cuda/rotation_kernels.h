#pragma once

#include <cstdint>

#include "core/ops/cuda/element.h"

// Kernels of the rotation of heads, alone and behind a norm. Tensors are contiguous; sums are in float32 at least and
// in a fixed order.

namespace flashmorph::cuda {

// x, y [tokens, heads, size]; cos, sin [period, size] in the accumulator's type: token t has the angles of row t %
// period. back: by the transposed rotation.
void rotate(Element type, const void* x, const void* cos, const void* sin, void* y, int64_t tokens, int64_t period,
            int64_t heads, int64_t size, bool back, Stream stream);

// The same behind RMSNorm with weight [size], and its gradients. partial [parts, size] in the accumulator's type: what
// part_sums makes the weight's gradient of, unless null. `size` as norm_rotates() wants it.
bool norm_rotates(Element type, int64_t size);
void norm_rotate(Element type, const void* x, const void* weight, const void* cos, const void* sin, void* y,
                 int64_t tokens, int64_t period, int64_t heads, int64_t size, double epsilon, Stream stream);
void norm_rotate_backward(Element type, const void* dy, const void* x, const void* weight, const void* cos,
                          const void* sin, void* dx, void* partial, int64_t parts, int64_t tokens, int64_t period,
                          int64_t heads, int64_t size, double epsilon, Stream stream);

}  // namespace flashmorph::cuda
