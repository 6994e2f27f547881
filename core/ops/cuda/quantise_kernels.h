#pragma once

#include <array>
#include <cstdint>

#include "core/ops/cuda/element.h"

namespace flashmorph::cuda {

// Some columns of a matrix: its rows are `stride` elements apart, at multiples of 16 bytes.
struct Columns {
  const void* x;
  int64_t stride, width;  // width: a multiple of 16
};

constexpr int kMostColumns = 4;

bool has_float8_products();  // the current device, which quantises for them

// quantised.h's quantise_rows of `count` Columns side by side: value [rows, width of all] in e4m3, scale [rows].
void quantise_rows(Element type, const std::array<Columns, kMostColumns>& columns, int count, void* value, float* scale,
                   int64_t rows, double largest, double least, Stream stream);

}  // namespace flashmorph::cuda
