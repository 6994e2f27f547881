#pragma once

#include <cstdint>

#include "core/ops/cuda/element.h"

// Kernels of norm.h's operators and of the gate mix. Tensors are contiguous; sums are in float32 at least and in a fixed
// order.

namespace flashmorph::cuda {

// y, x [rows, width], weight [width].
void rms_norm(Element type, const void* x, const void* weight, void* y, int64_t rows, int64_t width, double epsilon,
              Stream stream);

// inverse_rms [rows] in the accumulator's type is written as well: what rms_norm_weight_gradient reads.
void rms_norm_backward(Element type, const void* dy, const void* x, const void* weight, void* dx, void* inverse_rms,
                       int64_t rows, int64_t width, double epsilon, Stream stream);

// partial [parts, width] in the accumulator's type: sums of dy x / rms over each part's rows.
void rms_norm_weight_gradient(Element type, const void* dy, const void* x, const void* inverse_rms, void* partial,
                              int64_t parts, int64_t rows, int64_t width, Stream stream);

// gated_norm.h's operator; x, gate, y [tokens, heads, width], weight [heads, width].
void gated_norm(Element type, const void* x, const void* weight, const void* gate, void* y, int64_t tokens, int64_t heads,
                int64_t width, double epsilon, bool swish, Stream stream);
// inverse_rms [tokens, heads] is written as well: what gated_norm_weight_gradient reads.
void gated_norm_backward(Element type, const void* dy, const void* x, const void* weight, const void* gate, void* dx,
                         void* d_gate, void* inverse_rms, int64_t tokens, int64_t heads, int64_t width, double epsilon,
                         bool swish, Stream stream);
// partial [parts, heads, width] in the accumulator's type: sums of dy x / rms f(gate) over each part's tokens.
void gated_norm_weight_gradient(Element type, const void* dy, const void* x, const void* gate, const void* inverse_rms,
                                void* partial, int64_t parts, int64_t tokens, int64_t heads, int64_t width, bool swish,
                                Stream stream);

void swiglu(Element type, const void* gate, const void* up, void* y, int64_t count, Stream stream);
void swiglu_backward(Element type, const void* dy, const void* gate, const void* up, void* d_gate, void* d_up,
                     int64_t count, Stream stream);

// x, y [tokens, heads, size]; cos, sin [period, size] in the accumulator's type: token t has the angles of row t % period.
void rotate(Element type, const void* x, const void* cos, const void* sin, void* y, int64_t tokens, int64_t period,
            int64_t heads, int64_t size, Stream stream);

// mixed = alpha full + (1 - alpha) linear; difference = full - linear unless null.
void gate_mix(Element type, const void* full, const void* linear, double alpha, void* mixed, void* difference,
              int64_t count, Stream stream);

// d_full = alpha d_mixed and d_linear = (1 - alpha) d_mixed, where not null. partial [parts] float64: sums of
// d_mixed * difference over the parts.
void gate_mix_backward(Element type, const void* d_mixed, const void* difference, double alpha, void* d_full,
                       void* d_linear, double* partial, int64_t parts, int64_t count, Stream stream);

// partial [parts] float64: sums of (a - b)^2 over the parts.
void squared_distance(Element type, const void* a, const void* b, double* partial, int64_t parts, int64_t count,
                      Stream stream);
// da = 2 upstream (a - b); upstream: one float64 in device memory.
void squared_distance_backward(Element type, const double* upstream, const void* a, const void* b, void* da,
                               int64_t count, Stream stream);

}  // namespace flashmorph::cuda
