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

  // The sum of all ranks' values, and these two, begun. Every rank begins in the same order; `values` must not change
  // before the result is here.
  virtual Arriving start_sum(const at::Tensor& values);
  virtual Arriving start_all_gather(const at::Tensor& values) { return all_gather(values); }
  virtual Arriving start_reduce_scatter(const at::Tensor& values) { return reduce_scatter(values); }

  // Whether the pieces share the residual stream's tokens as well, each having one of size() equal partitions, in rank
  // order.
  virtual bool sequence_parallel() const { return false; }
  int64_t own_count(int64_t tokens) const { return sequence_parallel() ? tokens / size() : tokens; }
};

}  // namespace flashmorph
