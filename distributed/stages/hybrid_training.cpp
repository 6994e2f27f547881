#include "distributed/stages/hybrid_training.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "core/data/sample_stream.h"
#include "core/ops/vocabulary_loss.h"
#include "distributed/stages/trainer.h"

namespace flashmorph {
namespace {

double backward_mean(const at::Tensor& sum_over_tokens, int64_t tokens, int64_t micro_batches) {
  const at::Tensor mean = sum_over_tokens / static_cast<double>(tokens);
  (mean / static_cast<double>(micro_batches)).backward();
  return mean.item<double>();
}

StageCost train_hybrid(const std::string& stage, const TrainingSection& section, const MorphableModel& hybrid,
                       const std::string& plan, StageContext& context, const MicroBatchLoss& loss_of) {
  const SampleStream data(context.corpus, context.passkeys, section, context.config.run.seed, stage);
  context.observer.started(
      {.stage = stage, .what = plan, .steps = data.steps(), .tokens = data.steps() * section.batch_tokens});
  return train(stage, hybrid.all_parameters(), section, data, context, loss_of);
}

}  // namespace

StageCost distill(const MorphableModel& teacher, const MorphableModel& hybrid, const Routes& routes,
                  const std::string& plan, StageContext& context) {
  const Routes all_full(teacher.layer_count(), Route::full());
  return train_hybrid("distill", context.config.stages.distill, hybrid, plan, context,
                      [&](const Batch& batch, int64_t micro_batches) {
                        const Positions positions = hybrid.positions(0, batch.tokens_BT.size(1), batch.documents);
                        const at::Tensor student = hybrid.forward(batch.tokens_BT, routes, positions).flatten(0, 1);
                        at::Tensor target;
                        {
                          const c10::NoGradGuard no_gradient;
                          target = teacher.forward(batch.tokens_BT, all_full, positions).flatten(0, 1);
                        }
                        const at::Tensor loss =
                            kl_divergence(student, hybrid.head(), target, teacher.head(), hybrid.shard());
                        return backward_mean(loss, student.size(0), micro_batches);
                      });
}

StageCost finetune(const MorphableModel& hybrid, const Routes& routes, const std::string& plan, StageContext& context) {
  return train_hybrid("finetune", context.config.stages.finetune, hybrid, plan, context,
                      [&](const Batch& batch, int64_t micro_batches) {
                        const at::Tensor places = predicting_places(batch);
                        const Positions positions = hybrid.positions(0, batch.tokens_BT.size(1), batch.documents);
                        const at::Tensor hidden =
                            hybrid.forward(batch.tokens_BT, routes, positions).flatten(0, 1).index_select(0, places);
                        const at::Tensor targets = batch.tokens_BT.flatten().index_select(0, places + 1);
                        const at::Tensor loss = cross_entropy(hidden, hybrid.head(), targets, hybrid.shard());
                        return backward_mean(loss, hidden.size(0), micro_batches);
                      });
}

}  // namespace flashmorph
