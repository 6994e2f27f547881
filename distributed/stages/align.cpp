#include "distributed/stages/align.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "core/model/attention.h"
#include "distributed/stages/trainer.h"

namespace flashmorph {

at::Tensor align_micro_batch(const MorphableModel& model, const Batch& batch, at::Tensor x_BTD, int64_t micro_batches,
                             double& loss) {
  const c10::AutoGradMode no_gradient(false);
  const Positions positions = model.positions(0, batch.tokens_BT.size(1), batch.documents);
  const auto shares = static_cast<double>(model.layer_count() * micro_batches);
  if (model.has_embedding()) x_BTD = model.embed(batch.tokens_BT);
  for (int64_t l = model.own_layers().first; l < model.own_layers().last; ++l) {
    const MorphableLayer& layer = model.layer(l);
    const at::Tensor normed = model.normed_input(l, x_BTD);
    const at::Tensor full = full_attention(normed, *layer.attention, model.spec(), positions);
    at::Tensor attended;
    {
      const c10::AutoGradMode gradient(true);
      const at::Tensor linear = layer.branch->forward(normed, positions);
      // One reduction for both: what flows on, and the error.
      const at::Tensor summed = sum_over_shards(at::stack({full, linear - full}), model.shard());
      attended = summed[0].detach();
      const at::Tensor error = summed[1].square().mean() / shares;
      error.backward();
      loss += error.item<double>();
    }
    if (l + 1 < model.layer_count()) x_BTD = model.feed_forward(l, x_BTD + attended);
  }
  return x_BTD;
}

StageCost align(MorphableModel& model, StageContext& context) {
  const AlignSection& section = context.config.stages.align;
  const SampleStream data(context.corpus, context.passkeys, section, context.config.run.seed, "align");
  context.observer.started({.stage = "align",
                            .what = std::to_string(model.layer_count()) + " linear branches",
                            .steps = data.steps(),
                            .tokens = data.steps() * section.batch_tokens});
  Pipeline pipeline(context.mesh);
  return train("align", model.branch_parameters(), section, data, context, [&](int64_t step, MicroBatchRange mine) {
    double loss = 0.0;
    pipeline.stream(mine, state_shape(model, data, step),
                    [&](int64_t index, const at::Tensor& x) {
                      return align_micro_batch(model, data.micro_batch(step, index), x, data.micro_batches(step), loss);
                    });
    return loss;
  });
}

}  // namespace flashmorph
