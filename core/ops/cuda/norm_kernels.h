#pragma once

#include <cstdint>

#include "core/ops/cuda/element.h"

// Kernels of norm.h's RMSNorm and of gated_norm.h. Tensors are contiguous; sums are in float32 at least and in a fixed
// order.

namespace flashmorph::cuda {

// y, x [rows, width], weight [width]. With `added`, unless null, the norm is of sum = x + added.
void rms_norm(Element type, const void* x, const void* added, const void* weight, void* sum, void* y, int64_t rows,
              int64_t width, double epsilon, Stream stream);

// d_sum: added to the gradient of x, unless null. partial [parts, width] in the accumulator's type: sums of dy x / rms
// over each part's rows, a block each; null for no gradient of the weight, and a block for every few rows.
void rms_norm_backward(Element type, const void* dy, const void* x, const void* weight, const void* d_sum, void* dx,
                       void* partial, int64_t parts, int64_t rows, int64_t width, double epsilon, Stream stream);

// gated_norm.h's operator; x, gate, y [tokens, heads, width], weight [heads, width]; a weight
// that all heads share has one head, and more tokens.
void gated_norm(Element type, const void* x, const void* weight, const void* gate, void* y, int64_t tokens,
                int64_t heads, int64_t width, double epsilon, bool swish, Stream stream);
// partial [parts, heads, width] in the accumulator's type, or null: likewise, sums of dy x / rms f(gate) over each
// part's tokens, a block for a part and head.
void gated_norm_backward(Element type, const void* dy, const void* x, const void* weight, const void* gate, void* dx,
                         void* d_gate, void* partial, int64_t parts, int64_t tokens, int64_t heads, int64_t width,
                         double epsilon, bool swish, Stream stream);

}  // namespace flashmorph::cuda
