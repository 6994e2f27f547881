#include "core/mixer/initial.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <thread>

#include "core/base/on_threads.h"
#include "core/base/random.h"

namespace flashmorph {
namespace {

KeyedRandom random_of(const BranchContext& context, uint64_t stream, int64_t place) {
  return KeyedRandom{static_cast<uint64_t>(context.seed), static_cast<uint64_t>(context.layer),
                     static_cast<uint64_t>(place), stream};
}

at::Tensor placed(const at::Tensor& values, const Placement& placement) {
  return values.to(at::TensorOptions(placement.dtype).device(placement.device));
}

void draw_rows(const BranchContext& context, uint64_t stream, int64_t first, const at::Tensor& values) {
  const double bound = 1.0 / std::sqrt(static_cast<double>(values.size(1)));
  double* out = values.data_ptr<double>();
  for (int64_t row = 0; row < values.size(0); ++row) {
    KeyedRandom random = random_of(context, stream, first + row);
    for (int64_t column = 0; column < values.size(1); ++column) *out++ = bound * (2.0 * random.unit() - 1.0);
  }
}

at::Tensor copied(const at::Tensor& weight) { return weight.defined() ? weight.clone() : weight; }

}  // namespace

OwnHeads::OwnHeads(const BranchContext& context)
    : first(context.placement.shard_rank * context.spec.heads / context.placement.shard_size),
      count(context.spec.heads / context.placement.shard_size) {}

AttentionWeights expanded(const AttentionWeights& teacher, const ModelSpec& spec) {
  const auto repeated = [&](const at::Tensor& rows) {
    if (!rows.defined()) return rows;
    const at::Tensor heads = rows.unflatten(0, {rows.size(0) / spec.head_dim, spec.head_dim});
    return heads.repeat_interleave(teacher.q.size(0) / rows.size(0), 0).flatten(0, 1).contiguous();
  };
  return {.q = copied(teacher.q),
          .k = repeated(teacher.k),
          .v = repeated(teacher.v),
          .o = copied(teacher.o),
          .q_norm = copied(teacher.q_norm),
          .k_norm = spec.norm_over_heads ? repeated(teacher.k_norm) : copied(teacher.k_norm),
          .q_bias = copied(teacher.q_bias),
          .k_bias = repeated(teacher.k_bias),
          .v_bias = repeated(teacher.v_bias),
          .rotates = teacher.rotates};
}

std::array<at::Tensor*, 10> every_weight(AttentionWeights& w) {
  return {&w.q, &w.k, &w.v, &w.o, &w.q_norm, &w.k_norm, &w.q_bias, &w.k_bias, &w.v_bias, &w.o_bias.value};
}

at::Tensor uniform_rows(const BranchContext& context, uint64_t stream, int64_t first, int64_t rows, int64_t columns) {
  if (context.placement.device.is_meta())
    return at::empty({rows, columns}, at::TensorOptions(context.placement.dtype).device(at::kMeta));
  constexpr int64_t kRows = 32;  // of one turn of a thread: their float64 stay in its cache
  const at::Tensor values = at::empty({rows, columns}, context.placement.dtype);
  on_threads(static_cast<size_t>((rows + kRows - 1) / kRows), std::thread::hardware_concurrency(), [&](size_t turn) {
    const int64_t before = static_cast<int64_t>(turn) * kRows, count = std::min(kRows, rows - before);
    const at::Tensor drawn = at::empty({count, columns}, at::kDouble);
    draw_rows(context, stream, first + before, drawn);
    values.narrow(0, before, count).copy_(drawn);
  });
  return placed(values, context.placement);
}

at::Tensor per_head(const BranchContext& context, uint64_t stream, const std::function<double(double)>& value) {
  const OwnHeads own(context);
  at::Tensor values = at::empty({own.count}, at::kDouble);
  for (int64_t h = 0; h < own.count; ++h)
    values.data_ptr<double>()[h] = value(random_of(context, stream, own.first + h).unit());
  return placed(values, context.placement);
}

at::Tensor usual_A_log(const BranchContext& context, uint64_t stream) {
  return per_head(context, stream, [](double u) { return std::log(std::max(16.0 * u, 1e-4)); });
}

at::Tensor usual_dt_bias(const BranchContext& context, uint64_t stream) {
  const double least = std::log(1e-3), most = std::log(0.1);
  return inverse_softplus(per_head(context, stream, [=](double u) { return std::exp(least + u * (most - least)); }));
}

at::Tensor inverse_softplus(const at::Tensor& y) { return y + (-at::expm1(-y)).log(); }

at::Tensor log_decay_of_distance(const at::Tensor& distance_H) {
  return -(std::numbers::ln2 / distance_H.to(at::kDouble)).clamp(1e-3, 5.0);
}

}  // namespace flashmorph
