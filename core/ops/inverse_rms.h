#pragma once

#include <cmath>
#include <cstdint>

#include "core/ops/vectorised.h"

namespace flashmorph {

// Independent partial sums let the compiler vectorise without reordering rules.
template <class Number>
FLASHMORPH_INLINED Number dot(const Number* a, const Number* b, int64_t width) {
  constexpr int64_t kLanes = 16;
  Number lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes)
    for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += a[i + lane] * b[i + lane];
  Number sum = 0;
  for (; i < width; ++i) sum += a[i] * b[i];
  for (const Number lane : lanes) sum += lane;
  return sum;
}

// s = 1 / sqrt(mean(x^2) + epsilon)
template <class Number>
FLASHMORPH_INLINED Number inverse_rms(const Number* x, int64_t width, double epsilon) {
  return Number(1) / std::sqrt(dot(x, x, width) / static_cast<Number>(width) + static_cast<Number>(epsilon));
}

}  // namespace flashmorph
