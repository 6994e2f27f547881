#include "core/shard/shard.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

namespace flashmorph {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

at::Tensor summed(const at::Tensor& values, Shard& shard) {
  at::Tensor sum = values.clone(at::MemoryFormat::Contiguous);
  shard.all_reduce_sum(sum);
  return sum;
}

// [.., T/R, D] of each rank -> [.., T, D].
at::Tensor joined(const at::Tensor& own, Shard& shard) {
  return shard.all_gather(own.contiguous()).movedim(0, -3).flatten(-3, -2);
}

// [.., T, D] -> [R, .., T/R, D].
at::Tensor partitions(const at::Tensor& whole, const Shard& shard) {
  return whole.unflatten(-2, {shard.size(), shard.own_count(whole.size(-2))}).movedim(-3, 0);
}

at::Tensor own_partition_of_sum(const at::Tensor& whole, Shard& shard) {
  return shard.reduce_scatter(partitions(whole, shard).contiguous());
}

struct CopyToShards : Function<CopyToShards> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, Shard* shard) {
    context->saved_data["shard"] = reinterpret_cast<int64_t>(shard);
    return x.view_as(x);
  }
  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    auto* shard = reinterpret_cast<Shard*>(context->saved_data["shard"].toInt());
    return {summed(gradients[0], *shard), at::Tensor()};
  }
};

struct SumOverShards : Function<SumOverShards> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& partial, Shard* shard) {
    return summed(partial, *shard);
  }
  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    return {gradients[0], at::Tensor()};
  }
};

// The partitions of all ranks; what comes back is summed over ranks when each rank made a part of it.
struct Joined : Function<Joined> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& own, Shard* shard, bool summed) {
    context->saved_data["shard"] = reinterpret_cast<int64_t>(shard);
    context->saved_data["summed"] = summed;
    return joined(own, *shard);
  }
  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    auto* shard = reinterpret_cast<Shard*>(context->saved_data["shard"].toInt());
    const at::Tensor own = context->saved_data["summed"].toBool() ? own_partition_of_sum(gradients[0], *shard)
                                                                  : partitions(gradients[0], *shard)[shard->rank()];
    return {own, at::Tensor(), at::Tensor()};
  }
};

struct OwnPartitionOfSum : Function<OwnPartitionOfSum> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& partial, Shard* shard) {
    context->saved_data["shard"] = reinterpret_cast<int64_t>(shard);
    return own_partition_of_sum(partial, *shard);
  }
  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    return {joined(gradients[0], *reinterpret_cast<Shard*>(context->saved_data["shard"].toInt())), at::Tensor()};
  }
};

}  // namespace

at::Tensor copy_to_shards(const at::Tensor& x, Shard& shard) {
  return shard.size() == 1 ? x : CopyToShards::apply(x, &shard);
}

at::Tensor sum_over_shards(const at::Tensor& partial, Shard& shard) {
  return shard.size() == 1 ? partial : SumOverShards::apply(partial, &shard);
}

at::Tensor into_shards(const at::Tensor& x, Shard& shard) {
  return shard.sequence_parallel() ? Joined::apply(x, &shard, /*summed=*/true) : copy_to_shards(x, shard);
}

at::Tensor out_of_shards(const at::Tensor& partial, Shard& shard) {
  return shard.sequence_parallel() ? OwnPartitionOfSum::apply(partial, &shard) : sum_over_shards(partial, shard);
}

at::Tensor all_tokens(const at::Tensor& x, Shard& shard) {
  return shard.sequence_parallel() ? Joined::apply(x, &shard, /*summed=*/false) : x;
}

at::Tensor own_tokens(const at::Tensor& x_BT, const Shard& shard) {
  const int64_t own = shard.own_count(x_BT.size(1));
  return shard.sequence_parallel() ? x_BT.narrow(1, shard.rank() * own, own) : x_BT;
}

}  // namespace flashmorph
