#include "distributed/stages/align.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "core/data/sample_stream.h"
#include "core/model/attention.h"
#include "distributed/stages/trainer.h"

namespace flashmorph {
namespace {

// Letters: B sequences, T tokens, D hidden.
double align_micro_batch(const MorphableModel& model, const Batch& batch, int64_t micro_batches) {
  const c10::AutoGradMode no_gradient(false);
  const Positions positions = model.positions(0, batch.tokens_BT.size(1), batch.documents);
  const auto layers = static_cast<double>(model.layer_count());
  double loss = 0.0;

  at::Tensor x_BTD = model.embed(batch.tokens_BT);
  for (int64_t l = 0; l < model.layer_count(); ++l) {
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
      const at::Tensor error = summed[1].square().mean() / layers;
      (error / static_cast<double>(micro_batches)).backward();
      loss += error.item<double>();
    }
    x_BTD = model.feed_forward(l, x_BTD + attended);
  }
  return loss;
}

}  // namespace

StageCost align(MorphableModel& model, StageContext& context) {
  const AlignSection& section = context.config.stages.align;
  const SampleStream data(context.corpus, context.passkeys, section, context.config.run.seed, "align");
  context.observer.started({.stage = "align",
                            .what = std::to_string(model.layer_count()) + " linear branches",
                            .steps = data.steps(),
                            .tokens = data.steps() * section.batch_tokens});
  return train("align", model.branch_parameters(), section, data, context,
               [&](const Batch& batch, int64_t micro_batches) { return align_micro_batch(model, batch, micro_batches); });
}

}  // namespace flashmorph
