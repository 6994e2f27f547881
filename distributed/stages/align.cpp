#include "distributed/stages/align.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "core/model/attention.h"
#include "core/ops/squared_distance.h"
#include "distributed/stages/trainer.h"

namespace flashmorph {

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
  const auto shares =
      static_cast<double>(model.layer_count() * micro_batches * batch.tokens_BT.numel() * model.spec().hidden);
  if (model.has_embedding()) x_BTD = model.embed(batch.tokens_BT);
  for (int64_t l = model.own_layers().first; l < model.own_layers().last; ++l) {
    const MorphableLayer& layer = model.layer(l);
    const at::Tensor normed = model.normed_input(l, x_BTD);
    const at::Tensor full = full_attention(normed, *layer.attention, model.spec(), positions);
    at::Tensor attended;
    {
      const c10::AutoGradMode gradient(true);
      const at::Tensor linear = layer.branch->forward(normed, positions);
      const auto [whole_full, whole_linear] = summed_together(full, linear, model.shard());
      attended = whole_full.detach();
      const at::Tensor error = squared_distance(whole_linear, attended) / shares;
      error.backward();
      loss += error.detach();
    }
    if (l + 1 < model.layer_count()) x_BTD = model.feed_forward(l, model.after_attention(l, x_BTD, attended));
  }
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

StageCost align(MorphableModel& model, StageContext& context) {
  const AlignSection& section = context.config.stages.align;
  const SampleStream data =
      start_stage("align", std::to_string(model.layer_count()) + " linear branches", section, context);
  SamplesAhead samples = samples_ahead(data, model, context.mesh);
  Pipeline pipeline(context.mesh);
  if (context.config.mixer.init == "data")
    pipeline.stream({0, 1}, state_shape(model, data.micro_batch_shape(0)), [&](int64_t index, const at::Tensor& x) {
      return start_decays(model, data.micro_batch(0, index), x);
    });
  const ForwardPass pass{model, Routes(model.layer_count(), Route::full()), "", /*beside_branches=*/true};
  return train(
      "align", model.branch_parameters(), {pass}, section, data, context, [&](int64_t step, MicroBatchRange mine) {
        at::Tensor loss = at::zeros({}, at::TensorOptions(at::kDouble).device(model.placement().device));
        pipeline.stream(
            mine, state_shape(model, data.micro_batch_shape(step)), [&](int64_t index, const at::Tensor& x) {
              return align_micro_batch(model, samples.micro_batch(step, index), x, data.micro_batches(step), loss);
            });
        if (model.shard().sequence_parallel()) model.shard().all_reduce_sum(loss);  // each rank's is of its own tokens
        return loss.item<double>();
      });
}

}  // namespace flashmorph
