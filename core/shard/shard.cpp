#include "core/shard/shard.h"

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

}  // namespace

at::Tensor copy_to_shards(const at::Tensor& x, Shard& shard) {
  return shard.size() == 1 ? x : CopyToShards::apply(x, &shard);
}

at::Tensor sum_over_shards(const at::Tensor& partial, Shard& shard) {
  return shard.size() == 1 ? partial : SumOverShards::apply(partial, &shard);
}

}  // namespace flashmorph
