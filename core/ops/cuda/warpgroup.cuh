#pragma once

#include "core/ops/cuda/launch.h"
#include "core/ops/cuda/tensor_cores.cuh"
#include "core/ops/cuda/warpgroup_ptx.cuh"

// Products of a warpgroup with float32 sums. A tile is 64 x 64 numbers in shared memory and starts at a multiple of
// 1024 bytes: the products read it as it is (rows) or as its transpose (columns).

namespace flashmorph::cuda {

inline constexpr int kTileSide = 64;
using Tile = __nv_bfloat16[kTileSide * kTileSide];

// Where the 8 numbers `unit` of a row lie. Rows of 128 bytes would meet in the same banks; the permutation, which is
// the one the products expect, spreads a column over all of them.
template <class Number>
__device__ __forceinline__ Number* swizzled(Number* tile, int row, int unit) {
  return tile + row * kTileSide + (unit ^ row % 8) * 8;
}

// 64 rows into kTiles neighbouring tiles by kThreads threads: row r from x + place(r), zeros where that is negative. A
// thread's copies lie 8 n rows apart, so that they differ by a constant in shared memory.
template <int kTiles, int kThreads, class Place>
__device__ __forceinline__ void fetch_tiles(Tile* to, const __nv_bfloat16* x, const Place& place) {
  constexpr int kPerRow = kTiles * 8, kApart = kThreads / kPerRow;
  static_assert(kThreads % kPerRow == 0 && kApart % 8 == 0);
  const int unit = threadIdx.x % kPerRow, first = threadIdx.x / kPerRow;
  __nv_bfloat16* const here = swizzled(to[unit / 8], first, unit % 8);
#pragma unroll
  for (int row = 0; row < kTileSide; row += kApart) {
    const int64_t from = place(first + row);
    copy_async(here + row * kTileSide, x + (from < 0 ? 0 : from) + unit * 8, from >= 0);
  }
}

// Of dense matrices of 64 rows of kWidth numbers the one of that number.
template <int kWidth, int kThreads>
__device__ __forceinline__ void fetch_matrix(Tile* to, const void* x, int64_t number) {
  fetch_tiles<kWidth / kTileSide, kThreads>(to, static_cast<const __nv_bfloat16*>(x) + number * kTileSide * kWidth,
                                            [](int row) { return int64_t{row} * kWidth; });
}

// A warp's 16 of 64 rows as the left factor of a product: blocks as LeftTile has them, of columns 0-15, 16-31, ..
struct LeftRows {
  uint32_t blocks[kTileSide / 16][4];

  // Of a tile's transpose.
  __device__ __forceinline__ void load_transposed(const Tile& tile) {
    const int lane = threadIdx.x % 32, row = lane / 16 * 8 + lane % 8, unit = threadIdx.x % 128 / 32 * 2 + lane / 8 % 2;
#pragma unroll
    for (int k = 0; k < kTileSide / 16; ++k) load_blocks<true>(blocks[k], swizzled(tile, k * 16 + row, unit));
  }

  // To where a tile has these rows.
  __device__ __forceinline__ void store_to(__nv_bfloat16* rows) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < kTileSide / 16; ++k)
      store_blocks<false>(blocks[k], swizzled(rows, lane % 16, k * 2 + lane / 16));
  }
};

// 64 x 64 sums: of 8 neighbouring columns a lane has columns 2 (l % 4) and the next of row l / 4 and of row 8 + l / 4
// of its warp's 16.
struct WarpgroupSums {
  float sums[kTileSide / 2];

  template <class Use>  // use(index, row, column)
  __device__ __forceinline__ static void each_place(const Use& use) {
    const int first_row = threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4, first_column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int n = 0; n < kTileSide / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) use(n * 4 + e, first_row + e / 2 * 8, first_column + n * 8 + e % 2);
  }
  template <class Use>  // use(sum, row, column)
  __device__ __forceinline__ void each(const Use& use) {
    each_place([&](int n, int row, int column) { use(sums[n], row, column); });
  }

  // = a b^T, of kTiles neighbouring tiles each.
  template <int kTiles>
  __device__ __forceinline__ void multiply(const Tile* a, const Tile* b) {
    multiply_rows<false>(sums, product_rows(a[0]), product_rows(b[0]));
#pragma unroll
    for (int k = 16; k < kTiles * kTileSide; k += 16)
      multiply_rows<true>(sums, product_rows(a[k / kTileSide] + k % kTileSide),
                          product_rows(b[k / kTileSide] + k % kTileSide));
  }

  // += a b, b the tile that starts at product_rows; or with an address for each product, as the walks of Lightning and
  // gated linear attention were measured.
  __device__ __forceinline__ void add(const LeftRows& a, uint64_t b) {
#pragma unroll
    for (int k = 0; k < kTileSide / 16; ++k)
      multiply_add_columns(sums, a.blocks[k], rows_behind(b, k * 16 * kTileSide));
  }
  __device__ __forceinline__ void add(const LeftRows& a, const Tile& b) {
#pragma unroll
    for (int k = 0; k < kTileSide / 16; ++k)
      multiply_add_columns(sums, a.blocks[k], product_rows(b + k * 16 * kTileSide));
  }

  // += a b^T
  __device__ __forceinline__ void add_rows(const LeftRows& a, uint64_t b) {
#pragma unroll
    for (int k = 0; k < kTileSide / 16; ++k) multiply_add_rows(sums, a.blocks[k], rows_behind(b, k * 16));
  }
  __device__ __forceinline__ void add_rows(const LeftRows& a, const Tile& b) {
#pragma unroll
    for (int k = 0; k < kTileSide / 16; ++k) multiply_add_rows(sums, a.blocks[k], product_rows(b + k * 16));
  }

  // Rounded, as the left factor of the next product.
  __device__ __forceinline__ void round_to(LeftRows& rows) const {
#pragma unroll
    for (int pair = 0; pair < kTileSide / 4; ++pair)
      rows.blocks[pair / 4][pair % 4] = packed(sums[pair * 2], sums[pair * 2 + 1]);
  }

  // Rounded, into a tile. A warp writes its own rows only.
  __device__ __forceinline__ void round_to(Tile& tile) const {
    const int row = threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
#pragma unroll
    for (int n = 0; n < kTileSide / 8; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        *reinterpret_cast<uint32_t*>(swizzled(tile, row + half * 8, n) + threadIdx.x % 4 * 2) =
            packed(sums[n * 4 + half * 2], sums[n * 4 + half * 2 + 1]);
  }
};

// Room for what a warp has on the way to global memory, a warp's own, so that a lane stores 16 bytes.
struct Staged {
  alignas(128) __nv_bfloat16 numbers[4][16 * kTileSide];
};

// A warp's 16 rows of kTiles neighbouring tiles to a dense matrix whose rows lie one after the other.
template <int kTiles>
__device__ __forceinline__ void store_rows(const LeftRows (&rows)[kTiles], Staged& staged, __nv_bfloat16* to) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x % 128 / 32;
  __nv_bfloat16* const here = staged.numbers[warp];
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    __syncwarp();
    rows[tile].store_to(here);
    __syncwarp();
#pragma unroll
    for (int n = lane; n < 16 * kTileSide / 8; n += 32) {
      const int row = n / (kTileSide / 8), unit = n % (kTileSide / 8);
      store<__nv_bfloat16, 8>(to + ((warp * 16 + row) * kTiles + tile) * kTileSide + unit * 8,
                              load<__nv_bfloat16, 8>(swizzled(here, row, unit)));
    }
  }
}

// A warp's 16 rows to the same rows of a tile in global memory.
__device__ __forceinline__ void store_tile_rows(const LeftRows& rows, Staged& staged, __nv_bfloat16* tile) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x % 128 / 32;
  __nv_bfloat16* const here = staged.numbers[warp];
  __syncwarp();
  rows.store_to(here);
  __syncwarp();
#pragma unroll
  for (int n = 0; n < 16 * kTileSide; n += 32 * 8)
    store<__nv_bfloat16, 8>(tile + warp * 16 * kTileSide + n + lane * 8, load<__nv_bfloat16, 8>(here + n + lane * 8));
}

// The transpose of the rows of a warpgroup's warps, the first of its `columns`: 8 numbers `unit` of each of the first
// 16 columns to to(column, unit), those of each 16 later ones `apart` behind.
template <class To>
__device__ __forceinline__ void store_columns(const LeftRows& rows, Staged& staged, const To& to, int64_t apart,
                                              int64_t columns) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x % 128 / 32, column = lane / 2, unit = lane % 2;
  const auto place = [&](int column, int unit) {  // 4 neighbouring columns in different banks from the next 4
    return staged.numbers[warp] + column * 16 + (unit ^ column / 4 % 2) * 8;
  };
  __nv_bfloat16* const put = place(lane / 16 * 8 + lane % 8, lane / 8 % 2);
  const __nv_bfloat16* const get = place(column, unit);
  __nv_bfloat16* const out = to(column, warp * 2 + unit);
  __syncwarp();
#pragma unroll
  for (int k = 0; k < kTileSide / 16; ++k) store_blocks<true>(rows.blocks[k], put + k * 16 * 16);
  __syncwarp();
#pragma unroll
  for (int k = 0; k < kTileSide / 16; ++k)
    if (column + k * 16 < columns) store<__nv_bfloat16, 8>(out + k * apart, load<__nv_bfloat16, 8>(get + k * 16 * 16));
}

}  // namespace flashmorph::cuda
