#include "core/shard/shard.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

namespace flashmorph {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

using Wait = std::function<void()>;

// [.., T/R, D] of each rank -> [.., T, D].
at::Tensor joined(const at::Tensor& own, Shard& shard) {
  return shard.all_gather(own.contiguous()).movedim(0, -3).flatten(-3, -2);
}

// [.., T, D] -> [R, .., T/R, D].
at::Tensor partitions(const at::Tensor& whole, const Shard& shard) {
  return whole.unflatten(-2, {shard.size(), shard.own_count(whole.size(-2))}).movedim(-3, 0);
}

Arriving own_partition_of_sum(const at::Tensor& whole, Shard& shard) {
  return shard.start_reduce_scatter(partitions(whole, shard).contiguous());
}

// Autograd's functions return tensors alone: how to wait for them is handed out beside.
at::Tensor begun(Arriving arriving, Wait& wait) {
  wait = std::move(arriving.wait);
  return arriving.values;
}

template <class Reduction>
Arriving started(const at::Tensor& partial, Shard& shard) {
  Wait wait;
  const at::Tensor sum = Reduction::apply(partial, &shard, &wait);
  return {sum, wait};
}

struct CopyToShards : Function<CopyToShards> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, Shard* shard) {
    context->saved_data["shard"] = reinterpret_cast<int64_t>(shard);
    return x.view_as(x);
  }
  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    auto* shard = reinterpret_cast<Shard*>(context->saved_data["shard"].toInt());
    return {shard->start_sum(gradients[0].contiguous()).here(), at::Tensor()};
  }
};

struct SumOverShards : Function<SumOverShards> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& partial, Shard* shard, Wait* wait) {
    return begun(shard->start_sum(partial.contiguous()), *wait);
  }
  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    return {gradients[0], at::Tensor(), at::Tensor()};
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
    const at::Tensor own = context->saved_data["summed"].toBool() ? own_partition_of_sum(gradients[0], *shard).here()
                                                                  : partitions(gradients[0], *shard)[shard->rank()];
    return {own, at::Tensor(), at::Tensor()};
  }
};

struct OwnPartitionOfSum : Function<OwnPartitionOfSum> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& partial, Shard* shard, Wait* wait) {
    context->saved_data["shard"] = reinterpret_cast<int64_t>(shard);
    return begun(own_partition_of_sum(partial, *shard), *wait);
  }
  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    return {joined(gradients[0], *reinterpret_cast<Shard*>(context->saved_data["shard"].toInt())), at::Tensor(),
            at::Tensor()};
  }
};

}  // namespace

Arriving Shard::start_sum(const at::Tensor& values) {
  at::Tensor sum = values.clone();
  all_reduce_sum(sum);
  return {sum};
}

at::Tensor copy_to_shards(const at::Tensor& x, Shard& shard) {
  return shard.size() == 1 ? x : CopyToShards::apply(x, &shard);
}

at::Tensor sum_over_shards(const at::Tensor& partial, Shard& shard) {
  return shard.size() == 1 ? partial : started<SumOverShards>(partial, shard).here();
}

at::Tensor into_shards(const at::Tensor& x, Shard& shard) {
  return shard.sequence_parallel() ? Joined::apply(x, &shard, /*summed=*/true) : copy_to_shards(x, shard);
}

at::Tensor values_in_shards(const at::Tensor& x, Shard& shard) {
  return shard.sequence_parallel() ? joined(x, shard) : x;
}

Arriving start_gradient_of_into_shards(const at::Tensor& gradient, Shard& shard) {
  if (shard.size() == 1) return {gradient};
  return shard.sequence_parallel() ? own_partition_of_sum(gradient, shard) : shard.start_sum(gradient.contiguous());
}

at::Tensor out_of_shards(const at::Tensor& partial, Shard& shard) { return start_out_of_shards(partial, shard).here(); }

Arriving start_out_of_shards(const at::Tensor& partial, Shard& shard) {
  if (shard.size() == 1) return {partial};
  return shard.sequence_parallel() ? started<OwnPartitionOfSum>(partial, shard)
                                   : started<SumOverShards>(partial, shard);
}

at::Tensor all_tokens(const at::Tensor& x, Shard& shard) {
  return shard.sequence_parallel() ? Joined::apply(x, &shard, /*summed=*/false) : x;
}

at::Tensor own_tokens(const at::Tensor& x_BT, const Shard& shard) {
  const int64_t own = shard.own_count(x_BT.size(1));
  return shard.sequence_parallel() ? x_BT.narrow(1, shard.rank() * own, own) : x_BT;
}

}  // namespace flashmorph
