#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "core/shard/arriving.h"

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

  // [size, ...values' shape] in rank order; and of such slots this rank's, summed over the group.
  virtual at::Tensor all_gather(const at::Tensor& values) { return values.unsqueeze(0); }
  virtual at::Tensor reduce_scatter(const at::Tensor& values) { return values.squeeze(0); }

  // The sum of all ranks' values, and reduce_scatter, begun. Every rank begins and waits in the same order.
  virtual Arriving start_sum(const at::Tensor& values);
  virtual Arriving start_reduce_scatter(const at::Tensor& values) { return {reduce_scatter(values)}; }

  // Whether the pieces share the residual stream's tokens as well, each having one of size() equal partitions, in rank
  // order.
  virtual bool sequence_parallel() const { return false; }
  int64_t own_count(int64_t tokens) const { return sequence_parallel() ? tokens / size() : tokens; }
};

// The two ends of a column-parallel / row-parallel pair, differentiable.
//   copy_to_shards:  y = x on every rank        dx = sum over ranks of dy
//   sum_over_shards: y = sum over ranks of x    dx = dy
// The shard must outlive the backward pass.
at::Tensor copy_to_shards(const at::Tensor& x, Shard& shard);
at::Tensor sum_over_shards(const at::Tensor& partial, Shard& shard);

// The same pair between the residual stream and a layer that is split by heads or channels; [.., T, D]. Where the
// pieces share the tokens (sequence parallelism, arXiv 2205.05198) a rank's x and sum are its partition of them:
//   into_shards:   y = the partitions of all ranks      dx = this rank's partition of the sum over ranks of dy
//   out_of_shards: y = this rank's partition of the sum  dx = the partitions of all ranks' dy
at::Tensor into_shards(const at::Tensor& x, Shard& shard);
at::Tensor out_of_shards(const at::Tensor& partial, Shard& shard);
Arriving start_out_of_shards(const at::Tensor& partial, Shard& shard);  // begun; only the way back is at once

// into_shards in two, for an operator that computes something else while the gradient is summed: the values, and from
// their gradient that of x, begun.
at::Tensor values_in_shards(const at::Tensor& x, Shard& shard);
Arriving start_gradient_of_into_shards(const at::Tensor& gradient, Shard& shard);

// The residual stream's tokens, all of them on every rank, where dy is complete on each: dx is its own partition.
at::Tensor all_tokens(const at::Tensor& x, Shard& shard);

// Of x_BT the tokens that this rank's residual stream has.
at::Tensor own_tokens(const at::Tensor& x_BT, const Shard& shard);

}  // namespace flashmorph
