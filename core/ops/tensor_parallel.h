#pragma once

#include <ATen/core/Tensor.h>

#include <functional>

#include "core/shard/arriving.h"
#include "core/shard/shard.h"

namespace flashmorph {

// The two ends of a column-parallel / row-parallel pair, differentiable.
//   copy_to_shards:  y = x on every rank        dx = sum over ranks of dy
//   sum_over_shards: y = sum over ranks of x    dx = dy
// The shard must outlive the backward pass. There, weights' gradients that were put off for it (put_off_gradients.h)
// are worked out while numbers are under way.
at::Tensor copy_to_shards(const at::Tensor& x, Shard& shard);
at::Tensor sum_over_shards(const at::Tensor& partial, Shard& shard);

// The same pair between the residual stream and a layer that is split by heads or channels; [.., T, D]. Where the
// pieces share the tokens (sequence parallelism, arXiv 2205.05198) a rank's x and sum are its partition of them:
//   into_shards:   y = the partitions of all ranks      dx = this rank's partition of the sum over ranks of dy
//   out_of_shards: y = this rank's partition of the sum  dx = the partitions of all ranks' dy
at::Tensor into_shards(const at::Tensor& x, Shard& shard);
at::Tensor out_of_shards(const at::Tensor& partial, Shard& shard);
Arriving start_into_shards(const at::Tensor& x, Shard& shard);
Arriving start_out_of_shards(const at::Tensor& partial, Shard& shard);

// From the gradient of what came out of the shards that of `partial`, for those who do something else meanwhile.
Arriving start_gradient_of_out_of_shards(const at::Tensor& gradient, Shard& shard);

// out_of_shards of what `work` makes of gathered tokens, begun. `meanwhile`, another work's step between its sum and
// its gather, is done where both are hidden: in the middle of `work` (interlude.h). Where the tokens are not shared
// there is no gather, and it is done last, so that all of `work` hides the sum.
Arriving start_out_of_shards_beside(const std::function<at::Tensor()>& work, Shard& shard,
                                    const std::function<void()>& meanwhile);

// The residual stream's tokens, all of them on every rank, where dy is complete on each: dx is its own partition.
at::Tensor all_tokens(const at::Tensor& x, Shard& shard);

// Of x_BT the tokens that this rank's residual stream has.
at::Tensor own_tokens(const at::Tensor& x_BT, const Shard& shard);

}  // namespace flashmorph
