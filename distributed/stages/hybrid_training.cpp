#include "distributed/stages/hybrid_training.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "core/morph/pass.h"
#include "core/ops/vocabulary_loss.h"
#include "distributed/stages/weights.h"

namespace flashmorph {

StageCost distill(const MorphableModel& teacher, const MorphableModel& hybrid, const Routes& routes,
                  const std::string& plan, StageContext& context) {
  const DistillSection& section = context.config.stages.distill;
  TrainedWeights weights(hybrid.all_parameters(), section, context.mesh);
  Training training("distill", plan, section, {{hybrid}, {teacher, "teacher's "}}, weights, context);
  return weights.train(training, [&](const MicroBatches& batches) {
    return distill_step(teacher, hybrid, routes, batches, section, context.mesh);
  });
}

StageCost finetune(const MorphableModel& hybrid, const Routes& routes, const std::string& plan, StageContext& context) {
  const FinetuneSection& section = context.config.stages.finetune;
  TrainedWeights weights(hybrid.all_parameters(), section, context.mesh);
  Training training("finetune", plan, section, {{hybrid}}, weights, context);
  return weights.train(training, [&](const MicroBatches& batches) {
    return finetune_step(hybrid, routes, batches, section, context.mesh);
  });
}

namespace {

// What goes into this rank's layers; `input` is undefined on the first rank.
at::Tensor first_states(const MorphableModel& model, const Batch& batch, const at::Tensor& input) {
  return model.has_embedding() ? model.embed(batch.tokens_BT) : input;
}

at::Tensor without_gradient(const std::function<at::Tensor()>& make) {
  const c10::NoGradGuard no_gradient;
  return make();
}

// The hybrid's states behind this rank's layers.
at::Tensor through_hybrid(const MorphableModel& hybrid, const Batch& batch, const at::Tensor& input,
                          const Routes& routes, const Positions& positions, const ParallelSection& parallel,
                          const std::shared_ptr<Pass>& beside = nullptr) {
  return pass_through(Way::of(hybrid, routes, positions), first_states(hybrid, batch, input), beside,
                      parallel.recompute == "full")
      .states;
}

// Its loss is the mean over a micro-batch's tokens, divided by the step's micro-batches.
using HybridForward = std::function<StageOutput(const Batch& batch, const Positions& positions, const States& states)>;

StepResult hybrid_step(const MorphableModel& hybrid, const MicroBatches& batches, const TrainingSection& section,
                       Mesh& mesh, const HybridForward& forward) {
  const std::vector<at::Tensor> losses = Pipeline(mesh).forward_backward(
      batches.mine, state_shape(hybrid, batches.shape), [&](int64_t index, const States& states) {
        const Batch batch = batches.batch(index);
        return forward(batch, hybrid.positions(0, batch.tokens_BT.size(1), batch.documents), states);
      });
  at::Tensor sum = at::zeros({}, at::TensorOptions(at::kDouble).device(hybrid.placement().device));
  for (const at::Tensor& loss : losses)
    if (loss.defined()) sum += loss.detach();  // where this rank makes one
  return over_mesh(sum, hybrid.all_parameters(), section, mesh);
}

}  // namespace

StepResult distill_step(const MorphableModel& teacher, const MorphableModel& hybrid, const Routes& routes,
                        const MicroBatches& batches, const DistillSection& section, Mesh& mesh) {
  return hybrid_step(
      hybrid, batches, section, mesh,
      [&](const Batch& batch, const Positions& positions, const States& states) -> StageOutput {
        const std::shared_ptr<Pass> targets = teacher_pass(
            teacher, without_gradient([&] { return first_states(teacher, batch, states.teacher()); }), positions);
        const auto pass_teacher_on = [&] {
          targets->finish();
          states.pass_teacher_on(targets->states());
        };
        if (!go_in_turns(hybrid)) pass_teacher_on();
        const at::Tensor student =
            through_hybrid(hybrid, batch, states.mixture(), routes, positions, section.parallel, targets);
        if (go_in_turns(hybrid)) pass_teacher_on();
        if (!hybrid.has_head()) return {student, {}};
        const at::Tensor target = without_gradient([&] { return teacher.final_hidden(targets->states()); });
        const at::Tensor loss = kl_divergence(hybrid.final_hidden(student).flatten(0, 1), hybrid.head(),
                                              target.flatten(0, 1), teacher.head(), hybrid.shard());
        return {{}, loss / static_cast<double>(batch.tokens_BT.numel() * batches.count)};
      });
}

StepResult finetune_step(const MorphableModel& hybrid, const Routes& routes, const MicroBatches& batches,
                         const FinetuneSection& section, Mesh& mesh) {
  return hybrid_step(
      hybrid, batches, section, mesh,
      [&](const Batch& batch, const Positions& positions, const States& states) -> StageOutput {
        const at::Tensor x = through_hybrid(hybrid, batch, states.mixture(), routes, positions, section.parallel);
        if (!hybrid.has_head()) return {x, {}};
        const at::Tensor places = predicting_places(batch);
        const at::Tensor hidden = hybrid.final_hidden(x).flatten(0, 1).index_select(0, places.to(x.device()));
        const at::Tensor targets = batch.tokens_BT.flatten().index_select(0, places + 1);
        const at::Tensor loss = cross_entropy(hidden, hybrid.head(), targets, hybrid.shard());
        return {{}, loss / static_cast<double>(places.numel() * batches.count)};
      });
}

}  // namespace flashmorph
