#include "core/ops/tensor_parallel.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "core/ops/interlude.h"
#include "core/ops/put_off_gradients.h"

// Letters: R ranks, t = T/R tokens of each.

namespace flashmorph {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// [.., T, D] -> [R, .., t, D], a slot for each rank, and back.
at::Tensor slots_of(const at::Tensor& whole, const Shard& shard) {
  return whole.unflatten(-2, {shard.size(), shard.own_count(whole.size(-2))}).movedim(-3, 0);
}
at::Tensor joined(const at::Tensor& slots) { return slots.movedim(0, -3).flatten(-3, -2); }

// Where a gather follows each sum, they share what hides them.
constexpr double kHalf = 0.5, kRest = 1.0;

Shard& shard_of(AutogradContext* context) { return *reinterpret_cast<Shard*>(context->saved_data["shard"].toInt()); }

void keep(AutogradContext* context, Shard* shard) {
  context->saved_data["shard"] = reinterpret_cast<int64_t>(shard);
  context->saved_data["put_off"] = reinterpret_cast<int64_t>(PutOffGradients::collecting());
}

at::Tensor awaited(AutogradContext* context, Arriving arriving, double share_of_put_off) {
  auto* put_off = reinterpret_cast<PutOffGradients*>(context->saved_data["put_off"].toInt());
  if (put_off != nullptr) put_off->fill_wait(share_of_put_off);
  return arriving.here();
}

// The collectives' places in the graph. Those with a result were begun before it was known.

struct CopyToShards : Function<CopyToShards> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, Shard* shard) {
    keep(context, shard);
    return x.view_as(x);
  }
  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    return {awaited(context, shard_of(context).start_sum(gradients[0].contiguous()), kRest), at::Tensor()};
  }
};

struct SumOverShards : Function<SumOverShards> {
  static at::Tensor forward(AutogradContext*, const at::Tensor& /*partial*/, const at::Tensor* sum) { return *sum; }
  static variable_list backward(AutogradContext*, const variable_list& gradients) {
    return {gradients[0], at::Tensor()};
  }
};

// [.., t, D] -> [R, .., t, D]; what comes back is summed over ranks when each rank made a part of it.
struct Gathered : Function<Gathered> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& /*own*/, const at::Tensor* slots, Shard* shard,
                            bool summed) {
    keep(context, shard);
    context->saved_data["summed"] = summed;
    return *slots;
  }
  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    Shard& shard = shard_of(context);
    const bool summed = context->saved_data["summed"].toBool();
    const at::Tensor own = summed ? awaited(context, shard.start_reduce_scatter(gradients[0].contiguous()), kHalf)
                                  : gradients[0][shard.rank()];
    return {own, at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

// [R, .., t, D] -> [.., t, D]
struct Scattered : Function<Scattered> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& /*slots*/, const at::Tensor* own,
                            Shard* shard) {
    keep(context, shard);
    return *own;
  }
  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    return {awaited(context, shard_of(context).start_all_gather(gradients[0].contiguous()), kRest), at::Tensor(),
            at::Tensor()};
  }
};

Arriving start_gathered(const at::Tensor& own, Shard& shard, bool summed) {
  return shard.start_all_gather(own.contiguous()).then([own, &shard, summed](const at::Tensor& slots) {
    return joined(Gathered::apply(own, &slots, &shard, summed));
  });
}

Arriving start_summed(const at::Tensor& partial, Shard& shard) {
  return shard.start_sum(partial.contiguous()).then([partial](const at::Tensor& sum) {
    return SumOverShards::apply(partial, &sum);
  });
}

}  // namespace

at::Tensor copy_to_shards(const at::Tensor& x, Shard& shard) {
  return shard.size() == 1 ? x : CopyToShards::apply(x, &shard);
}

at::Tensor sum_over_shards(const at::Tensor& partial, Shard& shard) {
  if (shard.size() == 1) return partial;
  return start_summed(partial, shard).here();
}

at::Tensor into_shards(const at::Tensor& x, Shard& shard) { return start_into_shards(x, shard).here(); }

at::Tensor out_of_shards(const at::Tensor& partial, Shard& shard) { return start_out_of_shards(partial, shard).here(); }

Arriving start_into_shards(const at::Tensor& x, Shard& shard) {
  return shard.sequence_parallel() ? start_gathered(x, shard, /*summed=*/true) : copy_to_shards(x, shard);
}

Arriving start_out_of_shards(const at::Tensor& partial, Shard& shard) {
  if (shard.size() == 1) return partial;
  if (!shard.sequence_parallel()) return start_summed(partial, shard);
  const at::Tensor slots = slots_of(partial, shard).contiguous();
  return shard.start_reduce_scatter(slots).then(
      [slots, &shard](const at::Tensor& own) { return Scattered::apply(slots, &own, &shard); });
}

Arriving start_gradient_of_out_of_shards(const at::Tensor& gradient, Shard& shard) {
  if (!shard.sequence_parallel()) return gradient;
  return shard.start_all_gather(gradient.contiguous()).then(joined);
}

Arriving start_out_of_shards_beside(const std::function<at::Tensor()>& work, Shard& shard,
                                    const std::function<void()>& meanwhile) {
  if (!shard.sequence_parallel()) {
    Arriving sum = start_out_of_shards(work(), shard);
    meanwhile();
    return sum;
  }
  Interlude interlude(meanwhile);
  const at::Tensor partial = work();
  interlude.play();
  return start_out_of_shards(partial, shard);
}

at::Tensor all_tokens(const at::Tensor& x, Shard& shard) {
  return shard.sequence_parallel() ? start_gathered(x, shard, /*summed=*/false).here() : x;
}

at::Tensor own_tokens(const at::Tensor& x_BT, const Shard& shard) {
  const int64_t own = shard.own_count(x_BT.size(1));
  return shard.sequence_parallel() ? x_BT.narrow(1, shard.rank() * own, own) : x_BT;
}

}  // namespace flashmorph
