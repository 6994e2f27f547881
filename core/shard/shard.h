#pragma once

#include <ATen/core/Tensor.h>

namespace flashmorph {

// What one rank's piece of a model knows of the other pieces: its place in the tensor group and a reduction.
// This form is the only piece of a group of one, whose reductions do nothing; distributed/ derives the others.
class Shard {
 public:
  virtual ~Shard() = default;
  virtual int rank() const { return 0; }
  virtual int size() const { return 1; }

  // In place, over the group; every rank gets the same bits.
  virtual void all_reduce_sum(at::Tensor& values) {}
  virtual void all_reduce_max(at::Tensor& values) {}
};

// The two ends of a column-parallel / row-parallel pair, differentiable.
//   copy_to_shards:  y = x on every rank        dx = sum over ranks of dy
//   sum_over_shards: y = sum over ranks of x    dx = dy
// The shard must outlive the backward pass.
at::Tensor copy_to_shards(const at::Tensor& x, Shard& shard);
at::Tensor sum_over_shards(const at::Tensor& partial, Shard& shard);

}  // namespace flashmorph
