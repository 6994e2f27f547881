#include "distributed/stages/align.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "core/model/attention.h"
#include "core/ops/squared_distance.h"
#include "distributed/stages/weights.h"

namespace flashmorph {

StageCost align(MorphableModel& model, StageContext& context) {
  const AlignSection& section = context.config.stages.align;
  Training training("align", std::to_string(model.layer_count()) + " linear branches", section, {{model}}, context);
  if (context.config.mixer.init == "data" && section.branches.empty()) {
    const MicroBatches first = training.first_micro_batch();
    Pipeline(context.mesh).stream(first.mine, state_shape(model, first.shape), [&](int64_t index, const at::Tensor& x) {
      return start_decays(model, first.batch(index), x);
    });
  }
  return train_weights(model.branch_parameters(), training, [&](const MicroBatches& batches) {
    return align_step(model, batches, section, context.mesh);  // the branches on the teacher's states
  });
}

StepResult align_step(const MorphableModel& model, const MicroBatches& batches, const AlignSection& section,
                      Mesh& mesh) {
  at::Tensor loss = at::zeros({}, at::TensorOptions(at::kDouble).device(model.placement().device));
  Pipeline(mesh).stream(batches.mine, state_shape(model, batches.shape), [&](int64_t index, const at::Tensor& x) {
    return align_micro_batch(model, batches.batch(index), x, batches.count, loss);
  });
  if (model.shard().sequence_parallel()) model.shard().all_reduce_sum(loss);  // each rank's is of its own tokens
  return over_mesh(loss.item<double>(), model.branch_parameters(), section, mesh);
}

namespace {

// Both out of the shards, in one reduction.
std::pair<at::Tensor, at::Tensor> summed_together(const at::Tensor& a, const at::Tensor& b, Shard& shard) {
  if (shard.size() == 1) return {a, b};
  const at::Tensor sums = out_of_shards(at::stack({a, b}), shard);
  return {sums[0], sums[1]};
}

}  // namespace

at::Tensor align_micro_batch(const MorphableModel& model, const Batch& batch, at::Tensor x_BTD, int64_t micro_batches,
                             at::Tensor& loss) {
  const c10::AutoGradMode no_gradient(false);
  const Positions positions = model.positions(0, batch.tokens_BT.size(1), batch.documents);
  const auto numbers =
      static_cast<double>(model.layer_count() * micro_batches * batch.tokens_BT.numel() * model.spec().hidden);
  const at::Tensor share = at::full({}, 1.0 / numbers, loss.options());  // of each squared error in the step's mean
  std::vector<at::Tensor> errors;
  if (model.has_embedding()) x_BTD = model.embed(batch.tokens_BT);
  for (int64_t l = model.own_layers().first; l < model.own_layers().last; ++l) {
    const at::Tensor normed = model.normed_input(l, x_BTD);
    const at::Tensor full = model.full_attention(l, normed, positions);
    at::Tensor attended;
    {
      const c10::AutoGradMode gradient(true);
      const at::Tensor linear = model.linear_attention(l, normed, positions);
      const auto [whole_full, whole_linear] = summed_together(full, linear, model.shard());
      attended = whole_full.detach();
      const at::Tensor error = squared_distance(whole_linear, attended);
      error.backward(share);
      errors.push_back(error.detach());
    }
    if (l + 1 < model.layer_count()) x_BTD = model.feed_forward(l, model.after_attention(l, x_BTD, attended));
  }
  loss.addcmul_(at::stack(errors).sum(), share);
  return x_BTD;
}

at::Tensor start_decays(const MorphableModel& model, const Batch& batch, at::Tensor x_BTD) {
  const c10::NoGradGuard no_gradient;
  const Positions positions = model.positions(0, batch.tokens_BT.size(1), batch.documents);
  if (model.has_embedding()) x_BTD = model.embed(batch.tokens_BT);
  for (int64_t l = model.own_layers().first; l < model.own_layers().last; ++l) {
    const MorphableLayer& layer = model.layer(l);
    const at::Tensor normed = model.normed_input(l, x_BTD);
    layer.branch->start_decays(attention_distance(normed, *layer.attention, model.spec(), positions));
    if (l + 1 < model.layer_count()) x_BTD = model.feed_forward(l, model.attend(l, x_BTD, Route::full(), positions));
  }
  return x_BTD;
}

}  // namespace flashmorph
