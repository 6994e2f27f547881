#pragma once

#include <cstdint>

namespace flashmorph::cuda {

inline constexpr int64_t kWalkedChunk = 64, kWalkedColumns = 64;  // of tokens; of the values, a block's part

// Blocks of a walk for a segment and head.
inline int64_t blocks_per_head(int64_t value_dim) { return value_dim / kWalkedColumns; }

// Whether the current device has Hopper's products of warpgroups.
bool has_warpgroup_products();

// x_THD in bfloat16: rows of a token and head start at multiples of 16 bytes.
struct Rows {
  const void* data;
  int64_t token_stride, head_stride;  // in elements
};

// Head dims that walks have kernels for.
inline bool walks(int64_t key_dim, int64_t value_dim) {
  return (key_dim == 64 || key_dim == 128) && (value_dim == 64 || value_dim == 128);
}

}  // namespace flashmorph::cuda
