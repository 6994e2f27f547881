#include "distributed/stages/hybrid_training.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <functional>

#include "core/data/sample_stream.h"
#include "core/ops/vocabulary_loss.h"
#include "distributed/stages/trainer.h"

namespace flashmorph {
namespace {

// The mean over a micro-batch's tokens, as this micro-batch's share of the step's mean.
at::Tensor share_of_step(const at::Tensor& sum_over_tokens, int64_t tokens, int64_t micro_batches) {
  return sum_over_tokens / static_cast<double>(tokens * micro_batches);
}

// The hybrid's states behind this rank's layers; `input` is undefined on the first rank.
at::Tensor through_hybrid(const MorphableModel& hybrid, const Batch& batch, const at::Tensor& input,
                          const Routes& routes, const Positions& positions, const ParallelSection& parallel) {
  const at::Tensor x = hybrid.has_embedding() ? hybrid.embed(batch.tokens_BT) : input;
  return parallel.recompute == "full" ? hybrid.through_layers_recomputed(x, routes, positions)
                                      : hybrid.through_layers(x, routes, positions);
}

// One micro-batch through this rank's layers, towards the loss that the last rank makes.
using HybridForward = std::function<StageOutput(const Batch& batch, const States& input, int64_t micro_batches)>;

struct Training {
  const char* stage;
  const TrainingSection& section;
  std::vector<ForwardPass> passes;  // the hybrid, and the teacher when its states travel beside

  bool with_teacher() const { return passes.size() > 1; }
};

StageCost train_hybrid(const Training& training, const MorphableModel& hybrid, const std::string& plan,
                       StageContext& context, const HybridForward& forward) {
  const SampleStream data = start_stage(training.stage, plan, training.section, context);
  SamplesAhead samples = samples_ahead(data, hybrid, context.mesh);
  Pipeline pipeline(context.mesh);
  return train(training.stage, hybrid.all_parameters(), training.passes, training.section, data, context,
               [&](int64_t step, MicroBatchRange mine) {
                 const StateShape shape = state_shape(hybrid, data.micro_batch_shape(step));
                 double sum = 0.0;
                 for (const at::Tensor& loss : pipeline.forward_backward(
                          mine, shape, training.with_teacher(), [&](int64_t index, const States&input) {
                            return forward(samples.micro_batch(step, index), input, data.micro_batches(step));
                          }))
                   if (loss.defined()) sum += loss.item<double>();
                 return sum;
               });
}

}  // namespace

StageOutput distill_micro_batch(const MorphableModel& teacher, const MorphableModel& hybrid, const Routes& routes,
                                const Batch& batch, const States& input, int64_t micro_batches,
                                const ParallelSection& parallel) {
  const Routes all_full(teacher.layer_count(), Route::full());
  const Positions positions = hybrid.positions(0, batch.tokens_BT.size(1), batch.documents);
  const at::Tensor student = through_hybrid(hybrid, batch, input.mixture, routes, positions, parallel);
  at::Tensor target;
  {
    const c10::NoGradGuard no_gradient;
    target = teacher.through_layers(teacher.has_embedding() ? teacher.embed(batch.tokens_BT) : input.teacher, all_full,
                                    positions);
    if (teacher.has_head()) target = teacher.final_hidden(target).flatten(0, 1);
  }
  if (!hybrid.has_head()) return {{student, target}, {}};
  const at::Tensor loss =
      kl_divergence(hybrid.final_hidden(student).flatten(0, 1), hybrid.head(), target, teacher.head(), hybrid.shard());
  return {{}, share_of_step(loss, batch.tokens_BT.numel(), micro_batches)};
}

StageOutput finetune_micro_batch(const MorphableModel& hybrid, const Routes& routes, const Batch& batch,
                                 const States& input, int64_t micro_batches, const ParallelSection& parallel) {
  const Positions positions = hybrid.positions(0, batch.tokens_BT.size(1), batch.documents);
  const at::Tensor x = through_hybrid(hybrid, batch, input.mixture, routes, positions, parallel);
  if (!hybrid.has_head()) return {{x, {}}, {}};
  const at::Tensor places = predicting_places(batch);
  const at::Tensor hidden = hybrid.final_hidden(x).flatten(0, 1).index_select(0, places.to(x.device()));
  const at::Tensor targets = batch.tokens_BT.flatten().index_select(0, places + 1);
  const at::Tensor loss = cross_entropy(hidden, hybrid.head(), targets, hybrid.shard());
  return {{}, share_of_step(loss, places.numel(), micro_batches)};
}

StageCost distill(const MorphableModel& teacher, const MorphableModel& hybrid, const Routes& routes,
                  const std::string& plan, StageContext& context) {
  const DistillSection& section = context.config.stages.distill;
  const Routes all_full(teacher.layer_count(), Route::full());
  return train_hybrid({.stage = "distill",
                       .section = section,
                       .passes = {{hybrid, routes, "", false, true}, {teacher, all_full, "teacher's ", false, true}}},
                      hybrid, plan, context, [&](const Batch& batch, const States& input, int64_t micro_batches) {
                        return distill_micro_batch(teacher, hybrid, routes, batch, input, micro_batches,
                                                   section.parallel);
                      });
}

StageCost finetune(const MorphableModel& hybrid, const Routes& routes, const std::string& plan, StageContext& context) {
  const FinetuneSection& section = context.config.stages.finetune;
  return train_hybrid({.stage = "finetune", .section = section, .passes = {{hybrid, routes, "", false, true}}}, hybrid,
                      plan, context, [&](const Batch& batch, const States& input, int64_t micro_batches) {
                        return finetune_micro_batch(hybrid, routes, batch, input, micro_batches, section.parallel);
                      });
}

}  // namespace flashmorph
