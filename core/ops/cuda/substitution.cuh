#pragma once

#include "core/ops/cuda/launch.h"
#include "core/ops/cuda/lightning_kernels.h"

namespace flashmorph::cuda {

// One column of (I + M)^-1 for a strictly lower triangular M by forward substitution, kTile rows at a time in
// registers. above[m, i] = M_im, rows `padded` apart, a multiple of kTile; found: the inverse, rows `size` apart.
template <class A>
__device__ __forceinline__ void substitute(const A* above, int padded, A* found, int size, int column) {
  constexpr int kStep = kWide<A>, kRows = static_cast<int>(kTile);
  for (int first = 0; first < size; first += kRows) {
    A x[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) x[r] = first + r == column ? A(1) : A(0);
    for (int m = 0; m < first; ++m) {
      const A known = found[m * size + column];
#pragma unroll
      for (int r = 0; r < kRows; r += kStep) {
        const auto row = load<A, kStep>(above + m * padded + first + r);
#pragma unroll
        for (int s = 0; s < kStep; ++s) x[r + s] -= row.value[s] * known;
      }
    }
#pragma unroll
    for (int m = 0; m < kRows; ++m)
#pragma unroll
      for (int r = m + 1; r < kRows; ++r) x[r] -= above[(first + m) * padded + first + r] * x[m];
#pragma unroll
    for (int r = 0; r < kRows; ++r) found[(first + r) * size + column] = x[r];
  }
}

}  // namespace flashmorph::cuda
