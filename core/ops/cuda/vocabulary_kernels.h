#pragma once

#include <cstdint>

#include "core/ops/cuda/element.h"

// Kernels of vocabulary_loss.cpp: each reads a row of logits once. logits, teacher (null: none) [rows, width] of one
// type, float32 or float64; sums as vocabulary_loss.cpp has them.

namespace flashmorph::cuda {

void softmax_sums(Element type, const void* logits, const void* teacher, double* sums, int64_t rows, int64_t width,
                  Stream stream);

// gradient [rows, width] of type `to`: the logits' type, or bfloat16 for float32. column [rows], null: none.
void softmax_gradient(Element type, Element to, const void* logits, const void* teacher, const int64_t* column,
                      const double* sums, void* gradient, int64_t rows, int64_t width, Stream stream);

}  // namespace flashmorph::cuda
