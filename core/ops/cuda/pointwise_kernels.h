#pragma once

#include <cstdint>

#include "core/ops/cuda/element.h"

// Kernels of swiglu, the gate mix, its distance from the teacher, and sums of other kernels' parts. Tensors are
// contiguous; sums are in float32 at least and in a fixed order.

namespace flashmorph::cuda {

void swiglu(Element type, const void* gate, const void* up, void* y, int64_t count, Stream stream);
// dy, gate, up [rows, width], contiguous; from one row of the gradients to the next: `step`. At most 2^32 accesses.
void swiglu_backward(Element type, const void* dy, const void* gate, const void* up, void* d_gate, void* d_up,
                     int64_t rows, int64_t width, int64_t step, Stream stream);

// sums [width] = partial [parts, width], in the accumulator's type, added over the parts.
void part_sums(Element type, const void* partial, void* sums, int64_t parts, int64_t width, Stream stream);

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
